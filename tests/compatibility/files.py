"""Files that this package writes beside checkpoints, and what a later version must read from them.

Each ``write_…`` writes into a folder and each ``read_…`` returns plain values of what it finds there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import objects
import timm
import torch
from torch import Tensor, nn

from lightning_efficient.inference import OutputStore, RoutingFile, ThresholdFile, export_graphs, load_export
from lightning_efficient.nn import register_cifar_resnets
from lightning_efficient.nn.pruning import find_channel_groups, load_pruned, read_report, remove_channels, save_pruned
from lightning_efficient.nn.quantization import load_quantized, quantize_static, save_quantized

MADE_OF = {"name": "cifar_resnet10_xxxs", "num_classes": 4, "in_chans": 1, "kwargs": {"channels": [4, 4, 4, 8]}}
KEYS = torch.tensor([4, 1])


def images() -> Tensor:
    return objects.drawn(2, 1, 8, 8)


def rows() -> Tensor:
    return objects.drawn(4, 6)


def dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def write_threshold(folder: Path) -> None:
    objects.OBJECTS["ThresholdFile"]().write(folder / "best.threshold.json")


def read_threshold(folder: Path) -> Any:
    return objects.observe(ThresholdFile.read(folder / "best.threshold.json"))


def write_routing(folder: Path) -> None:
    objects.OBJECTS["RoutingFile"]().write(folder / "best.routing.json")


def read_routing(folder: Path) -> Any:
    return objects.observe(RoutingFile.read(folder / "best.routing.json"))


def write_pruned(folder: Path) -> None:
    register_cifar_resnets()
    torch.manual_seed(0)
    network = timm.create_model(MADE_OF["name"], num_classes=4, in_chans=1, **MADE_OF["kwargs"]).eval()
    groups = find_channel_groups(network, images())
    keep = {group.name: torch.arange(group.size) % 2 == 0 for group in groups.groups}
    small = remove_channels(network, groups, keep)
    save_pruned(folder / "pruned.pt", small, made_of=MADE_OF, report={"sparsity": 0.5})


@torch.no_grad()
def read_pruned(folder: Path) -> Any:
    network = load_pruned(folder / "pruned.pt").eval()
    weights = sum(weight.numel() for weight in network.parameters())
    return {"report": read_report(folder / "pruned.pt"), "weights": weights, "logits": network(images()).tolist()}


def write_outputs(folder: Path) -> None:
    OutputStore(folder / "outputs", {"logits": (3,)}, rows=5).put(KEYS, {"logits": objects.drawn(2, 3)})


def read_outputs(folder: Path) -> Any:
    store = OutputStore(folder / "outputs", {"logits": (3,)}, rows=5)
    return {"filled": store.filled, "logits": store.get(KEYS)["logits"].tolist()}


def write_export(folder: Path) -> None:
    routing = objects.routing()
    export_graphs({"model": dense()}, rows(), folder / "export", batch_sizes=(1, 3), metadata={"routing": routing})


def read_export(folder: Path) -> Any:
    export = load_export(folder / "export", "onnx")
    return {"threshold": export.threshold, "logits": export.parts["model"](rows()).tolist()}


def read_export_of_torch(folder: Path) -> Any:
    return load_export(folder / "export").parts["model"](rows()).tolist()


def write_quantized(folder: Path) -> None:
    save_quantized(quantize_static(dense(), [rows()]), folder / "static.pt2")


@torch.no_grad()
def read_quantized(folder: Path) -> Any:
    return load_quantized(folder / "static.pt2")(rows()).tolist()
