"""Which command makes each study's JSON, what it needs, and running it; a study that is on disk is not run again."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _reproduce_claims import Claim

DATA_VARIABLE = "LIGHTNING_EFFICIENT_DATA"
SIDE_BY_SIDE = ("blocks_images", "compression", "disk_images", "hybrid_images", "selective_images")
"""Scripts with an option ``--jobs``."""
FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Study:
    """A JSON of ``results`` and the command that writes it.

    Attributes:
        words: Script and arguments.
        seeded: Whether ``--seeds`` says how much of it there is.
        resumes: Whether ``--resume`` keeps the seeds that are there.
        needs: Files below the data folder, one of which must be there.
        device: Whether ``--device cuda`` belongs to it.
    """

    words: tuple[str, ...]
    seeded: bool = True
    resumes: bool = False
    needs: tuple[str, ...] = ()
    device: bool = False

    def command(self, seeds: int, resume: bool = False) -> list[str]:
        """Return the command's words after ``python``."""
        words = [f"benchmarks/{self.words[0]}.py", *self.words[1:]]
        words += ["--seeds", str(seeds)] if self.seeded else []
        words += ["--device", "cuda"] if self.device else []
        return words + (["--resume"] if resume and self.resumes else [])

    def jobs(self) -> list[str]:
        """Return words that let runs go on side by side, which changes no result."""
        return ["--jobs", str(min(os.cpu_count() or 1, 4))] if self.words[0] in SIDE_BY_SIDE else []

    def missing(self) -> str:
        """Say what of its data is not there; empty if nothing is missing."""
        folder = os.environ.get(DATA_VARIABLE)
        if not self.needs or (folder and any((Path(folder) / name).exists() for name in self.needs)):
            return ""
        return f"{DATA_VARIABLE} names no folder with {self.needs[0]}"


_FASHION, _MNIST = ("FashionMNIST/raw",), ("MNIST/raw",)
_CIFAR = ("cifar-10-batches-py", "CIFAR10/cifar-10-batches-py")


def _images(script: str, resumes: bool = False) -> dict[str, Study]:
    return {
        f"{script}_{data.replace('-', '_')}": Study((script, data), True, resumes, needs, device)
        for data, needs, device in (
            ("fashion-6k", _FASHION, False),
            ("cifar10-6k", _CIFAR, False),
            ("fashion", _FASHION, True),
            ("cifar10", _CIFAR, True),
        )
    }


STUDIES: Mapping[str, Study] = {
    "fptt_tasks_digits": Study(("fptt_tasks", "digits"), resumes=True),
    "fptt_tasks_rows": Study(
        ("fptt_tasks", "rows", "--methods", "BPTT", "ChunkedBackprop", "FPTT"), resumes=True, needs=_MNIST
    ),
    "fptt_adding": Study(("fptt_adding",), resumes=True),
    "fptt_memory": Study(("fptt_memory",), seeded=False),
    "routing_thresholds": Study(("routing_thresholds",), seeded=False),
    "selective_thresholds": Study(("selective_thresholds",), seeded=False),
    "online_abstention": Study(("online_abstention",), seeded=False),
    "blocks_images_digits": Study(("blocks_images", "digits"), resumes=True),
    "selective_images_digits": Study(("selective_images", "digits")),
    "selective_images_fashion_2k": Study(("selective_images", "fashion-2k"), needs=_FASHION),
    "disk_images_digits": Study(("disk_images", "digits")),
    "disk_toy": Study(("disk_toy", "--hidden", "4", "8", "16", "32")),
    "hybrid_digits": Study(("hybrid_digits",)),
    "hybrid_images_fashion_timm": Study(("hybrid_images", "fashion-timm"), needs=_FASHION),
    "hybrid_images_cifar10_timm": Study(("hybrid_images", "cifar10-timm"), needs=_CIFAR),
    "compression_digits": Study(("compression", "digits"), resumes=True),
    "compression_fashion_2k": Study(
        ("compression", "fashion-2k", "--networks", "mobilenetv3_small_050"), resumes=True, needs=_FASHION
    ),
    **_images("blocks_images", resumes=True),
    **_images("selective_images"),
    **_images("disk_images"),
    **_images("hybrid_images"),
}


def reproduces(name: str, seeds: int) -> str:
    """Return the command line that makes a study's JSON anew, as one types it."""
    study = STUDIES[name]
    data = [f"{DATA_VARIABLE}=FOLDER"] if study.needs else []
    return " ".join([*data, shlex.join(["python", *study.command(seeds)])])


def saved(name: str, folder: Path) -> dict[str, Any] | None:
    """Return a study's record, or None where there is none that can be read."""
    try:
        record: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return record


def seeds_of(name: str, claims: Sequence[Claim], folder: Path) -> int:
    """Return of how many seeds all rows of a study are; 0 where one cannot be read."""
    record = saved(name, folder)
    if record is None:
        return 0
    try:
        return min(len(claim.read(record).method) for claim in claims if claim.study == name)
    except (ValueError, LookupError, TypeError, ZeroDivisionError):
        return 0


def is_done(name: str, claims: Sequence[Claim], folder: Path, seeds: int) -> bool:
    """Return whether what is on disk is of enough seeds; the page says of which version each study is."""
    found = seeds_of(name, claims, folder)
    return found >= seeds or (found > 0 and not STUDIES[name].seeded)


def run(name: str, seeds: int, again: bool) -> str:
    """Run a study's command; return how it failed, empty if it did not."""
    study = STUDIES[name]
    if reason := study.missing():
        return reason
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile("w+") as output:
        script, *words = [*study.command(seeds, resume=not again), *study.jobs()]
        command = [sys.executable, str(FOLDER.parent / script), *words]
        environment = dict(os.environ)
        if folder := environment.get(DATA_VARIABLE):
            environment[DATA_VARIABLE] = str(Path(folder).resolve())
        # callbacks leave pictures where a study runs
        child = subprocess.Popen(command, cwd=scratch, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            status = child.wait()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
        output.seek(0)
        lines = [line for line in output.read().splitlines() if line.strip()]
    return f"exit status {status}: {lines[-1] if lines else 'it printed nothing'}" if status else ""
