"""What a search varies: a YAML file of config keys and the values that each may take. Loads no torch, no Optuna."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_efficient.cli.config_files import find
from lightning_efficient.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    import optuna

_CHOICE_OPTIONS = ("choices", "when")
_RANGE_OPTIONS = ("low", "high", "step", "log", "when")
_OPTIONS = tuple(dict.fromkeys(_CHOICE_OPTIONS + _RANGE_OPTIONS))
_SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Parameter:
    """One key of a config, and the values that it may take: choices, or a range.

    Attributes:
        key: Dotted key of the config, such as ``model.backbone``.
        choices: Value of each label; empty for a range. The label of a plain value is the value itself.
        low: Smallest value of a range.
        high: Largest value of a range, inclusive.
        step: Distance of the values of a range; None for any value, and for whole numbers 1.
        log: Whether a range is sampled on a logarithmic scale.
        when: Labels that other keys must have for this one to be varied; otherwise it stays as the config has it.
    """

    key: str
    choices: Mapping[Any, Any] = field(default_factory=dict)
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether a range holds whole numbers only."""
        return all(isinstance(number, int) for number in (self.low, self.high, 1 if self.step is None else self.step))

    def active(self, chosen: Mapping[str, Any]) -> bool:
        """Tell whether the labels chosen for other keys let this one vary."""
        return all(any(_same(chosen.get(key), one) for one in allowed) for key, allowed in self.when.items())

    def suggest(self, trial: optuna.Trial) -> Any:
        """Let Optuna choose a label or a number."""
        if self.choices:
            return trial.suggest_categorical(self.key, list(self.choices))
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def value(self, chosen: Any) -> Any:
        """Return what the config gets for a label or a number."""
        if not self.choices:
            return chosen
        return next(value for label, value in self.choices.items() if _same(label, chosen))

    def ends(self) -> list[Any]:
        """Return every label of choices, and both ends of a range."""
        return list(self.choices) or [self.low, self.high]

    def points(self) -> list[Any]:
        """Return all labels or numbers.

        Raises:
            ConfigurationError: a range without a step has too many.
        """
        if self.choices:
            return list(self.choices)
        if self.log or (self.step is None and not self.whole):
            raise ConfigurationError(f"{self.key}: a grid needs choices, or a range with a step and without log")
        step = self.step or 1
        return [self.low + index * step for index in range(round((self.high - self.low) / step) + 1)]

    def as_float(self) -> Parameter:
        """Return the same with numbers that need not be whole."""
        step = None if self.step is None else float(self.step)
        return Parameter(self.key, self.choices, float(self.low), float(self.high), step, self.log, self.when)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        content: dict[str, Any] = {"when": {key: list(allowed) for key, allowed in self.when.items()}}
        if self.choices:
            return {"choices": [[label, value] for label, value in self.choices.items()], **content}
        return {"low": self.low, "high": self.high, "step": self.step, "log": self.log, **content}


@dataclass(frozen=True)
class SearchSpace:
    """All keys that a search varies.

    Example:
        >>> space = read_space({"model.backbone": ["a", "b"], "model.drop": {"low": 0.0, "high": 0.4, "step": 0.2}})
        >>> len(space.grid()), space.grid()[1]
        (6, {'model.backbone': 'a', 'model.drop': 0.2})
    """

    parameters: tuple[Parameter, ...]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Let Optuna choose a label or a number for every key that may vary."""
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(chosen):
                chosen[parameter.key] = parameter.suggest(trial)
        return chosen

    def values(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the config gets for the labels and numbers chosen."""
        return {one.key: one.value(chosen[one.key]) for one in self.parameters if one.key in chosen}

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination once; keys that do not vary in one are left out of it.

        Raises:
            ConfigurationError: a range has no step.
        """
        combinations = itertools.product(*(parameter.points() for parameter in self.parameters))
        kept: dict[str, dict[str, Any]] = {}
        for combination in combinations:
            chosen: dict[str, Any] = {}
            for parameter, point in zip(self.parameters, combination, strict=True):
                if parameter.active(chosen):
                    chosen[parameter.key] = point
            kept.setdefault(repr(chosen), chosen)
        return list(kept.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {parameter.key: parameter.to_dict() for parameter in self.parameters}


def load_space(name: str) -> SearchSpace:
    """Read a space from a file, or from a shipped one by name, such as ``search/digits``.

    Raises:
        ConfigurationError: there is no such file, it is no YAML, or what it says cannot be searched.
    """
    import yaml  # here and not above: `search --help` does without it

    file = find(name)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_loader())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigurationError(f"--space {name}: no readable YAML: {' '.join(str(error).split())}") from error
    return read_space(content, name)


def read_space(content: Any, name: str = "space") -> SearchSpace:
    """Make a space of a mapping from keys to choices or ranges; ``name`` is for messages.

    Raises:
        ConfigurationError: something in it cannot be searched; the message names the key and what is allowed.
    """
    if not isinstance(content, Mapping) or not content:
        raise ConfigurationError(f"--space {name}: it must map config keys to choices or ranges")
    parameters: dict[str, Parameter] = {}
    for key, entry in content.items():
        if not isinstance(key, str) or not key:
            raise ConfigurationError(f"--space {name}: {key!r} is no key of a config")
        parameters[key] = _parameter(key, entry, parameters)
    return SearchSpace(tuple(parameters.values()))


def _parameter(key: str, entry: Any, before: Mapping[str, Parameter]) -> Parameter:
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        entry = {"choices": entry}
    if not isinstance(entry, Mapping) or not ({"choices", "low", "high"} & set(entry)):
        raise ConfigurationError(f"{key} is {entry!r}; it must have choices, or low and high")
    for option in entry:
        if option not in _OPTIONS:
            raise ConfigurationError(f"{key}: unknown {option!r}.{did_you_mean(str(option), _OPTIONS)}")
    when = _when(key, entry.get("when"), before)
    if "choices" in entry:
        if excess := [option for option in entry if option not in _CHOICE_OPTIONS]:
            raise ConfigurationError(f"{key} has choices, so it cannot have {', '.join(excess)} too")
        return Parameter(key, _choices(key, entry["choices"]), when=when)
    return _range(key, entry, when)


def _choices(key: str, given: Any) -> dict[Any, Any]:
    if isinstance(given, Mapping):
        if unnamed := [label for label in given if not isinstance(label, str)]:
            raise ConfigurationError(f"{key}: the label {unnamed[0]!r} is no text; write it in quotes")
        labelled = dict(given)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        plain = all(isinstance(value, _SCALARS) for value in given)
        pairs = [(value if plain else _label(value), value) for value in given]
        labelled = {}
        for label, value in pairs:
            if any(_same(label, other) for other in labelled):
                raise ConfigurationError(f"{key}: two choices are called {label!r}; give choices labels, as a mapping")
            labelled[label] = value
        if len(labelled) < len(pairs):  # 1 and True are one key of a dict
            raise ConfigurationError(f"{key}: choices mix numbers with true or false; give them labels, as a mapping")
    else:
        raise ConfigurationError(f"{key}: choices is {given!r}; it must be a list, or a mapping of labels to values")
    if not labelled:
        raise ConfigurationError(f"{key}: choices is empty; give at least one value")
    return labelled


def _label(value: Any) -> str:
    """Name a choice that is no plain value, by the classes in it."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            name = str(value["class_path"]).rpartition(".")[2]
            options = value.get("init_args") or {}
        else:
            name, options = "", value
        inner = ",".join(f"{option}={_label(one)}" for option, one in options.items())
        return f"{name}({inner})" if name and inner else name or f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return "+".join(map(_label, value)) or "[]"
    return "null" if value is None else str(value)


def _range(key: str, entry: Mapping[str, Any], when: Mapping[str, tuple[Any, ...]]) -> Parameter:
    if missing := [option for option in ("low", "high") if option not in entry]:
        raise ConfigurationError(f"{key}: {missing[0]} is missing; a range has low and high")
    low, high, step = (_number(key, option, entry.get(option)) for option in ("low", "high", "step"))
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise ConfigurationError(f"{key}: log is {log!r}; it must be true or false")
    if low is None or high is None or low >= high:
        raise ConfigurationError(f"{key}: low is {low!r} and high is {high!r}; low must be less than high")
    if log and low <= 0:
        raise ConfigurationError(f"{key}: log is true and low is {low!r}; on a logarithmic scale it must be above 0")
    if step is not None and log:
        raise ConfigurationError(f"{key}: a range has a step or is logarithmic, not both")
    if step is not None and (step <= 0 or abs((high - low) / step - round((high - low) / step)) > 1e-9):
        raise ConfigurationError(f"{key}: step is {step!r}; high ({high!r}) must be low ({low!r}) and some steps")
    return Parameter(key, low=low, high=high, step=step, log=log, when=when)


def _number(key: str, option: str, given: Any) -> float | None:
    if given is None and option == "step":
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise ConfigurationError(f"{key}: {option} is {given!r}; it must be a finite number")
    return given


def _when(key: str, given: Any, before: Mapping[str, Parameter]) -> dict[str, tuple[Any, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{key}: when is {given!r}; it must map other keys of the space to values")
    conditions: dict[str, tuple[Any, ...]] = {}
    for other, allowed in given.items():
        if other not in before:
            raise ConfigurationError(
                f"{key}: when names {other!r}, which is no key of the space above it.{did_you_mean(str(other), before)}"
            )
        labels = list(before[other].choices)
        if not labels:
            raise ConfigurationError(f"{key}: when names {other}, which has a range; it must be one with choices")
        wanted = tuple(allowed) if isinstance(allowed, list) else (allowed,)
        for one in wanted:
            if not any(_same(one, label) for label in labels):
                hint = did_you_mean(str(one), map(str, labels))
                raise ConfigurationError(f"{key}: when {other} is {one!r}, which is none of its choices.{hint}")
        conditions[other] = wanted
    return conditions


def _same(one: Any, other: Any) -> bool:
    """Tell whether two labels are the same; True is not 1 here."""
    return type(one) is type(other) and bool(one == other)


def _loader() -> type:
    """A YAML loader that reads ``1e-4`` as a number, and refuses a key that is given twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            given = [self.construct_object(key, deep=True) for key, _ in node.value]
            for index, key in enumerate(given):
                if key in given[:index]:
                    raise yaml.YAMLError(f"{key!r} is given twice")
            return super().construct_mapping(node, deep)

    number = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader


def names_of(parameters: Iterable[Parameter]) -> dict[str, str]:
    """Return a short name for every key: its last word, with more of it where two would be the same."""
    keys = [parameter.key for parameter in parameters]

    def short(key: str) -> str:
        words = [word for word in key.split(".") if word != "init_args"]
        for count in range(1, len(words) + 1):
            name = ".".join(words[-count:])
            if sum(f".{_plain(other)}".endswith(f".{name}") for other in keys) == 1:
                return name
        return key

    return {key: short(key) for key in keys}


def _plain(key: str) -> str:
    return ".".join(word for word in key.split(".") if word != "init_args")
