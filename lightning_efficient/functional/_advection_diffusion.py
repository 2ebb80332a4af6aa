"""``advection_diffusion`` on blocks of samples, with a backward pass written by hand.

Nothing but the inputs is kept for the backward pass, which computes the coefficients and the states of a block again.
Diffusion that is the same everywhere is a plain number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._advection_diffusion_steps import Block, Scheme, block_elements, blocks


def refuse_other_derivatives(gradient: Tensor) -> None:
    """Raise inside a backward pass with ``create_graph=True`` or with several gradients at once.

    torch's own errors for these do not tell the way out.
    """
    if torch.is_grad_enabled():
        raise ConfigurationError(
            "create_graph=True needs solver='reference', which is differentiable at all orders; 'fused' is so once."
        )
    if torch._C._functorch.is_batchedtensor(gradient) or torch._C._functorch.is_legacy_batchedtensor(gradient):
        raise ConfigurationError("is_grads_batched and vectorize need solver='reference'; 'fused' takes one gradient.")


class FusedAdvectionDiffusion(torch.autograd.Function):
    """From maps of ``(N, C, H, W)`` to the state after the last step; keeps its inputs and nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        initial: Tensor,
        previous: Tensor,
        source: Tensor | None,
        u: Tensor,
        v: Tensor,
        along: Tensor | float,
        across: Tensor | float,
        scheme: Scheme,
    ) -> Tensor:
        """Run the steps.

        Args:
            ctx: Autograd's context.
            initial: ``(N, C, H, W)``, float32 or float64, as are all maps of the computation.
            previous: The state a step earlier.
            source: What is added all the time; None for nothing.
            u: Velocity along the rows' index; this map and the next three may be of half precision.
            v: Velocity along the columns' index.
            along: Diffusion coefficient from row to row: a map or a number.
            across: Diffusion coefficient from column to column.
            scheme: Steps, their length, spacing.

        Returns:
            The last state.
        """
        maps: list[Tensor | None] = [each if isinstance(each, Tensor) else None for each in (along, across)]
        ctx.save_for_backward(initial, previous, source, u, v, *maps)
        ctx.scheme = scheme
        ctx.numbers = [None if isinstance(each, Tensor) else each for each in (along, across)]
        output = torch.empty_like(initial)
        solver = _Solver(initial, ctx.numbers, scheme, backward=False)
        for block in blocks(initial, 0, block_elements(initial)):
            solver.run((initial, previous, source, u, v, *maps), block, output[block])
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Go back block by block."""
        refuse_other_derivatives(gradient)
        saved, needs, scheme = ctx.saved_tensors, ctx.needs_input_grad, ctx.scheme
        initial = saved[0]
        grads = [torch.empty_like(each) if need else None for each, need in zip(saved, needs, strict=False)]
        solver = _Solver(initial, ctx.numbers, scheme, backward=True)
        for block in blocks(initial, 0, block_elements(initial)):
            final = initial.new_empty(initial[block].shape)
            work = solver.run(saved, block, final)
            of_final = final.new_empty(final.shape).copy_(gradient[block])
            received = work.adjoint(saved[1][block], final, of_final, source=needs[2])
            scaled = (
                each if each is None else each.mul_(rate)
                for each, rate in zip(received[:4], scheme.rates(), strict=True)
            )
            for grad, value in zip(grads, (received.initial, received.previous, received.source, *scaled), strict=True):
                if grad is not None and value is not None:
                    grad[block] = value
        return *grads, None


class _Solver:
    """Buffers for the blocks of a map, of which the last may be smaller."""

    def __init__(self, like: Tensor, numbers: Sequence[float | None], scheme: Scheme, *, backward: bool) -> None:
        self.like, self.scheme, self.backward = like, scheme, backward
        rates = scheme.rates()[2:]
        along, across = (each if each is None else each * rate for each, rate in zip(numbers, rates, strict=True))
        self.numbers = along, across
        self.made: dict[torch.Size, Block] = {}

    def run(self, maps: Sequence[Any], samples: slice, target: Tensor) -> Block:
        """Run all steps of some samples into ``target``."""
        cut: list[Any] = [None if each is None else each[samples].contiguous() for each in maps]
        initial, previous, source, *rest = cut
        shape = initial.shape
        if shape not in self.made:
            self.made[shape] = Block(shape, self.scheme, self.like, self.numbers, backward=self.backward)
        work = self.made[shape]
        for buffer, given, rate in zip(work.maps, rest, self.scheme.rates(), strict=True):
            if isinstance(buffer, Tensor):
                torch.mul(given.to(initial.dtype), rate, out=buffer)
        work.prepare()
        work.run(initial, previous, source, target)
        return work
