"""The explicit scheme of ``advection_diffusion`` on blocks of samples, with a backward pass written by hand.

In terms of ``drift = u dt/dx``, ``slip = v dt/dy``, ``along = 2 Dx dt/dx**2`` and ``across = 2 Dy dt/dy**2``, and with
``N, S`` for the neighbours a spacing above and below and ``W, E`` for those on the left and right, a step reads::

    scale = 1 / (1 + along + across)
    here  = S(drift) - N(drift) + E(slip) - W(slip)
    next  = scale ((1 - along - across) before + here state + 2 dt source
            + (along - drift) N(state) + (along + drift) S(state) + (across - slip) W(state) + (across + slip) E(state))

Nothing but the inputs is kept for the backward pass, which computes the coefficients and the states of a block again.
Diffusion that is the same everywhere is a plain number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError

BLOCK = 1 << 19
"""Elements of a block, and of each of its some twenty temporary maps: few calls count for more than caches do."""

ROWS, COLUMNS = 2, 3


class Scheme(NamedTuple):
    """How many steps of which length, and how far away the neighbours are in rows and in columns."""

    steps: int
    dt: float
    spacing: tuple[int, int]

    def rates(self) -> tuple[float, float, float, float]:
        """Return what ``u``, ``v``, ``Dx`` and ``Dy`` are multiplied by."""
        dx, dy = self.spacing
        return self.dt / dx, self.dt / dy, 2 * self.dt / dx**2, 2 * self.dt / dy**2


class Coefficients(NamedTuple):
    """The factors of a step, as in the formula of this module before the multiplication by ``scale``."""

    before: Tensor | float
    here: Tensor
    north: Tensor
    south: Tensor
    west: Tensor
    east: Tensor
    scale: Tensor | float


class BlockGradients(NamedTuple):
    """Gradients of one block; those of numbers and of what is not there are None."""

    drift: Tensor
    slip: Tensor
    along: Tensor | None
    across: Tensor | None
    source: Tensor | None
    previous: Tensor
    initial: Tensor


def blocks(like: Tensor) -> Iterator[slice]:
    """Cut the samples into blocks of at most ``BLOCK`` elements, but of one sample at least."""
    length = max(1, BLOCK // max(1, like[:1].numel()))
    for start in range(0, len(like), length):
        yield slice(start, start + length)


def refuse_second_derivatives() -> None:
    """Raise inside a backward pass with ``create_graph=True``; torch's own error for it does not tell the way out."""
    if torch.is_grad_enabled():
        raise ConfigurationError(
            "create_graph=True needs solver='reference', which is differentiable at all orders; 'fused' is so once."
        )


def coefficients(
    drift: Tensor, slip: Tensor, along: Tensor | float, across: Tensor | float, spacing: tuple[int, int]
) -> Coefficients:
    """Return what multiplies the two states and the neighbours in every step."""
    total = along + across
    if isinstance(total, Tensor):
        before: Tensor | float = torch.rsub(total, 1)
        scale: Tensor | float = total.add_(1).reciprocal_()
    else:
        before, scale = 1 - total, 1 / (1 + total)
    here = torch.empty_like(drift)
    for to, of in _pieces(drift.shape[ROWS], -spacing[0], ROWS):
        here[to].copy_(drift[of])
    _add_rolled(here, drift, spacing[0], ROWS, -1)
    _add_rolled(here, slip, -spacing[1], COLUMNS)
    _add_rolled(here, slip, spacing[1], COLUMNS, -1)
    return Coefficients(before, here, along - drift, along + drift, across - slip, across + slip, scale)


def evolve(
    found: Coefficients, initial: Tensor, previous: Tensor, source: Tensor | None, scheme: Scheme
) -> Iterator[Tensor]:
    """Yield the states after each step, all of them new tensors."""
    last, state = previous, initial
    dx, dy = scheme.spacing
    for _ in range(scheme.steps):
        following = torch.mul(last, found.before)
        following.addcmul_(found.here, state)
        _addcmul_rolled(following, found.north, state, dx, ROWS)
        _addcmul_rolled(following, found.south, state, -dx, ROWS)
        _addcmul_rolled(following, found.west, state, dy, COLUMNS)
        _addcmul_rolled(following, found.east, state, -dy, COLUMNS)
        if source is not None:
            following.add_(source, alpha=2 * scheme.dt)
        last, state = state, following.mul_(found.scale)
        yield state


def adjoint(
    found: Coefficients,
    states: Sequence[Tensor],
    gradient: Tensor,
    scheme: Scheme,
    *,
    along: bool,
    across: bool,
    source: bool,
) -> BlockGradients:
    """Go back over the steps of a block.

    Args:
        found: The block's coefficients.
        states: Previous, initial, and the states after each step.
        gradient: Of the last state.
        scheme: Steps and spacing.
        along: Whether ``along`` needs a gradient.
        across: Whether ``across`` needs one.
        source: Whether the source needs one.
    """
    (dx, dy), like = scheme.spacing, gradient
    north, south, west, east, here = (torch.empty_like(like) for _ in range(5))
    levels = torch.empty_like(like) if along or across else None
    total: Tensor | None = None
    of_last: Tensor | None = None  # what a later step has already sent to the state before
    for step in range(scheme.steps, 0, -1):
        last, state, following = states[step - 1 : step + 2]
        scaled, first = torch.mul(gradient, found.scale), of_last is None
        _gather(here, scaled, state, first)
        _gather_rolled(north, scaled, state, dx, ROWS, first)
        _gather_rolled(south, scaled, state, -dx, ROWS, first)
        _gather_rolled(west, scaled, state, dy, COLUMNS, first)
        _gather_rolled(east, scaled, state, -dy, COLUMNS, first)
        if levels is not None:
            _gather(levels, scaled, last + following, first)
        if source:
            total = scaled.clone() if total is None else total.add_(scaled)
        of_state = torch.mul(scaled, found.here) if of_last is None else of_last.addcmul_(scaled, found.here)
        _addcmul_both_rolled(of_state, found.north, scaled, -dx, ROWS)
        _addcmul_both_rolled(of_state, found.south, scaled, dx, ROWS)
        _addcmul_both_rolled(of_state, found.west, scaled, -dy, COLUMNS)
        _addcmul_both_rolled(of_state, found.east, scaled, dy, COLUMNS)
        gradient, of_last = of_state, scaled.mul_(found.before)
    assert of_last is not None
    of_along = torch.add(north, south).sub_(levels) if along and levels is not None else None
    of_across = torch.add(west, east).sub_(levels) if across and levels is not None else None
    drift, slip = south.sub_(north), east.sub_(west)
    _add_rolled(drift, here, dx, ROWS)
    _add_rolled(drift, here, -dx, ROWS, -1)
    _add_rolled(slip, here, dy, COLUMNS)
    _add_rolled(slip, here, -dy, COLUMNS, -1)
    of_source = None if total is None else total.mul_(2 * scheme.dt)
    return BlockGradients(drift, slip, of_along, of_across, of_source, of_last, gradient)


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
        for block in blocks(initial):
            found, first, before, forcing = _block(ctx.numbers, (initial, previous, source, u, v, *maps), block, scheme)
            for state in evolve(found, first, before, forcing, scheme):
                last = state
            output[block] = last
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Go back block by block."""
        refuse_second_derivatives()
        saved, needs, scheme = ctx.saved_tensors, ctx.needs_input_grad, ctx.scheme
        grads = [torch.empty_like(each) if need else None for each, need in zip(saved, needs, strict=False)]
        rates = scheme.rates()
        for block in blocks(saved[0]):
            found, first, before, forcing = _block(ctx.numbers, saved, block, scheme)
            states = [before, first, *evolve(found, first, before, forcing, scheme)]
            received = adjoint(found, states, gradient[block], scheme, along=needs[5], across=needs[6], source=needs[2])
            scaled = (each if each is None else each.mul_(rate) for each, rate in zip(received[:4], rates, strict=True))
            for grad, value in zip(grads, (received.initial, received.previous, received.source, *scaled), strict=True):
                if grad is not None and value is not None:
                    grad[block] = value
        return *grads, None


def _block(
    numbers: Sequence[float | None], maps: Sequence[Any], block: slice, scheme: Scheme
) -> tuple[Coefficients, Tensor, Tensor, Tensor | None]:
    """Return coefficients, initial and previous state and source of one block."""
    cut: list[Any] = [None if each is None else each[block] for each in maps]
    initial, previous, source, *rest = cut
    scaled: list[Any] = []
    for each, number, rate in zip(rest, (0.0, 0.0, *numbers), scheme.rates(), strict=True):
        scaled.append(number * rate if number is not None and each is None else torch.mul(each.to(initial.dtype), rate))
    drift, slip, along, across = scaled
    return coefficients(drift, slip, along, across, scheme.spacing), initial, previous, source


Part: TypeAlias = tuple[slice, ...]


@cache
def _pieces(size: int, shift: int, dim: int) -> tuple[tuple[Part, Part], ...]:
    """Return where the parts of a map go, and where they come from, when it is rolled by ``shift``."""
    shift %= size
    whole = (slice(None),) * dim
    if not shift:
        return ((whole, whole),)
    return (
        ((*whole, slice(shift, None)), (*whole, slice(None, -shift))),
        ((*whole, slice(None, shift)), (*whole, slice(-shift, None))),
    )


def _add_rolled(out: Tensor, values: Tensor, shift: int, dim: int, factor: float = 1) -> None:
    for to, of in _pieces(out.shape[dim], shift, dim):
        out[to].add_(values[of], alpha=factor)


def _addcmul_rolled(out: Tensor, weights: Tensor, values: Tensor, shift: int, dim: int) -> None:
    for to, of in _pieces(out.shape[dim], shift, dim):
        out[to].addcmul_(weights[to], values[of])


def _addcmul_both_rolled(out: Tensor, weights: Tensor, values: Tensor, shift: int, dim: int) -> None:
    for to, of in _pieces(out.shape[dim], shift, dim):
        out[to].addcmul_(weights[of], values[of])


def _gather(out: Tensor, weights: Tensor, values: Tensor, first: bool) -> None:
    """Add a product, or write it where it is the first one."""
    if first:
        torch.mul(weights, values, out=out)
    else:
        out.addcmul_(weights, values)


def _gather_rolled(out: Tensor, weights: Tensor, values: Tensor, shift: int, dim: int, first: bool) -> None:
    for to, of in _pieces(out.shape[dim], shift, dim):
        _gather(out[to], weights[to], values[of], first)
