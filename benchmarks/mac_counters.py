"""Do counters of multiply-accumulate operations agree? Ours, ptflops and Torch-Pruning's, on ten models of timm.

The convention is ours: one MAC is one product that is added to a sum, in a convolution, a matrix product or attention.
Each counter is asked as its users would ask it. They differ in what else they call an operation: ptflops with its
``aten`` backend adds one for each bias that is added, with its ``pytorch`` backend also normalisation, activations,
pooling and interpolation, and Torch-Pruning counts by the class of a module, so that attention outside a module of its
own (the products of queries, keys and values) is missing.

ptflops' ``aten`` backend sees operators, so fused attention must be taken apart: it runs on the meta device, where
torch has no fused kernel. Its ``pytorch`` backend replaces functions of torch, and runs there too.

Writes ``results/mac_counters.json``.

Run: ``python benchmarks/mac_counters.py [--models NAME ...]``
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from harness import save, table
from torch import Tensor, nn

from lightning_efficient.profiling import count_macs

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "densenet121",
    "convnext_tiny",
    "regnety_004",
    "mixer_s32_224",
    "vit_tiny_patch16_224",
)
IMAGE = (3, 224, 224)
OURS = "ours"


def built(name: str) -> nn.Module:
    """Return a model on the meta device: counting needs no weights."""
    import timm

    with torch.device("meta"):
        return timm.create_model(name).eval()


def ours(model: nn.Module) -> int:
    return count_macs(model, torch.zeros(1, *IMAGE)).macs


def ptflops(backend: str) -> Callable[[nn.Module], int]:
    def count(model: nn.Module) -> int:
        from ptflops import get_model_complexity_info

        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            macs, _ = get_model_complexity_info(
                model, IMAGE, as_strings=False, print_per_layer_stat=False, backend=backend
            )
        return int(macs)

    return count


def torch_pruning(model: nn.Module) -> int:
    import torch_pruning

    example: Tensor = torch.zeros(1, *IMAGE, device="meta")
    macs, _ = torch_pruning.utils.count_ops_and_params(model, example)
    return int(macs)


COUNTERS: dict[str, Callable[[nn.Module], int]] = {
    OURS: ours,
    "ptflops aten": ptflops("aten"),
    "ptflops pytorch": ptflops("pytorch"),
    "torch-pruning": torch_pruning,
}


def study(models: Sequence[str]) -> list[dict[str, Any]]:
    """Return the MACs of each model by each counter, and how far the others are from ours."""
    rows = []
    for name in models:
        macs = {counter: count(built(name)) for counter, count in COUNTERS.items()}
        deviation = {counter: each / macs[OURS] - 1 for counter, each in macs.items() if counter != OURS}
        rows.append({"model": name, "macs": macs, "deviation": deviation})
    return rows


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    others = [counter for counter in COUNTERS if counter != OURS]
    cells = [
        [
            row["model"],
            f"{row['macs'][OURS] / 1e6:.1f} M",
            *(f"{100 * row['deviation'][name]:+.2f} %" for name in others),
        ]
        for row in rows
    ]
    table("MACs of one image of 224 x 224, and by how much other counters differ", ["model", OURS, *others], cells)
    worst = {name: max(abs(row["deviation"][name]) for row in rows) for name in others}
    sys.stdout.write("largest deviation: " + ", ".join(f"{name} {100 * worst[name]:.2f} %" for name in others) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    options = parser.parse_args()
    rows = study(options.models)
    save("mac_counters", {"image": list(IMAGE), "rows": rows})
    report(rows)


if __name__ == "__main__":
    main()
