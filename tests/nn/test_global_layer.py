"""The Global layer: sizes, reach, start, stability, shortcuts, and the options that cannot work."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from global_layer_settings import drawn, features, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.global_layer import GlobalLayer


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("channels", [4, 64])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_four_depthwise_convolutions_and_five_norms(
    channels: int, kernel_size: int, tied: bool
) -> None:
    def count(**options: Any) -> int:
        layer = GlobalLayer(channels, kernel_size=kernel_size, tied=tied, **options)
        return sum(each.numel() for each in layer.parameters())

    assert count() == (4 * kernel_size**2 + 10) * channels
    assert count(diffusion=1.0) == (2 * kernel_size**2 + 6) * channels
    assert count(bias=True) == (4 * kernel_size**2 + 14) * channels
    assert count(layer_scale=0.0) == (4 * kernel_size**2 + 11) * channels


@pytest.mark.parametrize(
    ("steps", "spacing", "pixels", "radius"), [(1, 1, 21, 2), (4, 1, 81, 5), (10, 1, 309, 11), (1, 2, 33, 3)]
)
def test_a_pixel_sees_as_far_as_the_docs_say(steps: int, spacing: int, pixels: int, radius: int) -> None:
    layer = drawn(GlobalLayer(1, steps=steps, spacing=spacing, act="silu")).double().eval()
    inputs = features(1, 1, 31, 31).double().requires_grad_()
    layer(inputs)[0, 0, 15, 15].backward()
    assert inputs.grad is not None
    seen = inputs.grad[0, 0].nonzero() - 15
    assert len(seen) == pixels
    assert seen.abs().max() == radius == steps * spacing + 3 // 2


@pytest.mark.parametrize(("channels", "most"), [(16, 0.055), (64, 0.013)])
@pytest.mark.parametrize("seed", range(3))
def test_a_new_layer_starts_as_a_scaled_copy_of_its_input(channels: int, most: float, seed: int) -> None:
    torch.manual_seed(seed)
    layer, inputs = GlobalLayer(channels), features(8, channels, 16, 16, seed=seed).relu()
    expected = (1 + 2 * layer.dt) * inputs
    assert 0 < (state_of(layer, inputs) - expected).norm() < most * expected.norm()


def test_depthwise_convolutions_start_small_and_full_ones_as_usual() -> None:
    torch.manual_seed(0)
    weights = {kind: GlobalLayer(64, velocity=kind).velocity_x.conv.weight for kind in ("depthwise", "conv")}
    assert [tuple(each.shape) for each in weights.values()] == [(64, 1, 3, 3), (64, 64, 3, 3)]
    for weight in weights.values():
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_a_small_epsilon_grows_over_many_steps_and_the_bound_slows_it(seed: int) -> None:
    def largest(**options: Any) -> float:
        torch.manual_seed(seed)
        return state_of(GlobalLayer(16, steps=40, **options), features(4, 16, 16, 16, seed=seed)).abs().max().item()

    assert largest() < 500
    free, bounded = largest(coeff_eps=1e-5), largest(coeff_eps=1e-5, velocity_bound=True)
    assert free > 1e6
    assert bounded < free / 20


@pytest.mark.parametrize(("bound", "largest"), [(True, (5.0, 2.5)), (0.75, (0.75, 0.75))])
def test_velocities_stay_below_their_bound(bound: bool | float, largest: tuple[float, float]) -> None:
    layer = GlobalLayer(2, spacing=(2, 1), velocity_bound=bound, source=False, diffusion=0.0)
    assert layer.velocity_bound == largest
    free = GlobalLayer(2, spacing=(2, 1), source=False, diffusion=0.0)
    free.load_state_dict(layer.state_dict())
    for each in (layer, free):
        for part in (each.velocity_x, each.velocity_y):
            nn.init.zeros_(part.norm.weight)
            nn.init.constant_(part.norm.bias, 100.0)
    inputs = features(1, 2, 6, 6)
    u, v = (inputs.new_tensor(each) * layer.dt / spacing for each, spacing in zip(largest, (2, 1), strict=True))
    # a constant velocity shifts by the difference of neighbours
    expected = inputs + u * (inputs.roll(-2, 2) - inputs.roll(2, 2)) + v * (inputs.roll(-1, 3) - inputs.roll(1, 3))
    assert torch.allclose(state_of(layer, inputs), expected, atol=1e-5)
    assert state_of(free, inputs).abs().max() > 5 * expected.abs().max()


KINDS: dict[str, type[nn.Module]] = {
    "depthwise": nn.Conv2d,
    "identity": nn.Identity,
    "conv": nn.Conv2d,
    "pointwise": nn.Conv2d,
    "basic_block": BasicBlock,
    "bottleneck": Bottleneck,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_coefficient_has_a_map_of_its_own_of_any_kind(kind: Any) -> None:
    layer = GlobalLayer(8, velocity=kind, diffusion=kind, steps=2)
    parts = [layer.velocity_x, layer.velocity_y, layer.diffusion_x, layer.diffusion_y]
    assert {type(each.conv) for each in parts} == {KINDS[kind]}
    assert len({id(each.conv) for each in parts}) == 4
    inputs = features(2, 8, 6, 6).requires_grad_()
    layer(inputs).square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in layer.parameters())


def test_learned_is_the_other_name_of_depthwise() -> None:
    torch.manual_seed(0)
    first = GlobalLayer(4, diffusion="learned")
    second = GlobalLayer(4, diffusion="depthwise")
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(features(2, 4, 5, 5)), second(features(2, 4, 5, 5)))


def test_the_bottleneck_keeps_its_width() -> None:
    block = GlobalLayer(8, velocity="bottleneck").velocity_x.conv
    assert [tuple(each.weight.shape) for each in (block.conv1, block.conv2, block.conv3)] == [
        (8, 8, 1, 1),
        (8, 8, 3, 3),
        (8, 8, 1, 1),
    ]


def test_velocity_may_come_from_the_source_and_diffusion_never_does() -> None:
    torch.manual_seed(0)
    init = nn.Conv2d(4, 4, 1)
    from_initial = drawn(GlobalLayer(4, init, diffusion="depthwise")).eval()
    from_source = copy.deepcopy(from_initial)
    from_source.velocity_from = "source"
    seen: dict[str, Tensor] = {}
    for name in ("velocity_x", "velocity_y", "diffusion_x", "diffusion_y"):
        getattr(from_source, name).register_forward_pre_hook(
            lambda _, given, name=name: seen.__setitem__(name, given[0])
        )
    inputs = features(2, 4, 5, 5)
    assert not torch.allclose(from_initial(inputs), from_source(inputs))
    assert seen["velocity_x"] is seen["velocity_y"] is inputs
    assert torch.equal(seen["diffusion_x"], init(inputs))
    assert torch.equal(seen["diffusion_y"], init(inputs))


@pytest.mark.parametrize("previous", ["source", "initial"])
def test_the_state_before_the_start_is_the_input_or_the_initialisers_output(previous: Any) -> None:
    layer = GlobalLayer(3, nn.Conv2d(3, 3, 1), previous=previous, source=False, diffusion=0.0)
    for part in (layer.velocity_x, layer.velocity_y):
        nn.init.zeros_(part.norm.weight)
    inputs = features(2, 3, 4, 4)
    # without velocity, diffusion and source the first step returns the level before
    expected = inputs if previous == "source" else layer.init(inputs)
    assert torch.allclose(state_of(layer, inputs), expected)


def test_an_initialiser_that_changes_shape_is_its_own_source() -> None:
    block = InvertedResidual(4, 6, stride=2)
    layer = drawn(GlobalLayer(6, block, diffusion=1.0, residual=True)).eval()
    inputs = features(2, 4, 8, 8)
    bare = drawn(GlobalLayer(6, diffusion=1.0, residual=True)).eval()
    bare.load_state_dict({name: each for name, each in layer.state_dict().items() if not name.startswith("init.")})
    assert layer(inputs).shape == (2, 6, 4, 4)
    assert torch.allclose(layer(inputs), bare(block(inputs)), atol=1e-6)


def test_the_residual_is_added_after_the_activation() -> None:
    plain, added = GlobalLayer(4).eval(), GlobalLayer(4, residual=True).eval()
    added.load_state_dict(plain.state_dict())
    inputs = features(2, 4, 6, 6)
    assert plain(inputs).min() == 0
    assert torch.allclose(added(inputs), plain(inputs) + inputs)


@pytest.mark.parametrize("init", [None, BasicBlock(4, 4)])
def test_a_layer_scale_of_zero_leaves_the_network_as_it_was_and_still_learns(init: nn.Module | None) -> None:
    layer = GlobalLayer(4, init, layer_scale=0.0)
    inputs = features(2, 4, 6, 6)
    with torch.no_grad():
        before = layer.init(inputs)
    outputs = layer(inputs)
    assert torch.allclose(outputs, before)
    outputs.square().sum().backward()
    assert layer.layer_scale.gamma.grad.abs().min() > 0


@pytest.mark.parametrize("options", [{"residual": True}, {"layer_scale": 1.0}])
def test_drop_path_lets_some_samples_skip_the_layer_while_training(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, inputs = GlobalLayer(2, drop_path=0.5, **options), features(32, 2, 4, 4)
    skipped = [torch.equal(ours, theirs) for ours, theirs in zip(layer(inputs), inputs, strict=True)]
    assert 4 < sum(skipped) < 28
    skipped = [torch.equal(ours, theirs) for ours, theirs in zip(layer.eval()(inputs), inputs, strict=True)]
    assert sum(skipped) == 0


@pytest.mark.parametrize(
    ("size", "spacing"), [((1, 1), 1), ((1, 7), 1), ((5, 3), (2, 1)), ((3, 3), 5), ((2, 2), (7, 9))]
)
def test_small_and_odd_maps_work_also_where_the_spacing_is_larger(size: tuple[int, int], spacing: Any) -> None:
    layer = drawn(GlobalLayer(3, steps=3, spacing=spacing)).eval()
    inputs = features(2, 3, *size).requires_grad_()
    outputs = layer(inputs)
    outputs.sum().backward()
    assert outputs.shape == inputs.shape
    assert outputs.isfinite().all()
    assert inputs.grad is not None
    assert inputs.grad.isfinite().all()


def test_on_a_map_of_one_pixel_only_the_source_flows() -> None:
    layer = drawn(GlobalLayer(3, steps=1, diffusion=2.0)).eval()
    inputs = features(2, 3, 1, 1)
    drag = 4 * 2.0 * layer.dt
    expected = (1 - drag + 2 * drag + 2 * layer.dt) / (1 + drag) * inputs
    assert torch.allclose(state_of(layer, inputs), expected, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    shift=st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
    steps=st.integers(1, 3),
    tied=st.booleans(),
    source=st.booleans(),
)
def test_shifting_the_map_shifts_the_output_where_no_kernel_meets_a_border(
    shift: tuple[int, int], steps: int, tied: bool, source: bool
) -> None:
    layer = drawn(GlobalLayer(2, steps=steps, tied=tied, source=source, kernel_size=1)).double().eval()
    inputs = features(1, 2, 5, 4).double()
    assert torch.allclose(layer(inputs.roll(shift, (2, 3))), layer(inputs).roll(shift, (2, 3)), atol=1e-10)


def by_the_book(layer: GlobalLayer, inputs: Tensor) -> Tensor:
    """Write the scheme down as it is printed, with nothing computed once for all steps."""
    initial = layer.init(inputs)
    source = inputs if inputs.shape == initial.shape else initial
    (dx, dy), dt, act = layer.spacing, layer.dt, layer.act

    def pair(first: Any, second: Any, seen: Tensor) -> tuple[Any, Any]:
        one, other = (each.norm(each.conv(seen)) for each in (first, second))
        return (act(one * act(other)),) * 2 if layer.tied else (act(one), act(other))

    u, v = pair(layer.velocity_x, layer.velocity_y, source if layer.velocity_from == "source" else initial)
    along, across = layer.diffusion or pair(layer.diffusion_x, layer.diffusion_y, initial)
    last, state = (source if layer.previous == "source" else initial), initial
    for _ in range(layer.steps):
        up, down, left, right = state.roll(dx, 2), state.roll(-dx, 2), state.roll(dy, 3), state.roll(-dy, 3)
        ax, ay, bx, by = u * dt / dx, v * dt / dy, along * dt / dx**2, across * dt / dy**2
        du, dv = (u.roll(dx, 2) - u.roll(-dx, 2)) / (2 * dx), (v.roll(dy, 3) - v.roll(-dy, 3)) / (2 * dy)
        total = (1 - 2 * bx - 2 * by) * last - 2 * dt * (du + dv) * state
        total = total + (2 * bx - ax) * up + (2 * bx + ax) * down + (2 * by - ay) * left + (2 * by + ay) * right
        total = total + (2 * dt * source if layer.source else 0)
        last, state = state, total / (1 + 2 * bx + 2 * by)
    return state


@settings(max_examples=60, deadline=None)
@given(
    init=st.sampled_from([None, BasicBlock(2, 2), InvertedResidual(3, 2, stride=2)]),
    options=st.fixed_dictionaries(
        {
            "steps": st.integers(1, 4),
            "dt": st.sampled_from([0.1, 0.2]),
            "spacing": st.tuples(st.integers(1, 3), st.integers(1, 3)),
            "diffusion": st.sampled_from(["learned", "pointwise", 1.0, (0.5, 2.0)]),
            "velocity": st.sampled_from(["depthwise", "identity", "conv"]),
            "tied": st.booleans(),
            "kernel_size": st.sampled_from([3, 5]),
            "act": st.sampled_from(["relu", "silu"]),
            "source": st.booleans(),
            "velocity_from": st.sampled_from(["initial", "source"]),
            "previous": st.sampled_from(["source", "initial"]),
            "bias": st.booleans(),
        }
    ),
)
def test_all_options_together_follow_the_printed_scheme(init: nn.Module | None, options: dict[str, Any]) -> None:
    layer = drawn(GlobalLayer(2, copy.deepcopy(init), **options)).double().eval()
    inputs = features(2, 3 if isinstance(init, InvertedResidual) else 2, 7, 6).double()
    expected = by_the_book(layer, inputs)
    assert torch.allclose(state_of(layer, inputs), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@settings(max_examples=15, deadline=None)
@given(kept=st.integers(0, 3), steps=st.integers(1, 4))
def test_channels_do_not_mix(kept: int, steps: int) -> None:
    layer = drawn(GlobalLayer(4, steps=steps)).double().eval()
    inputs = features(1, 4, 5, 5).double()
    other = torch.where(torch.arange(4).view(1, 4, 1, 1) == kept, inputs, 3 * inputs + 1)
    changed = (layer(inputs) != layer(other)).amax((0, 2, 3))
    assert not changed[kept]
    assert changed.sum() == 3


def test_timm_learns_where_its_features_are() -> None:
    assert GlobalLayer(4).feature_info("bottleneck") == {"module": "", "num_chs": 4}
    wrapping = GlobalLayer(4, InvertedResidual(4, 4, exp_ratio=3.0))
    assert wrapping.feature_info("bottleneck") == {"module": "", "num_chs": 4}
    inside = wrapping.feature_info("expansion")
    assert inside == {"module": "init.conv_pwl", "hook_type": "forward_pre", "num_chs": 16}
    assert isinstance(wrapping.get_submodule(inside["module"]), nn.Conv2d)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, r"channels=0 must be an integer of at least 1"),
        ({"steps": 1.5}, r"steps=1.5 must be an integer of at least 1"),
        ({"dt": 0.0}, r"dt=0.0 must be a finite number above 0"),
        ({"spacing": (1.5, 1)}, r"spacing=\(1.5, 1\) must be one or two whole numbers of pixels"),
        ({"spacing": 0.5}, r"spacing=0.5 must be one or two whole numbers of pixels"),
        ({"spacing": (0, 1)}, r"spacing=\(0, 1\) must be one or two whole numbers of pixels, at least 1"),
        ({"spacing": (1, 1, 1)}, r"spacing=\(1, 1, 1\) must be one or two"),
        ({"diffusion": -1.0}, r"diffusion=-1.0 must be a kind, or one or two finite numbers of at least 0"),
        ({"diffusion": (1.0, math.inf)}, r"diffusion=\(1.0, inf\) must be a kind, or one or two finite numbers"),
        ({"diffusion": "lerned"}, r"diffusion='lerned' is not one of .* Did you mean 'learned'\?"),
        ({"diffusion": None}, r"diffusion=None must be a kind, or one or two"),
        ({"velocity": "depthwide"}, r"velocity='depthwide' is not one of .* Did you mean 'depthwise'\?"),
        ({"velocity": "bottleneck", "channels": 6}, r"channels=6 must be a multiple of 4 for 'bottleneck'"),
        ({"kernel_size": 4}, r"kernel_size=4 must be a positive odd integer"),
        ({"coeff_eps": "channel"}, r"coeff_eps='channel' is not one of \['channels'\]. Did you mean 'channels'\?"),
        ({"coeff_eps": 0.0}, r"coeff_eps=0.0 must be a finite number above 0"),
        ({"act": "relux"}, r"act='relux' is not one of .* Did you mean 'relu"),
        ({"velocity_from": "f"}, r"velocity_from='f' is not one of \['initial', 'source'\]"),
        ({"previous": "h"}, r"previous='h' is not one of \['source', 'initial'\]"),
        ({"velocity_bound": -1.0}, r"velocity_bound=-1.0 must be a finite number above 0"),
        ({"drop_path": 2.0, "residual": True}, r"drop_path=2.0 is outside \[0, 1\]"),
        ({"drop_path": 0.1}, r"drop_path=0.1 needs a shortcut: residual=True or layer_scale"),
        ({"layer_scale": 0.0, "residual": True}, r"layer_scale=0.0 has its own shortcut; give residual=False"),
        ({"solver": "fast"}, r"solver='fast' is not one of \['auto', 'fused', 'reference', 'triton'\]"),
    ],
)
def test_an_option_that_cannot_work_gives_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        GlobalLayer(**{"channels": 4, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (4, 6, 6)])
def test_features_of_other_channels_give_one_line(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"GlobalLayer: channels=4 takes features of shape \(N, 4, H, W\), not"
    ):
        GlobalLayer(4)(torch.rand(shape))
