"""Keys of a config as a search space names them: found, refused if there are none, and set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning_efficient.errors import ConfigurationError, did_you_mean

Place = tuple[str | int, ...]


def locate(config: Mapping[str, Any], key: str) -> Place:
    """Return where a dotted key is in a config.

    ``init_args`` may be left out, as on the command line, and an entry of a list is named by its number or by its
    class: ``trainer.callbacks.GradualPruning.sparsity``.

    Args:
        config: All options of a run, defaults included.
        key: Dotted key.

    Raises:
        ConfigurationError: the config has no such key; the message names the closest ones.

    Example:
        >>> locate({"model": {"class_path": "A", "init_args": {"lr": 0.1}}}, "model.lr")
        ('model', 'init_args', 'lr')
    """
    node: Any = config
    place: list[str | int] = []
    for word in key.split("."):
        step = _step(node, word, place)
        if step is None:
            long = "init_args" in key
            hint = did_you_mean(key, _dotted(config, long)) or did_you_mean(word, _words(node))
            raise ConfigurationError(f"{key} is no key of the config.{hint}")
        for one in step:
            place.append(one)
            node = _child(node, one)
    return tuple(place)


def put(config: dict[str, Any], place: Place, value: Any) -> None:
    """Set the value at a place, in place; what is null on the way becomes a mapping."""
    node: Any = config
    for here in place[:-1]:
        child = _child(node, here)
        if isinstance(child, str):  # a class without options, named by its word only
            child = {"class_path": child}
        elif child is None:
            child = {}
        node[here] = child
        node = child
    node[place[-1]] = value


def _child(node: Any, step: str | int) -> Any:
    if isinstance(node, list):
        return node[int(step)]
    return node.get(step) if isinstance(node, Mapping) else None


def _step(node: Any, word: str, place: list[str | int]) -> list[str | int] | None:
    if isinstance(node, list):
        names = [_class_name(entry) for entry in node]
        if word.isdigit() and int(word) < len(node):
            return [int(word)]
        return [names.index(word)] if word in names else None
    inside = "init_args" in place
    if isinstance(node, Mapping):
        if word in node:
            return [word]
        if "class_path" in node:
            # what the config has in full is there; a class that is named by a word has its options still to be read
            known = node.get("init_args")
            return ["init_args", word] if known is None or word in known else None
        # of a free mapping the parser says whether it takes the key
        return [word] if inside and place[-1] != "init_args" else None
    if isinstance(node, str) and place and isinstance(place[-1], int):  # a class without options in a list
        return ["init_args", word]
    return [word] if node is None and inside else None


def _class_name(entry: Any) -> str:
    path = entry.get("class_path", "") if isinstance(entry, Mapping) else entry
    return str(path).rpartition(".")[2]


def _words(node: Any) -> list[str]:
    if isinstance(node, list):
        return [_class_name(entry) for entry in node]
    if isinstance(node, Mapping):
        return [str(word) for word in (*node, *(node.get("init_args") or {}))]
    return []


def _dotted(node: Any, long: bool, before: str = "") -> Iterator[str]:
    """Yield every key of a config, with or without ``init_args``."""
    if isinstance(node, list):
        children: list[tuple[str, Any]] = [(_class_name(entry), entry) for entry in node if isinstance(entry, Mapping)]
    elif isinstance(node, Mapping):
        children = [(str(word), child) for word, child in node.items()]
    else:
        return
    for word, child in children:
        name = before if word == "init_args" and not long else f"{before}.{word}" if before else word
        if name:
            yield name
        yield from _dotted(child, long, name)
