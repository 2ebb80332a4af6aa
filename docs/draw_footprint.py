"""Make the pictures of compare, search and profile from real runs: ``python docs/draw_footprint.py``, some ten minutes.

Runs the commands that the pages show in a temporary folder and keeps what they drew. Accuracies and MACs are the same
each time; the latencies of ``profile`` are those of this machine, so let it be idle.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from make_pictures import small

IMAGES = Path(__file__).parent / "images"
MODELS = ("lcnet_050", "mobilenetv3_small_050", "mnasnet_small", "resnet10t", "resnet18")
SEEDS = (0, 1)
PICTURES = {
    "pareto.png": "pareto.png",
    "runs/search/quickstart/pareto.png": "search.png",
    "profile.png": "profile.png",
}
"""File in the temporary folder, and its name here."""

FITS = [
    f"fit --config quickstart --model.backbone {model} --trainer.logger.name {model} --seed_everything {seed} "
    "--trainer.max_epochs 6 --trainer.accelerator cpu"
    for seed in SEEDS
    for model in MODELS
]
COMMANDS = (
    *FITS,
    "compare runs --group",
    "search --config quickstart --space search/digits --objectives accuracy macs --trials 10 --trainer.max_epochs 4 "
    "--trainer.accelerator cpu",
    "profile --timm mobilenetv3_small_050 --input_shape [3,224,224] --batch_sizes [1,8] --threads 1 --layers 8 "
    "--training_memory true --variants [channels_last,bf16,compile,int8_static,onnx] --energy true --time_budget_s 90 "
    "--figure profile.png",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # one thread: sums are taken in one order, whatever the number of cores
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        for words in COMMANDS:
            command = [sys.executable, "-m", "lightning_efficient.cli.main", *words.split()]
            subprocess.run(command, cwd=folder, env=environment, check=True)
        for source, target in PICTURES.items():
            small(Path(folder) / source, IMAGES / target)


if __name__ == "__main__":
    main()
