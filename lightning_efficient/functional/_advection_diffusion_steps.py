"""The explicit scheme of ``advection_diffusion`` on one block of maps: coefficients, steps, and the way back.

In terms of ``drift = u dt/dx``, ``slip = v dt/dy``, ``along = 2 Dx dt/dx**2`` and ``across = 2 Dy dt/dy**2``, and with
``N, S`` for the neighbours a spacing above and below and ``W, E`` for those on the left and right, a step reads::

    scale = 1 / (1 + along + across)
    here  = S(drift) - N(drift) + E(slip) - W(slip)
    next  = scale ((1 - along - across) before + here state + 2 dt source
            + (along - drift) N(state) + (along + drift) S(state) + (across - slip) W(state) + (across + slip) E(state))

All buffers are made once and serve block after block, so that they stay in the processor's caches. A shift is a view:
states have further rows above and below them, and a shift by columns runs on into the next row, where the factor is 0;
the pixels at the edges, which it leaves out, are added for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

BLOCK = 1 << 17
"""Elements of a block, and of each of its some twenty buffers, for every thread."""
BLOCK_ELSEWHERE = 1 << 22
"""The same on a GPU, where few calls count for more than caches do."""

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


class BlockGradients(NamedTuple):
    """Gradients of one block, in its buffers; those of numbers and of what is not asked for are None."""

    drift: Tensor
    slip: Tensor
    along: Tensor | None
    across: Tensor | None
    source: Tensor | None
    previous: Tensor
    initial: Tensor


def blocks(like: Tensor, dim: int, elements: int) -> Iterator[slice]:
    """Cut a dimension into blocks of at most so many elements of the map, but of one entry at least."""
    length = max(1, elements * like.shape[dim] // max(1, like.numel()))
    for start in range(0, like.shape[dim] if like.numel() else 0, length):
        yield slice(start, min(start + length, like.shape[dim]))


def block_elements(like: Tensor) -> int:
    """Return how many elements of a map a block should have."""
    return BLOCK * torch.get_num_threads() if like.device.type == "cpu" else BLOCK_ELSEWHERE


class Padded:
    """A map with rows above and below it, and views of it as its neighbours in all four directions see it.

    ``north`` and ``south`` are right once :meth:`close` was called. In ``west`` and ``east`` the columns that would
    come from the other side hold pixels of the row before or after.

    Args:
        shape: ``(N, C, H, W)``.
        spacing: Distance of the neighbours, less than height and width.
        take: Gives memory of so many elements.
    """

    def __init__(self, shape: torch.Size, spacing: tuple[int, int], take: Callable[[int], Tensor]) -> None:
        (samples, channels, height, width), (dx, dy) = shape, spacing
        halo = max(dx, 1)
        plane, start = (height + 2 * halo) * width, halo * width
        memory = take(samples * channels * plane)

        def view(offset: int, rows: int = height) -> Tensor:
            size, stride = (samples, channels, rows, width), (channels * plane, plane, width, 1)
            return memory.as_strided(size, stride, memory.storage_offset() + start + offset)

        self.here, self.north, self.south = view(0), view(-dx * width), view(dx * width)
        self.west, self.east = view(-dy), view(dy)
        above = view(-dx * width, dx), view((height - dx) * width, dx)
        below = view(height * width, dx), view(0, dx)
        self._halo = (above, below) if dx else ()
        for rows in (view(-start, halo), view(height * width, halo)):
            rows.zero_()  # some are read, and multiplied by 0

    def close(self) -> None:
        """Copy the rows at the border to behind the opposite one."""
        for to, of in self._halo:
            to.copy_(of)


class Block:
    """Buffers and steps for blocks of one shape.

    The caller writes ``drift``, ``slip`` and, where they are maps, ``along`` and ``across`` into ``maps``, and calls
    :meth:`prepare`, :meth:`run` and :meth:`adjoint` in this order.

    Args:
        shape: ``(N, C, H, W)`` of the blocks.
        scheme: Steps, their length, spacing.
        like: A tensor of the dtype and device that is computed with.
        diffusion: ``along`` and ``across`` where they are numbers, else None.
        backward: Whether the states of all steps are kept for :meth:`adjoint`.
    """

    def __init__(
        self,
        shape: torch.Size,
        scheme: Scheme,
        like: Tensor,
        diffusion: tuple[float | None, float | None],
        *,
        backward: bool,
    ) -> None:
        self.shape, self.scheme, self.like = shape, scheme, like
        self.one = like.new_ones(())
        self.memory: list[Tensor] = []
        self.spacing = scheme.spacing[0] % shape[ROWS], scheme.spacing[1] % shape[COLUMNS]
        self.drift = self.padded()
        self.slip, self.here, self.north, self.south, self.west, self.east, self.spare = (self.new() for _ in range(7))
        self.along = self.new() if diffusion[0] is None else diffusion[0]
        self.across = self.new() if diffusion[1] is None else diffusion[1]
        self.maps = [self.drift.here, self.slip, self.along, self.across]
        self.before: Tensor | float
        self.scale: Tensor | float
        if isinstance(self.along, Tensor) or isinstance(self.across, Tensor):
            self.before, self.scale = self.new(), self.new()
        else:
            self.before, self.scale = 1 - self.along - self.across, 1 / (1 + self.along + self.across)
        self.states = [self.padded() for _ in range(scheme.steps if backward else min(scheme.steps, 2))]
        dy = self.spacing[1]
        self.first, self.last = (..., slice(None, dy)), (..., slice(shape[COLUMNS] - dy, None))
        self.west_edge, self.east_edge = (like.new_empty(self.spare[self.first].shape) for _ in range(2))
        if backward:
            self.of_here, *self.of = self.padded(), *(self.new() for _ in range(9))
            self.of_edges = self.west_edge.clone(), self.west_edge.clone()

    def new(self) -> Tensor:
        """Return a buffer of the block's shape."""
        return self.take(self.shape.numel()).view(self.shape)

    def padded(self) -> Padded:
        """Return a buffer with views of its neighbours."""
        return Padded(self.shape, self.spacing, self.take)

    def take(self, count: int) -> Tensor:
        """Return memory of so many elements, in few large pieces: the system would get small ones back each time."""
        if not self.memory or len(self.memory[-1]) < count:
            self.memory.append(self.like.new_empty(max(16 * self.shape.numel(), count)))
        taken, self.memory[-1] = self.memory[-1][:count], self.memory[-1][count:]
        return taken

    def prepare(self) -> None:
        """Compute what multiplies the two states and the neighbours in every step."""
        drift, slip, along, across = self.drift.here, self.slip, self.along, self.across
        if isinstance(self.scale, Tensor) and isinstance(self.before, Tensor):
            first, second = (along, across) if isinstance(along, Tensor) else (across, along)
            torch.add(first, second, out=self.scale)
            torch.sub(self.one, self.scale, out=self.before)
            self.scale.add_(1).reciprocal_()
        self.drift.close()
        torch.sub(self.drift.south, self.drift.north, out=self.here)
        _add_rolled(self.here, slip, -self.spacing[1])
        _add_rolled(self.here, slip, self.spacing[1], -1)
        for level, flow, less, more in (
            (along, drift, self.north, self.south),
            (across, slip, self.west, self.east),
        ):
            torch.add(flow, level, out=more)
            if isinstance(level, Tensor):
                torch.sub(level, flow, out=less)
            else:
                torch.mul(flow, -1, out=less).add_(level)
        if self.spacing[1]:
            for factor, edge, part in (
                (self.west, self.west_edge, self.first),
                (self.east, self.east_edge, self.last),
            ):
                edge.copy_(factor[part])
                factor[part].zero_()

    def run(self, initial: Tensor, previous: Tensor, source: Tensor | None, target: Tensor | None) -> None:
        """Run the steps; the last only where there is a tensor for its state."""
        self.states[0].here.copy_(initial)
        self.states[0].close()
        last, count = previous, len(self.states)
        for step in range(1, self.scheme.steps + (target is not None)):
            state, following = self.states[(step - 1) % count], self.states[step % count]
            at_the_end = step == self.scheme.steps
            into = self.spare if at_the_end else following.here
            torch.mul(last, self.before, out=into)
            into.addcmul_(self.here, state.here)
            into.addcmul_(self.north, state.north)
            into.addcmul_(self.south, state.south)
            into.addcmul_(self.west, state.west)
            into.addcmul_(self.east, state.east)
            if self.spacing[1]:
                into[self.first].addcmul_(self.west_edge, state.here[self.last])
                into[self.last].addcmul_(self.east_edge, state.here[self.first])
            if source is not None:
                into.add_(source, alpha=2 * self.scheme.dt)
            if at_the_end and target is not None:
                torch.mul(into, self.scale, out=target)
            else:
                into.mul_(self.scale)
                following.close()
            last = state.here

    def adjoint(self, previous: Tensor, final: Tensor, gradient: Tensor, *, source: bool) -> BlockGradients:
        """Go back over the steps after :meth:`run`.

        Args:
            previous: The state before the initial one.
            final: The last state.
            gradient: Of the last state; its memory is used for other things.
            source: Whether the source needs a gradient.
        """
        north, south, west, east, levels, scaled, other, total, spare = self.of
        learned = isinstance(self.along, Tensor) or isinstance(self.across, Tensor)
        of_state: Tensor | None = None  # what a later step has already sent to the state before
        for step in range(self.scheme.steps - 1, -1, -1):
            state, first = self.states[step], of_state is None
            torch.mul(gradient, self.scale, out=scaled)
            _gather(self.of_here.here, scaled, state.here, first)
            _gather(north, scaled, state.north, first)
            _gather(south, scaled, state.south, first)
            _gather(west, scaled, state.west, first)
            _gather(east, scaled, state.east, first)
            if self.spacing[1]:
                _gather(self.of_edges[0], scaled[self.first], state.here[self.last], first)
                _gather(self.of_edges[1], scaled[self.last], state.here[self.first], first)
            if learned:
                last = self.states[step - 1].here if step else previous
                following = final if first else self.states[step + 1].here
                _gather(levels, scaled, torch.add(last, following, out=spare), first)
            if source and self.scheme.steps > 1:
                _ = total.copy_(scaled) if first else total.add_(scaled)
            if of_state is None:
                of_state = torch.mul(scaled, self.here, out=other)
            else:
                of_state.addcmul_(scaled, self.here)
            self._send(of_state, scaled)
            # the gradient's memory is free now
            of_before = torch.mul(scaled, self.before, out=gradient)
            gradient, of_state = of_state, of_before
        assert of_state is not None
        if self.spacing[1]:
            west[self.first].copy_(self.of_edges[0])
            east[self.last].copy_(self.of_edges[1])
        of_along = torch.sub(north, levels, out=spare).add_(south) if isinstance(self.along, Tensor) else None
        of_across = torch.sub(west, levels, out=levels).add_(east) if isinstance(self.across, Tensor) else None
        self.of_here.close()
        drift, slip, here = south.sub_(north), east.sub_(west), self.of_here
        drift.add_(here.north).sub_(here.south)
        _add_rolled(slip, here.here, self.spacing[1])
        _add_rolled(slip, here.here, -self.spacing[1], -1)
        of_source = (scaled if self.scheme.steps == 1 else total).mul_(2 * self.scheme.dt) if source else None
        return BlockGradients(drift, slip, of_along, of_across, of_source, of_state, gradient)

    def _send(self, out: Tensor, scaled: Tensor) -> None:
        """Add what a state's neighbours received from it."""
        dx, dy = self.spacing
        for factor, shift in ((self.north, -dx), (self.south, dx)):
            for to, of in _pieces(self.shape[ROWS], shift, ROWS):
                out[to].addcmul_(factor[of], scaled[of])
        flat, values = out.flatten(2), scaled.flatten(2)
        end = flat.shape[2] - dy
        flat[..., :end].addcmul_(self.west.flatten(2)[..., dy:], values[..., dy:])
        flat[..., dy:].addcmul_(self.east.flatten(2)[..., :end], values[..., :end])
        if dy:
            out[self.last].addcmul_(self.west_edge, scaled[self.first])
            out[self.first].addcmul_(self.east_edge, scaled[self.last])


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


def _add_rolled(out: Tensor, values: Tensor, shift: int, factor: float = 1) -> None:
    for to, of in _pieces(out.shape[COLUMNS], shift, COLUMNS):
        out[to].add_(values[of], alpha=factor)


def _gather(out: Tensor, weights: Tensor, values: Tensor, first: bool) -> None:
    """Add a product, or write it where it is the first one."""
    if first:
        torch.mul(weights, values, out=out)
    else:
        out.addcmul_(weights, values)
