"""Recurrent layers on the CPU, forward and backward: ours, torch's LSTM and GRU, and cells written step by step.

Sequences of 784 steps of one feature, 128 units, one thread, all in one process and in turns. Prints times, ratios and
the bytes that are kept for the backward pass, and writes ``results/recurrent_cells.json``. The step-by-step cells are
the released form: every product of the formulas is one of its own in every step.

Run: ``python benchmarks/recurrent_cells.py [--steps N] [--rounds N]``
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from harness import paired, ratio, save, table
from torch import Tensor, nn

from lightning_efficient.nn import IncrementalRNN, TimeAdaptiveRNN

HIDDEN = 128
BATCHES = (16, 128)
LSTM, GRU = "LSTM", "GRU"
ADAPTIVE, ADAPTIVE_3 = "TARNN K=1", "TARNN K=3"
INCREMENTAL, INCREMENTAL_3 = "iRNN K=1", "iRNN K=3"
ADAPTIVE_STEPS, INCREMENTAL_STEPS = "TARNN K=1 by steps", "iRNN K=1 by steps"


class AdaptiveSteps(nn.Module):
    """TARNN as it was released, gate after, one inner iteration: nine products in every step."""

    def __init__(self, features: int, hidden: int, steps: int) -> None:
        super().__init__()
        for name in ("w1", "w2", "b1", "wg"):
            self.register_parameter(name, nn.Parameter(0.1 * torch.randn(features, hidden)))
        for name in ("u1", "u2", "b2", "ug"):
            self.register_parameter(name, nn.Parameter(0.1 * torch.randn(hidden, hidden)))
        self.bias, self.gate_bias = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.full((hidden,), -3.0))
        self.step_size = nn.Parameter(torch.full((1, steps), 0.01))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        state = inputs.new_zeros(inputs.shape[1], len(self.bias))
        before, outputs = inputs[0], []
        for time, value in enumerate(inputs):
            rate = torch.sigmoid(state @ self.ug + value @ self.wg + self.gate_bias)
            constant = state @ self.u2 + value @ self.w1 + before @ self.w2 + self.bias
            linear = value @ self.b1 + state @ self.b2
            found = state
            for size in self.step_size[:, time]:
                slope = torch.relu(found @ self.u1 + constant) - found - state + linear
                found = (1 - size) * found + size * slope
            state = (1 - rate) * state + rate * found
            before = value
            outputs.append(state)
        return torch.stack(outputs), state


class IncrementalSteps(nn.Module):
    """iRNN written out, one inner iteration: three products in every step."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.w, self.u = (nn.Parameter(0.1 * torch.randn(size, hidden)) for size in (features, hidden))
        self.bias, self.step_size = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.full((1,), 0.01))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        state, outputs = inputs.new_zeros(inputs.shape[1], len(self.bias)), []
        for value in inputs:
            constant = value @ self.w + self.bias + state @ self.u
            found = state
            for size in self.step_size:
                found = (1 - size) * found + size * (torch.relu(found @ self.u + constant) - state)
            state = found
            outputs.append(state)
        return torch.stack(outputs), state


def make_layers(steps: int) -> dict[str, nn.Module]:
    return {
        ADAPTIVE: TimeAdaptiveRNN(1, HIDDEN),
        ADAPTIVE_3: TimeAdaptiveRNN(1, HIDDEN, inner_steps=3),
        ADAPTIVE_STEPS: AdaptiveSteps(1, HIDDEN, steps),
        INCREMENTAL: IncrementalRNN(1, HIDDEN),
        INCREMENTAL_3: IncrementalRNN(1, HIDDEN, inner_steps=3, step_size=0.001),
        INCREMENTAL_STEPS: IncrementalSteps(1, HIDDEN),
        LSTM: nn.LSTM(1, HIDDEN),
        GRU: nn.GRU(1, HIDDEN),
    }


def step(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Return a training step without an optimiser; every output gets a gradient."""

    def once() -> None:
        layer.zero_grad()
        layer(inputs)[0].backward(gradient)

    return once


def saved_bytes(layer: nn.Module, inputs: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps, but for the parameters and the input."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = layer(inputs)
    for tensor in (*layer.parameters(), inputs):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del output
    return sum(storages.values())


def check_forms(layers: dict[str, nn.Module], inputs: Tensor) -> float:
    """Largest difference between our layer and the step-by-step cell with the same weights."""
    ours, theirs = layers[ADAPTIVE], layers[ADAPTIVE_STEPS]
    state = {
        "weight_ih_l0": torch.cat([theirs.wg, theirs.w1, theirs.b1], 1).t(),
        "weight_ph_l0": theirs.w2.t(),
        "weight_hh_l0": torch.cat([theirs.ug, theirs.u1, theirs.u2, theirs.b2], 1).t(),
        "bias_l0": torch.cat([theirs.gate_bias, theirs.bias]),
        "step_size_l0": theirs.step_size[:, 0],
    }
    ours.load_state_dict(state)
    with torch.no_grad():
        return float((ours(inputs)[0] - theirs(inputs)[0]).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=784)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = make_layers(arguments.steps)
    record = {
        "steps": arguments.steps,
        "features": 1,
        "hidden": HIDDEN,
        "rounds": arguments.rounds,
        "parameters": {name: sum(p.numel() for p in layer.parameters()) for name, layer in layers.items()},
        "batches": {},
    }
    for batch in BATCHES:
        inputs, gradient = torch.randn(arguments.steps, batch, 1), torch.randn(arguments.steps, batch, HIDDEN)
        difference = check_forms(layers, inputs)
        steps = {name: step(layer, inputs, gradient) for name, layer in layers.items()}
        times = paired(steps, arguments.rounds)
        record["batches"][str(batch)] = {
            "largest_difference_from_step_by_step": difference,
            "layers": {
                name: {
                    "seconds": times[name],
                    "over_lstm": ratio(times, of=name, over=LSTM),
                    "saved_bytes": saved_bytes(layer, inputs),
                }
                for name, layer in layers.items()
            },
            "faster_than_step_by_step": {
                ADAPTIVE: ratio(times, of=ADAPTIVE_STEPS, over=ADAPTIVE),
                INCREMENTAL: ratio(times, of=INCREMENTAL_STEPS, over=INCREMENTAL),
            },
        }
    report(record)
    save("recurrent_cells", record)


def report(record: dict) -> None:
    for batch, found in record["batches"].items():
        rows = []
        for name, values in found["layers"].items():
            faster = found["faster_than_step_by_step"].get(name)
            rows.append(
                [
                    name,
                    f"{record['parameters'][name]:,}",
                    f"{1000 * statistics.median(values['seconds']):.0f}",
                    told(values["over_lstm"]),
                    told(faster) if faster else "",
                    f"{values['saved_bytes'] / 1e6:.0f}",
                ]
            )
        columns = ["", "weights", "ms", "time / LSTM", "by steps / it", "MB kept"]
        table(f"{record['steps']} steps, {HIDDEN} units, batch {batch}, one thread", columns, rows)


def told(found: dict[str, float]) -> str:
    return "{median:.2f} ({low:.2f} to {high:.2f})".format(**found)


if __name__ == "__main__":
    main()
