"""Short forms of the command line, written out for LightningCLI."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lightning_efficient.cli.config_files import find_for_fit
from lightning_efficient.cli.latest_run import WORDS
from lightning_efficient.errors import ConfigurationError

CLASSIFIER = "lightning_efficient.modules.ImageClassifier"
AFTER_TRAINING = ("validate", "test", "calibrate", "predict", "export", "quantize")
OF_A_CHECKPOINT = ("calibrate", "export", "quantize")
"""Verbs that need the file of one, whose run tells its config."""
SHARED = ("seed_everything", "model", "data", "trainer")
"""What another verb takes from the config of a fit."""

LISTS = {
    "profile": ("--threads", "--batch_sizes", "--variants", "--input_shape"),
    "quantize": ("--schemes", "--batch_sizes"),
    "export": ("--formats", "--input_shape"),
}
"""Options of our verbs that take several values, which may follow one by one."""

_NAMES_THE_MODEL = ("--config", "-c", "--timm", "--model")
_WRITTEN_OUT = (*_NAMES_THE_MODEL, "--ckpt_path", "--ckpt")
_LEVELS = 3
"""How many folders above a checkpoint may be that of its run."""


def expand(arguments: Sequence[str], is_timm_model: Callable[[str], bool]) -> list[str]:
    """Replace config names by files, and timm names by a classifier around that model.

    ``--config quickstart`` becomes the path of the shipped file; ``--timm NAME`` and ``--model NAME`` become
    ``--model ImageClassifier --model.backbone NAME`` for a timm name. ``validate``, ``test``, ``calibrate``,
    ``predict``, ``export`` and ``quantize`` with a checkpoint and neither config nor model take the ``config.yaml`` of
    the run that the checkpoint lies in, and say which. ``--threads 1 2`` becomes ``--threads [1,2]``, see ``LISTS``.

    Args:
        arguments: What was typed, the verb first.
        is_timm_model: Tells the names of timm's models from class names.

    Raises:
        ConfigurationError: an unknown config, ``--timm`` together with ``--model``, an option without its value, or a
            ``calibrate``, ``export`` or ``quantize`` that has no checkpoint or no config.
    """
    expanded: list[str] = []
    rest = _with_config_of_run(_with_lists(_separated(arguments)))
    if "--timm" in rest and "--model" in rest:
        raise ConfigurationError("--timm and --model both name the model; give one of them")
    words = iter(rest)
    for word in words:
        if word in ("--config", "-c"):
            value = _value_of(word, words)
            # LightningCLI also takes YAML itself in place of a file
            expanded += ["--config", value if "\n" in value or "{" in value else str(find_for_fit(value))]
        elif word == "--timm":
            expanded += _classifier(_value_of(word, words))
        elif word == "--model":
            value = _value_of(word, words)
            expanded += _classifier(value) if is_timm_model(value) else [word, value]
        else:
            expanded.append(word)
    return expanded


def _with_lists(words: list[str]) -> list[str]:
    """Write several values of one option as a list; what is written as a list or null stays."""
    options = LISTS.get(words[0] if words else "", ())
    found: list[str] = []
    position = 0
    while position < len(words):
        option, equals, value = words[position].partition("=")
        position += 1
        if option not in options:
            found.append(words[position - 1])
            continue
        values = [value] if equals else []
        while position < len(words) and not re.match(r"--?[a-zA-Z]", words[position]):  # -1 is a value
            values.append(words[position])
            position += 1
        if not values or values == ["null"]:
            found += [option, *values]
        else:  # [1, 2] comes in two words where the shell has split it
            found += [option, " ".join(values) if values[0].startswith("[") else f"[{','.join(values)}]"]
    return found


def _separated(arguments: Sequence[str]) -> list[str]:
    """Split ``--config=name`` and the like into two words."""
    words: list[str] = []
    for word in arguments:
        option, equals, value = word.partition("=")
        words += [option, value] if equals and option in _WRITTEN_OUT else [word]
    return words


def _with_config_of_run(words: list[str]) -> list[str]:
    verb = words[0] if words else ""
    if verb not in AFTER_TRAINING or "--help" in words or "-h" in words:
        return words
    if verb in OF_A_CHECKPOINT:
        words = ["--ckpt_path" if word == "--ckpt" else word for word in words]
    if any(word in words for word in _NAMES_THE_MODEL):
        return words
    # the last one, as parsers have it
    given = [place for place, word in enumerate(words) if word == "--ckpt_path"][-1:]
    ckpt_path = _value_of("--ckpt_path", iter(words[given[0] + 1 :])) if given else ""
    file, config = _config_of_run(Path(ckpt_path)) if ckpt_path and Path(ckpt_path).is_file() else (None, None)
    if file is not None and config is not None:
        rank_zero_info(f"config: {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")
        return [verb, "--config", config, *words[1:]]
    if verb in OF_A_CHECKPOINT:
        _explain_missing(ckpt_path, any(word.partition("=")[0] == "--data" for word in words))
    return words


def _explain_missing(ckpt_path: str, has_data: bool) -> None:
    if not ckpt_path:
        raise ConfigurationError(
            "missing --ckpt_path: give a checkpoint, such as runs/x/version_0/checkpoints/best.ckpt"
        )
    if ckpt_path in WORDS:
        raise ConfigurationError(
            f"ckpt_path is {ckpt_path!r}, that of the newest run of a config; give --config NAME, or the path of a file"
        )
    if Path(ckpt_path).is_file() and not has_data:
        raise ConfigurationError(
            f"ckpt_path: no folder above {ckpt_path!r} has a readable config.yaml of its run; give --config NAME"
        )


def _config_of_run(checkpoint: Path) -> tuple[Path | None, str | None]:
    """Return ``config.yaml`` of the nearest folder above a checkpoint, and as YAML what it says of model and the like.

    Of a link it is the folders above the link first, and then those above the file that it leads to.
    """
    places = checkpoint.absolute(), checkpoint.resolve()
    files = [folder / "config.yaml" for place in places for folder in list(place.parents)[:_LEVELS]]
    return next(((file, shared) for file in files if (shared := _shared(file))), (None, None))


def _shared(file: Path) -> str | None:
    if not file.is_file():
        return None
    import yaml  # here and not above: what needs no config of a run needs no YAML

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return None
    if not isinstance(content, Mapping) or not {"model", "trainer"} <= set(content):  # of something else than a run
        return None
    return yaml.safe_dump({name: content[name] for name in SHARED if name in content}, sort_keys=False)


def _value_of(option: str, words: Iterator[str]) -> str:
    value = next(words, "--")
    if value.startswith("--"):
        raise ConfigurationError(f"{option} needs a value")
    return value


def _classifier(backbone: str) -> list[str]:
    return ["--model", CLASSIFIER, "--model.backbone", backbone]
