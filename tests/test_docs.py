"""The pages of docs/ are true: links resolve, code runs and prints what is shown, names exist."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_efficient.cli.config_files import shipped
from lightning_efficient.cli.main import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block, with the output that the page shows for it."""

    page: Path
    line: int
    language: str
    code: str
    shown: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(DOCS)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in _blocks(page) if block.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for fence, following in zip_longest(found, found[1:]):
        adjoins = following is not None and following[1] == "text" and not text[fence.end() : following.start()].strip()
        yield Block(page, text[: fence.start()].count("\n") + 2, fence[1], fence[2], following[2] if adjoins else None)


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def _resolve(name: str) -> Any:
    """Import ``package.module.Class``, whatever part of it is the module."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
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
    assert sorted(leaves(nav)) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_the_site_asks_nothing_of_the_network_and_pictures_are_small() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert "extra_javascript" not in config
    assert max(picture.stat().st_size for picture in (DOCS / "images").glob("*.png")) < 150_000


def test_pages_hold_no_path_of_a_machine() -> None:
    texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    assert [name for name, text in texts.items() if re.search(r"/(work|tmp|home|root|Users)/", text)] == []


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_compiles_and_its_imports_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Import):
            assert all(_resolve(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert all(_resolve(f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("block", [block for block in blocks("python") if block.shown is not None], ids=str)
def test_python_prints_what_the_page_shows(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip() == str(block.shown).strip()


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_part_of_a_config(block: Block) -> None:
    assert set(yaml.safe_load(block.code)) <= {"model", "data", "trainer", "seed_everything"}


@pytest.mark.parametrize("block", blocks("bash", "console"), ids=str)
def test_configs_that_commands_name_are_shipped(block: Block) -> None:
    correct = re.sub(r"^\$ .*\nerror: .*$", "", block.code, flags=re.MULTILINE)
    names = re.findall(r"--config[ =](\S+)|configs (?:cat|cp) (\S+)", correct)
    own = {"tiny/hello"}  # of the plugin that the page on plugins builds
    assert {name for pair in names for name in pair if name and not name.endswith(".yaml")} <= {*shipped(), *own}


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
    assert main(command.split()) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == shown


def test_the_reference_names_what_exists() -> None:
    names = re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 40
    assert all(_resolve(name).__doc__ for name in names)
