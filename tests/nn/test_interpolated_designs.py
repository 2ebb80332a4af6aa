"""The formulas of the interpolated blocks, against a second way of computing them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from timm.models._efficientnet_blocks import (
    ConvBnAct,
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    SqueezeExcite,
    UniversalInvertedResidual,
)
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.nn._resampling import sample, upsample_like, upsample_nodes_like, without_nodes
from lightning_efficient.nn.spatial_interpolation import InterpolatedChain, SpatialInterpolation

BLOCKS = {
    "InvertedResidual": lambda: InvertedResidual(8, 8, exp_ratio=2.0, se_layer=SqueezeExcite),
    "DepthwiseSeparableConv": lambda: DepthwiseSeparableConv(8, 8, dw_kernel_size=5),
    "EdgeResidual": lambda: EdgeResidual(8, 8, exp_ratio=2.0),
    "UniversalInvertedResidual": lambda: UniversalInvertedResidual(8, 8, dw_kernel_size_start=3, exp_ratio=2.0),
    "ConvBnAct": lambda: ConvBnAct(8, 8, 3, skip=True),
    "BasicBlock": lambda: BasicBlock(8, 8),
    "Bottleneck": lambda: Bottleneck(8, 2),
}
UNCHANGED = ["BasicBlock", "Bottleneck"]


def settled(block: nn.Module) -> nn.Module:
    """A block in evaluation whose norms do something."""
    for each in block.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.uniform_(each.weight, 0.5, 1.5)
            nn.init.uniform_(each.bias, -0.5, 0.5)
            nn.init.uniform_(each.running_mean, -0.2, 0.2)
            nn.init.uniform_(each.running_var, 0.5, 1.5)
    return block.double().eval()


def branch(block: nn.Module, maps: Tensor) -> Tensor:
    """What the block adds to its shortcut, taken from the block's own forward with the shortcut switched off."""
    if not hasattr(block, "has_skip"):
        activation = "act3" if isinstance(block, Bottleneck) else "act2"
        kept, block.downsample = getattr(block, activation), nn.Identity()
        setattr(block, activation, nn.Identity())
        result = block(maps) - maps
        setattr(block, activation, kept)
        block.downsample = None
        return result
    kept, block.has_skip = block.has_skip, False
    result = block(maps)
    block.has_skip = kept
    return result


def coarse_mean(maps: Tensor, factor: int) -> Tensor:
    """Means over windows, one window at a time."""
    rows = [
        [maps[..., i : i + factor, j : j + factor].mean((-2, -1)) for j in range(0, maps.shape[-1], factor)]
        for i in range(0, maps.shape[-2], factor)
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("design", ["add", "detail", "grid"])
def test_a_design_computes_its_formula(kind: str, design: str) -> None:
    torch.manual_seed(0)
    block = settled(BLOCKS[kind]())
    layer = settled(SpatialInterpolation(block, design=design))
    maps = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    low = branch(block, coarse_mean(maps, 2))
    light = layer.cheap_norm(F.conv2d(maps, layer.cheap_conv.weight, padding=1, groups=8))
    if design == "grid":
        mask = torch.zeros(7, 6, dtype=torch.float64)
        mask[::2, ::2] = 1
        heavy = torch.zeros_like(maps)
        heavy[..., ::2, ::2] = low
        for row in range(7):
            for column in range(6):
                above, left = row // 2, column // 2
                below, right = min(above + row % 2, 3), min(left + column % 2, 2)
                corners = (
                    low[..., above, left] + low[..., above, right] + low[..., below, left] + low[..., below, right]
                )
                heavy[..., row, column] = corners / 4
        expected = maps + heavy + (1 - mask) * light
    else:
        heavy = F.interpolate(low, (7, 6), mode="bilinear")
        expected = maps + heavy + light
        if design == "detail":
            expected = expected - F.interpolate(coarse_mean(light, 2), (7, 6), mode="bilinear")
    if kind in UNCHANGED:
        expected = expected.relu()
    torch.testing.assert_close(layer(maps), expected)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_strided_design_strides_the_spatial_convolution_and_leaves_the_block_alone(kind: str) -> None:
    torch.manual_seed(0)
    block = settled(BLOCKS[kind]())
    maps = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    before = block(maps)
    layer = SpatialInterpolation(block, design="strided", upsampling="nearest")
    name = {"InvertedResidual": "conv_dw", "DepthwiseSeparableConv": "conv_dw", "EdgeResidual": "conv_exp"}.get(kind)
    name = name or {"UniversalInvertedResidual": "dw_mid.conv", "ConvBnAct": "conv", "BasicBlock": "conv1"}.get(kind)
    ours, theirs = layer.get_submodule(name or "conv2"), block.get_submodule(name or "conv2")
    assert ours.stride == (2, 2)
    assert theirs.stride == (1, 1)
    assert ours.weight is theirs.weight
    torch.testing.assert_close(block(maps), before, rtol=0, atol=0)
    theirs.stride = (2, 2)
    if hasattr(block, "has_skip"):
        expected = maps + F.interpolate(branch(block, maps), (7, 6))
    else:  # the shortcut has another size than the branch now
        block.downsample = nn.Identity()
        chain = ["conv1", "bn1", "act1", "conv2", "bn2"] + (["act2", "conv3", "bn3"] if kind == "Bottleneck" else [])
        low = maps
        for each in chain:
            low = getattr(block, each)(low)
        expected = (maps + F.interpolate(low, (7, 6))).relu()
    torch.testing.assert_close(layer(maps), expected)
    assert not hasattr(layer, "cheap_conv")


def test_the_convex_blend_weighs_each_channel_and_starts_in_the_middle() -> None:
    torch.manual_seed(0)
    block = settled(InvertedResidual(8, 8, exp_ratio=2.0))
    layer = settled(SpatialInterpolation(block, blend="convex"))
    maps = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    heavy = F.interpolate(branch(block, coarse_mean(maps, 2)), (4, 4), mode="bilinear")
    light = layer.cheap_norm(layer.cheap_conv(maps))
    torch.testing.assert_close(layer(maps), maps + 0.5 * heavy + 0.5 * light)
    with torch.no_grad():
        layer.blend_logit[0], layer.blend_logit[1] = 40.0, -40.0
    torch.testing.assert_close(layer(maps)[:, 0], (maps + heavy)[:, 0])
    torch.testing.assert_close(layer(maps)[:, 1], (maps + light)[:, 1])


@pytest.mark.parametrize("kind", ["InvertedResidual", "BasicBlock"])
@pytest.mark.parametrize("cheap", [True, False])
def test_a_chain_refines_the_coarse_map_and_adds_the_difference(kind: str, cheap: bool) -> None:
    torch.manual_seed(0)
    blocks = [settled(BLOCKS[kind]()) for _ in range(3)]
    chain = settled(InterpolatedChain(blocks, factor=3, cheap=cheap))
    maps = torch.randn(2, 8, 7, 5, dtype=torch.float64)
    coarse = coarse_mean(maps, 3)
    refined = blocks[2](blocks[1](blocks[0](coarse)))
    expected = maps + F.interpolate(refined - coarse, (7, 5), mode="bilinear")
    if cheap:
        expected = expected + chain.cheap_norm(chain.cheap_conv(maps))
    if kind == "BasicBlock":
        expected = expected.relu()
    torch.testing.assert_close(chain(maps), expected)


def test_a_chain_of_one_mobile_block_is_that_block_interpolated() -> None:
    block = settled(InvertedResidual(8, 8, exp_ratio=2.0))
    maps = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    alone = SpatialInterpolation(block, cheap=False)
    torch.testing.assert_close(InterpolatedChain([block], cheap=False)(maps), alone(maps))


@pytest.mark.parametrize("kind", ["InvertedResidual", "BasicBlock", "Bottleneck"])
def test_without_shortcut_the_cheap_branch_is_pointwise(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "InvertedResidual":
        block = settled(InvertedResidual(8, 12, exp_ratio=2.0))
    else:
        shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12))
        given = (
            BasicBlock(8, 12, downsample=shortcut) if kind == "BasicBlock" else Bottleneck(8, 3, downsample=shortcut)
        )
        block = settled(given)
    layer = settled(SpatialInterpolation(block))
    assert layer.cheap_conv.kernel_size == (1, 1)
    assert layer.cheap_conv.groups == 1
    maps = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    light = layer.cheap_norm(layer.cheap_conv(maps))
    if kind == "InvertedResidual":
        expected = F.interpolate(block(coarse_mean(maps, 2)), (6, 6), mode="bilinear") + light
    else:
        block.downsample, kept = None, block.downsample
        low = coarse_mean(maps, 2)
        for name in ("conv1", "bn1", "act1", "conv2", "bn2") + (("act2", "conv3", "bn3") * (kind == "Bottleneck")):
            low = getattr(block, name)(low)
        expected = (kept(maps) + F.interpolate(low, (6, 6), mode="bilinear") + light).relu()
    torch.testing.assert_close(layer(maps), expected)


def test_zero_init_starts_from_the_branch_alone() -> None:
    block = settled(InvertedResidual(8, 8, exp_ratio=2.0))
    maps = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    started = SpatialInterpolation(block, zero_init=True)
    torch.testing.assert_close(started(maps), SpatialInterpolation(block, cheap=False)(maps))
    started.train()(maps).sum().backward()
    assert started.cheap_norm.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["InvertedResidual", "BasicBlock"])
def test_stochastic_depth_drops_both_branches_of_a_sample_together(kind: str) -> None:
    block = BLOCKS[kind]()
    block.drop_path = DropPath(0.5)
    layer = SpatialInterpolation(block).train()
    torch.manual_seed(0)
    maps = torch.rand(32, 8, 4, 4)
    same = (layer(maps) == maps).flatten(1).all(1)
    assert 0 < same.sum() < 32


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 13), width=st.integers(1, 13), factor=st.integers(2, 5))
def test_resampling_keeps_constants_and_nodes_at_any_size(height: int, width: int, factor: int) -> None:
    maps = torch.randn(1, 2, height, width, dtype=torch.float64)
    expected_size = (-(-height // factor), -(-width // factor))
    for sampling in ("average", "strided"):
        coarse = sample(maps, factor, sampling)
        assert coarse.shape[-2:] == expected_size
        constant = sample(torch.full_like(maps, 3.0), factor, sampling)
        for upsampling in ("bilinear", "nearest"):
            torch.testing.assert_close(upsample_like(constant, maps, upsampling), torch.full_like(maps, 3.0))
        torch.testing.assert_close(upsample_nodes_like(constant, maps, factor), torch.full_like(maps, 3.0))
        torch.testing.assert_close(upsample_nodes_like(coarse, maps, factor)[..., ::factor, ::factor], coarse)
    torch.testing.assert_close(sample(maps, factor, "average"), coarse_mean(maps, factor))
    between = without_nodes(maps, factor)
    assert (between[..., ::factor, ::factor] == 0).all()
    restored = between.clone()
    restored[..., ::factor, ::factor] = maps[..., ::factor, ::factor]
    assert torch.equal(restored, maps)


def test_between_nodes_lies_their_mean_and_behind_the_last_its_value() -> None:
    line = upsample_nodes_like(torch.tensor([[[[0.0, 4.0, 8.0]]]]), torch.zeros(1, 1, 1, 6), 2)
    assert line.flatten().tolist() == [0, 2, 4, 6, 8, 8]
