"""The recurrent cells step by step, as their formulas read: slow, and differentiable any number of times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def time_adaptive_reference(
    inputs: Tensor,
    initial: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    step_sizes: Tensor,
    before: Tensor,
    gate: str,
    activation: str,
    batch_sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Run ``TimeAdaptiveRNN`` over time; see ``time_adaptive_rnn``."""
    weight_ih, weight_ph, weight_hh, bias = weights
    to_gate, to_active, to_linear = weight_ih.chunk(3)
    state_gate, inner, state_active, state_linear = weight_hh.chunk(4)
    gate_bias, active_bias = bias.chunk(2)
    act = ACTIVATIONS[activation]

    def step(time: int, state: Tensor) -> Tensor:
        rows = len(state)
        value, old = inputs[time, :rows], (inputs[time - 1] if time else before)[:rows]
        rate = torch.sigmoid(state @ state_gate.t() + value @ to_gate.t() + gate_bias)
        constant = state @ state_active.t() + value @ to_active.t() + old @ weight_ph.t() + active_bias
        linear = value @ to_linear.t() + state @ state_linear.t()
        found = state
        for size in step_sizes[:, time]:
            slope = act(found @ inner.t() + constant) - found - state + linear
            found = found + size * rate * slope if gate == "inside" else (1 - size) * found + size * slope
        return found if gate == "inside" else (1 - rate) * state + rate * found

    return _over_time(step, initial, batch_sizes)


def incremental_reference(
    inputs: Tensor,
    initial: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    step_sizes: Tensor,
    projection: Tensor | None,
    activation: str,
    batch_sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Run ``IncrementalRNN`` over time; see ``incremental_rnn``."""
    weight_ih, weight_hh, bias = weights
    act = ACTIVATIONS[activation]

    def step(time: int, state: Tensor) -> Tensor:
        constant = inputs[time, : len(state)] @ weight_ih.t() + bias + state @ weight_hh.t()
        found = state
        for size in step_sizes[:, time]:
            value = found @ weight_hh.t() + constant
            value = value if projection is None else value @ projection.t()
            found = (1 - size) * found + size * (act(value) - state)
        return found

    return _over_time(step, initial, batch_sizes)


def _over_time(
    step: Callable[[int, Tensor], Tensor], initial: Tensor, batch_sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    last, outputs = initial, []
    for time, rows in enumerate(batch_sizes):
        state = step(time, last[:rows])
        ended = len(initial) - rows
        last = torch.cat([state, last[rows:]]) if ended else state
        outputs.append(torch.cat([state, state.new_zeros(ended, state.shape[1])]) if ended else state)
    return torch.stack(outputs), last
