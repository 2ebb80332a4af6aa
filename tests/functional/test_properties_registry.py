"""Every public function of the mathematics is called by a test whose inputs hypothesis draws."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lightning_efficient.functional

FOLDER = Path(lightning_efficient.functional.__file__).parent
TESTS = Path(__file__).parents[1]

WITHOUT_DRAWN_INPUTS = {
    "check_class_indices": "a check, without a value",
    "check_delta": "a check, without a value",
    "check_exploration": "a check, without a value",
    "check_help": "a check, without a value",
    "check_max_cost": "a check, without a value",
    "check_max_drop": "a check, without a value",
    "check_oracle": "a check, without a value",
    "check_outcomes": "a check, without a value",
    "check_payoff": "a check, without a value",
    "check_same_classes": "a check, without a value",
    "is_small_inference": "says which of two equal implementations runs; drawn through advection_diffusion",
    "is_transformed": "says which of two equal implementations runs; drawn through advection_diffusion",
    "not_a_number": "a constant with a warning, of an empty summary",
    "too_few_for_drop": "the text of an error",
}


def public_functions() -> set[str]:
    files = [file for file in FOLDER.glob("*.py") if not file.name.startswith("_")]
    nodes = [node for file in files for node in ast.parse(file.read_text()).body]
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


def names_in(node: ast.AST) -> set[str]:
    found = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return found | {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}


def is_drawn(function: ast.FunctionDef) -> bool:
    """Whether it has ``@given(...)``."""
    called = [each.func for each in function.decorator_list if isinstance(each, ast.Call)]
    return any(isinstance(each, ast.Name) and each.id == "given" for each in called)


def names_of_drawn_tests(source: str) -> Iterator[str]:
    """Yield the names that a file's drawn tests mention, themselves or through helpers and tables of the file."""
    body = ast.parse(source).body
    definitions: dict[str, ast.AST] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            definitions |= {each.id: node.value for each in targets if isinstance(each, ast.Name)}
    seen: set[str] = set()
    todo = {name for node in body if isinstance(node, ast.FunctionDef) and is_drawn(node) for name in names_in(node)}
    while todo:
        name = todo.pop()
        seen.add(name)
        if name in definitions:
            todo |= names_in(definitions[name]) - seen
    yield from seen


def test_every_public_function_is_called_with_drawn_inputs() -> None:
    sources = [file.read_text() for file in TESTS.rglob("test_*.py")]
    called = {name for source in sources if "@given" in source for name in names_of_drawn_tests(source)}
    functions = public_functions()
    assert len(functions) > 100
    assert sorted(functions - called - set(WITHOUT_DRAWN_INPUTS)) == []
    assert sorted(set(WITHOUT_DRAWN_INPUTS) - functions) == [], "an exception for what is no longer there"
    assert sorted(set(WITHOUT_DRAWN_INPUTS) & called) == [], "an exception that is no longer one"


def test_only_what_a_drawn_test_reaches_is_counted() -> None:
    source = (
        "TABLE = {'a': lambda x: inner(x)}\n"
        "def helper(x): return outer(x)\n"
        "@given(x=1)\ndef test_one(x): helper(TABLE)\n"
        "def test_two(): unseen()\n"
    )
    names = set(names_of_drawn_tests(source))
    assert {"inner", "outer", "helper"} <= names
    assert "unseen" not in names
