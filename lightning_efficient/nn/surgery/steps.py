"""The steps of a surgery: plain dicts, which a recipe keeps as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.nn.surgery.makers import MAKERS, Maker, encoded, path_of

Step: TypeAlias = dict[str, Any]
"""One step: ``op``, and what that operation takes; see :data:`NEEDED`."""

NEEDED: dict[str, tuple[str, ...]] = {
    "replace": ("name", "make"),
    "merge": ("names", "make"),
    "append": ("name", "make"),
    "delete": ("names",),
    "thin_densenet": ("keep",),
}
"""Operations, and the keys that a step of each must have."""

_LAYERS = ("torch.nn.modules.activation:", "timm.layers.activations:", "timm.layers.activations_me:")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(fits(each) for each in value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "op": (_is_name, "a name"),
    "name": (_is_name, "the name of a module"),
    "names": (lambda value: _is_list(value, _is_name), "a list of names of modules"),
    "make": (lambda value: _is_name(value) or callable(value), "a name or a function of (name, block)"),
    "options": (lambda value: value is None or isinstance(value, Mapping), "a mapping"),
    "old": (lambda value: _is_name(value) or _is_list(value, _is_name), "the name of a type, or a list of these"),
    "params": (_is_integer, "an integer"),
    "child": (lambda value: _is_name(value) and value != "" and "." not in value, "a name without dots"),
    "keep": (lambda value: _is_list(value, _is_integer), "a list of integers"),
    "transplant": (
        lambda value: value is None or value == "auto" or callable(value) or (_is_name(value) and ":" in value),
        "'auto', None, a function or 'module:function'",
    ),
}
"""What the value of each key of a step may be."""

FURTHER = ("options", "old", "params", "transplant", "child")
"""Keys that a step may have."""


def replace_step(name: str, make: str | Maker, transplant: Any = None, **options: Any) -> Step:
    """Return the step that puts a new module in the place of one block."""
    step: Step = {"op": "replace", "name": name, **_made(make, options)}
    return step if transplant is None else {**step, "transplant": transplant}


def merge_step(names: Sequence[str], make: str | Maker, **options: Any) -> Step:
    """Return the step that puts one module in the place of several blocks in a row."""
    return {"op": "merge", "names": list(names), **_made(make, options)}


def append_step(name: str, make: str | Maker, **options: Any) -> Step:
    """Return the step that adds a last child to a ``Sequential``; its maker gets the block before."""
    return {"op": "append", "name": name, **_made(make, options)}


def delete_step(names: Iterable[str]) -> Step:
    """Return the step that takes blocks away."""
    return {"op": "delete", "names": list(names)}


def check_steps(steps: Any, option: str = "steps") -> None:
    """Raise unless these are steps.

    Raises:
        ConfigurationError: names the first step that is none, and why.
    """
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise ConfigurationError(f"{option} must be a list of steps, not {type(steps).__name__}")
    for index, step in enumerate(steps):
        here = f"{option}[{index}]"
        if not isinstance(step, Mapping):
            raise ConfigurationError(f"{here} must be a mapping with an 'op', not {type(step).__name__}")
        operation = step.get("op")
        if not isinstance(operation, str) or operation not in NEEDED:
            raise ConfigurationError(
                f"{here}: op={operation!r} is not one of {list(NEEDED)}.{did_you_mean(str(operation), NEEDED)}"
            )
        allowed = ("op", *NEEDED[operation], *FURTHER)
        if missing := [key for key in NEEDED[operation] if key not in step]:
            raise ConfigurationError(f"{here}: {operation} needs {missing[0]!r}")
        if unknown := [key for key in step if key not in allowed]:
            raise ConfigurationError(
                f"{here}: {operation} has no key {unknown[0]!r}.{did_you_mean(str(unknown[0]), allowed)}"
            )
        for key, value in step.items():
            fits, what = _KINDS[key]
            if not fits(value):
                raise ConfigurationError(f"{here}: {key}={value!r} must be {what}")
        if not step.get("names", ["-"]):
            raise ConfigurationError(f"{here}: {operation} has no names")


def written(step: Step) -> Step:
    """Return a step as a recipe keeps it; what cannot be written down is marked, so that a model still pickles."""
    kept: Step = {}
    for key, value in step.items():
        if key in ("make", "transplant") and callable(value):
            kept[key] = path_of(value) or {"unnamed": repr(value)}
            continue
        try:
            kept[key] = encoded(value)
        except ConfigurationError:
            kept[key] = {"unnamed": repr(value)}
    return kept


def check_written(steps: Iterable[Step]) -> None:
    """Raise where a step cannot be carried out again.

    Raises:
        ConfigurationError: a maker without an import path.
    """
    for step in steps:
        for key, value in step.items():
            if isinstance(value, Mapping) and "unnamed" in value:
                raise ConfigurationError(
                    f"no recipe: {key}={value['unnamed']} of {step.get('name', step.get('names'))} has no import path; "
                    "use a function of a module in place of a lambda, a local function or an object"
                )


def check_harmless(steps: Any) -> None:
    """Raise where steps would call or import anything but makers of ours, and layers of torch and timm.

    Raises:
        ConfigurationError: names the first step that does.
    """
    check_steps(steps, "recipe.steps")
    for index, step in enumerate(steps):
        names = [step[key] for key in ("make", "transplant") if key in step]
        foreign = [name for name in names if name not in (*MAKERS, "auto", None)]
        foreign += [path for path in _imports(step.get("options")) if not path.startswith(_LAYERS)]
        if foreign:
            raise ConfigurationError(
                f"recipe.steps[{index}] names {foreign[0]!r}, which is code of its own; if you trust where it comes "
                "from, carry it out with surgery.apply(network, recipe) before you load the weights"
            )


def _imports(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if list(value) == ["import"]:
            yield str(value["import"])
        for each in value.values():
            yield from _imports(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _imports(each)


def parameter_count(*modules: nn.Module) -> int:
    """Return how many parameters modules have together, each counted once."""
    return sum(each.numel() for each in {id(each): each for module in modules for each in module.parameters()}.values())


def _made(make: str | Maker, options: dict[str, Any]) -> Step:
    if isinstance(make, partial) and not make.args:
        return _made(make.func, {**make.keywords, **options})
    return {"make": make, "options": options}
