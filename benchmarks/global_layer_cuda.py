"""Solvers of the Global layer on a GPU: reference, the same compiled, fused and Triton's kernels, side by side.

It times ``advection_diffusion`` alone, without the layer's convolutions, forward and forward with backward, in turns in
one process and synchronised, with learned and constant diffusion. Memory is what the allocator handed out beyond the
inputs at the most. Every variant's result and gradients are compared with the reference's first; a variant that is off
by more than 1e-4 of the largest value stops the study. Writes ``results/global_layer_cuda.json``.

It has not run on a GPU so far: no results are there. ``--device cpu`` is a toy that shows that the script runs, leaves
out what cannot run there, and writes nothing; Triton's kernels take part with ``TRITON_INTERPRET=1``.

Run: ``python benchmarks/global_layer_cuda.py [--device cuda|cpu] [--shapes N,C,H,W ...] [--steps K ...] [--rounds N]``
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from harness import device_name, paired, ratio, save, table
from torch import Tensor

from lightning_efficient.functional import _triton_advection_diffusion as kernels
from lightning_efficient.functional.advection_diffusion import advection_diffusion

DT, SPACING = 0.2, (1, 1)
REFERENCE, COMPILED, FUSED, TRITON = "reference", "reference, compiled", "fused", "triton"
SETTINGS = {
    "cuda": {"shapes": [(128, 64, 32, 32), (128, 64, 56, 56)], "steps": [1, 4, 10], "rounds": 30},
    "cpu": {"shapes": [(1, 2, 4, 5)], "steps": [2], "rounds": 1},
}
ALLOWED = 1e-4
Solve = Callable[..., Tensor]


def through(solver: str) -> Solve:
    def solve(initial: Tensor, u: Tensor, v: Tensor, along: Any, across: Any, source: Tensor, steps: int) -> Tensor:
        options = {"source": source, "previous": source, "steps": steps, "dt": DT, "spacing": SPACING}
        return advection_diffusion(initial, (u, v), (along, across), solver=solver, **options)

    return solve


def through_triton(
    initial: Tensor, u: Tensor, v: Tensor, along: Any, across: Any, source: Tensor, steps: int
) -> Tensor:
    return kernels.solve(initial, u, v, along, across, source, source, steps, DT, SPACING)


def variants(initial: Tensor) -> dict[str, Solve]:
    """Return what can run on these maps; a function of its own is compiled for each shape."""
    found = {REFERENCE: through("reference"), FUSED: through("fused")}
    if initial.is_cuda:
        torch._dynamo.reset()
        found[COMPILED] = torch.compile(through("reference"), dynamic=False)
    if kernels.runs(initial):
        found[TRITON] = through_triton
    return found


def inputs(shape: Sequence[int], learned: bool, device: str) -> list[Any]:
    """Return state, velocities after a ReLU as the layer makes them, diffusion and source."""
    torch.manual_seed(0)
    maps = torch.randn(6, *shape, device=device)
    maps[1:5].relu_()
    leaves = [each.clone().requires_grad_() for each in maps]
    if not learned:
        leaves[3:5] = [0.5, 0.5]
    return leaves


def call(solve: Solve, values: Sequence[Any], steps: int, weights: Tensor | None) -> list[Tensor]:
    """Return the result and, where ``weights`` is given, the gradients; synchronised."""
    with torch.set_grad_enabled(weights is not None):
        results = [solve(*values, steps)]
    if weights is not None:
        leaves = [each for each in values if isinstance(each, Tensor)]
        results += torch.autograd.grad(results[0], leaves, weights)
    if results[0].is_cuda:
        torch.cuda.synchronize()
    return results


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest one of result and gradients, each as a share of its largest value."""
    pairs = [(one.detach(), other.detach()) for one, other in zip(ours, theirs, strict=True)]
    return max(float((one - other).abs().max() / other.abs().max().clamp_min(1e-12)) for one, other in pairs)


def peak(work: Callable[[], object]) -> int | None:
    """Return the bytes that the work needs at the most beyond what was there before; None on the CPU."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def study(shape: Sequence[int], steps: int, learned: bool, rounds: int, device: str) -> dict[str, Any]:
    values = inputs(shape, learned, device)
    weights = torch.randn(*shape, device=device)
    solvers = variants(values[0])
    expected = call(solvers[REFERENCE], values, steps, weights)
    differences = {name: largest_difference(call(f, values, steps, weights), expected) for name, f in solvers.items()}
    wrong = {name: value for name, value in differences.items() if not value <= ALLOWED}
    if wrong:
        raise SystemExit(f"not the reference's values at {tuple(shape)}, {steps} steps, learned={learned}: {wrong}")
    del expected
    record: dict[str, Any] = {"shape": list(shape), "steps": steps, "learned": learned, "differences": differences}
    for kind, given in (("forward", None), ("forward_backward", weights)):
        work = {name: lambda f=f, given=given: call(f, values, steps, given) for name, f in solvers.items()}
        times = paired(work, rounds, warmup=2)
        record[kind] = {
            name: {
                "seconds": times[name],
                "over_reference": ratio(times, of=name, over=REFERENCE),
                "peak_bytes": peak(work[name]),
            }
            for name in solvers
        }
    return record


def report(records: Sequence[Mapping[str, Any]]) -> None:
    for record in records:
        rows = []
        for name, difference in record["differences"].items():
            row: list[object] = [name, difference]
            for kind in ("forward", "forward_backward"):
                found = record[kind][name]
                spread = "{median:.2f} ({low:.2f} to {high:.2f})".format(**found["over_reference"])
                held = "" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e6:.0f}"
                row += [1000 * statistics.median(found["seconds"]), spread, held]
            rows.append(row)
        diffusion = "learned" if record["learned"] else "constant"
        title = (
            f"{record['shape']}, {record['steps']} steps, {diffusion} diffusion; ms, time / reference, MB at the most"
        )
        table(title, ["", "off by", "forward", "ratio", "MB", "and backward", "ratio", "MB"], rows)


def shape_of(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(SETTINGS), default="cuda")
    parser.add_argument("--shapes", type=shape_of, nargs="+", metavar="N,C,H,W")
    parser.add_argument("--steps", type=int, nargs="+")
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, usual = arguments.device, SETTINGS[arguments.device]
    shapes, steps, rounds = (getattr(arguments, name) or usual[name] for name in ("shapes", "steps", "rounds"))
    records = [
        study(shape, count, learned, rounds, device) for shape in shapes for count in steps for learned in (True, False)
    ]
    report(records)
    if device == "cuda":
        save("global_layer_cuda", {"device": device_name(device), "rounds": rounds, "cases": records})


if __name__ == "__main__":
    main()
