"""Which way imports point, read from the sources."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import lightning_efficient

PACKAGE = Path(lightning_efficient.__file__).parent
NAME = PACKAGE.name
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = (
    {"functional"},
    {"losses", "metrics", "nn"},
    {"inference", "reporting", "profiling"},
    {"modules", "callbacks", "datamodules"},
    {"cli"},
)
LEVEL = {folder: level for level, folders in enumerate(LEVELS) for folder in folders}
WITHOUT_LIGHTNING = {"functional", "nn", "losses", "metrics", "profiling"}
MEET_IN_CONTRACTS = {"modules", "callbacks", "datamodules"}
"""Folders of one level that do not import each other."""

LATE = {"wandb", "matplotlib", "tensorboard", "onnx", "onnxruntime", "onnxscript", "torchao", "torch_pruning", "zeus"}
LATE |= {"optuna", "litserve", "fastapi", "httpx", "datasets"}
"""Packages that are optional or slow to import: inside the function that needs them."""

ALREADY_THERE = ("metrics", "matplotlib")
"""torchmetrics loads it, so in that folder it costs nothing more."""


@dataclass(frozen=True)
class Import:
    """One import of a source file."""

    file: Path
    line: int
    module: str
    names: tuple[str, ...]
    at_once: bool
    """Whether it runs when the file is imported."""

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE)}:{self.line} imports {self.module}"

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    @property
    def folder(self) -> str | None:
        """The folder of ours that is imported, if it is one."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == NAME and len(parts) > 1 and parts[1] in LEVEL else None

    @property
    def home(self) -> str | None:
        """The folder of the importing file, if it is in one."""
        return relative[0] if (relative := self.file.relative_to(PACKAGE).parts)[1:] else None


def imports(file: Path) -> Iterator[Import]:
    def walk(node: ast.AST, at_once: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, child.lineno, alias.name, (), at_once)
            elif isinstance(child, ast.ImportFrom):
                names = tuple(alias.name for alias in child.names)
                if child.module == NAME:  # from lightning_efficient import plugins
                    for name in names:
                        yield Import(file, child.lineno, f"{NAME}.{name}", (), at_once)
                else:
                    yield Import(file, child.lineno, child.module or "", names, at_once)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, at_once and not inside)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), True)


ALL = [each for file in FILES for each in imports(file)]


def test_the_sources_were_found() -> None:
    assert len(FILES) > 40
    assert len(ALL) > 200
    assert {each.home for each in ALL} >= {"functional", "metrics", "profiling", "modules", "callbacks", "cli"}


def test_every_folder_has_its_level() -> None:
    folders = {file.parent.name for file in FILES if file.name == "__init__.py" and file.parent.parent == PACKAGE}
    assert folders <= set(LEVEL)


def test_no_folder_imports_one_above_it() -> None:
    upwards = [
        str(each) for each in ALL if each.home in LEVEL and each.folder and LEVEL[each.folder] > LEVEL[each.home]
    ]
    assert upwards == []


def test_nothing_but_the_command_line_imports_it() -> None:
    assert [str(each) for each in ALL if each.folder == "cli" and each.home != "cli"] == []


def test_modules_callbacks_and_data_do_not_import_each_other() -> None:
    crossed = [
        str(each)
        for each in ALL
        if each.home in MEET_IN_CONTRACTS and each.folder in MEET_IN_CONTRACTS and each.home != each.folder
    ]
    assert crossed == []


def test_mathematics_and_measuring_do_not_know_lightning() -> None:
    knows = [
        str(each)
        for each in ALL
        if each.home in WITHOUT_LIGHTNING
        and (each.package in {"lightning", "pytorch_lightning"} or each.module == f"{NAME}._lightning_compat")
    ]
    assert knows == []


def test_slow_and_optional_packages_are_imported_where_they_are_used() -> None:
    too_soon = [
        str(each)
        for each in ALL
        if each.at_once and each.package in LATE and (each.home, each.package) != ALREADY_THERE
    ]
    assert too_soon == []


def test_private_names_of_lightning_are_touched_in_one_file() -> None:
    private = [
        str(each)
        for each in ALL
        if each.package in {"lightning", "jsonargparse"}
        and any(part.startswith("_") for part in (*each.module.split("."), *each.names))
        and each.file.name != "_lightning_compat.py"
    ]
    assert private == []


PUBLIC = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py") if "__all__" in file.read_text())


@pytest.mark.parametrize("folder", PUBLIC)
def test_every_public_name_says_what_it_is(folder: str) -> None:
    module = importlib.import_module(f"{NAME}.{folder}")
    assert module.__doc__
    for name in module.__all__:
        public = getattr(module, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            inherited = {base.__doc__ for base in inspect.getmro(public)[1:]} if inspect.isclass(public) else set()
            assert public.__doc__, f"{folder}.{name} has no docstring"
            assert public.__doc__ not in inherited, f"{folder}.{name} has the docstring of its base"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_file_is_small_and_says_what_it_is(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    assert not text.strip() or ast.get_docstring(ast.parse(text)) or text.startswith("__version__")
