"""A whole ``GlobalLayer`` as one autograd function.

Its convolutions, where they are depthwise and plain, batch norm and ReLU to the coefficients, the steps to the last
state, and batch norm and ReLU to the output. Kept for the backward pass are the outputs of the convolutions, the
initial state, the source and the last state; all else is computed again, some channels at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.functional._advection_diffusion import refuse_other_derivatives
from lightning_efficient.functional._advection_diffusion_steps import BlockGradients, Scheme, block_elements, blocks
from lightning_efficient.functional._global_layer_block import LayerBlock, Norm, Norms, Setup, mask
from lightning_efficient.functional.advection_diffusion import is_transformed

CONVOLUTION_BLOCKS = 4
"""Blocks that share a call of their convolutions, which take a while to begin."""


def can_fuse(
    norms: Sequence[nn.Module], activation: nn.Module, initial: Tensor, *, around: Sequence[nn.Module] = ()
) -> bool:
    """Say whether :func:`fused_global_layer` computes what the modules would.

    Args:
        norms: Of the coefficients and of the output; each must be ``nn.BatchNorm2d`` itself, with a weight and a bias,
            and without hooks.
        activation: Must be ``nn.ReLU`` itself, without hooks.
        initial: The initial state, float64 or what is taken to float32, and not empty. Nothing is fused while something
            like ``torch.compile`` or ``torch.func`` looks on, see ``is_transformed``.
        around: Further modules whose own calls are left out, which must have no hooks.
    """
    if is_transformed() or torch.nn.modules.module._has_any_global_hook():
        return False
    if initial.device.type not in ("cpu", "cuda"):
        return False
    if type(activation) is not nn.ReLU or _hooked(activation):
        return False
    if any(_hooked(module) for module in around):
        return False
    dtype = torch.promote_types(initial.dtype, torch.float32)
    for norm in norms:
        if type(norm) is not nn.BatchNorm2d or norm.weight is None or _hooked(norm):
            return False
        if norm.weight.dtype != dtype:
            return False
    # batch norm refuses a single value per channel with a message of its own
    return dtype in (torch.float32, torch.float64) and initial.numel() > initial.shape[1]


def _hooked(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in vars(module)  # somebody's own method on the instance counts as a hook


def use_norm(norm: nn.BatchNorm2d) -> Norm:
    """Count this batch as ``nn.BatchNorm2d`` does when it is called, and return what the function needs."""
    update, momentum = norm.training and norm.track_running_stats, norm.momentum
    if update and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    mean, var = norm.running_mean, norm.running_var
    batch = norm.training or (mean is None and var is None)
    return Norm(norm.weight, norm.bias, mean, var, batch, update and mean is not None, momentum or 0.0, norm.eps)


def can_convolve(convolution: nn.Module, seen: Tensor) -> bool:
    """Say whether a convolution can be a part of the function: depthwise, keeping the shape, and without hooks."""
    if type(convolution) is not nn.Conv2d or _hooked(convolution) or torch.is_autocast_enabled(seen.device.type):
        return False
    size, channels = convolution.kernel_size[0], convolution.in_channels
    return (
        convolution.groups == convolution.out_channels == channels == seen.shape[1]
        and convolution.kernel_size == (size, size)
        and size % 2 == 1
        and convolution.padding in ((size // 2, size // 2), "same")
        and convolution.padding_mode == "zeros"
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.weight.dtype == seen.dtype
    )


def fused_global_layer(
    initial: Tensor,
    inputs: Sequence[Tensor],
    norms: Sequence[nn.BatchNorm2d],
    *,
    convolutions: Sequence[Any] | None = None,
    diffusion: tuple[float, float] | None = None,
    source: Tensor | None,
    previous: Tensor,
    steps: int,
    dt: float,
    spacing: tuple[int, int],
) -> Tensor:
    """Return ``relu(norm(H^K))``, where all conditions of :func:`can_fuse` hold.

    Args:
        initial: ``(N, C, H, W)``, float32 or float64.
        inputs: What ``convolutions`` look at for ``u``, ``v`` and, unless ``diffusion`` is given, ``Dx`` and ``Dy``, or
            their outputs, of the same shape; half precision is computed with in the precision of ``initial``.
        norms: Batch norms of the convolutions' outputs in their order, then that of the output. Their running
            statistics are updated.
        convolutions: Modules of any kind; depthwise ones that look at a state are computed a block at a time. None
            where ``inputs`` are their outputs already.
        diffusion: ``(Dx, Dy)`` where they are numbers.
        source: As in ``advection_diffusion``, of the dtype of ``initial``.
        previous: As in ``advection_diffusion``, of the dtype of ``initial``.
        steps: As there.
        dt: As there.
        spacing: As there.

    Returns:
        The layer's output ``(N, C, H, W)`` in the dtype of ``initial``.
    """
    # a tensor that plays two parts is given once, so that its gradients are added where they are computed
    role_of_source = None if source is None else "initial" if source is initial else "source"
    role_of_previous = "initial" if previous is initial else "source" if previous is source else "previous"
    states = {
        "initial": initial,
        "previous": previous if role_of_previous == "previous" else None,
        "source": source if role_of_source == "source" else None,
    }
    seen: list[str] | None = None
    given: list[Tensor | None] = [*inputs]
    if convolutions is not None:
        roles = {id(each): name for name, each in states.items() if each is not None}
        pairs = [*zip(convolutions, inputs, strict=True)]
        if all(id(each) in roles and can_convolve(module, each) for module, each in pairs):
            seen = [roles[id(each)] for each in inputs]
            given = [each for module in convolutions for each in (module.weight, module.bias)]
        else:
            given = [module(each) for module, each in pairs]
    used = [use_norm(norm) for norm in norms]
    setup = Setup(Scheme(steps, dt, spacing), diffusion, used, role_of_previous, role_of_source, seen)
    affine = [tensor for norm in used for tensor in (norm.weight, norm.bias)]
    return FusedGlobalLayer.apply(setup, *states.values(), *given, *affine)


NAMES = ("initial", "previous", "source")
States = Mapping[str, Tensor]


class FusedGlobalLayer(torch.autograd.Function):
    """Arguments: setup, initial, previous, source, what convolutions have or the raw maps, what norms have.

    Channels are cut into parts for the convolutions, whose outputs stay as they are, and parts into blocks.
    """

    @staticmethod
    def forward(ctx: Any, setup: Setup, *tensors: Any) -> Tensor:
        """Return the output; see :func:`fused_global_layer`."""
        affine_from = len(tensors) - 2 * len(setup.norms)
        states = {name: each for name, each in zip(NAMES, tensors, strict=False) if each is not None}
        given, affine = tensors[3:affine_from], tensors[affine_from:]
        initial, output = states["initial"], torch.empty_like(states["initial"])
        norms = Norms(setup, affine, *_given_moments(setup, initial))
        work = _Blocks(setup, initial, backward=False)
        kept = []
        for part in work.parts:
            raw, final = _convolve(setup, states, given, part), initial.new_empty(initial[:, part].shape)
            spare = torch.empty_like(final)
            for index, values in enumerate(raw):
                norms.measure(index, values, part, spare)
            for channels, local in work.of(part):
                cut = _cut(states, channels)
                block = work.block(cut["initial"].shape)
                block.forward(cut, [each[:, local] for each in raw], norms, channels, final[:, local])
            norms.measure(setup.maps, final, part, spare)
            torch.clamp_min(norms.normalise(setup.maps, final, part, spare), 0, out=output[:, part])
            kept += [*(raw if setup.seen else []), final]
        for norm, mean, var in zip(setup.norms, norms.mean, norms.var, strict=True):
            _update(norm, mean, var, initial.numel() // initial.shape[1])
        ctx.save_for_backward(*tensors, norms.mean, norms.var, *kept)
        ctx.setup, ctx.given = setup, len(tensors)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Go back through everything, some channels at a time."""
        refuse_other_derivatives(gradient)
        setup: Setup = ctx.setup
        saved, needs, count = ctx.saved_tensors, ctx.needs_input_grad[1:], setup.maps
        tensors, (mean, var, *kept) = saved[: ctx.given], saved[ctx.given :]
        affine_from = ctx.given - 2 * len(setup.norms)
        states = {name: each for name, each in zip(NAMES, tensors, strict=False) if each is not None}
        given = tensors[3:affine_from]
        grads = [torch.empty_like(each) if need else None for each, need in zip(tensors, needs, strict=True)]
        of_states, of_given = dict(zip(NAMES, grads, strict=False)), grads[3:affine_from]
        of_affine = [torch.empty_like(each) for each in tensors[affine_from:]]
        norms = Norms(setup, tensors[affine_from:], mean, var)
        work = _Blocks(setup, states["initial"], backward=True)
        of_source = bool(setup.source and of_states[setup.source] is not None)
        for part in work.parts:
            if setup.seen:
                raw, kept = kept[:count], kept[count:]
            else:
                raw = _convolve(setup, states, given, part)
            final, *kept = kept
            of_output = norms.normalise(count, final, part, torch.empty_like(final))
            mask(gradient[:, part], of_output, of_output)
            of_final = norms.backward(count, of_output, final, part, of_affine)
            of_norms = [torch.empty_like(each, dtype=mean.dtype) for each in raw]
            for channels, local in work.of(part):
                cut = _cut(states, channels)
                received = work.block(cut["initial"].shape).backward(
                    cut,
                    [each[:, local] for each in raw],
                    norms,
                    channels,
                    final[:, local],
                    of_final[:, local],
                    [each[:, local] for each in of_norms],
                    source=of_source,
                )
                _share_out(setup, received, of_states, channels)
            seen = _seen(setup, states, part)
            for index, values in enumerate(raw):
                of_raw = norms.backward(index, of_norms[index], values, part, of_affine)
                _convolve_backward(setup, index, seen, given, part, of_raw, of_states, of_given)
        grads[affine_from:] = [
            each if need else None for each, need in zip(of_affine, needs[affine_from:], strict=True)
        ]
        return None, *grads


class _Blocks:
    """How the channels are cut, and the buffers for it."""

    def __init__(self, setup: Setup, initial: Tensor, *, backward: bool) -> None:
        self.setup, self.initial, self.backward = setup, initial, backward
        self.elements = block_elements(initial)
        self.parts = [*blocks(initial, 1, CONVOLUTION_BLOCKS * self.elements)]
        self.made: dict[torch.Size, LayerBlock] = {}

    def of(self, part: slice) -> list[tuple[slice, slice]]:
        """Return the blocks of a part: their channels, and the same counted from the part's first."""
        return [
            (slice(part.start + local.start, part.start + local.stop), local)
            for local in blocks(self.initial[:, part], 1, self.elements)
        ]

    def block(self, shape: torch.Size) -> LayerBlock:
        """Return buffers for blocks of this shape."""
        if shape not in self.made:
            self.made[shape] = LayerBlock(self.setup, shape, self.initial, backward=self.backward)
        return self.made[shape]


def _cut(states: States, channels: slice) -> dict[str, Tensor]:
    """Return some channels of all states, each dense in memory, whatever the layout of the whole."""
    parts = {name: each[:, channels] for name, each in states.items()}
    return {
        name: part if part.stride()[2:] == (part.shape[3], 1) else part.contiguous() for name, part in parts.items()
    }


def _convolve(setup: Setup, states: States, given: Sequence[Any], part: slice) -> list[Tensor]:
    """Return a part of the raw maps."""
    if setup.seen is None:
        return [each[:, part].to(states["initial"].dtype).contiguous() for each in given]
    width, seen = part.stop - part.start, _seen(setup, states, part)
    return [
        F.conv2d(
            seen[name], weight[part], None if bias is None else bias[part], padding=weight.shape[-1] // 2, groups=width
        )
        for name, weight, bias in zip(setup.seen, given[::2], given[1::2], strict=True)
    ]


def _seen(setup: Setup, states: States, part: slice) -> dict[str, Tensor]:
    return {name: states[name][:, part].contiguous() for name in set(setup.seen or ())}


def _convolve_backward(
    setup: Setup,
    index: int,
    seen: States,
    given: Sequence[Any],
    part: slice,
    of_raw: Tensor,
    of_states: Mapping[str, Tensor | None],
    of_given: Sequence[Tensor | None],
) -> None:
    """Write the gradients of a part of one raw map, or of its convolution's weights, and add those of what it sees."""
    if setup.seen is None:
        if (of_map := of_given[index]) is not None:
            of_map[:, part] = of_raw
        return
    width, of_state = part.stop - part.start, of_states[setup.seen[index]]
    of_weight, of_bias = of_given[2 * index : 2 * index + 2]
    found = torch.ops.aten.convolution_backward(
        of_raw,
        seen[setup.seen[index]],
        given[2 * index][part],
        None if of_bias is None else [width],
        [1, 1],
        [given[2 * index].shape[-1] // 2] * 2,
        [1, 1],
        False,
        [0, 0],
        width,
        [each is not None for each in (of_state, of_weight, of_bias)],
    )
    if of_state is not None:
        of_state[:, part].add_(found[0])
    for target, value in ((of_weight, found[1]), (of_bias, found[2])):
        if target is not None:
            target[part] = value


def _given_moments(setup: Setup, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the running statistics, or room for those of the batch."""
    room = like.new_empty(like.shape[1])
    means = [room if norm.batch or norm.running_mean is None else norm.running_mean for norm in setup.norms]
    variances = [room if norm.batch or norm.running_var is None else norm.running_var for norm in setup.norms]
    return torch.stack(means), torch.stack(variances)


def _update(norm: Norm, mean: Tensor, var: Tensor, count: int) -> None:
    if norm.update and norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)


def _share_out(setup: Setup, received: BlockGradients, grads: Mapping[str, Tensor | None], channels: slice) -> None:
    """Add up what a tensor receives in each of its parts."""
    totals = {"initial": received.initial}
    for name, value in ((setup.previous, received.previous), (setup.source, received.source)):
        if name is not None and value is not None:
            totals[name] = totals[name].add_(value) if name in totals else value
    for name, value in totals.items():
        grad = grads[name]
        if grad is not None:
            grad[:, channels] = value
