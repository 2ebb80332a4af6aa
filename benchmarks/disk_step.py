"""What a training step of DiSK costs beside plain distillation, in time and memory, and what a teacher's cache saves.

A step is all of it: teacher, student, loss, backward pass, optimiser (SGD with momentum) on one batch that is there
already; no Trainer. Every variant has a student of its own and all share one teacher. CE has no teacher. In the guide's
phase the student runs without gradients; a joint step trains both. Guides look at the teacher's features, one at its
last map but one. Stored outputs come from disk by the keys of the samples, in place of the teacher.

Memory is what a step needs at once beyond weights, momentum and batch: every tensor from the operator that makes it
until it is freed, gradients among them, the same on every run; scratch space inside an operator does not show. With
``--device cuda`` it is what the allocator handed out. A large teacher's forward pass may set the peak; the variants
with stored outputs show what the objectives need beside it.

Goal: a step in which a DiSK student learns, in its own phase or jointly with a guide on the teacher's features, takes
at most 1.15 times as long as one of plain distillation. One thread; processor time, and on a GPU time on the clock.
Writes ``results/disk_step.json``.

Run: ``python benchmarks/disk_step.py [--device cpu|cuda] [--batch N] [--rounds N]``
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from harness import device_name, paired, ratio, save, table
from torch import Tensor, nn

from lightning_efficient.functional.phases import Phase
from lightning_efficient.losses.guided import GuidedDistillation
from lightning_efficient.losses.objectives import Objective, build_objective, views_needed
from lightning_efficient.modules._cached_teacher import CachedTeacher
from lightning_efficient.nn.backbones import create_backbone
from lightning_efficient.nn.teacher import Teacher
from lightning_efficient.nn.views import ModelViews, ViewTap
from lightning_efficient.profiling.memory import LiveTensors

TEACHER, STUDENT, CLASSES = "cifar_resnet10_l", "cifar_resnet10_s", 100
MAP_INDEX, MAP_WIDTH = -2, 256
TRAIN_SIZE = 50_000
GOAL = 1.15


class Variant(NamedTuple):
    """What a step learns from, who learns, and whether the teacher's outputs are read from disk."""

    objective: Objective
    phase: Phase = "joint"
    guide: str = "teacher_features"
    stored: bool = False


CE, KD, DKD, SCAFFOLDED, GUIDE, JOINT = "CE", "KD", "DKD", "DiSK student", "DiSK guide", "DiSK joint"
ON_A_MAP, KD_STORED, JOINT_STORED = "DiSK joint, map", "KD, stored", "DiSK joint, stored"
VARIANTS: Mapping[str, Variant] = {
    CE: Variant("ce"),
    KD: Variant("kd"),
    DKD: Variant("dkd"),
    SCAFFOLDED: Variant("disk", phase="student"),
    GUIDE: Variant("disk", phase="guide"),
    JOINT: Variant("disk"),
    ON_A_MAP: Variant("disk", guide="teacher_map"),
    KD_STORED: Variant("kd", stored=True),
    JOINT_STORED: Variant("disk", stored=True),
}
HELD_TO_THE_GOAL = (SCAFFOLDED, JOINT)
WEIGHED = (CE, KD, SCAFFOLDED, JOINT, KD_STORED, JOINT_STORED)
GAINS = {KD_STORED: KD, JOINT_STORED: JOINT}


class Step:
    """A training step of a variant, called without arguments; on a GPU it waits for the device."""

    def __init__(
        self, variant: Variant, teacher_network: nn.Module, batch: tuple[Tensor, Tensor, Tensor], folder: Path
    ) -> None:
        torch.manual_seed(0)
        self.inputs, self.target, self.keys = batch
        self.phase = variant.phase
        needs = views_needed(variant.objective, variant.guide)
        self.student = create_backbone(STUDENT, num_classes=CLASSES)
        self.tap = ViewTap(self.student)
        self.teacher: Teacher | None = None
        if "teacher" in needs:
            seen = {"features": "teacher_features" in needs, "feature_map": "teacher_map" in needs}
            self.teacher = Teacher(teacher_network, **seen, map_index=MAP_INDEX)
        self.objective = build_objective(
            variant.objective,
            {},
            self.tap,
            None if self.teacher is None else self.teacher.tap,
            CLASSES,
            variant.guide,
            {"width": MAP_WIDTH} if variant.guide == "teacher_map" else None,
        )
        if isinstance(self.objective, GuidedDistillation):
            self.objective.phase = self.phase
        self.student.to(self.inputs.device)
        self.objective.to(self.inputs.device)
        learning = [*self.student.parameters(), *self.objective.parameters()]
        self.optimizer = torch.optim.SGD(learning, lr=0.01, momentum=0.9)
        self.cache: CachedTeacher | None = None
        if variant.stored and self.teacher is not None:
            self.cache = CachedTeacher(self.teacher, str(folder), training_images(), "32-true")
            self.ask_teacher()

    def __call__(self) -> None:
        teacher = self.ask_teacher()
        learns = self.phase != "guide"
        if self.student.training != learns:
            self.student.train(learns)
        with torch.set_grad_enabled(learns):
            student = self.tap(self.inputs)
        self.objective(student, teacher, self.target).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.inputs.is_cuda:
            torch.cuda.synchronize()

    def ask_teacher(self) -> ModelViews | None:
        if self.teacher is None:
            return None
        return self.teacher(self.inputs) if self.cache is None else self.cache(self.inputs, self.keys)

    def peak(self) -> int:
        """Return the bytes that a step needs at once beyond what stays: weights, momentum, batch."""
        self()
        if self.inputs.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self()
            return torch.cuda.max_memory_allocated() - before
        momentum = [value for state in self.optimizer.state.values() for value in state.values()]
        networks = [self.student, self.objective, *([] if self.teacher is None else [self.teacher.network])]
        weights = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
        kept = [*weights, *(x for x in momentum if isinstance(x, Tensor)), self.inputs, self.target, self.keys]
        live = LiveTensors(kept)
        before = live.peak
        with live:
            self()
        return live.peak - before


def training_images() -> SimpleNamespace:
    """Return what a cache asks of a data module."""
    return SimpleNamespace(
        sample_keys=False, augments_training=False, train_size=TRAIN_SIZE, train_fingerprint=lambda: "noise"
    )


def steps(batch_size: int, device: str, folder: Path) -> dict[str, Step]:
    torch.manual_seed(0)
    network = create_backbone(TEACHER, num_classes=CLASSES).to(device)
    inputs = torch.randn(batch_size, 3, 32, 32, device=device)
    target = torch.randint(CLASSES, (batch_size,), device=device)
    batch = inputs, target, torch.randperm(TRAIN_SIZE)[:batch_size]
    return {name: Step(variant, network, batch, folder) for name, variant in VARIANTS.items()}


def times(ready: Mapping[str, Step], rounds: int, now: Callable[[], float]) -> dict[str, list[float]]:
    """Time each step in turns; processor time does not count whoever shares the machine."""
    seconds: dict[str, list[float]] = {name: [] for name in ready}

    def clocked(name: str) -> Callable[[], None]:
        def once() -> None:
            start = now()
            ready[name]()
            seconds[name].append(now() - start)

        return once

    paired({name: clocked(name) for name in ready}, rounds, warmup=2)
    return {name: values[-rounds:] for name, values in seconds.items()}


def measured(batch_size: int, rounds: int, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        ready = steps(batch_size, device, Path(folder))
        seconds = times(ready, rounds, perf_counter if device == "cuda" else process_time)
        peaks = {name: ready[name].peak() for name in WEIGHED}
    over_kd = {name: ratio(seconds, name, KD) for name in VARIANTS if name != KD}
    return {
        "teacher": TEACHER,
        "student": STUDENT,
        "classes": CLASSES,
        "batch_size": batch_size,
        "device": device_name(device),
        "rounds": rounds,
        "goal": GOAL,
        "reached": {name: over_kd[name]["median"] <= GOAL for name in HELD_TO_THE_GOAL},
        "over_kd": over_kd,
        "asking_the_teacher_over_stored": {name: ratio(seconds, asked, name) for name, asked in GAINS.items()},
        "peak_bytes": peaks,
        "peak_over_kd": {name: peak / peaks[KD] for name, peak in peaks.items()},
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = measured(arguments.batch, arguments.rounds, arguments.device)
    report(record)
    save("disk_step" if arguments.device == "cpu" else "disk_step_cuda", record, script="disk_step")


def report(record: Mapping[str, Any]) -> None:
    rows = []
    for name, values in record["seconds"].items():
        over = interval(record["over_kd"][name]) if name in record["over_kd"] else ""
        verdict = {True: "reached", False: "MISSED", None: ""}[record["reached"].get(name)]
        peak = f"{record['peak_bytes'][name] / 1e6:.1f}" if name in record["peak_bytes"] else ""
        rows.append([name, f"{1000 * statistics.median(values):.2f}", over, verdict, peak])
    title = "A step, {teacher} to {student}, batch {batch_size}, {device}, {rounds} rounds".format(**record)
    table(title, ["", "ms", "times KD", f"goal {record['goal']}", "peak, MB"], rows)
    rows = [[name, interval(found)] for name, found in record["asking_the_teacher_over_stored"].items()]
    table("How much faster than with the teacher", ["", "times"], rows)


def interval(found: Mapping[str, float]) -> str:
    return "{median:.3f} ({low:.3f} to {high:.3f})".format(**found)


if __name__ == "__main__":
    main()
