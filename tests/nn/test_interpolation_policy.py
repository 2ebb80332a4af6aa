"""Which blocks are interpolated, and what that costs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.spatial_interpolation import interpolated_block, interpolated_chain
from lightning_efficient.nn.surgery.interpolation import interpolation_steps
from lightning_efficient.profiling import count_macs

IMAGE = torch.zeros(1, 3, 224, 224)
V3, B0 = "mobilenetv3_large_100", "efficientnet_b0"
SKIPS = {
    V3: ["0.0", "1.1", "2.1", "2.2", "3.1", "3.2", "3.3", "4.1", "5.1", "5.2"],
    B0: ["1.1", "2.1", "3.1", "3.2", "4.1", "4.2", "5.1", "5.2", "5.3"],
}


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def names(steps: list[dict[str, Any]]) -> list[str]:
    return [name for step in steps for name in step.get("names", [step.get("name")])]


def carried_out(model: nn.Module, steps: list[dict[str, Any]]) -> nn.Module:
    for step in steps:
        if step["op"] == "replace":
            block = model.get_submodule(step["name"])
            model.set_submodule(step["name"], interpolated_block(step["name"], block, **step["options"]))
        else:
            first, *others = step["names"]
            blocks = [model.get_submodule(name) for name in step["names"]]
            model.set_submodule(first, interpolated_chain(first, blocks, **step["options"]))
            for name in others:
                parent, _, child = name.rpartition(".")
                delattr(model.get_submodule(parent), child)
    return model


def millions(model: nn.Module) -> float:
    return count_macs(model, IMAGE).macs / 1e6


@pytest.mark.parametrize("name", SKIPS)
def test_blocks_with_a_shortcut_are_chosen(name: str) -> None:
    assert names(interpolation_steps(on_meta(name))) == [f"blocks.{each}" for each in SKIPS[name]]


@pytest.mark.parametrize(("name", "more"), [(V3, ["4.0"]), (B0, ["0.0", "4.0", "6.0"])])
def test_with_stride1_those_that_change_channels_come_too(name: str, more: list[str]) -> None:
    chosen = names(interpolation_steps(on_meta(name), which="stride1"))
    assert chosen == [f"blocks.{each}" for each in sorted(SKIPS[name] + more)]


@pytest.mark.parametrize(
    ("name", "options", "whole", "left"),
    [
        (V3, {}, 216.6, 133.2),
        (V3, {"which": "stride1"}, 216.6, 120.8),
        (V3, {"min_size": 14}, 216.6, 154.9),
        (V3, {"factor": 3}, 216.6, 117.7),
        (V3, {"design": "detail"}, 216.6, 133.2),
        (V3, {"design": "grid"}, 216.6, 133.2),
        (B0, {}, 385.8, 233.9),
        (B0, {"which": "stride1"}, 385.8, 202.4),
        (B0, {"min_size": 14}, 385.8, 280.3),
        (B0, {"factor": 3}, 385.8, 206.2),
        ("resnet18", {}, 1814, 970),
        ("resnet50", {}, 4089, 2193),
    ],
)
def test_operations_are_those_of_the_specification(name: str, options: dict, whole: float, left: float) -> None:
    model = on_meta(name)
    assert millions(model) == pytest.approx(whole, rel=1e-3)
    assert millions(carried_out(model, interpolation_steps(model, **options))) == pytest.approx(left, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "v3", "b0"),
    [
        ({}, 38.5, 39.4),
        ({"design": "strided"}, 22.9, 22.0),
        ({"design": "strided", "which": "stride1"}, 26.9, 29.7),
        ({"design": "chain"}, 38.8, 39.5),
        ({"cheap": False}, 40.3, 39.9),
        ({"design": "chain", "cheap": False}, 40.3, 39.9),
    ],
)
def test_the_share_saved_is_that_of_the_specification(options: dict[str, Any], v3: float, b0: float) -> None:
    for name, saved in ((V3, v3), (B0, b0)):
        model = on_meta(name)
        before = millions(model)
        after = millions(carried_out(model, interpolation_steps(model, **options)))
        assert round(100 * (1 - after / before), 1) == saved


@pytest.mark.parametrize(("name", "channels"), [(V3, 792), (B0, 1024)])
def test_parameters_grow_by_eleven_per_channel(name: str, channels: int) -> None:
    model = on_meta(name)
    before = sum(parameter.numel() for parameter in model.parameters())
    carried_out(model, interpolation_steps(model))
    assert sum(parameter.numel() for parameter in model.parameters()) - before == 11 * channels


def test_neighbours_of_a_stage_become_one_chain_and_others_stay_alone() -> None:
    steps = interpolation_steps(on_meta(V3), design="chain", factor=3)
    assert [(step["op"], names([step])) for step in steps] == [
        ("replace", ["blocks.0.0"]),
        ("replace", ["blocks.1.1"]),
        ("merge", ["blocks.2.1", "blocks.2.2"]),
        ("merge", ["blocks.3.1", "blocks.3.2", "blocks.3.3"]),
        ("replace", ["blocks.4.1"]),
        ("merge", ["blocks.5.1", "blocks.5.2"]),
    ]
    assert steps[2]["old"] == ["InvertedResidual"] * 2
    assert steps[2]["make"] == "InterpolatedChain"
    assert steps[2]["options"]["factor"] == steps[0]["options"]["factor"] == 3


def test_a_chain_is_cut_where_a_block_is_left_out_and_where_channels_change() -> None:
    block = timm.models.resnet.BasicBlock
    layers = [block(4, 4), block(4, 4), nn.Identity(), block(4, 4), block(8, 8)]
    steps = interpolation_steps(nn.Sequential(*layers), design="chain")
    assert [names([step]) for step in steps] == [["0", "1"], ["3"], ["4"]]
    listed = interpolation_steps(nn.ModuleList([block(4, 4), block(4, 4)]), design="chain")
    assert [step["op"] for step in listed] == ["replace", "replace"]


def test_steps_are_json_and_say_every_option() -> None:
    for design in ("add", "chain"):
        steps = interpolation_steps(on_meta(V3), design=design)
        assert json.loads(json.dumps(steps)) == steps
    assert interpolation_steps(on_meta(V3))[0] == {
        "op": "replace",
        "name": "blocks.0.0",
        "old": "DepthwiseSeparableConv",
        "make": "SpatialInterpolation",
        "options": {
            "factor": 2,
            "sampling": "average",
            "upsampling": "bilinear",
            "cheap": True,
            "zero_init": False,
            "design": "add",
            "blend": "add",
        },
    }


@pytest.mark.parametrize(
    ("options", "zero"),
    [
        ({}, False),
        ({"pretrained": True}, True),
        ({"pretrained": True, "zero_init": False}, False),
        ({"zero_init": True}, True),
        ({"pretrained": True, "cheap": False}, False),
        ({"pretrained": True, "design": "strided"}, False),
        ({"pretrained": True, "blend": "convex"}, False),
        ({"pretrained": True, "design": "chain"}, True),
    ],
)
def test_trained_networks_start_with_a_cheap_branch_of_zero(options: dict[str, Any], zero: bool) -> None:
    steps = interpolation_steps(on_meta(V3), **options)
    assert {step["options"]["zero_init"] for step in steps} == {zero}


def test_only_the_stages_asked_for_are_looked_at() -> None:
    assert names(interpolation_steps(on_meta(V3), stages=[1, 5])) == ["blocks.1.1", "blocks.5.1", "blocks.5.2"]
    assert names(interpolation_steps(on_meta("resnet18"), stages=[1])) == ["layer1.0", "layer1.1"]
    assert interpolation_steps(on_meta(V3), stages=1) == interpolation_steps(on_meta(V3), stages=[1])
    with pytest.raises(ConfigurationError, match=r"stages=\[9\]: stages with .* are \[0, 1, 2, 3, 4, 5\]"):
        interpolation_steps(on_meta(V3), stages=[9])


def test_blocks_without_a_spatial_convolution_are_left_out_where_it_would_have_the_stride() -> None:
    model = on_meta("mobilenetv4_conv_medium")
    every, strided = names(interpolation_steps(model)), names(interpolation_steps(model, design="strided"))
    pointwise = {"blocks.2.6", "blocks.3.4", "blocks.3.8", "blocks.3.9"}
    assert strided == [name for name in every if name not in pointwise]
    assert pointwise < set(every)
    carried_out(model, interpolation_steps(model, design="strided"))
    alone = nn.Sequential(model.get_submodule("blocks.2.6"))
    with pytest.raises(ConfigurationError, match=r"for design='strided', .* and with a spatial convolution: "):
        interpolation_steps(alone, design="strided")


def test_sizes_of_maps_follow_from_the_input() -> None:
    model = on_meta("resnet18")
    assert names(interpolation_steps(model, min_size=28)) == ["layer1.0", "layer1.1", "layer2.1"]
    for size in (64, (3, 64, 64), [3, 64, 128]):
        assert names(interpolation_steps(model, min_size=8, input_size=size)) == ["layer1.0", "layer1.1", "layer2.1"]
    grey = on_meta("resnet18", in_chans=1)
    assert len(interpolation_steps(grey, min_size=7)) == len(interpolation_steps(grey, min_size=2, input_size=64)) == 5


def test_the_network_is_not_touched() -> None:
    model = timm.create_model("resnet18", num_classes=2)
    before, modules = {key: value.clone() for key, value in model.state_dict().items()}, list(model.modules())
    state = torch.random.get_rng_state()
    interpolation_steps(model, min_size=8, input_size=64)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(model.modules()) == modules
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_shared_block_is_named_once() -> None:
    block = timm.models.resnet.BasicBlock(4, 4)
    assert names(interpolation_steps(nn.Sequential(block, block))) == ["0"]


@pytest.mark.parametrize("design", ["add", "chain"])
def test_what_is_interpolated_already_is_left_alone(design: Any) -> None:
    model = on_meta("resnet18")
    carried_out(model, interpolation_steps(model, stages=[1], design=design))
    assert names(interpolation_steps(model)) == ["layer2.1", "layer3.1", "layer4.1"]
    carried_out(model, interpolation_steps(model))
    with pytest.raises(ConfigurationError, match=r"found no block in ResNet .* interpolated already"):
        interpolation_steps(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1}, "factor=1 must be a whole number of 2 or more"),
        ({"design": "chian"}, "design='chian' is not one of .* Did you mean 'chain'"),
        ({"which": "all"}, r"which='all' is not one of \['skip', 'stride1'\]"),
        ({"design": "chain", "which": "stride1"}, "which='stride1' does not fit design='chain'"),
        ({"design": "chain", "blend": "convex"}, "blend='convex' does not fit design='chain'"),
        ({"design": "grid", "upsampling": "nearest"}, "upsampling='nearest' does not fit design='grid'"),
        ({"stages": []}, r"stages=\[\]"),
        ({"min_size": 0}, "min_size=0 must be a whole number of pixels"),
        ({"min_size": 99}, r"found no block in ResNet for which='skip', min_size=99; it takes blocks of stride 1"),
        ({"min_size": 8, "input_size": (64, 64)}, r"input_size=\(64, 64\) must be \(channels, height, width\)"),
        *(
            ({"min_size": 8, "input_size": size}, r"input_size=.* must be \(channels, height, width\) or one number")
            for size in (64.0, -5, True, "64", ["a", 64, 64], [3, 64, 0])
        ),
        (
            {"min_size": 8, "input_size": [1, 64, 64]},
            r"input_size=\[1, 64, 64\]: ResNet does not run on .*\(1, 64, 64\)",
        ),
        ({"cheap": "no"}, r"cheap='no' must be True or False"),
        ({"zero_init": "false"}, r"zero_init='false' must be True or False"),
        ({"factor": True}, "factor=True must be a whole number"),
        ({"min_size": True}, "min_size=True must be a whole number"),
        ({"stages": True}, "stages=True must be the number of a stage, or a list"),
        ({"stages": "1"}, "stages='1' must be the number of a stage, or a list"),
        ({"stages": [1.0]}, r"stages=\[1.0\] must be the number of a stage, or a list"),
    ],
)
def test_options_that_cannot_work_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        interpolation_steps(on_meta("resnet18"), **options)
    assert "\n" not in str(raised.value)


def test_networks_without_such_blocks_are_told_what_is_taken() -> None:
    with pytest.raises(ConfigurationError, match=r"found no block in Linear .* with a shortcut: InvertedResidual, "):
        interpolation_steps(nn.Linear(2, 2))
    unnamed = nn.Sequential(timm.models.resnet.BasicBlock(4, 4))
    with pytest.raises(ConfigurationError, match=r"min_size needs input_size, such as .*: Sequential names none"):
        interpolation_steps(unnamed, min_size=4)
    assert names(interpolation_steps(unnamed, min_size=4, input_size=8)) == ["0"]


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "mobilenetv4_conv_small_050", "resnet18", "efficientnet_lite0"]
)
@pytest.mark.parametrize("design", ["add", "chain"])
def test_a_changed_network_trains_and_gives_features_at_the_sizes_it_names(name: str, design: Any) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, drop_path_rate=0.1)
    carried_out(model, interpolation_steps(model, design=design))
    images = torch.randn(2, 3, 64, 64)
    model(images).logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    features = model.forward_intermediates(images, intermediates_only=True)
    for maps, info in zip(features, model.feature_info, strict=False):
        assert maps.shape[1:] == (info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
    model.reset_classifier(7)
    model.set_grad_checkpointing()
    assert model.train()(images).shape == (2, 7)


def test_feature_extraction_by_graph_finds_the_interpolated_maps() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model = timm.create_model("mobilenetv3_small_050").eval()
    carried_out(model, interpolation_steps(model))
    maps = create_feature_extractor(model, ["blocks.1.1.add"])(torch.randn(1, 3, 64, 64))["blocks.1.1.add"]
    assert maps.shape[-2:] == (8, 8)
