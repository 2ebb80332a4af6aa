"""Turn a parser's page of possibilities into the one line that a user needs."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from lightning_efficient.cli.parser_text import bare, class_name, given, key, keys, parameters, subclass_names
from lightning_efficient.errors import ConfigurationError, did_you_mean

LONGEST = 400
_ENTRIES = ("class_path", "init_args")
_CLASS = "a class name, or class_path and init_args"
_RETURNED = ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler")
_OF_THE_PARSER = re.compile(
    r"Expected an? (<|typing|instantiatable|path|dot)|Not a valid|Does not validate|Problem with given|Parser key|"
    r"a (class path|dict) "
)
"""How the lines begin that the parser adds to what a class said."""
_BASES = ("LightningModule", "LightningDataModule", "Callback", "Logger", "Union")
"""Named in a message where a class_path is missing."""


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
    return _short(next(filter(None, (reader(text, options) for reader in _READERS)), "") or type(error).__name__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unknown_option(text: str, options: Sequence[str]) -> str | None:
    if found := re.match(r"unrecognized arguments: (\S+)", text):
        name = found[1].partition("=")[0]
        return f"unknown option {name}.{did_you_mean(name, [f'--{option}' for option in options])}"
    if found := re.match(r"Subcommand '\w+' does not accept option '([^']+)'", text):
        section = found[1].partition(".")[0]
        hint = did_you_mean(found[1], options) or did_you_mean(
            section, [option for option in options if "." not in option]
        )
        return f"unknown key {found[1]!r} in a config.{hint}"
    return None


def _misspelt_entry(text: str, options: Sequence[str]) -> str | None:
    for found in re.finditer(r"'(\w+)': ", text):
        if found[1] not in _ENTRIES and get_close_matches(found[1], _ENTRIES, cutoff=0.8):
            return f"{key(text, found.start())}: unknown key {found[1]!r}.{did_you_mean(found[1], _ENTRIES)}"
    return None


def _missing(text: str, options: Sequence[str]) -> str | None:
    found = re.search(r"the following arguments are required: (.+)", text)
    if not found:
        return None
    names = [name.strip() for name in found[1].split(",")]
    if place := keys(text, found.start()):
        needed = " and ".join(f"--{place}.{name}" for name in names)
        owner = re.search(r"Problem with given class_path '([^']+)':\s*$", text[: found.start()])
        return f"missing {needed}, which {class_name(owner[1]) if owner else place} requires"
    names = [name.partition(".")[2] or name for name in names]  # the first word is the verb
    return f"missing {' and '.join(names)}: give --config NAME (see lightning-efficient configs ls), or --{names[0]}"


def _unaccepted(text: str, options: Sequence[str]) -> str | None:
    found = re.search(r"Option '([^']+)' is not accepted", text)
    if not found:
        return None
    before = re.findall(r"Problem with given class_path '([^']+)'", text[: found.start()])
    after = re.match(r"[^\n]*class_path='([^']+)'", text[found.end() :])
    class_path = after[1] if after else before[-1] if before else ""
    name = found[1].partition(".")[0]
    hint = did_you_mean(name, [*parameters(class_path), *_ENTRIES])
    place = key(text, found.start())
    if class_path in _RETURNED:
        example = "AdamW" if class_path == _RETURNED[0] else "CosineAnnealingLR"
        return f"{place} names no class yet, so it has no option {name!r}; give --{place} first, such as {example}"
    if class_name(class_path) in _BASES and not hint:
        return f"{place}: class_path is missing"
    return f"{place}.{name}: {class_name(class_path)} has no option {name!r}.{hint}"


def _unknown_class(text: str, options: Sequence[str]) -> str | None:
    found = re.search(r"Expected a dot import path string: (\S+)", text)
    if not found or re.search(r"Expected a <class '(int|float|str)'>", text):  # a number was wanted, or a class
        return None
    bases = re.findall(r"<class '([\w.]+)'>|\[([\w.]+)\]", text[: found.start()])
    # what a callable returns is not in the message; those of our modules return an optimiser or a scheduler
    paths = [*(path for pair in bases for path in pair if "." in path), *_RETURNED]
    names = {name for path in paths for name in subclass_names(path)}
    place = key(text, found.start())
    if place == "model":
        import timm  # here and not above: it takes a second to load, and `fit --help` does without it

        names.update(timm.list_models())
    hint = did_you_mean(found[1], names) or " Give the name of a class of this package, or its full import path."
    return f"{place}: unknown class {found[1]!r}.{hint}"


def _unknown_attribute(text: str, options: Sequence[str]) -> str | None:
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        hint = did_you_mean(found[2], dir(importlib.import_module(found[1])))
        return f"{key(text, found.start())}: {found[1]} has no class {found[2]!r}.{hint}"
    if found := re.search(r"type object '(\w+)' has no attribute '(\w+)'", text):
        return f"{key(text, found.start())}: {found[1]} is a class and has no class {found[2]!r} in it"
    if found := re.search(r"No module named '([\w.]+)'", text):
        return f"{key(text, found.start())}: there is no module {found[1]!r}"
    return None


def _wrong_choice(text: str, options: Sequence[str]) -> str | None:
    found = list(re.finditer(r"Expected a typing\.Literal\[([^\]]*)\](?:. Got value: (.*))?", text))
    if not found:
        return None
    value = bare(found[0][2] or "") or given(text, found[0].end())
    choices = list(dict.fromkeys(choice.strip("' ") for one in found for choice in one[1].split(",")))
    types = [name for name in re.findall(r"Expected a <class '(\w+)'>", text) if name != "NoneType"]
    allowed = ", ".join([*choices, *types])
    return f"{key(text, found[0].start())} is {value!r}; it must be one of {allowed}.{did_you_mean(value, choices)}"


def _wrong_type(text: str, options: Sequence[str]) -> str | None:
    kind = r"(?:Expected|Not a valid subclass of) (?!a path|a dot)(?:an? )?(?:<class '([\w.]+)'>|([\w.\[\], |]+))"
    pattern = re.compile(rf"( *(?:- )?){kind}(?:. Got value: (.*))?")
    # what is wrong inside a class says more than that the class is not one of another type
    classes = list(re.finditer(r"^( *)(?:- )?Problem with given class_path", text, re.MULTILINE))
    inside = max(classes, key=lambda one: len(one[1]), default=None)
    found = list(pattern.finditer(text, inside.end() if inside else 0))
    if not found:
        return None
    same = [one for one in found if one[1] == found[0][1]]  # those of outer unions are indented less
    kinds = dict.fromkeys(re.sub(r"typing\.|collections\.abc\.", "", one[2] or one[3]).strip() for one in same)
    wants_class = "Not a valid subclass" in found[0][0] or list(kinds) == ["NoneType"]
    if "NoneType" in kinds:  # null is said last
        del kinds["NoneType"]
        kinds["null"] = None
    value = bare(found[0][4] or "") or given(text, found[0].end())
    allowed = _CLASS if wants_class else " or ".join(kinds)
    return f"{key(text, found[0].start())} is {value!r}; it must be {allowed}"


def _refused_value(text: str, options: Sequence[str]) -> str | None:
    """Read what a class said as it was built: everything has been parsed then, so no type is wrong."""
    if not re.search(r"Given value: (\[.*)?Namespace\(", text):
        return None
    reasons = [found[1] for found in re.finditer(r"^ *- (.+)", text, re.MULTILINE)]
    return next((reason for reason in reasons if not _OF_THE_PARSER.match(reason)), None)


def _bad_file(text: str, options: Sequence[str]) -> str | None:
    if found := re.search(r"Unable to load config '(.*)'", text):
        return f"{key(text, found.start())} is {found[1]!r}; it must be a mapping of option names to values"
    if text.startswith("Problems parsing config"):
        return f"a config is no valid YAML: {text.partition(':')[2]}"
    if text.startswith("Unexpected config"):
        return "a config must be a mapping of option names to values"
    return None


def _first_reason(text: str, options: Sequence[str]) -> str:
    noise = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>", "Parser key")
    reasons = [line.strip(" -") for line in text.splitlines() if not line.strip(" -").startswith(noise)]
    place = keys(text, len(text))
    reason = next((line for line in reasons if line), "")
    return f"{place}: {reason}" if place and reason else reason


def _short(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


_READERS = (
    _unknown_option,
    _misspelt_entry,
    _missing,
    _unaccepted,
    _unknown_class,
    _unknown_attribute,
    _refused_value,
    _wrong_choice,
    _wrong_type,
    _bad_file,
    _first_reason,
)
