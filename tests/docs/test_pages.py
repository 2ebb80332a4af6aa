"""The pages are true: links resolve, names exist, mistakes give the line that is shown."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_blocks import DOCS, FENCE, PAGES, ROOT, blocks, name_of, resolve

from lightning_efficient.cli.config_files import shipped
from lightning_efficient.cli.main import main

SITE = [page for page in PAGES if page.is_relative_to(DOCS)]


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_images_of_a_page_resolve(page: Path) -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page))]
    files = [target for target in targets if target and not re.match(r"https?:", target)]
    assert [target for target in files if not (page.parent / target).is_file()] == []


def test_the_navigation_names_every_page_once() -> None:
    def leaves(tree: Any) -> Iterator[str]:
        for entry in tree:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else leaves(value)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    notebooks = [each.relative_to(DOCS).with_suffix(".md") for each in DOCS.rglob("*.ipynb")]
    pages = [page.relative_to(DOCS) for page in SITE]
    assert sorted(leaves(nav)) == sorted(each.as_posix() for each in [*pages, *notebooks])


def test_the_site_asks_nothing_of_the_network_and_pictures_are_small() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert "extra_javascript" not in config
    assert max(picture.stat().st_size for picture in (DOCS / "images").glob("*.png")) < 150_000


def test_pages_hold_no_path_of_a_machine() -> None:
    texts = {name_of(page): page.read_text(encoding="utf-8") for page in PAGES}
    assert [name for name, text in texts.items() if re.search(r"/(work|tmp|home|root|Users)/", text)] == []


def test_every_shipped_config_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in shipped() if f"--config {name}" not in text] == []


def _mistakes() -> list[tuple[str, str]]:
    code = "".join(block.code for block in blocks("console"))
    return sorted(set(re.findall(r"^\$ lightning-efficient (.*)\n(error: .*)$", code, re.MULTILINE)))


@pytest.mark.parametrize(("command", "shown"), _mistakes())
def test_a_mistake_gives_the_line_that_the_page_shows(
    command: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-efficient"])
    for run in re.findall(r"runs/\S+/version_\d", shown):  # what the line says that there is
        Path(run).mkdir(parents=True)
        (Path(run) / "metrics.csv").write_text("epoch,step,val/loss\n0,1,0.5\n")
    assert main(command.split()) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == shown


def _public() -> Iterator[tuple[str, Any]]:
    """Yield every public name of the package and of its folders, with what it is."""
    folders = sorted({path.parent for path in (ROOT / "lightning_efficient").rglob("__init__.py")})
    for folder in folders:
        module = importlib.import_module(".".join(folder.relative_to(ROOT).parts))
        for name in getattr(module, "__all__", ()):
            yield f"{module.__name__}.{name}", getattr(module, name)


def test_the_reference_has_every_public_name_once_and_no_other() -> None:
    names = re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) == len(set(names)) > 300
    described = {id(resolve(name)) for name in names}
    missing = [name for name, found in _public() if id(found) not in described and name not in names]
    assert missing == ["lightning_efficient.__version__"]
