"""A Triton kernel for the forward loop with one inner iteration: all time steps in one launch.

It has never run on a GPU: the tests run it in Triton's interpreter on the CPU, and compile it for an H100 without
running it. They check what it computes and nothing about its speed. That is why it has to be asked for, with
``implementation="triton"``. The backward pass is the one of ``_recurrence_steps.py``. Each program owns a few sequences
with all their units, so that programs need not wait for each other; the price is that every one of them reads the
weights in every step.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_efficient.functional._recurrence_steps import Form

with contextlib.suppress(ImportError):  # torch for the CPU comes without it
    import triton
    import triton.language as tl

ROWS = 16
"""Sequences of one program: the least that ``tl.dot`` takes."""
ACTIVATIONS = {"relu": 0, "tanh": 1, "sigmoid": 2}


def runs(inputs: Tensor, hidden: int, inner_steps: int) -> bool:
    """Tell whether the kernel can take these arguments: float32 on CUDA, one iteration, 16, 32, 64 or 128 units."""
    fits = inputs.dtype == torch.float32 and inner_steps == 1 and hidden in (16, 32, 64, 128)
    if not fits or "triton" not in globals():
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    if not inputs.is_cuda:
        return False
    properties = torch.cuda.get_device_properties(inputs.device)
    # a square of weights and the states of a program; the compiler's own figure for 16 and for 128 units
    return 4 * hidden * (hidden + ROWS) <= getattr(properties, "shared_memory_per_block_optin", 0)


def forward(
    drive: Tensor, inner: Tensor, output: Tensor, state: Tensor, weights: tuple[Tensor, Tensor | None],
    step_sizes: Sequence[Sequence[float]], form: Form,
) -> None:  # fmt: skip
    """Run a block of steps; arguments as in ``gated_forward`` or ``plain_forward``, whichever ``form`` asks for."""
    steps, rows, hidden = output.shape
    if not rows:
        return
    sizes = torch.tensor(step_sizes, dtype=torch.float32, device=drive.device).flatten()
    weight = weights[0].contiguous()
    _kernel()[(triton.cdiv(rows, ROWS),)](
        drive, output, state, weight, sizes, steps, rows, drive.stride(0), output.stride(0), form.pull,
        HIDDEN=hidden, GATED=form.gate is not None, ACTIVATION=ACTIVATIONS[form.activation], BLOCK=ROWS,
        num_stages=1,  # a square of weights fills most of the shared memory
    )  # fmt: skip


@functools.cache
def _kernel() -> Any:
    return triton.jit(_run_steps)


# annotations other than constexpr are names that Triton's compiler would look up, and refuse
def _run_steps(  # type: ignore[no-untyped-def]
    drive, output, state, weight, sizes, steps, rows, drive_step, output_step, pull_factor,  # noqa: ANN001
    HIDDEN: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    unit = tl.arange(0, HIDDEN)
    inside = (row < rows)[:, None]
    width = HIDDEN * 3 if GATED else HIDDEN
    first = HIDDEN if GATED else 0
    cells = row[:, None] * HIDDEN + unit[None, :]
    here = drive + row[:, None] * width + unit[None, :]
    after = output + cells
    square = unit[:, None] * width + unit[None, :]
    now = tl.load(state + cells, mask=inside, other=0.0)
    for time in range(steps):
        active = tl.load(here + first, mask=inside, other=0.0)
        active = tl.dot(now, tl.load(weight + square + first), acc=active, input_precision="ieee")
        if ACTIVATION == 0:
            active = tl.maximum(active, 0.0)
        elif ACTIVATION == 1:
            active = 2 * tl.sigmoid(2 * active) - 1
        else:
            active = tl.sigmoid(active)
        tl.store(here + first, active, mask=inside)
        size = tl.load(sizes + time)
        if GATED:
            gate = tl.load(here, mask=inside, other=0.0)
            gate = tl.sigmoid(tl.dot(now, tl.load(weight + square), acc=gate, input_precision="ieee"))
            pull = tl.load(here + 2 * HIDDEN, mask=inside, other=0.0)
            pull = tl.dot(now, tl.load(weight + square + 2 * HIDDEN), acc=pull, input_precision="ieee")
            tl.store(here, gate, mask=inside)
            tl.store(here + 2 * HIDDEN, pull, mask=inside)
            now += size * gate * (active + pull)
        else:
            now += size * (active + pull_factor * now)
        tl.store(after, now, mask=inside)
        here += drive_step
        after += output_step
