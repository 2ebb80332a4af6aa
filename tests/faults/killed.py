"""Runs that are killed again and again, and what is left of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lightning_efficient.nn.networks import as_network

HERE = Path(__file__).parent
CASES = yaml.safe_load((HERE / "tiny_cases.yaml").read_text(encoding="utf-8"))
PLACES = ("step", "backward", "optimizer", "batch_end", "validation", "epoch_end", "dump", "write", "rename", "remove")
"""Where :class:`faults.SignalAt` can kill."""
STEPS = 15
KILLED = (-9, -25)
"""By SIGKILL, and by the kernel when a file grows beyond what it may."""
NOT_THE_SAME = ("ModelCheckpoint", "loops")
"""Where files are, which is another folder after each resume; and how often Lightning began what it had to repeat."""


def options_of(case: str, folder: Path) -> list[str]:
    """Write the config of a case into a folder, and the files that it reads, and return the options."""
    if case == "quantized":
        pytest.importorskip("torchao")
    folder.mkdir(exist_ok=True)
    config = folder / "case.yaml"
    config.write_text(yaml.safe_dump(CASES[case]), encoding="utf-8")
    if case == "scaffolded":
        torch.manual_seed(1)
        teacher = as_network("cifar_resnet10_xxxs", "teacher", num_classes=10, in_chans=1)
        torch.save(teacher.state_dict(), folder / "teacher.pt")
    if case == "language":
        words = [f"w{i * i % 11}" for i in range(204)]
        for part in ("train", "valid", "test"):
            (folder / f"wiki.{part}.tokens").write_text(" ".join(words), encoding="utf-8")
    return ["--config", str(HERE / "tiny_killed.yaml"), "--config", str(config)]


@dataclass(frozen=True)
class Point:
    """Where a run is killed."""

    step: int
    place: str
    share: float
    """Of the bytes of a checkpoint, for ``write``."""

    def options(self, size: int) -> tuple[str, ...]:
        values = {"step": self.step, "place": self.place, "written": int(self.share * size)}
        named = (f"--trainer.callbacks.{name}={value}" for name, value in values.items())
        return "--trainer.callbacks+=faults.SignalAt", *named


def points(seed: str, number: int) -> list[Point]:
    """Draw where to kill, in the order of the steps; ten points are in ten places."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(STEPS), number))
    return [Point(step, place, draw.random()) for step, place in zip(steps, draw.sample(PLACES, number), strict=True)]


@dataclass
class Chain:
    """A run that is killed, and resumed as its user would, until it is through."""

    fit: Callable[..., Any]
    folder: Path
    options: Sequence[str]
    size: int
    deaths: list[str] = field(default_factory=list)

    @classmethod
    def begun(cls, fit: Callable[..., Any], folder: Path, case: str, size: int) -> Chain:
        """Begin one in a folder that is not there yet; ``size`` is that of a checkpoint in bytes."""
        return cls(fit, folder, options_of(case, folder), size)

    def kill(self, point: Point) -> bool:
        """Go on until a point, and tell whether the run was killed there; it may have been through before."""
        finished = self.fit(*self.options, *point.options(self.size), *self._resume(), folder=self.folder)
        assert finished.status in (0, *KILLED), (self.deaths, point, finished.stderr)
        self.deaths += [f"{point}: {finished.status}"]
        for path in self.folder.rglob("*.ckpt"):
            load(path)  # none is half written
        return finished.status != 0

    def finish(self) -> None:
        finished = self.fit(*self.options, *self._resume(), folder=self.folder)
        assert finished.status == 0, (self.deaths, finished.stderr)

    def end(self) -> dict[str, Any]:
        return load(self._last())

    def _last(self) -> Path | None:
        found = self.folder.rglob("last.ckpt")
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    def _resume(self) -> tuple[str, ...]:
        """Every other time from the last epoch, by its word, else from the newest file; anew where there is none."""
        if len(self.deaths) % 2 and self._last():
            return "--ckpt_path", "last"
        newest = max(self.folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
        return ("--ckpt_path", str(newest)) if newest else ()


def load(path: Path | None) -> dict[str, Any]:
    assert path is not None, "no checkpoint"
    return torch.load(path, weights_only=True)


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Name the entries of two checkpoints that are not the same in every bit."""
    if type(one) is not type(other):
        return [place]
    if isinstance(one, dict):
        if [*one] != [*other]:
            return [f"{place}: {[*one]} and {[*other]}"]
        keys = [key for key in one if not str(key).startswith(NOT_THE_SAME)]
        return [each for key in keys for each in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [place]
        return [
            each
            for index, pair in enumerate(zip(one, other, strict=True))
            for each in differences(*pair, f"{place}/{index}")
        ]
    if isinstance(one, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype
        return [] if same and one.numpy().tobytes() == other.numpy().tobytes() else [place]
    return [] if one == other or (one != one and other != other) else [f"{place}: {one} and {other}"]
