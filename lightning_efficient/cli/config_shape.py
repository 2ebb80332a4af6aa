"""What a config's text must not have, whatever its keys mean: a key given twice, options beside a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import yaml

from lightning_efficient.errors import ConfigurationError, did_you_mean

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_shapes(words: Sequence[str]) -> None:
    """Look at every ``--config`` among arguments: the parser takes the last of two equal keys and says nothing.

    Args:
        words: Arguments, in which a config is a file or YAML itself.

    Raises:
        ConfigurationError: a key is given twice, a class has options beside ``init_args``, or its name is no word.

    Example:
        >>> check_shapes(["fit", "--config", "{model: {class_path: A, lr: 1}}"])
        Traceback (most recent call last):
        lightning_efficient.errors.ConfigurationError: model.lr: unknown key 'lr' of a class. ...
    """
    for option, value in zip(words, [*words[1:], ""], strict=True):
        name, equals, inside = option.partition("=")
        if name == "--config" and (given := inside if equals else value):
            _check(given)


def _check(config: str) -> None:
    file = Path(config) if "\n" not in config and "{" not in config else None
    try:
        text = config if file is None else file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return  # the parser says it
    for key, section in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == "trainer" and not isinstance(section, yaml.MappingNode):
            raise ConfigurationError("trainer must be a mapping of option names to values")
    for place, mapping in _mappings(node, (), ()):
        _check_keys(mapping, place, "the config" if file is None else str(file))


def _mappings(
    node: yaml.Node | None, place: tuple[str, ...], above: tuple[yaml.Node, ...]
) -> Iterator[tuple[tuple[str, ...], yaml.MappingNode]]:
    """Yield the mappings below a node with their dotted keys; one that an anchor puts into itself is left out."""
    if node in above:
        return
    if isinstance(node, yaml.MappingNode):
        yield place, node
        for key, value in node.value:
            name = str(key.value)
            yield from _mappings(value, place if name == "init_args" else (*place, name), (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _mappings(each, place, (*above, node))


def _check_keys(mapping: yaml.MappingNode, place: tuple[str, ...], file: str) -> None:
    names: list[str] = []
    for key, value in mapping.value:
        name = str(key.value)
        if name in names and name != "<<":
            line = key.start_mark.line + 1
            raise ConfigurationError(f"{'.'.join((*place, name))} is given twice, again in line {line} of {file}")
        if name == "class_path" and not isinstance(value, yaml.ScalarNode):
            raise ConfigurationError(f"{'.'.join((*place, name))} must be the name of a class")
        names.append(name)
    if "class_path" not in names:
        if not names and place and place[-1].rstrip("+") == "callbacks":  # it would be Lightning's empty Callback
            raise ConfigurationError(f"{'.'.join(place)}: class_path is missing")
        for name in names:
            if name not in _OF_A_CLASS and get_close_matches(name, _OF_A_CLASS[:2], cutoff=0.8):
                _refuse(name, place)
        return
    for name in names:
        if name not in _OF_A_CLASS and name != "<<":
            _refuse(name, place)


def _refuse(name: str, place: tuple[str, ...]) -> None:
    hint = did_you_mean(name, _OF_A_CLASS) or " Options of the class stand below init_args."
    raise ConfigurationError(f"{'.'.join((*place, name))}: unknown key {name!r} of a class.{hint}")
