"""The Global layer on the CPU: as released, with its coefficients taken out of the loop, and fused, side by side.

Eight samples of 64 channels and 32x32 pixels, float32, one thread, all in one process and in turns, with an allocator
that keeps its memory. Times are those of the process on the processor, so that others who use the machine count as
little as they can. The layer is whole: depthwise convolutions, batch norms, steps, batch norm. Yardsticks are a
depthwise 3x3 convolution with batch norm and ReLU, and timm's ``BasicBlock``. Memory is what autograd keeps for the
backward pass, without parameters, in maps of the input's size. Writes ``results/global_layer.json``.

Run: ``python benchmarks/global_layer.py [--rounds N] [--steps K ...] [--compile] [--quick] [--draw]``
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from time import process_time
from typing import Any

import torch
from harness import RESULTS, paired, ratio, save, steady_allocator, table
from released_global_layer import ReleasedGlobalLayer
from torch import Tensor, nn

from lightning_efficient.functional._global_layer import fused_global_layer
from lightning_efficient.functional.advection_diffusion import Solver, advection_diffusion

SHAPE, QUICK_SHAPE = (8, 64, 32, 32), (2, 8, 6, 5)
STEPS = (1, 4, 10)
RELEASED, REFERENCE, COMPILED = "released", "reference", "reference, compiled"
SOLVER, LAYER = "fused steps", "fused layer"
DEPTHWISE, BASIC = "depthwise 3x3", "BasicBlock"


class Variant(nn.Module):
    """The released layer's parameters, with another way to the output.

    Args:
        released: Whose parameters these are.
        solver: Of ``advection_diffusion``; None for the whole layer as one function.
    """

    def __init__(self, released: ReleasedGlobalLayer, solver: Solver | None) -> None:
        super().__init__()
        self.released, self.solver = released, solver

    def forward(self, f: Tensor) -> Tensor:
        layer = self.released
        convolutions = [*layer.convolutions.values()]
        numbers = None if layer.diffusion is None else (layer.diffusion, layer.diffusion)
        if self.solver is None:
            norms = [*layer.norms.values(), layer.norm]
            return fused_global_layer(
                f,
                [f] * len(convolutions),
                norms,
                convolutions=convolutions,
                diffusion=numbers,
                source=f,
                previous=f,
                steps=layer.steps,
                dt=layer.dt,
                spacing=(1, 1),
            )
        maps = [torch.relu(norm(of(f))) for norm, of in zip(layer.norms.values(), convolutions, strict=True)]
        diffusion = numbers or (maps[2], maps[3])
        state = advection_diffusion(
            f, (maps[0], maps[1]), diffusion, source=f, steps=layer.steps, dt=layer.dt, solver=self.solver
        )
        return torch.relu(layer.norm(state))


def make_layers(channels: int, steps: int, diffusion: float | None, compiled: bool) -> dict[str, nn.Module]:
    from timm.models.resnet import BasicBlock

    released = ReleasedGlobalLayer(channels, steps, diffusion)
    layers: dict[str, nn.Module] = {
        RELEASED: released,
        REFERENCE: Variant(released, "reference"),
        SOLVER: Variant(released, "fused"),
        LAYER: Variant(released, None),
    }
    if compiled:
        layers[COMPILED] = torch.compile(Variant(released, "reference"))
    convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    layers[DEPTHWISE] = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())
    layers[BASIC] = BasicBlock(channels, channels)
    return layers


def forward(layer: nn.Module, inputs: Tensor) -> Callable[[], None]:
    """Return an evaluation of the layer that keeps nothing."""

    @torch.no_grad()
    def once() -> None:
        layer.eval()
        layer(inputs)

    return once


def step(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Return a training step without an optimiser; the input gets a gradient too."""

    def once() -> None:
        layer.train()
        layer.zero_grad()
        inputs.grad = None
        layer(inputs).backward(gradient)

    return once


def kept_maps(layer: nn.Module, inputs: Tensor) -> float:
    """Bytes of the distinct storages that autograd keeps, but for the parameters, over those of the input."""
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that is freed would give its address to another

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    layer.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = layer(inputs)
    for parameter in layer.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    del output
    return sum(storages.values()) / inputs.untyped_storage().nbytes()


def largest_difference(layers: Mapping[str, nn.Module], inputs: Tensor) -> dict[str, float]:
    """Relative to the largest value of the released form, its output and its input's gradient."""
    found = {}
    for name, layer in layers.items():
        layer.train()
        output = layer(inputs)
        found[name] = output.detach(), torch.autograd.grad(output.square().sum(), inputs)[0]
    return {
        name: max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(pair, found[RELEASED], strict=True))
        for name, pair in found.items()
        if name not in (DEPTHWISE, BASIC)
    }


def study(
    shape: tuple[int, ...], steps: int, diffusion: float | None, rounds: int, compiled: bool = False
) -> dict[str, Any]:
    torch.manual_seed(0)
    inputs, gradient = torch.randn(shape, requires_grad=True), torch.randn(shape)
    layers = make_layers(shape[1], steps, diffusion, compiled)
    difference = largest_difference(layers, inputs)
    times = {
        "forward": paired({name: forward(layer, inputs) for name, layer in layers.items()}, rounds, 2, process_time),
        "both": paired(
            {name: step(layer, inputs, gradient) for name, layer in layers.items()}, rounds, 2, process_time
        ),
    }
    kept = {name: kept_maps(layer, inputs) for name, layer in layers.items()}
    return {
        "steps": steps,
        "diffusion": "learned" if diffusion is None else "constant",
        "largest_difference_from_released": difference,
        "layers": {
            name: {
                "seconds": {of: found[name] for of, found in times.items()},
                "released_over_it": {of: ratio(found, of=RELEASED, over=name) for of, found in times.items()},
                "kept_maps": kept[name],
                "kept_over_released": kept[name] / kept[RELEASED],
            }
            for name in layers
        },
    }


def report(record: Mapping[str, Any]) -> None:
    for found in record["studies"]:
        rows = []
        for name, values in found["layers"].items():
            milliseconds = [1000 * statistics.median(values["seconds"][of]) for of in ("forward", "both")]
            ratios = [told(values["released_over_it"][of]) for of in ("forward", "both")]
            kept = f"{values['kept_maps']:.1f}", f"{values['kept_over_released']:.2f}"
            rows.append([name, f"{milliseconds[0]:.1f}", ratios[0], f"{milliseconds[1]:.1f}", ratios[1], *kept])
        columns = ["", "forward ms", "released / it", "both ms", "released / it", "maps kept", "of released"]
        shape = "x".join(map(str, record["shape"]))
        table(f"{shape}, K={found['steps']}, {found['diffusion']} diffusion, one thread", columns, rows)


def told(found: Mapping[str, float]) -> str:
    return "{median:.2f} ({low:.2f} to {high:.2f})".format(**found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--compile", action="store_true", help="with the reference compiled, minutes for each K")
    parser.add_argument("--shape", type=int, nargs=4, metavar=("N", "C", "H", "W"), help="another shape; saves nothing")
    parser.add_argument("--quick", action="store_true", help="a toy that shows that the script runs; saves nothing")
    parser.add_argument("--draw", action="store_true", help="print the saved results")
    arguments = parser.parse_args()
    if arguments.draw:
        report(json.loads((RESULTS / "global_layer.json").read_text()))
        return
    torch.set_num_threads(1)
    shape = QUICK_SHAPE if arguments.quick else tuple(arguments.shape or SHAPE)
    rounds = 2 if arguments.quick else arguments.rounds
    studies = [
        study(shape, steps, diffusion, rounds, arguments.compile)
        for diffusion in (None, 1.0)
        for steps in arguments.steps
    ]
    record = {"shape": shape, "rounds": rounds, "studies": studies}
    report(record)
    if not arguments.quick and arguments.shape is None:
        save("global_layer", record)


if __name__ == "__main__":
    steady_allocator()
    main()
