"""Short forms of the command line, written out for LightningCLI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lightning_efficient.cli.config_files import find
from lightning_efficient.errors import ConfigurationError

CLASSIFIER = "lightning_efficient.modules.ImageClassifier"


def expand(arguments: Sequence[str], is_timm_model: Callable[[str], bool]) -> list[str]:
    """Replace config names by files, and timm names by a classifier around that model.

    ``--config quickstart`` becomes the path of the shipped file; ``--timm NAME`` and ``--model NAME`` become
    ``--model ImageClassifier --model.backbone NAME`` for a timm name.

    Args:
        arguments: What was typed, the verb first.
        is_timm_model: Tells the names of timm's models from class names.

    Raises:
        ConfigurationError: an unknown config, ``--timm`` together with ``--model``, or an option without its value.
    """
    expanded: list[str] = []
    rest = _separated(arguments)
    if "--timm" in rest and "--model" in rest:
        raise ConfigurationError("--timm and --model both name the model; give one of them")
    words = iter(rest)
    for word in words:
        if word in ("--config", "-c"):
            value = _value_of(word, words)
            # LightningCLI also takes YAML itself in place of a file
            expanded += ["--config", value if "\n" in value or "{" in value else str(find(value))]
        elif word == "--timm":
            expanded += _classifier(_value_of(word, words))
        elif word == "--model":
            value = _value_of(word, words)
            expanded += _classifier(value) if is_timm_model(value) else [word, value]
        else:
            expanded.append(word)
    return expanded


def _separated(arguments: Sequence[str]) -> list[str]:
    """Split ``--config=name`` and the like into two words."""
    words: list[str] = []
    for word in arguments:
        option, equals, value = word.partition("=")
        words += [option, value] if equals and option in ("--config", "-c", "--timm", "--model") else [word]
    return words


def _value_of(option: str, words: Iterator[str]) -> str:
    value = next(words, "--")
    if value.startswith("--"):
        raise ConfigurationError(f"{option} needs a value")
    return value


def _classifier(backbone: str) -> list[str]:
    return ["--model", CLASSIFIER, "--model.backbone", backbone]
