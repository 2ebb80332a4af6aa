"""The interpolated block as a module: what it takes over, what it refuses, and the tools that it passes through."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import FrozenBatchNormAct2d, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models._efficientnet_blocks import (
    CondConvResidual,
    DepthwiseSeparableConv,
    InvertedResidual,
    SqueezeExcite,
    UniversalInvertedResidual,
)
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.spatial_interpolation import (
    DESIGNS,
    InterpolatedChain,
    SpatialInterpolation,
    interpolated_block,
    interpolated_chain,
)

# the count of batches is not among them: torch makes one up for norms that a state does not know
NEW = {"cheap_conv.weight", *(f"cheap_norm.{key}" for key in ("weight", "bias", "running_mean", "running_var"))}


def mobile(channels: int = 8, **options: Any) -> InvertedResidual:
    return InvertedResidual(channels, channels, exp_ratio=2.0, se_layer=SqueezeExcite, **options)


def layers() -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {design: SpatialInterpolation(mobile(), design=design) for design in DESIGNS}
    made["strided sampling, nearest"] = SpatialInterpolation(mobile(), sampling="strided", upsampling="nearest")
    made["convex"] = SpatialInterpolation(mobile(), blend="convex")
    made["basic block"] = SpatialInterpolation(BasicBlock(8, 8))
    made["chain"] = InterpolatedChain([mobile(), mobile()])
    return made


LAYERS = list(layers())


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return layers()[request.param].eval()


@pytest.mark.parametrize("block", [mobile(), DepthwiseSeparableConv(8, 8), BasicBlock(8, 8), Bottleneck(8, 2)])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_state_of_the_block_loads_and_only_the_cheap_branch_is_missing(block: nn.Module, design: Any) -> None:
    missing, unexpected = SpatialInterpolation(block, design=design).load_state_dict(block.state_dict(), strict=False)
    assert unexpected == []
    assert set(missing) == (set() if design == "strided" else NEW)


def test_the_block_is_not_changed_and_its_children_are_shared() -> None:
    block = mobile(drop_path_rate=0.2).eval()
    before, maps = dict(block.__dict__), torch.randn(1, 8, 5, 5)
    expected, children = block(maps), dict(block.named_children())
    layer = SpatialInterpolation(block)
    assert block.__dict__ == before
    assert dict(block.named_children()) == children
    assert torch.equal(block(maps), expected)
    assert all(layer.get_submodule(name) is child for name, child in children.items())
    assert layer.has_skip is True


@pytest.mark.parametrize("channels", [4, 24])
def test_parameters_are_nine_weights_and_two_of_the_norm_per_channel(channels: int) -> None:
    block = mobile(channels)
    layer = SpatialInterpolation(block)
    assert sum(p.numel() for p in layer.parameters()) - sum(p.numel() for p in block.parameters()) == 11 * channels


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 1), (3, 3), (7, 5), (8, 8)])
def test_maps_of_any_size_keep_it(layer: nn.Module, size: tuple[int, int]) -> None:
    assert layer(torch.randn(2, 8, *size)).shape == (2, 8, *size)


def test_an_empty_batch_stays_empty(layer: nn.Module) -> None:
    assert layer(torch.zeros(0, 8, 4, 4)).shape == (0, 8, 4, 4)


def test_gradients_reach_every_parameter_and_the_input(layer: nn.Module) -> None:
    maps = torch.randn(4, 8, 6, 6, requires_grad=True)
    layer.train()(maps).square().mean().backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_input_is_not_written_to(layer: nn.Module) -> None:
    maps = torch.randn(2, 8, 6, 6)
    kept = maps.clone()
    layer.train()(maps)
    assert torch.equal(maps, kept)


def test_channels_last_is_kept(layer: nn.Module) -> None:
    maps = torch.randn(2, 8, 6, 6)
    given = maps.to(memory_format=torch.channels_last)
    result = layer.to(memory_format=torch.channels_last)(given)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, layer(maps).to(memory_format=torch.channels_last), rtol=1e-4, atol=1e-5)


def test_autocast_stays_near_single_precision(layer: nn.Module) -> None:
    maps = torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(maps)
    torch.testing.assert_close(result.float(), layer(maps), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_weights(layer: nn.Module, dtype: torch.dtype) -> None:
    assert layer.to(dtype)(torch.randn(1, 8, 5, 5, dtype=dtype)).dtype == dtype


def test_it_compiles_as_one_graph_and_follows_new_sizes(layer: nn.Module) -> None:
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for size in ((6, 6), (9, 5)):
        maps = torch.randn(2, 8, *size)
        torch.testing.assert_close(compiled(maps), layer(maps))


def test_it_exports(layer: nn.Module) -> None:
    maps = torch.randn(2, 8, 7, 6)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(layer, (maps,), dynamic_shapes=(batch,)).module()
    other = torch.randn(3, 8, 7, 6)
    torch.testing.assert_close(exported(other), layer(other))


def test_symbolic_and_recorded_traces_compute_the_same(layer: nn.Module) -> None:
    symbolic = torch.fx.symbolic_trace(layer)
    for size in ((6, 6), (9, 5)):
        maps = torch.randn(2, 8, *size)
        torch.testing.assert_close(symbolic(maps), layer(maps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorded = torch.jit.trace(layer, maps)
    torch.testing.assert_close(recorded(maps), layer(maps))


def test_copies_and_pickles_compute_the_same_and_share_nothing(layer: nn.Module) -> None:
    maps = torch.randn(2, 8, 6, 6)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(stored, weights_only=False)):
        assert torch.equal(other(maps), layer(maps))
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in layer.parameters()}


@pytest.mark.parametrize("synchronised", [False, True])
def test_the_new_norm_is_like_those_of_the_block(synchronised: bool) -> None:
    block = mobile(norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01))
    layer = SpatialInterpolation(convert_sync_batchnorm(block) if synchronised else block)
    assert type(layer.cheap_norm) is (nn.SyncBatchNorm if synchronised else nn.BatchNorm2d)
    assert (layer.cheap_norm.eps, layer.cheap_norm.momentum) == (1e-3, 0.01)


def test_beside_frozen_norms_zero_init_starts_at_the_convolution_which_can_learn() -> None:
    block = freeze_batch_norm_2d(mobile())
    layer = SpatialInterpolation(block, zero_init=True)
    assert isinstance(layer.cheap_norm, FrozenBatchNormAct2d)
    maps = torch.randn(2, 8, 6, 6)
    assert (layer.cheap_norm(layer.cheap_conv(maps)) == 0).all()
    layer(maps).sum().backward()
    assert layer.cheap_conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("make", [SpatialInterpolation, lambda block: InterpolatedChain([block])])
def test_new_children_follow_the_block(make: Any) -> None:
    block = mobile().double().eval().requires_grad_(False)
    new = make(block.to(memory_format=torch.channels_last))
    assert not new.training
    assert not new.cheap_norm.training
    assert new.cheap_conv.weight.dtype == new.cheap_norm.running_mean.dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in new.parameters())
    assert make(mobile().to("meta")).cheap_conv.weight.is_meta
    partly = mobile()
    partly.bn1.eval()  # a frozen norm in a block that trains
    new = make(partly)
    assert new.training
    assert new.cheap_norm.training
    assert not partly.bn1.training


def test_new_convolutions_are_drawn_as_timm_draws_them() -> None:
    torch.manual_seed(0)
    depthwise = SpatialInterpolation(mobile(512)).cheap_conv.weight
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    pointwise = SpatialInterpolation(DepthwiseSeparableConv(64, 128)).cheap_conv.weight
    assert pointwise.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)


def test_timm_learns_where_to_tap_it(layer: nn.Module) -> None:
    assert layer.feature_info("bottleneck") == {"module": "", "num_chs": 8}
    with pytest.raises(ConfigurationError, match="'expansion' lies inside an interpolated block"):
        layer.feature_info("expansion")


def test_the_options_are_printed() -> None:
    layer = SpatialInterpolation(mobile(), factor=3, design="detail")
    assert layer.extra_repr() == "detail, factor=3, average, bilinear, blend=add"
    assert InterpolatedChain([mobile()]).extra_repr() == "factor=2, average, bilinear"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1}, "factor=1 must be a whole number of 2 or more"),
        ({"factor": 2.0}, "factor=2.0 must be a whole number"),
        ({"factor": True}, "factor=True must be a whole number"),
        ({"design": "ad"}, "design='ad' is not one of .* Did you mean 'add'"),
        ({"sampling": "mean"}, "sampling='mean' is not one of"),
        ({"upsampling": "bicubic"}, "upsampling='bicubic' is not one of"),
        ({"blend": "sum"}, "blend='sum' is not one of"),
        ({"cheap": False, "design": "detail"}, "cheap=False leaves design='detail'"),
        ({"cheap": False, "blend": "convex"}, "cheap=False leaves blend='convex'"),
        ({"cheap": False, "zero_init": True}, "zero_init=True concerns the cheap branch"),
        ({"blend": "convex", "design": "grid"}, "blend='convex' does not fit design='grid'"),
        ({"blend": "convex", "design": "detail"}, "blend='convex' does not fit design='detail'"),
        ({"blend": "convex", "zero_init": True}, "zero_init=True does not fit blend='convex'"),
        ({"design": "grid", "upsampling": "nearest"}, "upsampling='nearest' does not fit design='grid'"),
        ({"design": "strided", "sampling": "strided"}, "sampling='strided' does not fit design='strided'"),
    ],
)
def test_options_that_cannot_work_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        SpatialInterpolation(mobile(), **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (nn.Conv2d(3, 3, 1), "does not know Conv2d; it takes InvertedResidual, "),
        (CondConvResidual(8, 8, num_experts=2), "does not know CondConvResidual"),
        (InvertedResidual(8, 8, stride=2), "takes blocks of stride 1; this InvertedResidual has stride 2"),
        (BasicBlock(8, 8, stride=2), "takes blocks of stride 1; this BasicBlock has stride 2"),
        (SpatialInterpolation(mobile()), "does not know SpatialInterpolation"),
    ],
)
def test_other_blocks_are_refused_by_name(block: nn.Module, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^blocks.1.0: SpatialInterpolation {message}"):
        interpolated_block("blocks.1.0", block)
    with pytest.raises(ConfigurationError, match=f"^blocks.1.0: InterpolatedChain {message}"):
        interpolated_chain("blocks.1.0", [mobile(), block])


def test_a_strided_design_needs_a_spatial_convolution() -> None:
    flat = UniversalInvertedResidual(8, 8, dw_kernel_size_mid=0)
    with pytest.raises(ConfigurationError, match="spatial convolution, which this UniversalInvertedResidual lacks"):
        SpatialInterpolation(flat, design="strided")


def test_a_chain_takes_blocks_with_shortcuts_only() -> None:
    with pytest.raises(ConfigurationError, match=r"blocks\[1\] \(InvertedResidual\) does not add its input"):
        InterpolatedChain([mobile(), InvertedResidual(8, 12)])
    with pytest.raises(ConfigurationError, match=r"blocks=\[\] is empty"):
        InterpolatedChain([])
    with pytest.raises(ConfigurationError, match="factor=1 must be"):
        InterpolatedChain([mobile()], factor=1)


def test_makers_pass_options_on() -> None:
    assert interpolated_block("x", mobile(), factor=3, cheap=False).factor == 3
    chain = interpolated_chain("x", [mobile(), mobile()], factor=4, zero_init=True)
    assert chain.factor == 4
    assert (chain.cheap_norm.weight == 0).all()
    assert list(dict(chain.named_children())) == ["0", "1", "cheap_conv", "cheap_norm"]


@pytest.mark.parametrize("kind", ["block", "chain"])
def test_prediction_folds_the_cheap_branch_and_the_shortcut_into_one_convolution(kind: str) -> None:
    torch.manual_seed(0)
    blocks = [InvertedResidual(6, 6, exp_ratio=2.0) for _ in range(2)]
    layer = (SpatialInterpolation(blocks[0]) if kind == "block" else InterpolatedChain(blocks)).double().eval()
    nn.init.normal_(layer.cheap_norm.weight)
    nn.init.normal_(layer.cheap_norm.bias)
    layer.cheap_norm.running_mean.normal_()
    layer.cheap_norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    folded = layer(x)
    seen: list[int] = []
    handle = layer.cheap_norm.register_forward_hook(lambda *_: seen.append(1))  # somebody looks on: nothing is folded
    torch.testing.assert_close(layer(x), folded, rtol=1e-12, atol=1e-12)
    assert seen == [1]
    handle.remove()
    layer(x)
    assert seen == [1]


@pytest.mark.parametrize(
    "make", [lambda **o: SpatialInterpolation(mobile(), **o), partial(InterpolatedChain, [mobile()])]
)
@pytest.mark.parametrize("options", [{"cheap": "no"}, {"zero_init": "false"}, {"cheap": 1}, {"zero_init": None}])
def test_flags_of_another_type_are_one_line(make: Any, options: dict[str, Any]) -> None:
    ((option, given),) = options.items()
    with pytest.raises(ConfigurationError, match=f"^{option}={given!r} must be True or False") as raised:
        make(**options)
    assert "\n" not in str(raised.value)


def frozen_norms(block: nn.Module) -> nn.Module:
    for each in block.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.eval().requires_grad_(False)
    return block


@pytest.mark.parametrize("wrap", [SpatialInterpolation, lambda block, **o: InterpolatedChain([block], **o)])
@pytest.mark.parametrize("zero_init", [False, True])
def test_the_cheap_norm_is_frozen_where_only_the_norms_of_the_block_are(wrap: Any, zero_init: bool) -> None:
    layer = wrap(frozen_norms(mobile().train()), zero_init=zero_init)
    assert layer.training
    assert layer.cheap_conv.training
    assert not layer.cheap_norm.training
    assert layer.cheap_conv.weight.requires_grad
    # at a weight of zero nothing but the weight itself gets a gradient
    assert layer.cheap_norm.weight.requires_grad == zero_init
    layer(torch.randn(2, 8, 6, 6)).sum().backward()
    assert layer.cheap_norm.running_mean.tolist() == [0.0] * 8


def test_the_cheap_norm_stays_frozen_in_a_block_that_is_frozen_whole() -> None:
    layer = SpatialInterpolation(mobile().eval().requires_grad_(False), zero_init=True)
    assert not any(each.requires_grad for each in layer.parameters())
    assert not any(each.training for each in layer.modules())
