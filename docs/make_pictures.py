"""Make the pictures of this site from real runs: ``python docs/make_pictures.py``, about three minutes.

Runs the demo and the configs ``disk/toy``, ``hybrid/early_exit`` and ``hybrid/cascade`` in a temporary folder and keeps
what they drew. Nothing is drawn here, so a picture shows what a user gets; those of ``benchmarks/`` come from their
studies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
PICTURES = {
    "quickstart/version_0/test_risk_coverage.png": "risk_coverage.png",
    "disk-toy/version_0/guide_histogram.png": "disk_guide_histogram.png",
    "hybrid-early-exit/version_1/accuracy_macs.png": "early_exit.png",
    "hybrid-cascade/version_1/accuracy_macs.png": "cascade.png",
}
"""File below the run folders, and its name here."""

COMMANDS = (
    ["demo"],
    ["fit", "--config", "disk/toy"],
    ["fit", "--config", "hybrid/early_exit"],
    ["test", "--config", "hybrid/early_exit", "--ckpt_path", "best"],
    ["fit", "--config", "hybrid/cascade"],
    ["test", "--config", "hybrid/cascade", "--ckpt_path", "best"],
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # one thread: sums are taken in one order, whatever the number of cores
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for words in COMMANDS:
            command = [sys.executable, "-m", "lightning_efficient.cli.main", *words, "--trainer.accelerator", "cpu"]
            subprocess.run(command, cwd=folder, env=environment, check=True)
        IMAGES.mkdir(exist_ok=True)
        for source, target in PICTURES.items():
            small(Path(folder) / "runs" / source, IMAGES / target)


def small(source: Path, target: Path) -> None:
    """Save a PNG with a palette of 128 colours, which such drawings do not exceed visibly."""
    with Image.open(source) as image:
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
        flat.quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    main()
