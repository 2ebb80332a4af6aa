"""One autograd function behind ``IncrementalRNN`` and ``TimeAdaptiveRNN``, with a backward pass written by hand.

Both cells are Euler steps on top of the old state ``s``. In terms of the increment ``d`` they read, per time step::

    g, a, p = x W_ih + x_before W_ph + s W_hh + b          (p = -2 s, and no g, where there is no gate)
    d_0     = 0
    f_i     = activation(a + d_i U) + p - decay d_i
    d_{i+1} = d_i + step_size_i f_i                         (times sigmoid(g), with the gate inside)
    s       = s + d_K                                       (s + sigmoid(g) d_K, with the gate after)

so that a step needs one matrix product from ``s``, and one more for every inner iteration after the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_efficient.functional import _recurrence_steps as steps_of
from lightning_efficient.functional._recurrence_steps import Form

BLOCK = 1 << 17
"""Elements of a state over one block of the backward pass: few kernel calls, and buffers that stay in the cache."""


class Segment(NamedTuple):
    """Steps ``start`` to ``stop`` (exclusive), in which the first ``rows`` sequences are still running."""

    start: int
    stop: int
    rows: int


class FusedRecurrence(torch.autograd.Function):
    """From inputs, states and weights to the states of all steps and the last one.

    The time loop runs over preallocated buffers; saved for the backward pass are the inputs, the states and
    ``2 + K`` values per hidden unit, step and sequence with a gate, ``K`` without one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        before: Tensor | None,
        initial: Tensor,
        weight_ih: Tensor,
        weight_ph: Tensor | None,
        weight_hh: Tensor,
        weight_inner: Tensor | None,
        bias: Tensor,
        step_sizes: Tensor,
        form: Form,
        segments: list[Segment],
    ) -> tuple[Tensor, Tensor]:
        """Run over time.

        Args:
            ctx: Autograd's context.
            inputs: ``(T, N, F)``, contiguous.
            before: ``(N, F)``: the input before the first step; None without ``weight_ph``.
            initial: ``(N, H)``.
            weight_ih: ``(3H, F)`` with a gate, ``(H, F)`` without.
            weight_ph: ``(H, F)``: from the input of the step before to the activation.
            weight_hh: ``(3H, H)`` or ``(H, H)``.
            weight_inner: ``(H, H)``; None with one inner iteration.
            bias: ``(3H,)`` or ``(H,)``.
            step_sizes: ``(K, T)``.
            form: See ``Form``.
            segments: Which sequences run when, in order of time.

        Returns:
            The states ``(T, N, H)``, 0 where a sequence has ended, and the last state of each sequence ``(N, H)``.
        """
        steps, batch, features = inputs.shape
        hidden, width, later = initial.shape[-1], len(bias), len(step_sizes) - 1
        flat, drive = inputs.view(-1, features), inputs.new_empty(steps * batch, width)
        torch.addmm(bias, flat, weight_ih.t(), out=drive)
        if weight_ph is not None and before is not None:
            active, transposed = drive[:, hidden : 2 * hidden], weight_ph.t()
            torch.addmm(active[:batch], before, transposed, out=active[:batch])
            torch.addmm(active[batch:], flat[: (steps - 1) * batch], transposed, out=active[batch:])
        drive = drive.view(steps, batch, width)
        inner = inputs.new_empty(later, steps, batch, hidden)
        whole = len(segments) == 1 and segments[0] == (0, steps, batch)
        output = (inputs.new_empty if whole else inputs.new_zeros)(steps, batch, hidden)
        last = initial.clone()
        run = _forward_loop(form, inputs, hidden, len(step_sizes))
        weights = weight_hh.t(), weight_inner if weight_inner is None else weight_inner.t()
        sizes = _numbers(step_sizes)
        for start, stop, rows in segments:
            here = slice(start, stop), slice(rows)
            run(drive[here], inner[(slice(None), *here)], output[here], last[:rows], weights, sizes[start:stop], form)
            last[:rows] = output[stop - 1, :rows]
        ctx.save_for_backward(
            inputs, before, initial, weight_ih, weight_ph, weight_hh, weight_inner, step_sizes, drive, inner, output
        )
        ctx.form, ctx.segments = form, segments
        ctx.set_materialize_grads(False)
        return output, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        """Go back over time block by block; each block adds one matrix product to the gradient of a weight."""
        needs = dict(zip(_NAMES, ctx.needs_input_grad, strict=False))
        names = (*_NAMES[:7], "step_sizes", "drive", "inner", "output")
        saved: dict[str, Tensor] = dict(zip(names, ctx.saved_tensors, strict=True))
        # what is called inside an autocast region may be called back inside one
        with torch.autocast(saved["inputs"].device.type, enabled=False):
            return *_backward(saved, needs, ctx.form, ctx.segments, grad_output, grad_last), None, None


def _forward_loop(form: Form, inputs: Tensor, hidden: int, inner_steps: int) -> Callable[..., None]:
    if form.triton:
        from lightning_efficient.functional import _triton_recurrence

        if _triton_recurrence.runs(inputs, hidden, inner_steps):
            return _triton_recurrence.forward
    return steps_of.gated_forward if form.gate else steps_of.plain_forward


def fused_recurrence(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Apply ``FusedRecurrence``; a caller that is compiled breaks its graph here and goes on after it."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled yet, and loading it takes seconds
        return FusedRecurrence.apply(*arguments)
    return torch.compiler.disable(FusedRecurrence.apply)(*arguments)


_NAMES = (
    "inputs", "before", "initial", "weight_ih", "weight_ph", "weight_hh", "weight_inner", "bias", "step_sizes",
)  # fmt: skip


def _backward(
    saved: dict[str, Tensor],
    needs: dict[str, bool],
    form: Form,
    segments: list[Segment],
    grad_output: Tensor | None,
    grad_last: Tensor | None,
) -> tuple[Tensor | None, ...]:
    inputs, before, initial, output = (saved[name] for name in ("inputs", "before", "initial", "output"))
    carried = torch.zeros_like(initial) if grad_last is None else grad_last.clone()
    like = saved | {"bias": saved["drive"][0, 0]} if len(inputs) else saved
    grads = {name: torch.zeros_like(like[name]) if need else None for name, need in needs.items()}
    sizes, table = _numbers(saved["step_sizes"]), saved["step_sizes"][:, :, None, None]
    weights = saved["weight_hh"], saved["weight_inner"]
    hidden = initial.shape[-1]
    for start, stop, rows in _blocks(segments, hidden):
        here = slice(start, stop), slice(rows)
        drive, inner, states = saved["drive"][here], saved["inner"][(slice(None), *here)], None
        received = None if grad_output is None else grad_output[here].unbind(0)
        if form.gate:
            found = steps_of.gated_coefficients(drive, inner, table[:, start:stop], form)
            deltas, totals, actives = steps_of.gated_backward(received, carried[:rows], found.factors, weights)
        else:
            states = _shifted(output, initial, start, stop, rows)
            found = steps_of.plain_coefficients(drive, inner, states, table[:, start:stop], form)
            deltas, totals, actives = steps_of.plain_backward(
                received, carried[:rows], found.factors, weights, sizes[start:stop], form
            )
        flat = totals.flatten(0, 1)
        if (grad := grads["bias"]) is not None:
            grad += flat.sum(0)
        if (grad := grads["weight_hh"]) is not None:
            states = _shifted(output, initial, start, stop, rows) if states is None else states
            _accumulate(grad, flat, states)
        if (grad := grads["weight_inner"]) is not None:
            for active, increment in zip(actives[1:], found.increments[1:], strict=True):
                _accumulate(grad, active, increment)
        if (grad := grads["step_sizes"]) is not None:
            grad[:, start:stop] = deltas.mul_(found.derivative).sum((2, 3))
        if (grad := grads["weight_ih"]) is not None:
            _accumulate(grad, flat, inputs[here])
        if (grad := grads["inputs"]) is not None:
            grad[here] += totals @ saved["weight_ih"]
        if before is None:
            continue
        active = totals[..., hidden : 2 * hidden]
        if (grad := grads["weight_ph"]) is not None:
            _accumulate(grad, active, _shifted(inputs, before, start, stop, rows))
        if (grad := grads["inputs"]) is not None:
            later = active[1:] if start == 0 else active
            grad[stop - 1 - len(later) : stop - 1, :rows] += later @ saved["weight_ph"]
        if start == 0 and (grad := grads["before"]) is not None:
            torch.mm(active[0], saved["weight_ph"], out=grad[:rows])
    grads["initial"] = carried if needs["initial"] else None
    return tuple(grads[name] for name in _NAMES)


def _accumulate(grad: Tensor, of_result: Tensor, factor: Tensor) -> None:
    torch.addmm(grad, of_result.reshape(-1, of_result.shape[-1]).t(), factor.reshape(-1, factor.shape[-1]), out=grad)


def _shifted(values: Tensor, first: Tensor, start: int, stop: int, rows: int) -> Tensor:
    """Return what came before each of the steps: ``first``, then ``values``."""
    if start:
        return values[start - 1 : stop - 1, :rows]
    return torch.cat([first[None, :rows], values[: stop - 1, :rows]])


def _blocks(segments: list[Segment], hidden: int) -> Iterator[Segment]:
    """Cut the segments into blocks of a bounded size, the last step first."""
    for start, stop, rows in reversed(segments):
        length = max(1, BLOCK // max(1, rows * hidden))
        for end in range(stop, start, -length):
            yield Segment(max(start, end - length), end, rows)


def _numbers(step_sizes: Tensor) -> list[list[float]]:
    """Return the step sizes of each time step as plain numbers, which kernels take; 0 on the meta device."""
    transposed = step_sizes.t()
    return torch.zeros(transposed.shape).tolist() if step_sizes.is_meta else transposed.tolist()
