"""The next set of fixtures has every module, every callback and every value object; no released version is missing."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import objects
import pytest
import runs
from kept import SETS, read
from lightning.pytorch import Callback
from make_fixtures import folder_name
from torchmetrics import Metric

from lightning_efficient import __version__, callbacks, modules

PASSING = {
    "AbstainingPrediction", "AlternationWeights", "CascadePrediction", "JointLoss", "OneSidedCosts",
    "RiskCoveragePoints", "RoutedPrediction", "SplitBatch",
}  # fmt: skip
"""What a step or a call returns, tensors mostly, and nobody keeps."""
OPEN = {"Artifact", "ExportReport", "ExportedModel"}
"""What holds open graphs, or the paths of one machine."""


def public_classes(module: ModuleType) -> dict[str, type]:
    found = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in found.items() if inspect.isclass(value)}


def named_in(configs: Path) -> set[str]:
    """Return the class of every class_path in the configs of a folder, and what is given by its name alone."""

    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            here = {value["class_path"]} if "class_path" in value else set()
            return here.union(*map(names, value.values()))
        if isinstance(value, list):
            return {each for each in value if isinstance(each, str)}.union(*map(names, value))
        return set()

    return {name.rpartition(".")[2] for file in configs.glob("*.yaml") for name in names(runs.configured(file))}


def test_every_module_is_fitted() -> None:
    assert set(public_classes(modules)) <= named_in(runs.CASES)


def test_every_callback_takes_part() -> None:
    ours = {name for name, cls in public_classes(callbacks).items() if issubclass(cls, Callback)}
    assert len(ours) >= 12
    assert ours <= named_in(runs.CASES)


@pytest.mark.parametrize("kept", SETS, ids=[kept.name for kept in SETS])
def test_every_callback_with_a_state_has_it_in_a_checkpoint(kept: Path) -> None:
    stored = {key.partition("[")[0] for fit in kept.glob("fits/*") for key in read(fit / "expected.json")["callbacks"]}
    named = named_in(kept / "configs")
    ours = public_classes(callbacks).items()
    stateful = {name for name, cls in ours if name in named and keeps_state(cls)}
    assert len(stateful) >= 7
    assert stateful <= stored


def keeps_state(cls: type) -> bool:
    return issubclass(cls, Callback) and cls.state_dict is not Callback.state_dict


@pytest.mark.parametrize("package", ["functional", "metrics", "profiling", "inference", "reporting"])
def test_every_value_object_is_pickled(package: str) -> None:
    classes = public_classes(importlib.import_module(f"lightning_efficient.{package}"))
    values = {name for name, cls in classes.items() if is_value(cls)} - PASSING - OPEN
    assert values
    assert values <= set(objects.OBJECTS)


def is_value(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) or issubclass(cls, Metric | tuple)


def test_every_earlier_minor_version_has_its_set() -> None:
    major, minor = map(int, __version__.split(".")[:2])
    earlier = {folder_name(f"{major}.{number}.0") for number in range(1, minor)}
    assert earlier <= {kept.name for kept in SETS} != set()


@pytest.mark.parametrize("kept", SETS, ids=[kept.name for kept in SETS])
def test_every_config_of_a_set_was_fitted(kept: Path) -> None:
    assert {fit.name for fit in kept.glob("fits/*")} == set(runs.case_names(kept / "configs")) != set()
