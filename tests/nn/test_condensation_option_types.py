"""Options of condensed networks and their layers, of types that YAML may give: one line each, or what they mean."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.cifar_networks import register_cifar_networks
from lightning_efficient.nn.depthwise_layer import DepthwiseLayer
from lightning_efficient.nn.global_layer import GlobalLayer, global_layer_at
from lightning_efficient.nn.surgery import carry_out
from lightning_efficient.nn.surgery.condensation import condensation_steps
from lightning_efficient.nn.surgery.densenet import thin


def on_meta(name: str, **options: Any) -> nn.Module:
    register_cifar_networks()
    with torch.device("meta"):
        return timm.create_model(name, **options)


def dense() -> nn.Module:
    return on_meta("cifar_densenet100", block_config=(3, 2, 4), growth_rate=4)


def refusal(name: str, **options: Any) -> str:
    network = dense() if name == "densenet" else on_meta(name)
    with pytest.raises(ConfigurationError) as raised:
        carry_out(network, condensation_steps(network, **options))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrap": "no"}, "wrap='no' must be True, False or None"),
        ({"residual": "no"}, "residual='no' must be True or False"),
        ({"tied": "false"}, "tied='false' must be True or False"),
        ({"source": 0}, "source=0 must be True or False"),
        ({"bias": None}, "bias=None must be True or False"),
        ({"then": "DepthwiseLayer", "residual": "no"}, "residual='no' must be True or False"),
        ({"then": "DepthwiseLayer", "bias": 1}, "bias=1 must be True or False"),
        ({"then": 3}, "then=3 must be one of ['GlobalLayer', 'DepthwiseLayer'], a callable or None"),
        ({"steps": True}, "steps=True must be an integer of at least 1"),
        ({"spacing": True}, "spacing=True must be one or two whole numbers"),
        ({"diffusion": True}, "diffusion=True must be a kind, or one or two finite numbers"),
        ({"keep": True}, "keep=True must be one integer, or one for each of stages [1, 2, 3, 4]"),
        ({"keep": 1.0}, "keep=1.0 must be one integer"),
        ({"keep": "one"}, "keep='one' must be one integer"),
        ({"keep": [1, 1, 1, False]}, "keep=[1, 1, 1, False] must be one integer"),
        ({"stages": True}, "stages=True must be the number of a stage, or a list of such numbers"),
        ({"stages": 1.0}, "stages=1.0 must be the number of a stage"),
        ({"stages": ["a"]}, "stages=['a'] must be the number of a stage"),
        ({"dt": "x"}, "dt='x' must be a number"),
        ({"dt": True}, "dt=True must be a number"),
        ({"coeff_eps": [1]}, "coeff_eps=[1] must be a number"),
        ({"velocity_bound": "x"}, "velocity_bound='x' must be a number"),
        ({"layer_scale": "x"}, "layer_scale='x' must be a number"),
        ({"drop_path": "a"}, "drop_path='a' must be a number"),
        ({"act": 3}, "act=3 must be a type of activation, or timm's name of one"),
        ({"expansion": "q"}, "expansion='q' must be a number"),
        ({"channels": True}, "channels=True does not fit blocks.1.1"),
        ({"channels": 7}, "channels=7 does not fit blocks.1.1, InvertedResidual of 16 channels"),
        ({"channels": 7, "wrap": False}, "channels=7 does not fit blocks.1.1, InvertedResidual of 16 channels"),
        ({"channels": 7, "keep": 2, "stages": 1}, "channels=7 does not fit blocks.1.1, InvertedResidual of 16"),
        (
            {"channels": 16},
            "channels=16 does not fit blocks.2.1, InvertedResidual of 24 channels; leave it out; stages=[1]",
        ),
    ],
)
def test_options_of_the_wrong_type_are_one_line(options: dict[str, Any], message: str) -> None:
    assert message in refusal("mobilenetv3_small_050", **options)


@pytest.mark.parametrize("keep", [[1, 2, "a"], [True, 1, 1], [1.0, 1, 1], [1, 1]])
def test_dense_blocks_keep_whole_numbers_of_layers(keep: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"keep=\[.*\] does not fit dense blocks of \[3, 2, 4\] layers"):
        thin(dense(), keep)
    assert f"keep={keep!r}" in refusal("densenet", keep=keep)


def test_a_number_is_not_a_list_of_layers_for_dense_blocks() -> None:
    with pytest.raises(ConfigurationError, match="keep=3 does not fit dense blocks"):
        thin(dense(), 3)  # type: ignore[arg-type]


def test_layers_of_a_densenet_have_the_channels_of_its_transitions() -> None:
    assert "channels=7 does not fit transition 1, of " in refusal("densenet", channels=7)


@pytest.mark.parametrize("layer", [GlobalLayer, DepthwiseLayer])
def test_layers_take_whole_channels_and_types_of_activations(layer: Any) -> None:
    with pytest.raises(ConfigurationError, match="channels=True must be an integer"):
        layer(True)
    with pytest.raises(ConfigurationError, match=r"act=ReLU\(\) must be a type"):
        layer(4, act=nn.ReLU())


def test_a_layer_wraps_a_block_of_its_width_and_wrap_is_no_text() -> None:
    with pytest.raises(ConfigurationError, match="channels=7 does not fit here, BasicBlock of 4 channels"):
        global_layer_at("here", BasicBlock(4, 4), wrap=True, channels=7)
    with pytest.raises(ConfigurationError, match="wrap='no' must be True or False"):
        global_layer_at("here", nn.Conv2d(3, 4, 1), wrap="no")  # type: ignore[arg-type]


def test_one_stage_needs_no_list() -> None:
    network = on_meta("mobilenetv3_small_050")
    assert condensation_steps(network, stages=1) == condensation_steps(network, stages=[1])
    assert condensation_steps(dense(), stages=2) == condensation_steps(dense(), stages=[2])


@pytest.mark.parametrize(
    ("name", "problem", "stages"),
    [
        ("mobilenetv4_hybrid_medium", "is a MobileAttention; condensation removes only", [1]),
        ("fbnetv3_b", "blocks.5.6 changes the shape of its input and cannot be removed", [1, 2, 3, 4]),
    ],
)
@pytest.mark.parametrize("then", ["GlobalLayer", None])
def test_where_one_block_is_in_the_way_the_other_stages_are_named(
    name: str, problem: str, stages: list[int], then: Any
) -> None:
    said = refusal(name, then=then)
    assert problem in said
    assert said.endswith(f"; stages={stages} can be condensed")
    network = on_meta(name)
    carry_out(network, condensation_steps(network, then=then, stages=stages))
    assert network.eval()(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)


def test_no_stage_is_named_where_none_can_be_condensed() -> None:
    assert "can be condensed" not in refusal("fbnetv3_b", stages=[5])
