"""The fused Global layer: the same as its modules, with and without its convolutions, and when it is not used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_efficient.functional import _advection_diffusion_steps, _global_layer
from lightning_efficient.functional._global_layer import can_convolve, can_fuse, fused_global_layer
from lightning_efficient.functional.advection_diffusion import advection_diffusion
from lightning_efficient.nn.global_layer import GlobalLayer

SHAPE = (3, 2, 5, 4)


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(output, inputs, torch.randn_like(output), allow_unused=True)


def assert_same(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def layer_parts(learned: bool = True, momentum: float | None = 0.1) -> tuple[nn.ModuleList, list[Tensor]]:
    """Batch norms far from their start, and initial state, source, raw maps."""
    torch.manual_seed(0)
    count = 4 if learned else 2
    norms = nn.ModuleList(nn.BatchNorm2d(2, 2.0 if i < count else 1e-5, momentum) for i in range(count + 1)).double()
    for norm in norms:
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norms, [torch.randn(SHAPE, dtype=torch.float64, requires_grad=True) for _ in range(count + 3)]


def unfused(initial: Tensor, raw: list[Tensor], norms: nn.ModuleList, *, diffusion: Any, **options: Any) -> Tensor:
    maps = [torch.relu(norm(each)) for norm, each in zip(norms, raw, strict=False)]
    taken = tuple(maps[2:]) if diffusion is None else diffusion
    return torch.relu(norms[-1](advection_diffusion(initial, tuple(maps[:2]), taken, solver="reference", **options)))


@pytest.mark.parametrize("block", [1, 1 << 19])
@pytest.mark.parametrize("roles", ["identity", "block", "block, initial before", "no source", "all apart"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("learned", "steps"), [(True, 1), (True, 3), (False, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_the_fused_layer_is_the_modules_in_values_gradients_and_running_statistics(
    training: bool,
    learned: bool,
    steps: int,
    momentum: float | None,
    roles: str,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_advection_diffusion_steps, "BLOCK", block)
    norms, (h, f, p, *raw) = layer_parts(learned, momentum)
    norms.train(training)
    others = copy.deepcopy(norms)
    source, previous = {
        "identity": (h, h),
        "block": (f, f),
        "block, initial before": (f, h),
        "no source": (None, f),
        "all apart": (f, p),
    }[roles]
    options = {"source": source, "previous": previous, "steps": steps, "dt": 0.2, "spacing": (2, 1)}
    options["diffusion"] = None if learned else (0.5, 2.0)
    assert can_fuse([*norms], nn.ReLU(), h)
    found, expected = fused_global_layer(h, raw, norms, **options), unfused(h, raw, others, **options)
    assert_same(found, expected)
    used = {id(each): each for each in (h, source, previous) if each is not None}
    pairs = zip(
        gradients(found, [*used.values(), *raw, *norms.parameters()]),
        gradients(expected, [*used.values(), *raw, *others.parameters()]),
        strict=True,
    )
    for ours, theirs in pairs:
        assert_same(ours, theirs)
    assert_same(list(norms.buffers()), list(others.buffers()))


def test_the_fused_layer_keeps_the_raw_maps_the_state_and_the_last_state() -> None:
    norms, (h, _, _, *raw) = layer_parts()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        fused_global_layer(h, raw, norms, source=h, previous=h, steps=5, dt=0.2, spacing=(1, 1))
    assert sum(size == h.numel() for size in kept.values()) == 6


def test_half_precision_outputs_of_convolutions_are_kept_as_they_are() -> None:
    norms, (h, _, _, *raw) = layer_parts()
    norms, h = norms.float(), h.detach().float()
    half = [each.detach().bfloat16().requires_grad_() for each in raw]
    wide = [each.detach().float().requires_grad_() for each in half]
    options = {"diffusion": None, "source": h, "previous": h, "steps": 2, "dt": 0.2, "spacing": (1, 1)}
    expected = unfused(h, wide, copy.deepcopy(norms), **options)
    found = fused_global_layer(h, half, norms, **options)
    assert_same(found, expected, 1e-4)
    for ours, theirs in zip(gradients(found, half), gradients(expected, wide), strict=True):
        assert ours.dtype == torch.bfloat16
        assert_same(ours.float(), theirs, 2e-2)


def hooked(norms: list[nn.Module]) -> None:
    norms[1].register_forward_hook(lambda *_: None)


def synchronised(norms: list[nn.Module]) -> None:
    norms[1] = nn.SyncBatchNorm(2).double()


def without_weights(norms: list[nn.Module]) -> None:
    norms[1] = nn.BatchNorm2d(2, affine=False).double()


@pytest.mark.parametrize("change", [hooked, synchronised, without_weights])
def test_norms_of_another_kind_are_not_fused(change: Callable[[list[nn.Module]], None]) -> None:
    norms, (h, *_) = layer_parts()
    listed = [*norms]
    assert can_fuse(listed, nn.ReLU(), h)
    change(listed)
    assert not can_fuse(listed, nn.ReLU(), h)


def test_another_activation_dtype_or_a_single_value_is_not_fused() -> None:
    norms, (h, *_) = layer_parts()
    assert not can_fuse([*norms], nn.SiLU(), h)
    assert not can_fuse([*norms], nn.ReLU(), h.float())
    assert not can_fuse([*norms], nn.ReLU(), h[:1, :, :1, :1])


def test_a_hook_on_a_module_that_would_be_passed_over_is_not_silenced() -> None:
    norms, (h, *_) = layer_parts()
    parent = nn.Sequential(norms[0])
    assert can_fuse([*norms], nn.ReLU(), h, around=[parent])
    parent.register_forward_pre_hook(lambda *_: None)
    assert not can_fuse([*norms], nn.ReLU(), h, around=[parent])


# --- with its convolutions


def layers(channels: int = 5, **options: Any) -> tuple[GlobalLayer, GlobalLayer]:
    """A layer with parameters far from their start, and one like it that goes module by module."""
    torch.manual_seed(0)
    fused = GlobalLayer(channels, **options).double()
    for parameter in fused.parameters():
        nn.init.normal_(parameter)
    reference = copy.deepcopy(fused)
    reference.solver = "reference"
    return fused, reference


def assert_alike(fused: GlobalLayer, reference: GlobalLayer, inputs: Tensor) -> None:
    """Compare outputs, gradients of input and parameters, and running statistics."""
    outputs = [layer(inputs) for layer in (fused, reference)]
    assert "FusedGlobalLayer" in outputs[0].grad_fn.name()
    assert "FusedGlobalLayer" not in outputs[1].grad_fn.name()
    assert_same(outputs[0], outputs[1])
    pairs = zip(
        gradients(outputs[0], [each for each in (inputs, *fused.parameters()) if each.requires_grad]),
        gradients(outputs[1], [each for each in (inputs, *reference.parameters()) if each.requires_grad]),
        strict=True,
    )
    for ours, theirs in pairs:
        assert_same(ours, theirs)
    assert_same(list(fused.buffers()), list(reference.buffers()))


@pytest.mark.parametrize("block", [60, 120, 1 << 17])  # parts of 4 + 1 channels; blocks of 2 + 2 + 1; all at once
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 4, "bias": True, "kernel_size": 5},
        {"steps": 2, "spacing": (2, 3), "diffusion": 0.5, "kernel_size": 1},
        {"init": "linear", "velocity_from": "source", "steps": 2},
        {"init": "linear", "previous": "initial", "steps": 3},
        {"init": "linear", "previous": "source", "source": False, "velocity_from": "source", "bias": True},
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_the_layer_with_its_convolutions_is_the_modules(
    training: bool, options: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_advection_diffusion_steps, "BLOCK", block // torch.get_num_threads())
    monkeypatch.setattr(_global_layer, "_convolve", counted := Counted(_global_layer._convolve))
    init = nn.Conv2d(5, 5, 1) if options.get("init") else None
    fused, reference = (each.train(training) for each in layers(**{**options, "init": init}))
    assert_alike(fused, reference, torch.randn(3, 5, 5, 4, dtype=torch.float64, requires_grad=True))
    assert counted.with_convolutions


class Counted:
    """Passes calls on, and notes whether they were to convolve."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.with_convolutions = function, False

    def __call__(self, setup: Any, *arguments: Any) -> Any:
        self.with_convolutions |= setup.seen is not None
        return self.function(setup, *arguments)


@pytest.mark.parametrize("options", [{"velocity": "pointwise"}, {"velocity": "identity"}, {"diffusion": "conv"}])
def test_other_convolutions_are_called_as_they_are(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_global_layer, "_convolve", counted := Counted(_global_layer._convolve))
    assert_alike(*layers(**options), torch.randn(3, 5, 5, 4, dtype=torch.float64, requires_grad=True))
    assert not counted.with_convolutions


@pytest.mark.parametrize("frozen", ["velocity_x.conv", "diffusion_y.norm", "norm", "inputs", "all but norm"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: str) -> None:
    fused, reference = layers()
    for layer in (fused, reference):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(
                name.startswith("norm") if frozen == "all but norm" else not name.startswith(frozen)
            )
    inputs = torch.randn(3, 5, 5, 4, dtype=torch.float64, requires_grad=frozen not in ("inputs", "all but norm"))
    assert_alike(fused, reference, inputs)


def test_norms_that_are_frozen_one_by_one_keep_their_statistics() -> None:
    fused, reference = layers(bias=True)
    for layer in (fused, reference):
        layer.velocity_y.norm.eval()
        layer.norm.eval()
    assert_alike(fused, reference, torch.randn(3, 5, 5, 4, dtype=torch.float64, requires_grad=True))


def test_channels_last_inputs_give_the_same() -> None:
    inputs = torch.randn(3, 5, 5, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert_alike(*layers(steps=2), inputs.requires_grad_())


def test_an_empty_batch_stays_empty() -> None:
    fused, _ = layers()
    assert fused.eval()(torch.empty(0, 5, 4, 4, dtype=torch.float64)).shape == (0, 5, 4, 4)


def test_a_hook_on_a_convolution_is_called() -> None:
    fused, _ = layers()
    seen: list[int] = []
    fused.velocity_x.conv.register_forward_hook(lambda *_: seen.append(1))
    fused(torch.randn(3, 5, 5, 4, dtype=torch.float64))
    assert seen == [1]


def depthwise(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1, "groups": 4, **options})


@pytest.mark.parametrize(
    ("convolution", "able"),
    [
        (depthwise(), True),
        (depthwise(padding="same", bias=False), True),
        (depthwise(kernel_size=5, padding=2), True),
        (depthwise(padding=0), False),
        (depthwise(padding=2, dilation=2), False),
        (depthwise(stride=2), False),
        (depthwise(padding_mode="circular"), False),
        (depthwise(groups=2), False),
        (depthwise(kernel_size=(3, 1), padding=(1, 0)), False),
        (depthwise(kernel_size=2, padding="same"), False),
        (depthwise().double(), False),
        (nn.Identity(), False),
    ],
)
def test_only_plain_depthwise_convolutions_are_taken_in(convolution: nn.Module, able: bool) -> None:
    assert can_convolve(convolution, torch.zeros(2, 4, 5, 5)) == able
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_convolve(convolution, torch.zeros(2, 4, 5, 5))


@pytest.mark.parametrize("steps", [1, 6])
def test_with_its_convolutions_the_layer_keeps_six_maps(steps: int) -> None:
    layer, inputs, kept = GlobalLayer(8, steps=steps), torch.randn(2, 8, 16, 16, requires_grad=True), {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(inputs)
    parameters = {each.untyped_storage().data_ptr() for each in layer.parameters()}
    maps = sum(size for place, size in kept.items() if place not in parameters) / inputs.untyped_storage().nbytes()
    assert maps == pytest.approx(6, abs=0.1)


def test_small_maps_without_gradients_take_plain_operations() -> None:
    torch.manual_seed(0)
    layer, x = GlobalLayer(3, steps=2).double().eval(), torch.randn(2, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        assert not layer._can_fuse(x)
        plain = layer(x)
    assert layer._can_fuse(x)
    torch.testing.assert_close(layer(x), plain, rtol=1e-12, atol=1e-12)
