"""Mistakes in shipped configs, drawn from a seed: each of them is one that no parser may let pass."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_efficient.cli.config_files import find, is_fragment, is_search, shipped

Key = tuple[str | int, ...]
PLACES = tuple(
    f"lightning_efficient.{name}"
    for name in ("modules", "datamodules", "callbacks", "functional", "nn", "nn.surgery", "losses")
)
"""Where a short class name of the shipped configs leads."""

OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "batch_size": (0, -3),
    "image_size": (0, -8),
    "train_samples": (0, -1),
    "num_workers": (-1,),
    "num_classes": (0, -10),
    "in_chans": (0,),
    "lr": (-0.1,),
    "weight_decay": (-0.1,),
    "hidden_size": (0, -1),
    "input_size": (0, -2),
    "dropout": (-0.1, 1.5),
    "parts": (0, -2),
    "alpha": (-1.0,),
    "sparsity": (-0.5, 1.5),
    "begin": (-0.5,),
    "end": (-0.5,),
    "risks": ([2.0], [-0.01]),
    "coverages": ([1.5], [-0.5]),
    "target_coverage": (-0.5, 1.5),
    "price": (-1.0,),
    "top_k": (0, -2),
    "student_temperature": (0.0, -1.0),
    "teacher_temperature": (0.0, -1.0),
    "length": (0, -5),
    "window": (0, -1),
    "vocabulary_size": (0,),
    "embedding_size": (0,),
    "cycles": (0, -4),
    "decay": (-0.5, 1.5),
    "max_epochs": (-7,),
    "devices": (0, -3),
}
"""What constructors refuse, by the last word of the key."""


@dataclass(frozen=True)
class Mistake:
    """A config with one mistake."""

    name: str
    """What was done, and to which key of which config; an id that stays."""
    write: Callable[[], str]
    """Returns the config: of the many possible ones few are written."""
    words: tuple[str, ...]
    """The message must have one of these."""

    @functools.cached_property
    def text(self) -> str:
        """The config."""
        return self.write()


@dataclass(frozen=True)
class _Config:
    name: str
    content: dict[str, Any]

    @property
    def runs_here(self) -> bool:
        """Whether nothing but a mistake keeps this machine from running it: data are made, and it needs no GPU."""
        trainer = self.content["trainer"]
        here = trainer.get("accelerator", "auto") in ("auto", "cpu") and "strategy" not in trainer
        # a teacher that is trained first comes before all that is looked at late
        here = here and "teacher_epochs" not in self.content["model"]["init_args"]
        return here and self.content["data"]["class_path"] in ("Digits", "GaussianModes", "AddingProblem", "CopyMemory")

    def changed(self, change: Callable[[Any], None], key: Key) -> str:
        """Return the config in which ``change`` was done to what holds ``key``."""
        content = copy.deepcopy(self.content)
        change(_at(content, key[:-1]))
        return _dump(content)

    def mistake(self, kind: str, key: Key, change: Callable[[Any], None], *words: str) -> Mistake:
        return Mistake(
            f"{self.name}: {kind} {dotted(key)}", functools.partial(self.changed, change, key), words or spoken(key)
        )


def mistakes(number: int, seed: int = 0) -> list[Mistake]:
    """Return different mistakes, of each kind about as many as of any other.

    Args:
        number: How many.
        seed: Decides which.
    """
    draw = random.Random(seed)
    configs = _configs()
    kinds = [[one for config in configs for one in kind(config)] for kind in KINDS]
    for kind in kinds:
        draw.shuffle(kind)
    found: dict[str, Mistake] = {}
    while len(found) < number and any(kinds):
        for kind in filter(None, kinds):
            one = kind.pop()
            found.setdefault(one.text, one)
    return list(found.values())[:number]


def dotted(key: Key) -> str:
    """Return a key as it stands in the file."""
    return ".".join(map(str, key))


def spoken(key: Key) -> tuple[str, ...]:
    """Return what a message may call a key: as on the command line, by its last word, or by the list that it is in."""
    key = tuple(step if isinstance(step, int) else step.rstrip("+") for step in key)
    names = [str(step) for step in key if step not in ("class_path", "init_args") and not isinstance(step, int)]
    owners = [
        ".".join(str(each) for each in key[:place] if each != "init_args")
        for place, step in enumerate(key)
        if isinstance(step, int) and key[place + 1 : place + 2] not in (("class_path",), ("init_args",))
    ]
    return ".".join(names), names[-1], *owners


def _configs() -> list[_Config]:
    """Return those of ``fit``; what is no whole experiment stands on the quickstart."""
    found = []
    quickstart = _load(find("quickstart"))
    for name, file in shipped().items():
        if not is_search(file.path):
            content = _load(file.path)
            if is_fragment(file.path):
                content = _on_top(quickstart, content)
            found.append(_Config(name, _offline(content)))
    return found


def _on_top(whole: dict[str, Any], fragment: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment with a fragment: options of the Trainer win, lists named with a plus grow."""
    trainer = dict(whole["trainer"])
    for name, value in fragment.get("trainer", {}).items():
        trainer[name.rstrip("+")] = [*trainer[name[:-1]], *value] if name.endswith("+") else value
    return whole | fragment | {"trainer": trainer}


def _offline(content: dict[str, Any]) -> dict[str, Any]:
    """Take weights that would be fetched out of a config: without a network they are a mistake of their own."""
    return {
        key: False if key.endswith("pretrained") else _offline(value) if isinstance(value, dict) else value
        for key, value in content.items()
    }


def _dump(content: Any) -> str:
    return yaml.dump(content, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def _load(file: Path) -> Any:
    return yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _at(content: Any, key: Key) -> Any:
    for step in key:
        content = content[step]
    return content


def _nodes(value: Any, before: Key = ()) -> Iterator[tuple[Key, Any]]:
    for step, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*before, step), each
        if isinstance(each, dict | list):
            yield from _nodes(each, (*before, step))


def _class(path: str) -> Any:
    """Return what a class_path means; nothing if it is a short name of another package."""
    module, _, name = path.rpartition(".")
    for place in [module] if module else PLACES:
        if (found := getattr(importlib.import_module(place), name, None)) is not None:
            return found
    return None


def _required(path: str) -> set[str]:
    """Return the options without which a class cannot be built."""
    cls = _class(path)
    options = inspect.signature(cls).parameters.values() if cls else ()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name for one in options if one.default is one.empty and one.kind in kinds}


def _renamed(key: Key, name: str) -> Callable[[Any], None]:
    def change(parent: Any) -> None:
        entries = list(parent.items())
        parent.clear()
        parent.update({name if each == key[-1] else each: value for each, value in entries})

    return change


def _replaced(key: Key, value: Any) -> Callable[[Any], None]:
    return lambda parent: parent.__setitem__(key[-1], value)


def _dropped(config: _Config) -> Iterator[Mistake]:
    """What a class cannot do without, and the class."""
    for key, value in _nodes(config.content):
        if key[-1] == "class_path":
            if key[-2] != "optimizer":  # of which modules have one by default
                yield config.mistake(
                    "without", key, lambda parent: parent.pop("class_path"), "class_path", *spoken(key)
                )
            required = _required(value) - {"optimizer"}
            for name in sorted(required & set(_at(config.content, key[:-1]).get("init_args", {}))):
                option = (*key[:-1], "init_args", name)
                yield config.mistake("without", option, lambda parent, name=name: parent.pop(name))
    for name in ("model", "data") if config.runs_here else ():
        yield config.mistake("without", (name,), lambda parent, name=name: parent.pop(name))


def _misspelt(config: _Config) -> Iterator[Mistake]:
    """A letter too few, one twice, two that changed places, or none."""
    for key, _ in _nodes(config.content):
        name = str(key[-1])
        if isinstance(key[-1], int) or len(name) < 3 or _is_free(key) or (_is_late(key) and not config.runs_here):
            continue
        middle = len(name) // 2
        for wrong in (
            name[:middle] + name[middle + 1 :],
            name[:middle] + name[middle] + name[middle:],
            name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :],
            name.replace("_", "-") if "_" in name else f"{name}s",
        ):
            if wrong != name and wrong not in _at(config.content, key[:-1]):
                yield config.mistake(f"{wrong} for", key, _renamed(key, wrong), wrong)


def _is_free(key: Key) -> bool:
    """Tell whether a key may have any name, such as one for a layer of a network."""
    return "layers" in key[:-1]


def _is_late(key: Key) -> bool:
    """Tell whether an option is looked at when what it is for is built, maybe after the data."""
    return any(str(step).endswith(("_optimizer", "_kwargs")) for step in key[:-1])


def _mistyped(config: _Config) -> Iterator[Mistake]:
    """A value of a kind that the option cannot take."""
    for key, value in _nodes(config.content):
        if _is_late(key) and not config.runs_here:
            continue
        match value:
            case bool() | int() | float():
                wrong: Sequence[Any] = ("many", ["x"], {"a": "b"})
            case str():
                wrong = ([["bad"]], {"a": {"b": "c"}})
            case list():
                wrong = ({"a": "b"}, "some")
            case dict():
                wrong = ("some", ["x", "y"])
            case _:
                continue
        for each in wrong:
            shown = json.dumps(each)
            yield config.mistake(f"{shown} as", key, _replaced(key, each))


def _misplaced(config: _Config) -> Iterator[Mistake]:
    """An option a level too high, a level too low, or in another section."""
    for key, value in _nodes(config.content):
        if key[-1] == "init_args" and isinstance(value, dict) and value:
            names = tuple(value)

            def unpack(parent: Any) -> None:
                parent.update(parent.pop("init_args"))

            yield config.mistake("no level for", key, unpack, *names)
            yield config.mistake("another level in", key, _replaced(key, {"init_args": value}), "init_args")
    for section, other in (("model", "trainer"), ("data", "model"), ("trainer", "data"), ("model", "data")):
        options = config.content.get(section, {})
        for name, value in options.get("init_args", options).items():
            if name.rstrip("+") not in ("batch_size", "num_classes", "class_path"):  # an option that both have
                key = (other, name)
                yield config.mistake(f"from {section} to", key, _replaced(key, value), name)
        for name, value in options.get("init_args", options).items():
            yield config.mistake(f"from {section} to", (name,), _replaced((name,), value), name)


def _unknown(config: _Config) -> Iterator[Mistake]:
    """A class that is not there."""
    for key, value in _nodes(config.content):
        if key[-1] == "class_path":
            name = value.rpartition(".")[2]
            for wrong in (f"{name[:-2]}{name[-1]}", f"{name}s", name.lower(), f"my.{name}", f"{value}.{name}"):
                yield config.mistake(f"{wrong} for", key, _replaced(key, wrong), wrong, *wrong.split("."))


def _twice(config: _Config) -> Iterator[Mistake]:
    """The same key two times in one mapping, as when a block was copied."""
    lines = _dump(config.content).splitlines()
    for number, line in enumerate(lines):
        name, colon, value = line.strip().removeprefix("- ").partition(": ")
        if colon and value and not name.startswith("^"):
            again = f"{' ' * (len(line) - len(line.lstrip(' -')))}{name}: {value}"
            text = "\n".join([*lines[: number + 1], again, *lines[number + 1 :]])
            yield Mistake(f"{config.name}: twice in line {number + 1} {name}", lambda text=text: text, (name,))


def _out_of_range(config: _Config) -> Iterator[Mistake]:
    """A number that the constructor refuses."""
    for key, _ in _nodes(config.content) if config.runs_here else ():
        names = [str(step) for step in key if step not in ("class_path", "init_args") and not isinstance(step, int)]
        for value in OUT_OF_RANGE.get(str(key[-1]), ()):
            # the owner says it where a value is wrong for it and not for its class
            yield config.mistake(f"{value} as", key, _replaced(key, value), *names[1:])


def _torn(config: _Config) -> Iterator[Mistake]:
    """No YAML: a bracket or a quote that is not closed, a tab, a file cut short in a quoted word."""
    text = _dump(config.content)
    for name, end in (
        ("bracket", "more: [1, 2"),
        ("brace", "more: {a: 1"),
        ("quote", 'more: "a'),
        ("tab", "more:\n\ta: 1"),
        ("colon", "more: a: b"),
        ("tag", "more: !!python/object/apply:os.mkdir [executed]"),
        ("anchor", "more: *nothing"),
        ("control character", "more: \x01"),
    ):
        yield Mistake(f"{config.name}: {name}", lambda whole=f"{text}{end}\n": whole, ("YAML",))


KINDS = (_dropped, _misspelt, _mistyped, _misplaced, _unknown, _twice, _out_of_range, _torn)
