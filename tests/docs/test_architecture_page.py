"""The page on architecture and its picture say what the sources are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from doc_blocks import DOCS, ROOT, blocks_of

import lightning_efficient

PAGE = DOCS / "architecture.md"
PACKAGE = ROOT / "lightning_efficient"


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), *sys.path])
        import draw_architecture

        return draw_architecture


def layout() -> str:
    return next(block.code for block in blocks_of(PAGE) if block.code.startswith("pyproject.toml"))


def listed(code: str) -> set[str]:
    """Return the files and top folders that the layout names inside the package."""
    inside = code.partition("lightning_efficient/\n")[2].partition("\ntests/")[0]
    names = re.findall(r"^  (\S+\.py|\w+/)(?: (\S+\.py))?", inside, re.MULTILINE)
    return {name for pair in names for name in pair if name and name.count("/") <= 1}


def test_every_folder_and_root_file_of_the_package_is_on_the_page_and_no_other() -> None:
    files = {path.name for path in PACKAGE.glob("*.py")}
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert listed(layout()) == files | folders


def test_a_folder_that_does_not_exist_would_be_found() -> None:
    assert "attic/" in listed(layout().replace("  functional/ ", "  attic/\n  functional/ "))


def test_the_layout_names_every_folder_of_configs() -> None:
    inside = layout().partition("configs/")[2].partition("\nlightning_efficient/")[0]
    assert set(re.findall(r"(\w+)/", inside)) == {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}


def test_the_picture_has_every_folder_and_no_arrow_upwards(draw: ModuleType) -> None:
    level = {folder: place for place, row in enumerate(draw.LEVELS) for folder in row}
    assert sorted(level) == draw.folders()
    found = draw.arrows()
    assert found["metrics", "functional"] > 5
    assert [pair for pair in found if level[pair[0]] > level[pair[1]]] == []


def test_the_line_of_arrows_has_the_levels_of_the_picture(draw: ModuleType) -> None:
    line = next(block.code for block in blocks_of(PAGE) if "→" in block.code)
    levels = [set(part.strip().split(", ")) for part in line.split("→")]
    assert levels == [*(set(row) for row in draw.LEVELS), {"torch"}]


def test_an_import_for_type_checkers_is_no_arrow(
    draw: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lightning_efficient"
    for folder in ("functional", "nn"):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").touch()
    (package / "nn" / "layer.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lightning_efficient.functional import a\n"
        "def f():\n    from lightning_efficient.functional.b import c\n"
    )
    monkeypatch.setattr(draw, "PACKAGE", package)
    assert draw.arrows() == {("nn", "functional"): 1}


def test_the_table_of_names_has_every_public_name() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Names")[2].partition("\n\nOptions")[0]
    assert {*lightning_efficient.__all__} - {"__version__"} <= set(re.findall(r"`(\w+)`", table))


def test_a_file_of_callbacks_has_one_callback() -> None:
    files = {path.stem for path in (PACKAGE / "callbacks").glob("[a-z]*.py")}
    names = PAGE.read_text(encoding="utf-8").partition("| callbacks | ")[2].partition("\n")[0]
    assert len(files) == len(re.findall(r"`(\w+)`", names))
