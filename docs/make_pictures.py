"""Make the pictures of this site from a real run: ``python docs/make_pictures.py``, about a minute.

Runs the demo in a temporary folder and keeps what it drew. Nothing is drawn here, so a picture shows what a user gets.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
PICTURES = {"test_risk_coverage.png": "risk_coverage.png"}
"""File in the run folder, and its name here."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # one thread: sums are taken in one order, whatever the number of cores
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "lightning_efficient.cli.main", "demo", "--trainer.accelerator", "cpu"]
        subprocess.run(command, cwd=folder, env=environment, check=True)
        run = Path(folder) / "runs" / "quickstart" / "version_0"
        IMAGES.mkdir(exist_ok=True)
        for source, target in PICTURES.items():
            small(run / source, IMAGES / target)


def small(source: Path, target: Path) -> None:
    """Save a PNG with a palette of 128 colours, which such drawings do not exceed visibly."""
    with Image.open(source) as image:
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
        flat.quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    main()
