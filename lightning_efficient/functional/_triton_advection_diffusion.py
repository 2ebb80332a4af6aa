"""Triton kernels for advection and diffusion: all steps of a plane in one launch, and their gradients in two.

They have never run on a GPU: the tests run them in Triton's interpreter on the CPU, and compile them for an H100
without running them. They check what is computed and nothing about its speed, and the interpreter runs the threads of a
program in step, so it cannot show a race. That is why they have to be asked for, with ``solver="triton"``.

Planes do not depend on each other, so each program owns one (n, c) plane. A thread holds the coefficients of its cells
in registers; what neighbours have to read goes through a scratch buffer of the plane, which no other program touches,
with a barrier between writing and reading. Only the inputs are saved for the backward pass. It runs the forward steps
once more, keeps their states for that long, and goes back through them.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without it
    triton = None

CELLS = 4096
"""The largest plane: 4 cells for each of 1024 threads."""


def runs(initial: Tensor) -> bool:
    """Tell whether the kernels can take this state: float32 on CUDA, planes of at most 4096 cells.

    In Triton's interpreter (``TRITON_INTERPRET=1``) tensors of the CPU will do.
    """
    if triton is None or initial.dtype != torch.float32 or initial.shape[2] * initial.shape[3] > CELLS:
        return False
    return initial.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


def solve(
    initial: Tensor,
    u: Tensor,
    v: Tensor,
    diffusion_x: Tensor | float,
    diffusion_y: Tensor | float,
    source: Tensor | None,
    previous: Tensor,
    steps: int,
    dt: float,
    spacing: tuple[int, int],
) -> Tensor:
    """Run the explicit scheme in the kernels, where ``runs(initial)`` is true; differentiable once in every tensor.

    Args:
        initial: The state at time 0, (N, C, H, W), float32. Other tensors are brought to its shape and dtype; layouts
            other than contiguous are copied.
        u: Velocity along the rows.
        v: Velocity along the columns.
        diffusion_x: Diffusion coefficient along the rows, a map or a number.
        diffusion_y: The same along the columns.
        source: The forcing, or None.
        previous: The state one step before ``initial``.
        steps: How many, at least 1.
        dt: The size of a step.
        spacing: Pixels from a cell to its neighbours, along the rows and along the columns.

    Returns:
        The state after ``steps`` steps, (N, C, H, W), contiguous.

    Reference:
        E. C. Du Fort and S. P. Frankel, Stability conditions in the numerical treatment of parabolic differential
        equations, Mathematical Tables and Other Aids to Computation, 1953 (the diffusion terms).
    """
    # a whole number would be taken for an integer by the kernels, and 1 for a constant
    given = (u, v, *(d if isinstance(d, Tensor) else float(d) for d in (diffusion_x, diffusion_y)), source, previous)
    maps = [like.to(initial.dtype).expand_as(initial) if isinstance(like, Tensor) else like for like in given]
    result: Tensor = _Solve.apply(initial, *maps, steps, float(dt), spacing)
    return result


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *maps, steps, dt, spacing = inputs
        maps = [like.contiguous() if isinstance(like, Tensor) else like for like in maps]
        ctx.save_for_backward(*(like if isinstance(like, Tensor) else None for like in maps))
        ctx.numbers = [None if isinstance(like, Tensor) else like for like in maps]
        ctx.scheme = (steps, dt, spacing)
        return _launch_forward(maps, steps, dt, spacing, levels=min(2, steps))[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = zip(ctx.saved_tensors, ctx.numbers, strict=True)
        maps = [number if like is None else like for like, number in saved]
        return (*_launch_backward(maps, gradient.contiguous(), *ctx.scheme), None, None, None)


def _launch_forward(
    maps: list[Any], steps: int, dt: float, spacing: tuple[int, int], levels: int
) -> tuple[Tensor, Tensor]:
    """Return the last state, and the scratch buffer (planes, levels, cells) with the last of the states before it."""
    initial, u, v, diffusion_x, diffusion_y, source, previous = maps
    planes, cells, settings = _settings(maps)
    output, scratch = torch.empty_like(initial), initial.new_empty(planes, levels, cells)
    if initial.numel():
        with torch.cuda.device_of(initial):
            _run_steps[(planes,)](
                initial, previous, u, v, diffusion_x, diffusion_y, source, scratch, output,
                *initial.shape[2:], steps, levels, dt, *spacing, **settings,
            )  # fmt: skip
    return output, scratch


def _launch_backward(
    maps: list[Any], gradient: Tensor, steps: int, dt: float, spacing: tuple[int, int]
) -> list[Tensor | None]:
    """Return the gradients of the seven maps, None where there is a number or nothing."""
    initial, u, v, diffusion_x, diffusion_y, _, previous = maps
    planes, cells, settings = _settings(maps)
    gradients = [torch.empty_like(initial) if isinstance(like, Tensor) else None for like in maps]
    last, states = _launch_forward(maps, steps, dt, spacing, levels=steps)
    exchange = initial.new_empty(planes, 4, cells)
    if initial.numel():
        with torch.cuda.device_of(initial):
            _run_back[(planes,)](
                previous, u, v, diffusion_x, diffusion_y, states, last, gradient, exchange, *gradients,
                *initial.shape[2:], steps, dt, *spacing, **settings,
            )  # fmt: skip
    return gradients


def _settings(maps: list[Any]) -> tuple[int, int, dict[str, Any]]:
    """Return planes, cells of a plane and what the kernels are compiled for."""
    batch, channels, height, width = maps[0].shape
    block = triton.next_power_of_2(max(height * width, 1))
    kinds = dict(zip(("X_MAP", "Y_MAP", "SOURCE"), (isinstance(like, Tensor) for like in maps[3:6]), strict=True))
    return batch * channels, height * width, {"BLOCK": block, **kinds, **_threads(block)}


def _threads(block: int) -> dict[str, int]:
    """Return threads for two cells each, or all 1024: the kernel for gradients needs many registers for a cell."""
    # one stage: the compiler must not load ahead of a barrier
    return {"num_warps": max(1, min(32, block // 64)), "num_stages": 1}


def _jit(kernel: Any) -> Any:
    return kernel if triton is None else triton.jit(kernel)


# annotations other than constexpr are names that Triton's compiler would look up, and refuse
@_jit
def _cells(height, width, dx, dy, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202, N803
    """Return each cell of a plane, whether it exists, and its neighbours one spacing up, down, left and right."""
    cell = tl.arange(0, BLOCK)
    row, column = cell // width, cell % width
    up, left = dx % height, dy % width
    north, south = (row + height - up) % height * width + column, (row + up) % height * width + column
    west, east = row * width + (column + width - left) % width, row * width + (column + left) % width
    return cell, cell < height * width, north, south, west, east


@_jit
def _four(pointer, north, south, west, east, inside):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """Load the four neighbours of every cell."""
    return (
        tl.load(pointer + north, mask=inside, other=0.0), tl.load(pointer + south, mask=inside, other=0.0),
        tl.load(pointer + west, mask=inside, other=0.0), tl.load(pointer + east, mask=inside, other=0.0),
    )  # fmt: skip


@_jit
def _coefficients(  # type: ignore[no-untyped-def] # noqa: ANN202
    u, v, diffusion_x, diffusion_y, cell, inside, north, south, west, east, dt, dx, dy,  # noqa: ANN001
    X_MAP: tl.constexpr, Y_MAP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Return the scheme's coefficients: 2 Bx, 2 By, Ax, Ay, -2 dt (du + dv) and 1 / L."""
    along = 2 * dt / (dx * dx) * (tl.load(diffusion_x + cell, mask=inside, other=0.0) if X_MAP else diffusion_x)
    across = 2 * dt / (dy * dy) * (tl.load(diffusion_y + cell, mask=inside, other=0.0) if Y_MAP else diffusion_y)
    drift = dt / dx * tl.load(u + cell, mask=inside, other=0.0)
    slip = dt / dy * tl.load(v + cell, mask=inside, other=0.0)
    spread = dt / dx * (tl.load(u + south, mask=inside, other=0.0) - tl.load(u + north, mask=inside, other=0.0))
    spread += dt / dy * (tl.load(v + east, mask=inside, other=0.0) - tl.load(v + west, mask=inside, other=0.0))
    return along, across, drift, slip, spread, 1 / (1 + along + across)


@_jit
def _run_steps(  # type: ignore[no-untyped-def]
    initial, previous, u, v, diffusion_x, diffusion_y, source, scratch, output,  # noqa: ANN001
    height, width, steps, levels, dt, dx, dy,  # noqa: ANN001
    X_MAP: tl.constexpr, Y_MAP: tl.constexpr, SOURCE: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    cell, inside, north, south, west, east = _cells(height, width, dx, dy, BLOCK)
    plane, cells = tl.program_id(0).to(tl.int64), height * width
    first = plane * cells
    scratch += first * levels
    if X_MAP:
        diffusion_x += first
    if Y_MAP:
        diffusion_y += first
    along, across, drift, slip, spread, scale = _coefficients(
        u + first, v + first, diffusion_x, diffusion_y, cell, inside, north, south, west, east, dt, dx, dy, X_MAP, Y_MAP
    )
    forcing = 2 * dt * tl.load(source + first + cell, mask=inside, other=0.0) if SOURCE else 0.0
    now = tl.load(initial + first + cell, mask=inside, other=0.0)
    last = tl.load(previous + first + cell, mask=inside, other=0.0)
    for time in range(steps):
        level = scratch + time % levels * cells
        tl.store(level + cell, now, mask=inside)
        # with two levels or more, this barrier also stands between the readers of a level and its next writer
        tl.debug_barrier()
        up, down, left, right = _four(level, north, south, west, east, inside)
        after = (1 - along - across) * last + spread * now + forcing
        after += (along - drift) * up + (along + drift) * down + (across - slip) * left + (across + slip) * right
        last = now
        now = after * scale
    tl.store(output + first + cell, now, mask=inside)


@_jit
def _run_back(  # type: ignore[no-untyped-def]
    previous, u, v, diffusion_x, diffusion_y, states, last, gradient, exchange,  # noqa: ANN001
    to_initial, to_u, to_v, to_diffusion_x, to_diffusion_y, to_source, to_previous,  # noqa: ANN001
    height, width, steps, dt, dx, dy,  # noqa: ANN001
    X_MAP: tl.constexpr, Y_MAP: tl.constexpr, SOURCE: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    cell, inside, north, south, west, east = _cells(height, width, dx, dy, BLOCK)
    plane, cells = tl.program_id(0).to(tl.int64), height * width
    first = plane * cells
    states += first * steps
    exchange += first * 4
    if X_MAP:
        diffusion_x += first
    if Y_MAP:
        diffusion_y += first
    along, across, drift, slip, spread, scale = _coefficients(
        u + first, v + first, diffusion_x, diffusion_y, cell, inside, north, south, west, east, dt, dx, dy, X_MAP, Y_MAP
    )
    after = tl.load(last + first + cell, mask=inside, other=0.0)
    now = tl.load(states + (steps - 1) * cells + cell, mask=inside, other=0.0)
    # adjoints of the state after the step, complete, and of the one before the step, in part
    later = tl.load(gradient + first + cell, mask=inside, other=0.0)
    sooner = tl.zeros_like(later)
    of_along = tl.zeros_like(later)
    of_across = tl.zeros_like(later)
    of_drift = tl.zeros_like(later)
    of_slip = tl.zeros_like(later)
    of_spread = tl.zeros_like(later)
    of_forcing = tl.zeros_like(later)
    for step in range(steps):
        time = steps - 1 - step
        if time > 0:
            earlier = tl.load(states + (time - 1) * cells + cell, mask=inside, other=0.0)
        else:
            earlier = tl.load(previous + first + cell, mask=inside, other=0.0)
        up, down, left, right = _four(states + time * cells, north, south, west, east, inside)
        weight = later * scale
        if X_MAP:
            of_along += weight * (up + down - earlier - after)
        if Y_MAP:
            of_across += weight * (left + right - earlier - after)
        of_drift += weight * (down - up)
        of_slip += weight * (right - left)
        of_spread += weight * now
        of_forcing += weight
        # a cell's share in its neighbours' adjoints: they fetch it from here
        tl.debug_barrier()
        tl.store(exchange + cell, (along - drift) * weight, mask=inside)
        tl.store(exchange + cells + cell, (along + drift) * weight, mask=inside)
        tl.store(exchange + 2 * cells + cell, (across - slip) * weight, mask=inside)
        tl.store(exchange + 3 * cells + cell, (across + slip) * weight, mask=inside)
        tl.debug_barrier()
        later = sooner + spread * weight
        later += tl.load(exchange + south, mask=inside, other=0.0)
        later += tl.load(exchange + cells + north, mask=inside, other=0.0)
        later += tl.load(exchange + 2 * cells + east, mask=inside, other=0.0)
        later += tl.load(exchange + 3 * cells + west, mask=inside, other=0.0)
        sooner = (1 - along - across) * weight
        after = now
        now = earlier
    tl.store(to_initial + first + cell, later, mask=inside)
    tl.store(to_previous + first + cell, sooner, mask=inside)
    if X_MAP:
        tl.store(to_diffusion_x + first + cell, 2 * dt / (dx * dx) * of_along, mask=inside)
    if Y_MAP:
        tl.store(to_diffusion_y + first + cell, 2 * dt / (dy * dy) * of_across, mask=inside)
    if SOURCE:
        tl.store(to_source + first + cell, 2 * dt * of_forcing, mask=inside)
    tl.debug_barrier()
    tl.store(exchange + cell, of_spread, mask=inside)
    tl.debug_barrier()
    up, down, left, right = _four(exchange, north, south, west, east, inside)
    tl.store(to_u + first + cell, dt / dx * (of_drift + up - down), mask=inside)
    tl.store(to_v + first + cell, dt / dy * (of_slip + left - right), mask=inside)
