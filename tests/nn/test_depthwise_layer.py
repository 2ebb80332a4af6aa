"""The depthwise control, and how both layers are made for a place in a network."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
from timm.models._efficientnet_blocks import EdgeResidual, InvertedResidual
from timm.models.resnet import BasicBlock
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn._rebuilt_block import with_expansion
from lightning_efficient.nn.depthwise_layer import DepthwiseLayer, depthwise_layer_at
from lightning_efficient.nn.global_layer import GlobalLayer, global_layer_at
from lightning_efficient.nn.global_layer_presets import GLOBAL_LAYER_PRESETS
from lightning_efficient.profiling import count_macs

MAKERS = {"GlobalLayer": global_layer_at, "DepthwiseLayer": depthwise_layer_at}


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_it_is_a_depthwise_convolution_with_norm_and_activation(kernel_size: int) -> None:
    torch.manual_seed(0)
    layer = DepthwiseLayer(6, kernel_size=kernel_size, act="silu").eval()
    assert sum(each.numel() for each in layer.parameters()) == (kernel_size**2 + 2) * 6
    inputs = torch.randn(2, 6, 5, 4)
    filtered = nn.functional.conv2d(inputs, layer.conv.weight, padding=kernel_size // 2, groups=6)
    assert torch.allclose(layer(inputs), nn.functional.silu(filtered / (1 + 1e-5) ** 0.5), atol=1e-6)


@pytest.mark.parametrize("init", [None, BasicBlock(4, 4)])
def test_a_layer_scale_of_zero_leaves_the_network_as_it_was(init: nn.Module | None) -> None:
    layer, inputs = DepthwiseLayer(4, init, layer_scale=0.0).eval(), torch.randn(2, 4, 6, 6)
    assert torch.equal(layer(inputs), layer.init(inputs))
    assert not torch.allclose(DepthwiseLayer(4, init, layer_scale=1.0).eval()(inputs), layer(inputs))


def test_the_residual_adds_the_input_or_the_features_where_shapes_differ() -> None:
    inputs = torch.randn(2, 4, 6, 6)
    for block in (BasicBlock(4, 4), InvertedResidual(4, 6, stride=2)):
        channels = 4 if isinstance(block, BasicBlock) else 6
        plain, added = (DepthwiseLayer(channels, block, residual=each).eval() for each in (False, True))
        added.load_state_dict(plain.state_dict())
        shortcut = inputs if channels == 4 else block(inputs)
        assert torch.allclose(added(inputs), plain(inputs) + shortcut)


def test_it_compiles_and_traces() -> None:
    layer, inputs = DepthwiseLayer(4, residual=True).eval(), torch.randn(2, 4, 6, 6)
    assert torch.allclose(torch.compile(layer, backend="eager", fullgraph=True)(inputs), layer(inputs))
    assert torch.equal(torch.fx.symbolic_trace(layer)(inputs), layer(inputs))


def test_features_of_other_channels_give_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"DepthwiseLayer: channels=4 takes features of shape \(N, 4, H, W\)"):
        DepthwiseLayer(4)(torch.rand(2, 3, 6, 6))
    with pytest.raises(ConfigurationError, match="kernel_size=2 must be a positive odd integer"):
        DepthwiseLayer(4, kernel_size=2)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_wrapped_block_is_the_initialiser_and_gives_its_activation_and_kernel(make: Any) -> None:
    block = timm.create_model("mobilenetv3_small_050").blocks[3][0]
    layer = make("blocks.3.0", block, wrap=True, kernel_size="block")
    assert layer.init is block
    assert type(layer.act) is type(block.bn1.act)
    convolution = layer.conv if isinstance(layer, DepthwiseLayer) else layer.velocity_x.conv
    assert convolution.kernel_size == (5, 5)
    inputs = torch.randn(2, block.conv_pw.in_channels, 8, 8)
    assert layer.eval()(inputs).shape == block.eval()(inputs).shape


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("block", "channels"),
    [
        (BasicBlock(4, 6, downsample=nn.Conv2d(4, 6, 1)), 6),
        (InvertedResidual(4, 6, stride=2), 6),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 1), nn.AvgPool2d(2)), 7),
        (GlobalLayer(9), 9),
    ],
)
def test_a_layer_behind_a_block_has_the_channels_of_its_output(make: Any, block: nn.Module, channels: int) -> None:
    layer = make("stage", block, wrap=False)
    assert isinstance(layer.init, nn.Identity)
    assert layer.channels == channels
    assert make("stage", block, wrap=False, channels=3).channels == 3


def test_densenets_initialiser_is_two_convolutions_behind_norm_and_activation() -> None:
    layer = global_layer_at("transition1", nn.Conv2d(16, 12, 1), wrap=False, init_kind="dense")
    assert [type(each).__name__ for each in layer.init] == ["BatchNorm2d", "ReLU", "Conv2d"] * 2
    assert [tuple(each.weight.shape) for each in layer.init if isinstance(each, nn.Conv2d)] == [
        (24, 12, 1, 1),
        (12, 24, 3, 3),
    ]
    assert layer(torch.randn(2, 12, 6, 6)).shape == (2, 12, 6, 6)
    block = global_layer_at("stage1", BasicBlock(4, 4), wrap=False, init_kind="basic_block").init
    assert isinstance(block, BasicBlock)


@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "mobilenetv2_100"])
def test_another_expansion_rebuilds_the_block_with_fresh_weights(name: str) -> None:
    torch.manual_seed(0)
    block = timm.create_model(name).blocks[2][1]
    for each in block.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.constant_(each.running_mean, 3.0)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    channels = block.conv_pw.in_channels
    made = global_layer_at("blocks.2.1", block, wrap=True, expansion=2.0).init
    assert type(made) is type(block)
    assert made is not block
    assert made.conv_pw.out_channels == made.conv_dw.groups == made.conv_pwl.in_channels == 2 * channels
    assert made.bn1.num_features == made.bn2.running_var.numel() == 2 * channels
    assert {key: value.shape for key, value in made.state_dict().items() if "bn3" in key} == {
        key: value.shape for key, value in before.items() if "bn3" in key
    }
    assert not torch.equal(made.bn3.running_mean, block.bn3.running_mean)
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
    inputs = torch.randn(2, channels, 8, 8)
    assert made(inputs).shape == inputs.shape
    assert all(each.isfinite().all() for each in made.state_dict().values())


def test_an_expansion_of_timms_own_gives_timms_own_shapes() -> None:
    block, theirs = InvertedResidual(8, 8, exp_ratio=2.5), InvertedResidual(8, 8, exp_ratio=6.0)
    ours = with_expansion(block, 6.0)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize("convert", [timm.layers.freeze_batch_norm_2d, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_a_rebuilt_block_keeps_its_kind_of_norm(convert: Any) -> None:
    block = convert(nn.Sequential(InvertedResidual(4, 4))).eval()[0]
    made = with_expansion(block, 3.0)
    assert type(made.bn1) is type(block.bn1) is not nn.BatchNorm2d
    assert made.bn1.running_var.shape == made.bn2.weight.shape == (16,)
    inputs = torch.randn(2, 4, 6, 6)
    outputs = made(inputs)
    assert outputs.isfinite().all()
    assert not torch.allclose(outputs, inputs)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("block", "options", "message"),
    [
        (nn.ReLU(), {}, r"layer1: the channels of ReLU are unknown; give channels"),
        (
            nn.Conv2d(3, 3, 1),
            {"kernel_size": "block"},
            r"kernel_size='block': the kernel of layer1, a Conv2d, is unknown",
        ),
        (
            BasicBlock(4, 4),
            {"kernel_size": "blok"},
            r"kernel_size='blok' is not one of \['block'\]. Did you mean 'block'",
        ),
        (BasicBlock(4, 4), {"init_kind": "dence"}, r"init_kind='dence' is not one of .* Did you mean 'dense'"),
        (BasicBlock(4, 4), {"init_kind": "dense", "wrap": True}, r"init_kind='dense' needs wrap=False: layer1 is the"),
        (EdgeResidual(4, 4), {"expansion": 6}, r"expansion=6 takes an InvertedResidual; layer1 is EdgeResidual"),
        (InvertedResidual(4, 4), {"expansion": -1.0}, r"expansion=-1.0 must be a finite number above 0"),
    ],
)
def test_a_place_that_cannot_be_read_gives_one_line(
    make: Any, block: nn.Module, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make("layer1", block, **{"wrap": False, **options})


PUBLISHED = {  # parameters and multiply-adds of what the released code builds
    "efficientnet_b0": ("imagenet_b0", 3_822_932, 295.44),
    "mobilenetv2_100": ("imagenet_mbv2", 2_952_232, 233.51),
    "mobilenetv3_large_100": ("imagenet_mbv3", 3_868_160, 174.40),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_give_the_released_networks_their_sizes(name: str) -> None:
    preset, parameters, macs = PUBLISHED[name]
    with torch.device("meta"):
        network = timm.create_model(name)
        for stage, settings in GLOBAL_LAYER_PRESETS[preset].items():
            blocks = list(network.blocks[stage])
            at = 0 if (preset, stage) == ("imagenet_mbv3", 5) else 1
            layer = global_layer_at("", blocks[at], wrap=True, **settings)
            network.blocks[stage] = nn.Sequential(*blocks[:at], layer)
    assert sum(each.numel() for each in network.parameters()) == parameters
    assert round(count_macs(network, torch.zeros(1, 3, 224, 224)).macs / 1e6, 2) == macs


@pytest.mark.parametrize(("stage", "kernel"), list(zip(range(1, 6), (3, 5, 3, 5, 5), strict=True)))
def test_the_velocity_of_efficientnet_looks_as_far_as_the_block_it_wraps(stage: int, kernel: int) -> None:
    with torch.device("meta"):
        block = timm.create_model("efficientnet_b0").blocks[stage][1]
        layer = global_layer_at("", block, wrap=True, **GLOBAL_LAYER_PRESETS["imagenet_b0"][stage])
    assert layer.velocity_x.conv.kernel_size == (kernel, kernel)
    assert layer.tied
    assert layer.diffusion_x is None
    assert isinstance(layer.act, nn.SiLU)


def test_presets_are_plain() -> None:
    for stages in GLOBAL_LAYER_PRESETS.values():
        for settings in stages.values():
            assert json.loads(json.dumps(settings)) == settings
