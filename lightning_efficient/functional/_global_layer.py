"""A whole ``GlobalLayer`` after its convolutions as one autograd function.

From the outputs of the convolutions it goes through batch norm and ReLU to the coefficients, through the steps to the
last state, and through batch norm and ReLU to the output. Kept for the backward pass are the outputs of the
convolutions, the initial state, the source and the last state; all else is computed again, some channels at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.functional._advection_diffusion import (
    BLOCK,
    BlockGradients,
    Scheme,
    adjoint,
    coefficients,
    evolve,
    refuse_second_derivatives,
)
from lightning_efficient.functional.advection_diffusion import is_transformed


class Norm(NamedTuple):
    """What a batch norm does in this call.

    Attributes:
        weight: ``(C,)``.
        bias: ``(C,)``.
        running_mean: ``(C,)``, float32 or wider; None where it keeps none.
        running_var: ``(C,)``.
        batch: Whether it uses the statistics of this batch.
        update: Whether the running statistics take the batch's in.
        momentum: Their share in that.
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    batch: bool
    update: bool
    momentum: float
    eps: float


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
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


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


def fused_global_layer(
    initial: Tensor,
    raw: Sequence[Tensor],
    norms: Sequence[nn.BatchNorm2d],
    *,
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
        raw: Outputs of the convolutions for ``u``, ``v`` and, unless ``diffusion`` is given, ``Dx`` and ``Dy``, of the
            same shape; half precision is computed with in the precision of ``initial``.
        norms: Batch norms of ``raw`` in its order, then that of the output. Their running statistics are updated.
        diffusion: ``(Dx, Dy)`` where they are numbers.
        source: As in ``advection_diffusion``, of the dtype of ``initial``.
        previous: As in ``advection_diffusion``, of the dtype of ``initial``.
        steps: As there.
        dt: As there.
        spacing: As there.

    Returns:
        The layer's output ``(N, C, H, W)`` in the dtype of ``initial``.
    """
    used = [use_norm(norm) for norm in norms]
    # a tensor that plays two parts is given once, so that its gradients are added where they are computed
    role_of_source = None if source is None else "initial" if source is initial else "source"
    role_of_previous = "initial" if previous is initial else "source" if previous is source else "previous"
    setup = _Setup(Scheme(steps, dt, spacing), diffusion, used, role_of_previous, role_of_source)
    own_source = source if role_of_source == "source" else None
    own_previous = previous if role_of_previous == "previous" else None
    affine = [tensor for norm in used for tensor in (norm.weight, norm.bias)]
    return FusedGlobalLayer.apply(setup, initial, own_previous, own_source, *raw, *affine)


_PLACES = {"initial": 1, "previous": 2, "source": 3}


class _Setup(NamedTuple):
    """What is no tensor; ``previous`` and ``source`` name the argument that plays this part, None for no source."""

    scheme: Scheme
    diffusion: tuple[float, float] | None
    norms: Sequence[Norm]
    previous: str
    source: str | None

    @property
    def maps(self) -> int:
        return len(self.norms) - 1


class FusedGlobalLayer(torch.autograd.Function):
    """Arguments: setup, initial, previous, source, the raw maps, and weight and bias of every norm in turn."""

    @staticmethod
    def forward(
        ctx: Any, setup: _Setup, initial: Tensor, previous: Tensor | None, source: Tensor | None, *rest: Tensor
    ) -> Tensor:
        """Return the output; see :func:`fused_global_layer`."""
        count = setup.maps
        states = {"initial": initial, "previous": previous, "source": source}
        output, final = torch.empty_like(initial), torch.empty_like(initial)
        moments = [_given_moments(norm, initial) for norm in setup.norms]
        for channels in _channel_blocks(initial):
            block = _Block(setup, states, rest, moments, channels)
            block.measure(range(count))
            for state in block.steps(setup.scheme):
                last = state
            final[:, channels] = last
            block.raw.append(last)
            block.measure([count])
            output[:, channels] = block.normalised(count).relu_()
        for norm, found in zip(setup.norms, moments, strict=True):
            _update(norm, found, initial.numel() // initial.shape[1])
        ctx.save_for_backward(
            *states.values(), *rest[:count], final, *rest[count:], *(each for pair in moments for each in pair)
        )
        ctx.setup = setup
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Go back through everything, some channels at a time."""
        refuse_second_derivatives()
        setup: _Setup = ctx.setup
        saved, needs, count = ctx.saved_tensors, ctx.needs_input_grad, setup.maps
        states = dict(zip(("initial", "previous", "source"), saved, strict=False))
        rest = saved[3 : 3 * count + 6]  # raw maps, last state, affine
        flat = saved[3 * count + 6 :]
        moments = [(flat[index], flat[index + 1]) for index in range(0, len(flat), 2)]
        grads = [
            torch.empty_like(each) if need else None
            for each, need in zip((*saved[:3], *saved[3 : 3 + count]), needs[1:], strict=False)
        ]
        of_states = dict(zip(states, grads, strict=False))
        of_affine = [torch.empty_like(each) for each in rest[count + 1 :]]
        learned, of_source = setup.diffusion is None, bool(setup.source and needs[_PLACES[setup.source]])
        earlier = setup.scheme._replace(steps=setup.scheme.steps - 1)
        for channels in _channel_blocks(states["initial"]):
            block = _Block(setup, states, rest, moments, channels)
            of_output = block.normalised(count).relu_().sign_().mul_(gradient[:, channels])
            of_final = block.norm_backward(count, of_output, of_affine)
            before = [block.state(setup.previous), block.state("initial"), *block.steps(earlier), block.raw[count]]
            received = adjoint(
                block.factors, before, of_final, setup.scheme, along=learned, across=learned, source=of_source
            )
            _share_out(setup, received, of_states, channels)
            for index, grad in enumerate(received[:count]):
                assert grad is not None
                of_raw = block.norm_backward(index, grad.mul_(block.maps[index].sign_()), of_affine)
                if (target := grads[3 + index]) is not None:
                    target[:, channels] = of_raw
        return None, *grads, *(each if need else None for each, need in zip(of_affine, needs[4 + count :], strict=True))


class _Block:
    """Some channels of all samples, contiguous in memory: few kernel calls on maps that stay in the cache.

    Args:
        setup: What is no tensor.
        states: Initial and previous state and source of all channels.
        tensors: Raw maps, in the backward pass the last state after them, then weight and bias of each norm.
        moments: Mean and biased variance of each norm, for all channels.
        channels: Which these are.
    """

    def __init__(
        self,
        setup: _Setup,
        states: Mapping[str, Tensor | None],
        tensors: Sequence[Tensor],
        moments: Sequence[tuple[Tensor, Tensor]],
        channels: slice,
    ) -> None:
        self.setup, self.states, self.channels = setup, states, channels
        first = states["initial"]
        assert first is not None
        split = len(tensors) - 2 * len(setup.norms)
        self.raw = [each[:, channels].to(first.dtype).contiguous() for each in tensors[:split]]
        self.moments = [(mean[channels], var[channels]) for mean, var in moments]
        rates = (*setup.scheme.rates()[: setup.maps], 1.0)
        affine = [each[channels] for each in tensors[split:]]
        # the rates go into the norms' weights, as ReLU lets them
        self.rates = rates
        self.weights = [each * rate for each, rate in zip(affine[::2], rates, strict=True)]
        self.biases = [each * rate for each, rate in zip(affine[1::2], rates, strict=True)]

    def state(self, name: str) -> Tensor:
        """Return these channels of a state."""
        found = self.states[name]
        assert found is not None
        return found[:, self.channels]

    def measure(self, which: Iterable[int]) -> None:
        """Write mean and biased variance of this batch into the moments of the norms that go by the batch."""
        for index in which:
            if self.setup.norms[index].batch:
                (mean, var), values = self.moments[index], self.raw[index]
                # own sums are several times as fast on CPUs as torch.batch_norm_update_stats and torch.var_mean
                count = values.numel() // values.shape[1]
                torch.sum(values, (0, 2, 3), out=mean).div_(count)
                centred = values - mean[:, None, None]
                torch.sum(centred.mul_(centred), (0, 2, 3), out=var).div_(count)

    def normalised(self, index: int) -> Tensor:
        """Return the output of a norm, times its rate."""
        (mean, var), eps = self.moments[index], self.setup.norms[index].eps
        return F.batch_norm(self.raw[index], mean, var, self.weights[index], self.biases[index], False, 0.0, eps)

    def steps(self, scheme: Scheme) -> Iterator[Tensor]:
        """Yield the states after each step; ``maps`` and ``factors`` are there from then on."""
        self.maps = [self.normalised(index).relu_() for index in range(self.setup.maps)]
        drift, slip, *rest = self.maps
        diffusion: list[Any] = list(rest)
        if self.setup.diffusion is not None:
            rates = scheme.rates()[2:]
            diffusion = [value * rate for value, rate in zip(self.setup.diffusion, rates, strict=True)]
        self.factors = coefficients(drift, slip, diffusion[0], diffusion[1], scheme.spacing)
        source = None if self.setup.source is None else self.state(self.setup.source)
        yield from evolve(self.factors, self.state("initial"), self.state(self.setup.previous), source, scheme)

    def norm_backward(self, index: int, gradient: Tensor, of_affine: Sequence[Tensor]) -> Tensor:
        """Turn the gradient of a norm's output, in place, into that of its input; write those of weight and bias."""
        (mean, var), norm = self.moments[index], self.setup.norms[index]
        inverse = torch.rsqrt(var + norm.eps)
        centred = self.raw[index] - mean[:, None, None]
        # own sums are about twice as fast on CPUs as native_batch_norm_backward
        of_bias = gradient.sum((0, 2, 3))
        of_weight = torch.mul(gradient, centred).sum((0, 2, 3)).mul_(inverse)
        for place, grad in ((2 * index, of_weight), (2 * index + 1, of_bias)):
            torch.mul(grad, self.rates[index], out=of_affine[place][self.channels])
        if norm.batch:
            count = gradient.numel() // gradient.shape[1]
            gradient.addcmul_(centred, (of_weight * inverse / -count)[:, None, None])
            gradient.sub_((of_bias / count)[:, None, None])
        return gradient.mul_((self.weights[index] * inverse)[:, None, None])


def _channel_blocks(like: Tensor) -> Iterator[slice]:
    width = max(1, BLOCK // max(1, like[:, :1].numel()))
    for start in range(0, like.shape[1], width):
        yield slice(start, start + width)


def _given_moments(norm: Norm, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the running statistics, or room for those of the batch."""
    if norm.batch or norm.running_mean is None or norm.running_var is None:
        return like.new_empty(like.shape[1]), like.new_empty(like.shape[1])
    return norm.running_mean, norm.running_var


def _update(norm: Norm, moments: tuple[Tensor, Tensor], count: int) -> None:
    if norm.update and norm.running_mean is not None and norm.running_var is not None:
        mean, var = moments
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)


def _share_out(setup: _Setup, received: BlockGradients, grads: dict[str, Tensor | None], channels: slice) -> None:
    """Add up what a tensor receives in each of its parts."""
    totals = {"initial": received.initial}
    for name, value in ((setup.previous, received.previous), (setup.source, received.source)):
        if name is not None and value is not None:
            totals[name] = totals[name].add_(value) if name in totals else value
    for name, value in totals.items():
        grad = grads[name]
        if grad is not None:
            grad[:, channels] = value
