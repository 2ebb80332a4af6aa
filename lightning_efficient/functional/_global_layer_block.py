"""What one block of channels of a fused ``GlobalLayer`` does: batch norms, coefficients, steps, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_efficient.functional._advection_diffusion_steps import Block, BlockGradients, Scheme


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


class Setup(NamedTuple):
    """What is no tensor.

    Attributes:
        scheme: Steps, their length, spacing.
        diffusion: ``(Dx, Dy)`` where they are numbers.
        norms: Those of the coefficients and of the output.
        previous: The argument that is the previous state: "initial", "previous" or "source".
        source: The argument that is the source; None for no source.
        seen: The arguments that the convolutions look at; None where their outputs are given.
    """

    scheme: Scheme
    diffusion: tuple[float, float] | None
    norms: Sequence[Norm]
    previous: str
    source: str | None
    seen: Sequence[str] | None

    @property
    def maps(self) -> int:
        """Return how many coefficients are maps."""
        return len(self.norms) - 1


class Norms:
    """All batch norms of a layer, stacked: ``(count, C)``.

    The rates of the coefficients go into the weights, as ReLU lets them.

    Args:
        setup: What is no tensor.
        affine: Weight and bias of each norm in turn.
        mean: Of each norm.
        var: Biased variance of each norm.
    """

    def __init__(self, setup: Setup, affine: Sequence[Tensor], mean: Tensor, var: Tensor) -> None:
        self.setup, self.mean, self.var = setup, mean, var
        self.rates = (*setup.scheme.rates()[: setup.maps], 1.0)
        rates = mean.new_tensor(self.rates)[:, None]
        self.eps = mean.new_tensor([norm.eps for norm in setup.norms])[:, None]
        self.weights, self.biases = torch.stack([*affine[::2]]).mul_(rates), torch.stack([*affine[1::2]]).mul_(rates)

    def measure(self, index: int, values: Tensor, channels: slice, spare: Tensor) -> None:
        """Take mean and biased variance from some channels, where the norm goes by the batch."""
        if self.setup.norms[index].batch:
            mean, var, count = self.mean[index, channels], self.var[index, channels], values.numel() // values.shape[1]
            # own sums are several times as fast on CPUs as torch.batch_norm_update_stats and torch.var_mean
            torch.sum(values, (0, 2, 3), out=mean).div_(count)
            torch.sub(values, mean[:, None, None], out=spare)
            torch.sum(spare.mul_(spare), (0, 2, 3), out=var).div_(count)

    def normalise(self, index: int, values: Tensor, channels: slice, out: Tensor) -> Tensor:
        """Write the output of a norm for some channels."""
        gains, shifts = self.gains_and_shifts(slice(index, index + 1), channels)
        return torch.mul(values, gains[0], out=out).add_(shifts[0])

    def backward(
        self, index: int, gradient: Tensor, values: Tensor, channels: slice, of_affine: Sequence[Tensor]
    ) -> Tensor:
        """Return the gradient of a norm's input; write those of weight and bias."""
        mean, var, norm = self.mean[index, channels], self.var[index, channels], self.setup.norms[index]
        found = torch.ops.aten.native_batch_norm_backward(
            gradient,
            values,
            self.weights[index, channels],
            mean,
            var,
            mean,
            (var + norm.eps).rsqrt_(),
            norm.batch,
            norm.eps,
            [True, True, True],
        )
        for place, grad in ((2 * index, found[1]), (2 * index + 1, found[2])):
            torch.mul(grad, self.rates[index], out=of_affine[place][channels])
        of_values: Tensor = found[0]
        return of_values

    def gains_and_shifts(self, which: slice, channels: slice) -> tuple[Tensor, Tensor]:
        """Return what a raw map is multiplied by and what is added, ``(count, C, 1, 1)``."""
        gains = self.var[which, channels].add(self.eps[which]).rsqrt_().mul_(self.weights[which, channels])
        shifts = self.biases[which, channels] - self.mean[which, channels] * gains
        return gains[..., None, None], shifts[..., None, None]


class LayerBlock:
    """Buffers for blocks of some channels of all samples.

    Args:
        setup: What is no tensor.
        shape: Of the blocks.
        like: A tensor of the dtype and device that is computed with.
        backward: Whether :meth:`backward` will be called.
    """

    def __init__(self, setup: Setup, shape: torch.Size, like: Tensor, *, backward: bool) -> None:
        numbers: tuple[float | None, float | None] = (None, None)
        if setup.diffusion is not None:
            along, across = setup.scheme.rates()[2:]
            numbers = setup.diffusion[0] * along, setup.diffusion[1] * across
        self.setup = setup
        self.steps = Block(shape, setup.scheme, like, numbers, backward=backward)
        self.maps = [each for each in self.steps.maps if isinstance(each, Tensor)]

    def forward(
        self, states: Mapping[str, Tensor], raw: Sequence[Tensor], norms: Norms, channels: slice, final: Tensor
    ) -> None:
        """Compute the last state.

        Args:
            states: These channels of all states.
            raw: These channels of the outputs of the convolutions.
            norms: All norms, with the moments of the coefficients.
            channels: Which these are.
            final: For the last state.
        """
        self._coefficients(raw, norms, channels)
        self.steps.run(states["initial"], states[self.setup.previous], self._source(states), final)

    def backward(
        self,
        states: Mapping[str, Tensor],
        raw: Sequence[Tensor],
        norms: Norms,
        channels: slice,
        final: Tensor,
        of_final: Tensor,
        of_norms: Sequence[Tensor],
        *,
        source: bool,
    ) -> BlockGradients:
        """Go back to the coefficients' norms; as in :meth:`forward`.

        Args:
            states: These channels of all states.
            raw: These channels of the outputs of the convolutions.
            norms: All norms.
            channels: Which these are.
            final: The last state.
            of_final: Its gradient; its memory is used for other things.
            of_norms: For the gradients of the norms' outputs.
            source: Whether the source needs a gradient.
        """
        self._coefficients(raw, norms, channels)
        previous = states[self.setup.previous]
        self.steps.run(states["initial"], previous, self._source(states), None)
        received = self.steps.adjoint(previous, final, of_final, source=source)
        for grad, values, target in zip(received, self.maps, of_norms, strict=False):
            assert grad is not None
            mask(grad, values, target)
        return received

    def _source(self, states: Mapping[str, Tensor]) -> Tensor | None:
        return None if self.setup.source is None else states[self.setup.source]

    def _coefficients(self, raw: Sequence[Tensor], norms: Norms, channels: slice) -> None:
        gains, shifts = norms.gains_and_shifts(slice(self.setup.maps), channels)
        for buffer, values, gain, shift in zip(self.maps, raw, gains.unbind(), shifts.unbind(), strict=True):
            torch.mul(values, gain, out=buffer).add_(shift).clamp_min_(0)
        self.steps.prepare()


def mask(gradient: Tensor, values: Tensor, out: Tensor) -> None:
    """Write the gradient where values are above 0, and 0 elsewhere."""
    torch.ops.aten.threshold_backward.grad_input(gradient, values, 0, grad_input=out)
