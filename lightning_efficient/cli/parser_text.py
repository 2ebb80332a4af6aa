"""What stands in the messages of jsonargparse: the key, the given value, the classes."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable

LONGEST_VALUE = 80


def keys(text: str, end: int) -> str:
    """Return the dotted key that the text before ``end`` is about, or an empty string.

    Example:
        >>> text = 'Parser key "model": Problem with A: Parser key "lr": Expected a float'
        >>> keys(text, len(text))
        'model.lr'
    """
    found = re.findall(r'Parser key "([^"]+)"', text[:end])
    return ".".join(key for index, key in enumerate(found) if found[:index][-1:] != [key])


def key(text: str, end: int) -> str:
    """Return the dotted key, or words that stand for it."""
    return keys(text, end) or "the value"


def given(text: str, start: int = 0) -> str:
    """Return the value that was given, as it stands in the text after ``start``."""
    found = re.search(r"Given value: (.*)", text[start:])
    value = bare(found[1]) if found else "?"
    nested = re.match(r"NestedArg\(key='[^']*', val='(.*)'\)", value)
    return nested[1] if nested else value


def bare(value: str) -> str:
    """Return a value without what follows it in the message, and no more of it than a line can hold."""
    value = value.partition(". Got value:")[0].strip()
    return value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 1]}…"


def class_name(class_path: str) -> str:
    """Return the last word of an import path."""
    return class_path.rpartition(".")[2]


def parameters(class_path: str) -> list[str]:
    """Return the names of a class's options, its base classes' included; none if it cannot be imported."""
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    classes = [base for base in inspect.getmro(cls) if base is not object] if inspect.isclass(cls) else [cls]
    names: dict[str, None] = {}
    for one in classes:
        try:
            names |= dict.fromkeys(inspect.signature(one).parameters)
        except ValueError:  # one written in C, such as torch.Tensor
            continue
    return list(names)


def subclass_names(class_path: str) -> Iterable[str]:
    """Return the names of a class and of all that are known to derive from it."""
    module, _, name = class_path.rpartition(".")
    base = getattr(importlib.import_module(module), name, None)
    seen = [base] if inspect.isclass(base) else []
    for cls in seen:
        seen += [child for child in cls.__subclasses__() if child not in seen]
    return [cls.__name__ for cls in seen if not cls.__name__.startswith("_")]
