"""Draw how pruning proceeds and what 8-bit numbers are: ``python docs/draw_compression.py``.

Needs nothing but the project. All is toy functions but for one panel, for which a small network loses half of its
channels while it learns digits, which takes some seconds; its own picture is drawn by the callback.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import torch
from make_pictures import small

import lightning_efficient.functional as LF
from lightning_efficient.callbacks import GradualPruning
from lightning_efficient.datamodules import Digits
from lightning_efficient.modules import ImageClassifier

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE, GREY = "#3f51b5", "#e64a19", "0.45"
ROUNDS, END, FINAL = 10, 0.75, 0.8


def main() -> None:
    for name, draw in {"pruning": pruning, "quantization": quantization}.items():
        figure = draw()
        path = IMAGES / f"{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)
        small(path, path)


def pruning() -> Any:
    """Draw the three schedules, and what a run leaves of the channels of a network."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.7), width_ratios=(1, 1.15), layout="constrained")
    rounds = range(1, ROUNDS + 1)
    curves = {
        "cubic": ([END * r / ROUNDS for r in rounds], [LF.cubic_sparsity(r / ROUNDS, FINAL) for r in rounds]),
        "iterative": (
            [END * (r - 1) / (ROUNDS - 1) for r in rounds],
            [LF.sparsity_after_round(FINAL, r, ROUNDS) for r in rounds],
        ),
        "one_shot": ([0.0], [FINAL]),
    }
    for (name, (places, shares)), look in zip(curves.items(), ((BLUE, "-"), (ORANGE, "-"), (GREY, "--")), strict=True):
        steps, values = [0.0, *places, 1.0], [0.0, *shares, shares[-1]]
        left.step(steps, values, where="post", color=look[0], linestyle=look[1], label=name)
    left.axvspan(END, 1, color="0.93")
    left.text((1 + END) / 2, 0.06, "fine-tuning", ha="center", fontsize=8, color=GREY)
    left.set(xlabel="share of the training", ylabel="sparsity", ylim=(0, 0.9), xlim=(-0.01, 1))
    left.set_title("sparsity=0.8, end=0.75, rounds=10", fontsize=9)
    left.legend(fontsize=8, frameon=False, loc="lower center")
    layers = _pruned_layers()
    names, sizes, kept = ([row[key] for row in layers] for key in ("layer", "channels", "kept"))
    right.barh(names, sizes, color="0.9", height=0.85)
    right.barh(names, kept, color=BLUE, height=0.85)
    for place, (size, count) in enumerate(zip(sizes, kept, strict=True)):
        right.text(size + 0.5, place, f"{count} of {size}", va="center", fontsize=7, color=GREY)
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=7)
    right.set(xlabel="channels", xlim=(0, 1.2 * max(sizes)))
    right.set_title("what channels, sparsity=0.5, leaves of a ResNet on digits", fontsize=9)
    return figure


def _pruned_layers() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=8,
            default_root_dir=folder,
            logger=L.pytorch.loggers.CSVLogger(folder, name="", version=""),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[GradualPruning(0.5, "channels", measure=False)],
        )
        module = ImageClassifier("cifar_resnet10_m", num_classes=10, in_chans=1)
        trainer.fit(module, Digits(image_size=16, in_chans=1, batch_size=64))
        found: list[dict[str, Any]] = json.loads((Path(folder) / "pruning.json").read_text(encoding="utf-8"))["layers"]
        return found


def quantization() -> Any:
    """Draw the grid with and without an exact zero, and the error of one scale against one per channel."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.7), layout="constrained")
    x = torch.linspace(-1.6, 2.6, 4001)
    low, high, bits = -1.0, 2.1, 3
    rounded = LF.fake_quantize(x, low, high, bits)
    step = (high - low) / (2**bits - 1)
    plain = ((x.clamp(low, high) - low) / step).round() * step + low
    left.plot(x, x, color="0.8", linewidth=1)
    left.plot(x, plain, color=ORANGE, linestyle="--", linewidth=1.2, label="grid from low to high")
    left.plot(x, rounded, color=BLUE, linewidth=1.6, label="grid moved so that zero is on it")
    left.axhline(0, color="0.6", linewidth=0.6)
    left.axvline(0, color="0.6", linewidth=0.6)
    left.plot([0], [0], "o", color=BLUE, markersize=5)
    for end in (low, high):
        left.axvline(end, color="0.6", linewidth=0.8, linestyle=":")
    left.set(xlabel="x", ylabel="x after quantising and back", xlim=(-1.6, 2.6))
    left.set_title(f"3 bits for the range {low:g} to {high:g}", fontsize=9)
    left.legend(fontsize=8, frameon=False, loc="upper left")

    torch.manual_seed(0)
    sizes = torch.logspace(-2, 0, 9, base=10)
    weight = sizes.view(-1, 1) * torch.randn(len(sizes), 288)
    for dim, colour, words in ((None, ORANGE, "one scale for the tensor"), (0, BLUE, "one scale per channel")):
        parameters = LF.affine_parameters(*LF.quantization_range(weight, dim=dim), symmetric=True)
        error = (LF.dequantize(LF.quantize(weight, parameters), parameters) - weight).square().mean(1).sqrt()
        right.plot(sizes, 100 * error / sizes, "o-", color=colour, label=words, markersize=4)
    right.set(xscale="log", yscale="log", xlabel="size of a channel's weights (standard deviation)")
    right.set_ylabel("error in % of that size")
    right.set_title("8-bit weights, channels of different size", fontsize=9)
    right.grid(alpha=0.3)
    right.legend(fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main()
