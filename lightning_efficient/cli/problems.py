"""Turn a parser's page of possibilities into the one line that a user needs."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence

from lightning_efficient.errors import ConfigurationError, did_you_mean

LONGEST = 400
_RETURNED = ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler")


def explain(error: BaseException, options: Sequence[str] = ()) -> str:
    """Say in one line what was given, what is allowed, and what was probably meant.

    Args:
        error: What jsonargparse, Lightning or this package raised.
        options: Names of the options that exist, such as ``trainer.max_epochs``, for suggestions.

    Example:
        >>> explain(ValueError("unrecognized arguments: --trainer.max_epoch 3"), ["trainer.max_epochs"])
        "unknown option --trainer.max_epoch. Did you mean '--trainer.max_epochs'?"
    """
    for cause in _chain(error):
        if isinstance(cause, ConfigurationError):
            return _short(str(cause))
    text = str(error)
    for reader in (_unknown_option, _missing, _unaccepted, _unknown_class, _unknown_attribute, _wrong_value, _bad_yaml):
        if line := reader(text, options):
            return _short(line)
    return _short(_first_reason(text) or type(error).__name__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unknown_option(text: str, options: Sequence[str]) -> str | None:
    if found := re.match(r"unrecognized arguments: (\S+)", text):
        given = found[1].partition("=")[0]
        return f"unknown option {given}.{did_you_mean(given, [f'--{name}' for name in options])}"
    if found := re.match(r"Subcommand '\w+' does not accept option '([^']+)'", text):
        return f"unknown key {found[1]!r} in a config.{did_you_mean(found[1], options)}"
    return None


def _missing(text: str, options: Sequence[str]) -> str | None:
    if found := re.match(r"the following arguments are required: (.+)", text):
        names = [name.strip().partition(".")[2] or name.strip() for name in found[1].split(",")]
        return f"missing {' and '.join(names)}: give --config NAME (see lightning-efficient configs ls), or --{names[0]}"
    if found := re.search(r"Key \"?'?([\w.]+)'?\"? is required", text):
        return f"{_key(text, found.start(), found[1])} is required and was not given"
    return None


def _unaccepted(text: str, options: Sequence[str]) -> str | None:
    found = re.search(r"Option '([^']+)' is not accepted", text)
    if not found:
        return None
    before = re.findall(r"Problem with given class_path '([^']+)'", text[: found.start()])
    after = re.match(r"[^\n]*class_path='([^']+)'", text[found.end() :])
    class_path = after[1] if after else before[-1] if before else ""
    name = class_path.rpartition(".")[2]
    key = _key(text, found.start(), found[1])
    return f"{key}: {name} has no option {found[1]!r}.{did_you_mean(found[1], _parameters(class_path))}"


def _unknown_class(text: str, options: Sequence[str]) -> str | None:
    found = re.search(r"Expected a dot import path string: (\S+)", text)
    if not found:
        return None
    bases = re.findall(r"<class '([\w.]+)'>|\[([\w.]+)\]", text[: found.start()])
    # what a callable returns is not in the message; those of our modules return an optimiser or a scheduler
    paths = [*(path for pair in bases for path in pair if "." in path), *_RETURNED]
    classes = {name for path in paths for name in _subclass_names(path)}
    key = _key(text, found.start())
    hint = did_you_mean(found[1], classes) or " Give the name of a class of this package, or its full import path."
    return f"{key}: unknown class {found[1]!r}.{hint}"


def _unknown_attribute(text: str, options: Sequence[str]) -> str | None:
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        hint = did_you_mean(found[2], dir(importlib.import_module(found[1])))
        return f"{_key(text, found.start())}: {found[1]} has no class {found[2]!r}.{hint}"
    if found := re.search(r"No module named '([\w.]+)'", text):
        return f"{_key(text, found.start())}: there is no module {found[1]!r}"
    return None


def _wrong_value(text: str, options: Sequence[str]) -> str | None:
    if found := re.search(r"Expected a typing\.Literal\[([^\]]*)\](?:. Got value: (.*))?", text):
        given = found[2] or _given(text, found.end())
        choices = re.findall(r"'([^']*)'", found[1])
        return f"{_key(text, found.start())} is {given!r}; it must be one of {found[1]}.{did_you_mean(given, choices)}"
    if "Not a valid subclass of" in text and (found := re.search(r"Not a valid subclass of (\w+)", text)):
        return f"{_key(text, found.start())} is {_given(text, 0)!r}; it must be a {found[1]}: a class name, or class_path and init_args"
    expected = list(re.finditer(r"Expected an? (?:<class '([\w.]+)'>|([\w.\[\], |]+))", text))
    if not expected:
        return None
    got = re.search(r"Got value: (.*)", text)
    given = got[1] if got else _given(text, expected[0].end())
    inner = [one for one in expected if one[1] != "NoneType"] or expected
    kinds = dict.fromkeys("null" if (one[1] or one[2]) == "NoneType" else (one[1] or one[2]).strip() for one in inner)
    if any(one[1] == "NoneType" for one in expected) and not got:
        kinds["null"] = None
    return f"{_key(text, expected[0].start())} is {given!r}; it must be {' or '.join(kinds)}"


def _bad_yaml(text: str, options: Sequence[str]) -> str | None:
    if text.startswith("Problems parsing config"):
        return f"a config is no valid YAML: {text.partition(':')[2]}"
    if text.startswith("Unexpected config"):
        return "a config must be a mapping of option names to values"
    return None


def _first_reason(text: str) -> str:
    noise = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>", "Parser key")
    reasons = [line.strip(" -") for line in text.splitlines() if not line.strip(" -").startswith(noise)]
    key = _key(text, len(text)) if "Parser key" in text else ""
    reason = next((line for line in reasons if line), "")
    return f"{key}: {reason}" if key and reason else reason


def _key(text: str, end: int, last: str | None = None) -> str:
    keys = re.findall(r'Parser key "([^"]+)"', text[:end])
    return ".".join([*keys, *([last] if last else [])]) or "the value"


def _given(text: str, start: int) -> str:
    found = re.search(r"Given value: (.*)", text[start:])
    value = found[1].strip() if found else "?"
    nested = re.match(r"NestedArg\(key='[^']*', val='(.*)'\)", value)
    return nested[1] if nested else value


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    classes = [base for base in inspect.getmro(cls) if base is not object] if inspect.isclass(cls) else [cls]
    return list(dict.fromkeys(name for one in classes for name in inspect.signature(one).parameters))


def _subclass_names(class_path: str) -> Iterable[str]:
    module, _, name = class_path.rpartition(".")
    base = getattr(importlib.import_module(module), name, None)
    seen = [base] if inspect.isclass(base) else []
    for cls in seen:
        seen += [child for child in cls.__subclasses__() if child not in seen]
    return [cls.__name__ for cls in seen if not cls.__name__.startswith("_")]


def _short(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
