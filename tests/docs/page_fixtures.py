"""What a page assumes that its reader has: names of the reader's own, and files that earlier steps have written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from torch import Tensor, nn

from lightning_efficient.inference import calibrate_routing, calibrate_threshold, export_graphs
from lightning_efficient.inference.calibration_file import hash_checkpoint
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.modules import ImageClassifier
from lightning_efficient.nn import EdgeGraph, GlobalGraph, ScoreRouter
from lightning_efficient.nn.pruning import save_pruned
from lightning_efficient.nn.quantization import quantize_weights, save_quantized

Names = dict[str, Any]
RUN = Path("runs/quickstart/version_0/checkpoints")


class MyModule(L.LightningModule):
    """A classifier of somebody else's, whose evaluation steps return what the README asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Names:
        return {"logits": self(batch[0]), "target": batch[1]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class MyDataModule(L.LightningDataModule):
    """Two batches of noise for training and for validation."""

    def train_dataloader(self) -> Any:
        data = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.randint(3, (16,)))
        return torch.utils.data.DataLoader(data, batch_size=8)

    val_dataloader = train_dataloader


def readme() -> Names:
    stages = torch.zeros(100, 2, dtype=torch.long)
    routing = calibrate_routing(torch.linspace(0, 1, 100), stages, stages[:, 0], max_drop=0.1)
    images = torch.randn(2, 3, 32, 32)
    base, large = (nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)) for _ in range(2))
    parts = {"edge": EdgeGraph(base, ScoreRouter("msp")), "global": GlobalGraph(large)}
    export_graphs(parts, images, "best.export", formats=("onnx",), metadata={"routing": routing}, batch_sizes=(1, 3))
    confidence = torch.linspace(0, 1, 1000)
    return {
        "my_module": MyModule(),
        "my_datamodule": MyDataModule(),
        "teacher": nn.Linear(4, 3),
        "confidence": confidence,
        "wrong": torch.rand(1000) > confidence + 0.2,
        "network": timm.create_model("mobilenetv3_small_050", num_classes=3),
        "images": images,
    }


def cli_page() -> Names:
    network = ImageClassifier("mobilenetv3_small_050", num_classes=10)
    RUN.mkdir(parents=True)
    torch.save({"state_dict": network.state_dict()}, RUN / "best.ckpt")
    found = calibrate_threshold(torch.linspace(0, 1, 100), torch.zeros(100, dtype=torch.bool), risk=0.1)
    weights = hash_checkpoint(RUN / "best.ckpt")
    file = ThresholdFile(found, split="test", data_sha256="0" * 64, weights_sha256=weights, score="msp")
    file.write(ThresholdFile.beside(RUN / "best.ckpt"))
    return {}


def pruning_page() -> Names:
    file = Path("runs/compress-prune-channels/version_0/pruned.pt")
    file.parent.mkdir(parents=True)
    made_of = {"name": "mobilenetv3_small_050", "num_classes": 10}
    save_pruned(
        file, timm.create_model("mobilenetv3_small_050", num_classes=10), made_of=made_of, report={"parameters": 1}
    )
    return {}


def quantization_page() -> Names:
    small = quantize_weights(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)).eval(), torch.randn(4, 8))
    save_quantized(small, RUN / "best.quantized" / "static.pt2")
    return {}


def surgery_page() -> Names:
    return {"train_loader": [(torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long))]}


PREPARED: dict[str, Callable[[], Names]] = {
    "README.md": readme,
    "cli.md": cli_page,
    "pruning.md": pruning_page,
    "quantization.md": quantization_page,
    "surgery.md": surgery_page,
}
"""By page; each runs in an empty folder and returns the names that the page's first block finds."""
