"""What is recorded of a run: one case is fitted for two epochs, and again from the checkpoint of its first one."""

from __future__ import annotations

import importlib
import json
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from torch.utils._pytree import tree_leaves

from lightning_efficient.cli import EfficientCLI

CASES = Path(__file__).parent / "cases"
FIXTURES = Path(__file__).parent / "fixtures"
PACKAGES = ("torch", "lightning", "torchmetrics", "timm", "jsonargparse", "torchao", "onnx", "numpy")
UNDER = ("base", "modes")
"""Configs that lie under every case."""
TIMED = ("latency", "energy", "time", "joules", "seconds", "throughput")
"""Metrics with these words in their names are of the machine."""
TEXT = "the cat sat on the mat and the dog sat by the door and the bird sang \n" * 4


def case_names(configs: Path) -> list[str]:
    return sorted(file.stem for file in configs.glob("*.yaml") if file.stem not in UNDER)


def fit(configs: Path, case: str) -> EfficientCLI:
    """Fit a case in the current folder, as a user would."""
    write_text(Path("text"))
    return EfficientCLI(["fit", *config_options(configs, case)])


def config_options(configs: Path, case: str) -> list[str]:
    """Return the options that give a case its configs, from the lowest on."""
    return [part for name in (*UNDER, case) for part in ("--config", str(configs / f"{name}.yaml"))]


def write_text(folder: Path) -> None:
    """Write the text that the language model learns."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        (folder / f"wiki.{split}.tokens").write_text(TEXT, encoding="utf-8")


def observed(cli: EfficientCLI) -> dict[str, Any]:
    """Return the metrics of the last epoch, without those of the machine, and of training, which may be of a stage."""
    metrics = {name: float(value) for name, value in sorted(cli.trainer.callback_metrics.items())}
    return {name: value for name, value in metrics.items() if not any(word in name for word in (*TIMED, "train/"))}


def final_weights(module: L.LightningModule) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def loaded(checkpoint: Path, class_path: str) -> L.LightningModule:
    """Load a checkpoint by its class alone."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name).load_from_checkpoint(checkpoint, map_location="cpu").eval()


@torch.no_grad()
def outputs(module: L.LightningModule, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return every tensor that a forward pass gives."""
    leaves = [leaf for leaf in tree_leaves(module(torch.from_numpy(inputs))) if isinstance(leaf, torch.Tensor)]
    return {f"output{number}": leaf.numpy() for number, leaf in enumerate(leaves)}


def write_run(case: str, folder: Path) -> None:
    """Fit a case in the current folder, and keep what a later version must load."""
    cli = fit(CASES, case)
    class_path = f"{type(cli.model).__module__}.{type(cli.model).__qualname__}"
    folder.mkdir(parents=True)
    checkpoint = folder / "first.checkpoint"
    shutil.copyfile("epochs/epoch=0.ckpt", checkpoint)
    shutil.copyfile(next(Path().rglob("config.yaml")), folder / "config.yaml")
    inputs = first_inputs(cli)
    np.savez_compressed(folder / "outputs.npz", inputs=inputs, **outputs(loaded(checkpoint, class_path), inputs))
    np.savez_compressed(folder / "end.npz", **final_weights(cli.model))
    state = torch.load(checkpoint, weights_only=True)["callbacks"]
    record(folder, {"class_path": class_path, "metrics": observed(cli), "callbacks": sorted(state)})


def record(folder: Path, expected: dict[str, Any]) -> None:
    """Write down what was seen, and which versions wrote what it was seen of."""
    written_with = {name: version(name) for name in PACKAGES if find_spec(name)}
    text = json.dumps({"written_with": written_with, **expected}, indent=1, allow_nan=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


def first_inputs(cli: EfficientCLI) -> np.ndarray:
    batch = next(iter(cli.datamodule.val_dataloader()))
    return batch[0][:4].numpy()


def configured(config: Path) -> dict[str, Any]:
    return yaml.safe_load(config.read_text(encoding="utf-8"))
