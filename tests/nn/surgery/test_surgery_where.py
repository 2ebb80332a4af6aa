from __future__ import annotations

import re
from typing import Any

import pytest
import timm
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery import is_residual, min_resolution, replace, stage, stride1
from lightning_efficient.nn.surgery.where import matches, where_of


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return timm.create_model("mobilenetv3_small_050")


def names(model: nn.Module, where: Any) -> list[str]:
    return [name for name, _ in matches(model, where)]


def is_gate(name: str, module: nn.Module) -> bool:
    return type(module).__name__ == "SqueezeExcite" and name.startswith("blocks.4")


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("blocks.*.0", [f"blocks.{number}.0" for number in range(6)]),
        ("blocks.?.1", [f"blocks.{number}.1" for number in (1, 2, 3, 4)]),
        ("**.conv_stem", []),
        ("conv_stem", ["conv_stem"]),
        (re.compile(r"blocks\.[12]\.1"), ["blocks.1.1", "blocks.2.1"]),
        (re.compile(r"locks\.1\.1"), []),
        (is_gate, ["blocks.4.0.se", "blocks.4.1.se", "blocks.4.2.se"]),
        (is_residual & stage(1, 2), ["blocks.1.1", "blocks.2.1", "blocks.2.2"]),
        (is_residual & "blocks.2.*", ["blocks.2.1", "blocks.2.2"]),
        (is_residual & (stage(1) | stage(3)), ["blocks.1.1", "blocks.3.0", "blocks.3.1"]),
        (is_residual & min_resolution(14), ["blocks.1.1", "blocks.2.1", "blocks.2.2", "blocks.3.0", "blocks.3.1"]),
        (is_residual & min_resolution(14, (1, 3, 64, 64)), []),
        (stride1 & stage(5), ["blocks.5.0"]),
        (stride1 & ~is_residual & stage(0, 3), []),
    ],
)
def test_a_condition_finds_the_modules_that_it_means(small: nn.Module, where: Any, found: list[str]) -> None:
    assert names(small, where) == found


def test_the_opposite_of_a_condition_means_what_it_does_not(small: nn.Module) -> None:
    others = names(small, stage(2) & ~is_residual)
    assert others[0] == "blocks.2.0"
    assert "blocks.2.1" not in others
    assert "blocks.2.1.conv_pw" in others  # a convolution is no residual block


@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        ("resnet18", {}, ["layer2.0", "layer2.1"]),
        ("densenet121", {}, [f"features.denseblock2.denselayer{number}" for number in range(1, 13)]),
        ("convnext_atto", {}, ["stages.2.downsample", "stages.2.blocks"]),
        ("resnet18", {"features_only": True}, ["layer2.0", "layer2.1"]),
    ],
)
def test_a_stage_is_counted_as_the_names_of_the_network_count(network: str, options: Any, expected: list[str]) -> None:
    assert names(timm.create_model(network, **options), stage(2)) == expected


def test_a_type_means_exactly_this_type() -> None:
    class Wide(nn.Linear):
        pass

    assert names(nn.Sequential(nn.Linear(1, 1), Wide(1, 1)), nn.Linear) == ["0"]


def test_what_lies_inside_a_match_is_left_out() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
    assert names(model, lambda name, module: bool(name)) == ["0", "1"]
    assert names(model, nn.Sequential) == [""]


def test_what_a_surgery_put_in_is_left_out() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Tanh()))
    replace(model, "0", lambda name, block: nn.Sequential(block))
    assert names(model, nn.ReLU) == ["1.0"]


def test_a_shared_module_is_found_once() -> None:
    shared = nn.ReLU()
    assert names(nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)}), nn.ReLU) == ["a"]


def test_something_else_than_a_condition_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="where=3 is no type"):
        where_of(3)  # type: ignore[arg-type]
