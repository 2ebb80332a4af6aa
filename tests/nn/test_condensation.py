"""Condensed networks: which blocks go, what takes their place, and the totals of the released code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm_versions import needs
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.cifar_networks import register_cifar_networks
from lightning_efficient.nn.cifar_resnet import register_cifar_resnets
from lightning_efficient.nn.depthwise_layer import DepthwiseLayer
from lightning_efficient.nn.global_layer import GlobalLayer
from lightning_efficient.nn.surgery import apply, carry_out, perform
from lightning_efficient.nn.surgery.condensation import PLACEMENTS, condensation_steps, preset_of, stages_of
from lightning_efficient.profiling import count_macs

SMALL = {"channels": (16, 32, 64, 64), "num_classes": 10}


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_cifar_resnets()
    register_cifar_networks()


def built(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **options)


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def condensed(network: Any, **options: Any) -> Any:
    carry_out(network, condensation_steps(network, **options))
    return network


def layers_of(network: nn.Module, kind: type[nn.Module] = GlobalLayer) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if isinstance(module, kind)}


# ------------------------------------------------------------------------------------------------- totals
TOTALS: list[Any] = [
    ("efficientnet_b0", {}, {}, 224, 3_822_932, 295_439_456),
    ("mobilenetv2_100", {}, {}, 224, 2_952_232, 233_507_072),
    ("mobilenetv3_large_100", {}, {}, 224, 3_868_160, 174_401_696),
    ("cifar_resnet18", {"layers": (3, 3, 3, 3), **SMALL}, {}, 32, 161_402, 14_779_008),
    ("cifar_resnet18", {"layers": (1, 1, 1, 1), **SMALL, "num_classes": 100}, {}, 32, 167_252, 14_784_768),
    ("cifar_resnet18", {"layers": (5, 5, 5, 5), **SMALL}, {"keep": 2}, 32, 332_602, 30_114_432),
    ("cifar_wrn40_4", {"num_classes": 10}, {}, 32, 2_798_282, 425_331_200),
    ("cifar_densenet100", {"num_classes": 10}, {}, 32, 465_442, 132_772_044),
    # not released: one block and a layer in each stage
    ("resnet18", {}, {}, 224, 5_462_952, 902_776_832),
    ("resnet50", {}, {}, 224, 10_241_576, 1_522_982_912),
]


@pytest.mark.parametrize(("name", "options", "condensation", "size", "parameters", "macs"), TOTALS)
def test_condensed_networks_have_the_totals_of_the_released_code(
    name: str, options: dict[str, Any], condensation: dict[str, Any], size: int, parameters: int, macs: int
) -> None:
    network = condensed(on_meta(name, **options), **condensation)
    assert sum(each.numel() for each in network.parameters()) == parameters
    assert count_macs(network, torch.zeros(1, 3, size, size, device="meta")).macs == macs


# ------------------------------------------------------------------------------------------------- steps
def test_cifar_nets_get_an_identity_layer_in_three_stages_and_lose_blocks_in_all_four() -> None:
    steps = condensation_steps(on_meta("cifar_resnet18", layers=(3, 2, 1, 3), **SMALL))
    told = [(step["op"], step.get("name", step.get("names"))) for step in steps]
    assert told == [
        ("replace", "layer1.1"),
        ("delete", ["layer1.2"]),
        ("replace", "layer2.1"),
        ("append", "layer3"),
        ("delete", ["layer4.1", "layer4.2"]),
    ]
    assert steps[0]["old"] == "BasicBlock"
    assert steps[0]["make"] == "GlobalLayer"
    assert steps[0]["options"] == {
        "wrap": False,
        "steps": 1,
        "dt": 0.2,
        "diffusion": "learned",
        "coeff_eps": "channels",
        "kernel_size": 3,
    }


def test_mobilenetv3_is_rebuilt_in_stage_3_and_wraps_the_strided_block_of_stage_5() -> None:
    steps = condensation_steps(on_meta("mobilenetv3_large_100"))
    options = {step["name"]: step["options"] for step in steps if step["op"] == "replace"}
    assert list(options) == ["blocks.1.1", "blocks.2.1", "blocks.3.1", "blocks.4.1", "blocks.5.0"]
    assert all(each["wrap"] for each in options.values())
    assert [each.get("expansion") for each in options.values()] == [None, None, 6.0, None, None]
    assert [each["tied"] for each in options.values()] == [False, True, True, True, True]
    deleted = [name for step in steps if step["op"] == "delete" for name in step["names"]]
    assert deleted == ["blocks.2.2", "blocks.3.2", "blocks.3.3", "blocks.5.1", "blocks.5.2"]


def test_small_mobilenetv3_has_none_of_the_large_ones_exceptions() -> None:
    steps = condensation_steps(on_meta("mobilenetv3_small_100"))
    assert [step["name"] for step in steps if step["op"] == "replace"] == [f"blocks.{n}.1" for n in range(1, 5)]
    assert not any("expansion" in step.get("options", {}) for step in steps)


def test_velocities_of_efficientnet_look_as_far_as_the_blocks_they_follow() -> None:
    network = condensed(built("efficientnet_b0", num_classes=3))
    layers = layers_of(network)
    convolutions = [
        max(m.kernel_size[0] for m in layer.modules() if isinstance(m, nn.Conv2d)) for layer in layers.values()
    ]
    assert convolutions == [3, 5, 3, 5, 5]
    assert [layer.spacing for layer in layers.values()] == [(1, 1), (2, 2), (1, 1), (1, 1), (1, 1)]
    assert [layer.dt for layer in layers.values()] == [0.1, 0.1, 0.2, 0.2, 0.2]


def test_dense_blocks_lose_half_their_layers_and_transitions_get_a_layer() -> None:
    steps = condensation_steps(on_meta("densenet121"))
    assert steps[0] == {"op": "thin_densenet", "keep": [3, 6, 12, 8]}
    assert [step["name"] for step in steps[1:]] == [f"features.transition{n}" for n in (1, 2, 3)]
    assert [step["options"]["channels"] for step in steps[1:]] == [80, 136, 260]
    assert {step["options"]["init_kind"] for step in steps[1:]} == {"dense"}


def test_steps_change_nothing_and_can_be_written_down() -> None:
    network = built("efficientnet_b0", num_classes=3)
    before = {key: id(value) for key, value in network.state_dict(keep_vars=True).items()}
    for then in ("GlobalLayer", "DepthwiseLayer", None):
        steps = condensation_steps(network, then=then)
        assert json.loads(json.dumps(steps)) == steps
    assert {key: id(value) for key, value in network.state_dict(keep_vars=True).items()} == before


def test_with_nothing_in_its_place_the_stage_keeps_its_first_block() -> None:
    steps = condensation_steps(on_meta("mobilenetv3_large_100"), then=None)
    assert {step["op"] for step in steps} == {"delete"}
    deleted = [name for step in steps for name in step["names"]]
    assert deleted[0] == "blocks.1.1"
    assert deleted[-2:] == ["blocks.5.1", "blocks.5.2"]
    assert condensation_steps(on_meta("cifar_resnet18", layers=(1, 1, 1, 1)), then=None) == []
    only = condensation_steps(on_meta("densenet121"), then=None, keep=[6, 12, 2, 1])
    assert only == [{"op": "thin_densenet", "keep": [6, 12, 2, 1]}]


def test_the_control_layer_takes_the_same_places_with_the_same_kernels() -> None:
    network = on_meta("efficientnet_b0")
    ours, control = (condensation_steps(network, then=then) for then in ("GlobalLayer", "DepthwiseLayer"))
    assert [(step["op"], step.get("name")) for step in ours] == [(step["op"], step.get("name")) for step in control]
    assert control[0]["options"] == {"wrap": True, "kernel_size": "block"}


def test_chosen_stages_are_the_only_ones_that_change() -> None:
    network = on_meta("cifar_resnet18", layers=(3, 3, 3, 3), **SMALL)
    steps = condensation_steps(network, stages=[4, 2], keep=[2, 1])
    assert [step.get("name", step.get("names")) for step in steps] == ["layer4.2", "layer2.1", ["layer2.2"]]


def test_own_options_win_over_those_of_the_preset() -> None:
    steps = condensation_steps(on_meta("mobilenetv2_100"), wrap=False, steps=4, diffusion="learned", kernel_size=5)
    options = [step["options"] for step in steps if "options" in step]
    assert len(options) == 5
    for each in options:
        assert (each["wrap"], each["steps"], each["diffusion"], each["kernel_size"]) == (False, 4, "learned", 5)


def test_a_function_makes_the_layer_with_the_given_options_only() -> None:
    def make(name: str, block: nn.Module, **options: Any) -> nn.Module:
        assert options == {"bias": False}
        return nn.Conv2d(16, 16, 1, **options)

    network = built("cifar_resnet18", layers=(2, 1, 1, 1), **SMALL)
    condensed(network, then=make, stages=[1], bias=False)
    assert type(network.layer1[1]) is nn.Conv2d


# ------------------------------------------------------------------------------------------------- presets
@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("efficientnet_b0", "imagenet_b0"),
        ("efficientnetv2_rw_t", "imagenet_b0"),
        ("mobilenetv2_050", "imagenet_mbv2"),
        ("mobilenetv3_large_100", "imagenet_mbv3"),
        ("mobilenetv4_conv_small", "imagenet_mbv3"),
        ("resnet18", "resnet"),
        ("resnet50", "resnet"),
        ("cifar_resnet18", "cifar"),
        ("cifar_resnet32", "wide_resnet"),
        ("densenet121", "densenet"),
    ],
)
def test_the_blocks_of_a_network_choose_the_preset(name: str, preset: str) -> None:
    network = on_meta(name)
    assert preset_of(network) == preset
    assert condensation_steps(network) == condensation_steps(network, preset="auto")
    assert condensation_steps(network) == condensation_steps(network, preset=preset)
    assert preset in PLACEMENTS


def test_stages_go_by_the_numbers_in_their_names() -> None:
    assert list(stages_of(on_meta("resnet18"))) == [1, 2, 3, 4]
    assert list(stages_of(on_meta("mobilenetv2_050"))) == list(range(7))
    assert list(stages_of(on_meta("cifar_wrn40_4"))) == [1, 2, 3]


# ------------------------------------------------------------------------------------------------- networks at work
NETWORKS: dict[str, Callable[[], Any]] = {
    "cifar": lambda: built("cifar_resnet18", layers=(2, 2, 1, 2), **SMALL),
    "wide_resnet": lambda: built("cifar_wrn40_4", layers=(3, 2, 2), channels=(8, 16, 32), num_classes=10),
    "densenet": lambda: built("cifar_densenet100", block_config=(4, 2, 3), num_classes=10),
    "densenet121": lambda: built("densenet121", block_config=(2, 3, 2, 2), num_classes=10),
    "resnet18": lambda: built("resnet18", channels=(16, 16, 32, 32), stem_width=32, num_classes=10),
    "resnet50": lambda: built("resnet50", layers=(2, 3, 2, 2), channels=(8, 8, 16, 16), num_classes=10),
    "mobilenetv2": lambda: built("mobilenetv2_035", num_classes=10),
    "mobilenetv3": lambda: built("mobilenetv3_large_100", num_classes=10),
    "efficientnet": lambda: built("efficientnet_b0", num_classes=10),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("then", ["GlobalLayer", "DepthwiseLayer"])
def test_condensed_networks_train_and_give_the_declared_maps(name: str, then: str) -> None:
    network = condensed(NETWORKS[name](), then=then)
    assert layers_of(network, {"GlobalLayer": GlobalLayer, "DepthwiseLayer": DepthwiseLayer}[then])
    images = torch.rand(2, 3, 64, 64)
    network(images).square().sum().backward()
    silent = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert silent == []
    network.eval()
    needs(network, "forward_intermediates")
    final, maps = network.forward_intermediates(images)
    torch.testing.assert_close(final, network.forward_features(images))
    if not name.startswith(("mobile", "efficient")):  # those apply a last convolution to the final features
        declared = [(info["num_chs"], 64 // info["reduction"]) for info in network.feature_info]
        assert [(each.shape[1], each.shape[3]) for each in maps] == declared
    network.reset_classifier(3)
    assert network(images).shape == (2, 3)


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_035", "mobilenetv3_small_050", "cifar_wrn40_4"])
def test_feature_extractors_give_the_same_shapes_after_condensing(name: str) -> None:
    network = built(name, features_only=True).eval()
    images = torch.rand(1, 3, 64, 64)
    before = [each.shape for each in network(images)]
    condensed(network)
    assert layers_of(network)
    assert [each.shape for each in network(images)] == before


def test_a_condensed_densenet_becomes_a_feature_extractor_afterwards() -> None:
    from timm.models._features import FeatureListNet

    network = condensed(NETWORKS["densenet121"]())
    images = torch.rand(1, 3, 64, 64)
    needs(network, "forward_intermediates")
    expected = network.eval().forward_intermediates(images, intermediates_only=True)
    extractor = FeatureListNet(network, out_indices=(0, 1, 2, 3, 4), flatten_sequential=True).eval()
    for each, other in zip(extractor(images), expected, strict=True):
        torch.testing.assert_close(each, other)


@pytest.mark.parametrize("name", ["cifar", "resnet50", "mobilenetv2", "densenet"])
def test_layers_of_a_pretrained_network_start_as_if_they_were_not_there(name: str) -> None:
    network, bare = NETWORKS[name]().eval(), NETWORKS[name]().eval()
    keeps = {"wrap": False} if name != "densenet" else {}
    condensed(network, pretrained=True, **keeps).eval()
    condensed(bare, then=None, preset=None).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(network(images), bare(images))
    assert all(layer.layer_scale is not None for layer in layers_of(network).values())


def test_pretrained_blocks_are_not_rebuilt_unless_asked() -> None:
    network = on_meta("mobilenetv3_large_100")
    for options, expected in (({}, {None}), ({"expansion": 4.0}, {4.0})):
        steps = condensation_steps(network, pretrained=True, **options)
        assert {step["options"].get("expansion") for step in steps if step["op"] == "replace"} == expected


def test_a_layer_scale_or_a_shortcut_that_is_given_stays() -> None:
    network = on_meta("resnet18")
    scaled = condensation_steps(network, pretrained=True, layer_scale=0.1)
    added = condensation_steps(network, pretrained=True, residual=True)
    assert Counter(step["options"].get("layer_scale") for step in scaled if "options" in step) == {0.1: 4}
    assert Counter(step["options"].get("layer_scale") for step in added if "options" in step) == {None: 4}


def test_kept_blocks_are_the_same_modules() -> None:
    network = built("mobilenetv2_035")
    kept = {name: network.get_submodule(name) for name in ("blocks.0.0", "blocks.3.0", "blocks.6.0", "conv_head")}
    condensed(network)
    assert all(network.get_submodule(name) is module for name, module in kept.items())
    assert [len(stage) for stage in network.blocks] == [1, 2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("name", ["cifar", "mobilenetv3", "densenet"])
def test_condensing_is_undone_repeated_from_its_recipe_and_loads_old_weights(name: str) -> None:
    network = NETWORKS[name]().eval()
    images = torch.rand(1, 3, 64, 64)
    logits, weights = network(images), {key: value.clone() for key, value in network.state_dict().items()}
    result = carry_out(network, condensation_steps(network))
    after = {key: value.clone() for key, value in network.state_dict().items()}

    twin = NETWORKS[name]()
    again = apply(twin, json.loads(json.dumps(result.recipe)))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    fresh = again.load(weights)
    assert fresh == again.new_keys
    assert all(torch.equal(value, after[key]) for key, value in twin.state_dict().items() if key not in fresh)

    torch.testing.assert_close(result.undo().eval()(images), logits)
    assert list(network.state_dict()) == list(weights)


def test_a_configuration_names_the_layer_and_its_options() -> None:
    network = built("cifar_resnet18", layers=(2, 2, 2, 2), **SMALL)
    result = perform(network, [{"class_path": "GlobalLayer", "init_args": {"steps": 3}}], pretrained=True)
    assert result.names == ["layer1.1", "layer2.1", "layer3.1"]
    assert [layer.steps for layer in layers_of(network).values()] == [3, 3, 3]
    assert all(layer.layer_scale is not None for layer in layers_of(network).values())
    bare = built("cifar_resnet18", layers=(2, 2, 2, 2), **SMALL)
    perform(bare, [{"class_path": "Condense"}])
    assert [len(bare.get_submodule(f"layer{number}")) for number in (1, 2, 3, 4)] == [1, 1, 1, 1]


# ------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "imagenet_b1"}, r"preset='imagenet_b1' is not one of \[.*Did you mean 'imagenet_b0'"),
        ({"then": "GlobalLayr"}, r"then='GlobalLayr' is not one of .*Did you mean 'GlobalLayer'"),
        ({"stpes": 3}, r"^GlobalLayer has no option 'stpes'\. Did you mean 'steps'"),
        ({"stage": [1]}, r"^GlobalLayer has no option 'stage'\. Did you mean 'stages'"),
        ({"then": "DepthwiseLayer", "dt": 0.1}, r"^DepthwiseLayer has no option 'dt'"),
        ({"then": None, "dt": 0.1}, r"then=None makes no layer that could take 'dt'"),
        ({"stages": [1, 5]}, r"stages=\[1, 5\]: the network has no stage 5; it has \[1, 2, 3, 4\]"),
        ({"keep": 0}, r"keep=0 does not fit layer1, which has 2 blocks; give 1 to 2"),
        ({"keep": 3}, r"keep=3 does not fit layer1, which has 2 blocks; give 1 to 2"),
        ({"keep": [1, 2]}, r"keep=\[1, 2\] must be one integer, or one for each of stages \[1, 2, 3, 4\]"),
        ({"preset": "densenet"}, r"preset='densenet' does not fit a ResNet; use 'resnet'"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        condensation_steps(on_meta("resnet18"), **options)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "regnety_002", "ghostnet_100"])
def test_networks_of_other_blocks_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigurationError, match="has no stages that can be condensed; timm's ResNets"):
        condensation_steps(timm.create_model(name))  # older versions of timm cannot make these on meta


def test_a_dense_net_wraps_nothing() -> None:
    with pytest.raises(ConfigurationError, match="wrap=True does not fit a DenseNet"):
        condensation_steps(on_meta("densenet121"), wrap=True)
    with pytest.raises(ConfigurationError, match="preset='cifar' does not fit a DenseNet; use 'densenet'"):
        condensation_steps(on_meta("densenet121"), preset="cifar")
    with pytest.raises(ConfigurationError, match=r"no stage 4; it has \[1, 2, 3\]"):
        condensation_steps(on_meta("densenet121"), stages=[4])


def test_a_stage_is_condensed_once() -> None:
    network = condensed(built("cifar_resnet18", layers=(2, 2, 2, 2), **SMALL))
    with pytest.raises(ConfigurationError, match=r"layer1\.1 is a GlobalLayer; condensation removes only blocks"):
        condensation_steps(network)


def test_a_block_that_changes_the_shape_is_not_removed() -> None:
    with pytest.raises(ConfigurationError, match=r"blocks\.5\.6 changes the shape of its input and cannot be removed"):
        condensation_steps(on_meta("fbnetv3_b"))
