"""The loops over time behind the recurrent layers: forward and backward of a block of steps, in place.

Written for few kernel calls per step: a step of ``TimeAdaptiveRNN`` with one inner iteration takes five forward and
three backward, two of them matrix products in all. What does not depend on the step before is computed for a whole
block at once. Every buffer belongs to the caller; ``_recurrence.py`` has the equations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Form(NamedTuple):
    """What kind of recurrence it is.

    Attributes:
        gate: ``"inside"``, ``"after"`` or None; with one inner iteration the two gates are the same and called inside.
        activation: ``"relu"``, ``"tanh"`` or ``"sigmoid"``.
        decay: How often the increment is taken off within an inner iteration.
        pull: Without a gate, the multiple of the old state that is added to the activation.
        triton: Whether to run forward in the Triton kernel where it can.
    """

    gate: str | None
    activation: str
    decay: float
    pull: float = -2.0
    triton: bool = False


class Coefficients(NamedTuple):
    """Factors of the backward pass of a block, for each inner iteration; see ``gated_coefficients``."""

    factors: Tensor
    derivative: Tensor
    increments: list[Tensor]


ACTIVATE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda values, out: torch.clamp_min(values, 0, out=out),
    "tanh": lambda values, out: torch.tanh(values, out=out),
    "sigmoid": lambda values, out: torch.sigmoid(values, out=out),
}
"""Activations by name, from values into a given tensor."""

_SLOPE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda active: active > 0,
    "tanh": lambda active: 1 - active.square(),
    "sigmoid": lambda active: active - active.square(),
}
"""Derivatives of the activations from their values."""


def gated_forward(
    drive: Tensor, inner: Tensor, output: Tensor, state: Tensor, weights: tuple[Tensor, Tensor | None],
    step_sizes: Sequence[Sequence[float]], form: Form,
) -> None:  # fmt: skip
    """Run a block of steps with a gate.

    Args:
        drive: ``(t, n, 3H)``: what the inputs contribute to gate, activation and pull. Becomes the gate, the first
            activation and the pull, which the backward pass needs.
        inner: ``(K - 1, t, n, H)``: receives the activations of the other inner iterations.
        output: ``(t, n, H)``: receives the states.
        state: ``(n, H)``: the state before the block.
        weights: From the state ``(H, 3H)``, and from the increment ``(H, H)`` if there are several iterations.
        step_sizes: One list of ``K`` per step.
        form: See ``Form``.
    """
    weight, weight_inner = weights
    act, hidden = ACTIVATE[form.activation], state.shape[-1]
    gates, actives, pulls = (part.unbind(0) for part in drive.split(hidden, -1))
    change = torch.empty_like(state)
    if weight_inner is None:
        for row, gate, active, pull, after, (size,) in zip(
            drive.unbind(0), gates, actives, pulls, output.unbind(0), step_sizes, strict=True
        ):
            torch.addmm(row, state, weight, out=row)
            gate.sigmoid_()
            act(active, active)
            torch.add(active, pull, out=change)
            state = torch.addcmul(state, gate, change, value=size, out=after)
        return
    first, increment = torch.empty_like(state), torch.empty_like(state)
    inside, one = form.gate == "inside", state.new_ones(())
    later = [each.unbind(0) for each in inner.unbind(1)]
    for time, (row, gate, active, pull, after) in enumerate(
        zip(drive.unbind(0), gates, actives, pulls, output.unbind(0), strict=True)
    ):
        torch.addmm(row, state, weight, out=row)
        gate.sigmoid_()
        increment.zero_()
        for index, size in enumerate(step_sizes[time]):
            if index:
                found = later[time][index - 1]
                torch.addmm(active, increment, weight_inner, out=found)
                torch.add(act(found, found), pull, out=change).add_(increment, alpha=-form.decay)
            else:
                torch.add(act(active, first), pull, out=change)
            if inside:
                increment.addcmul_(gate, change, value=size)
            else:
                increment.add_(change, alpha=size)
        state = torch.addcmul(state, one if inside else gate, increment, out=after)
    active = drive[..., hidden : 2 * hidden]
    act(active, active)  # the later iterations needed what was there before


def plain_forward(
    drive: Tensor, inner: Tensor, output: Tensor, state: Tensor, weights: tuple[Tensor, Tensor | None],
    step_sizes: Sequence[Sequence[float]], form: Form,
) -> None:  # fmt: skip
    """Run a block of steps without a gate; arguments as in ``gated_forward``, but ``drive`` is ``(t, n, H)``."""
    weight, weight_inner = weights
    act = ACTIVATE[form.activation]
    change = torch.empty_like(state)
    if weight_inner is None:
        for row, after, (size,) in zip(drive.unbind(0), output.unbind(0), step_sizes, strict=True):
            torch.addmm(row, state, weight, out=row)
            torch.add(act(row, row), state, alpha=form.pull, out=change)
            state = torch.add(state, change, alpha=size, out=after)
        return
    first, increment = torch.empty_like(state), torch.empty_like(state)
    later = [each.unbind(0) for each in inner.unbind(1)]
    for time, (row, after) in enumerate(zip(drive.unbind(0), output.unbind(0), strict=True)):
        torch.addmm(row, state, weight, out=row)
        increment.zero_()
        for index, size in enumerate(step_sizes[time]):
            if index:
                found = later[time][index - 1]
                torch.addmm(row, increment, weight_inner, out=found)
                torch.add(act(found, found), state, alpha=form.pull, out=change).add_(increment, alpha=-form.decay)
            else:
                torch.add(act(row, first), state, alpha=form.pull, out=change)
            increment.add_(change, alpha=size)
        state = torch.add(state, increment, out=after)
    act(drive, drive)


def gated_coefficients(drive: Tensor, inner: Tensor, step_sizes: Tensor, form: Form) -> Coefficients:
    """Compute what the backward pass multiplies the gradient of an increment with.

    Args:
        drive: ``(t, n, 3H)`` as ``gated_forward`` left it.
        inner: ``(K - 1, t, n, H)`` as ``gated_forward`` left it.
        step_sizes: ``(K, t, 1, 1)``.
        form: See ``Form``.

    Returns:
        ``factors``, ``(K, t, n, B, H)``, whose ``B`` blocks give the gradient of the gate, of the activation, of the
        pull and, if ``K > 1``, of the increment before; ``derivative``, ``(K, t, n, H)``, that of the step size; and
        the increments that entered each iteration.
    """
    count, hidden = len(step_sizes), drive.shape[-1] // 3
    gate, first, pull = drive.split(hidden, -1)
    closed = 1 - gate
    factors = drive.new_empty((count, *drive.shape[:2], 3 if count == 1 else 4, hidden))
    derivative = drive.new_empty((count, *drive.shape[:2], hidden))
    increment, increments = torch.zeros_like(first) if count > 1 else first, []
    for index in range(count):
        active, size = inner[index - 1] if index else first, step_sizes[index]
        to_gate, to_active, to_pull, *to_increment = factors[index].unbind(2)
        last = index == count - 1
        scaled = form.gate == "inside" or last
        change = torch.add(active, pull, out=derivative[index])
        if index:
            change.sub_(increment, alpha=form.decay)
        increments.append(increment)
        if count > 1 and form.gate == "after":
            increment = torch.addcmul(increment, change, size)
            if last:
                torch.mul(increment, gate, out=to_gate).mul_(closed)
            else:
                to_gate.zero_()
        if scaled:
            change.mul_(gate)
            torch.mul(gate, size, out=to_pull)
        else:
            to_pull.copy_(size.expand_as(to_pull))
        if form.gate == "inside":
            torch.mul(change, closed, out=to_gate).mul_(size)
            if not last:
                increment = torch.addcmul(increment, change, size)
        torch.mul(to_pull, _SLOPE[form.activation](active), out=to_active)
        for block in to_increment:
            torch.sub(gate if last and form.gate == "after" else 1, to_pull, alpha=form.decay, out=block)
    return Coefficients(factors, derivative, increments)


def plain_coefficients(drive: Tensor, inner: Tensor, states: Tensor, step_sizes: Tensor, form: Form) -> Coefficients:
    """As ``gated_coefficients`` without a gate: ``factors`` ``(K, t, n, H)`` give the gradient of the activation."""
    actives = [drive, *inner.unbind(0)]
    derivative = drive.new_empty((len(actives), *drive.shape))
    factors = torch.empty_like(derivative)
    increment, increments = torch.zeros_like(drive), []
    for index, (active, size) in enumerate(zip(actives, step_sizes.unbind(0), strict=True)):
        change = torch.add(active, states, alpha=form.pull, out=derivative[index])
        if index:
            change.sub_(increment, alpha=form.decay)
        increments.append(increment)
        if index < len(actives) - 1:
            increment = torch.addcmul(increment, change, size)
        torch.mul(_SLOPE[form.activation](active), size, out=factors[index])
    return Coefficients(factors, derivative, increments)


def gated_backward(
    grads: Sequence[Tensor] | None, carried: Tensor, factors: Tensor, weights: tuple[Tensor, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Go back through a block of steps with a gate.

    Args:
        grads: ``t`` gradients ``(n, H)`` of the outputs, or None.
        carried: ``(n, H)``: gradient of the last state from what follows; becomes that of the state before the block.
        factors: ``(K, t, n, B, H)`` from ``gated_coefficients``.
        weights: From the state ``(3H, H)``, and from the increment ``(H, H)`` if there are several iterations.

    Returns:
        The gradients of the increments ``(K, t, n, H)``, of gate, activation and pull together ``(t, n, 3H)``, and of
        the activations of each iteration ``(K, t, n, H)``.
    """
    weight, weight_inner = weights
    count, steps, rows, _, hidden = factors.shape
    deltas = factors.new_empty(count, steps, rows, hidden)
    products = torch.empty_like(factors)
    total = products[0, :, :, :3] if weight_inner is None else factors.new_empty(steps, rows, 3, hidden)
    flat, last = total.view(steps, rows, 3 * hidden), deltas[-1].unbind(0)
    wide = [each.unsqueeze(2).unbind(0) for each in deltas.unbind(0)]
    by_factor, by_product = ([each.unbind(0) for each in blocks.unbind(0)] for blocks in (factors, products))
    for time in range(steps - 1, -1, -1):
        _receive(carried, grads, time, last[time])
        torch.mul(wide[-1][time], by_factor[-1][time], out=by_product[-1][time])
        if weight_inner is not None:
            for index in range(count - 1, 0, -1):
                _, active, _, before = by_product[index][time].unbind(1)
                torch.addmm(before, active, weight_inner, out=deltas[index - 1, time])
                torch.mul(wide[index - 1][time], by_factor[index - 1][time], out=by_product[index - 1][time])
            torch.sum(products[:, time, :, :3], 0, out=total[time])
        torch.addmm(last[time], flat[time], weight, out=carried)
    return deltas, flat, products[:, :, :, 1]


def plain_backward(
    grads: Sequence[Tensor] | None, carried: Tensor, factors: Tensor, weights: tuple[Tensor, Tensor | None],
    step_sizes: Sequence[Sequence[float]], form: Form,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As ``gated_backward`` without a gate; the second result is ``(t, n, H)``."""
    weight, weight_inner = weights
    deltas, products = torch.empty_like(factors), torch.empty_like(factors)
    total = products[0] if weight_inner is None else torch.empty_like(factors[0])
    last = deltas[-1].unbind(0)
    for time in range(len(last) - 1, -1, -1):
        sizes = step_sizes[time]
        _receive(carried, grads, time, last[time])
        torch.mul(last[time], factors[-1, time], out=products[-1, time])
        if weight_inner is not None:
            for index in range(len(sizes) - 1, 0, -1):
                before, keeps = deltas[index - 1, time], 1 - form.decay * sizes[index]
                torch.addmm(deltas[index, time], products[index, time], weight_inner, beta=keeps, out=before)
                torch.mul(before, factors[index - 1, time], out=products[index - 1, time])
            torch.sum(products[:, time], 0, out=total[time])
        torch.addmm(last[time], total[time], weight, beta=1 + form.pull * sizes[-1], out=carried)
        for index, size in enumerate(sizes[:-1]):
            carried.add_(deltas[index, time], alpha=form.pull * size)
    return deltas, total, products


def _receive(carried: Tensor, grads: Sequence[Tensor] | None, time: int, out: Tensor) -> None:
    """Add the gradient of an output to what comes from later steps."""
    if grads is None:
        out.copy_(carried)
    else:
        torch.add(carried, grads[time], out=out)
