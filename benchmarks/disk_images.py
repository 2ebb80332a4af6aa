"""Distil tiny residual networks on real images: cross-entropy, KD, DKD, and DiSK with a learned or a constant guide.

One teacher per task, trained with cross-entropy. Each student is trained with cross-entropy first, then each method
goes on from that very start for the same number of epochs with the same optimiser: AdamW, whose steps do not grow with
the scale of a loss (T² makes those of KD and DiSK differ by up to 16 times), and a cosine over the run. DiSK updates
student and guide together in each step, so that all methods take the same steps of the student. Options are chosen by
validation accuracy on a seed of their own (100), not used for the results. Reported is the test accuracy after the last
epoch; no epoch is chosen by looking at it. Images are kept on the device, with random shifts and, except for digits,
flips. ``digits`` are scikit-learn's; ``fashion`` (FashionMNIST) and ``cifar10`` read the folder that
``LIGHTNING_EFFICIENT_DATA`` names; ``fashion-6k`` and ``cifar10-6k`` train on 6,000 of their images, for CPUs. With
``--jobs N`` so many runs go on at the same time, which makes their times depend on each other, not their accuracies;
times are therefore not reported. Writes ``results/disk_images_<task>.json`` after every run.

Run: ``LIGHTNING_EFFICIENT_DATA=FOLDER python benchmarks/disk_images.py cifar10 --device cuda --jobs 8``
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, command_line, device_name, save, table
from images import OnDevice, quiet_trainer, settle
from lightning.pytorch import Callback, Trainer

from lightning_efficient.callbacks.guide_schedule import GuideSchedule
from lightning_efficient.functional.schedules import CosineSchedule
from lightning_efficient.modules.distiller import Distiller

SELECTION_SEED = 100


@dataclass(frozen=True)
class Task:
    """A data set, a pair of networks, and how long to train."""

    data: str
    teacher: str
    student: str
    channels: int
    teacher_epochs: int
    warm_epochs: int
    epochs: int
    batch: int
    shift: int
    flips: bool
    samples: int | None = None
    rate: float = 5e-3


TASKS = {
    "digits": Task("Digits", "cifar_resnet10_m", "cifar_resnet10_xxxs", 1, 30, 5, 30, 64, 1, False),
    "fashion": Task("FashionMNIST", "cifar_resnet10_l", "cifar_resnet10_xxs", 1, 20, 5, 20, 256, 2, True),
    "cifar10": Task("CIFAR10", "cifar_resnet10_l", "cifar_resnet10_xxs", 3, 30, 5, 30, 256, 4, True),
    "fashion-6k": Task("FashionMNIST", "cifar_resnet10_m", "cifar_resnet10_xxs", 1, 15, 3, 12, 128, 2, True, 6_000),
    "cifar10-6k": Task("CIFAR10", "cifar_resnet10_m", "cifar_resnet10_xxs", 3, 20, 3, 12, 128, 4, True, 6_000),
}
_ONE = {"student_temperature": 1.0, "teacher_temperature": 1.0}
METHODS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "CE": [{"objective": "ce"}],
    "KD": [{"objective": "kd", "objective_kwargs": {"temperature": one}} for one in (1.0, 2.0, 4.0)],
    "DKD": [
        {"objective": "dkd", "objective_kwargs": {"temperature": one, "other_weight": weight}}
        for one, weight in ((4.0, 8.0), (2.0, 1.0))
    ],
    "DiSK": [
        {"objective": "disk", "objective_kwargs": {"top_k": top_k, **temperatures}}
        for top_k in (3, 10)
        for temperatures in (_ONE, {})
    ],
    "DiSK, no normaliser": [
        {"objective": "disk", "objective_kwargs": {"top_k": top_k, "normalizer": False, **_ONE}} for top_k in (3, 10)
    ],
    "DiSK, constant guide": [
        {"objective": "disk", "guide": help, "objective_kwargs": {"top_k": 10, **_ONE}} for help in (0.05, 0.2)
    ],
}
"""Each method with the options that are tried for it."""


def train(
    task: Task,
    network: str,
    options: Mapping[str, Any],
    epochs: int,
    seed: int,
    device: str,
    folder: Path,
    start: str | None = None,
    keep: str | None = None,
) -> dict[str, Any]:
    """Train a network with a method, and return its accuracies."""
    settle(seed)
    data = OnDevice(task, seed, device)
    steps = epochs * len(data.train_dataloader())
    module = Distiller(
        network,
        None if options["objective"] == "ce" else task.teacher,
        num_classes=10,
        in_chans=task.channels,
        teacher_checkpoint=None if options["objective"] == "ce" else str(folder / "teacher.pt"),
        student_checkpoint=None if start is None else str(folder / start),
        optimizer=partial(torch.optim.AdamW, lr=task.rate, weight_decay=0.01),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
        lr_interval="step",
        **options,
    )
    module.data_config = {}  # the images are normalised here, alike for both networks
    callbacks: list[Callback] = []
    if options["objective"] == "disk":
        schedules = {"multiplier": CosineSchedule(1, 5, cycles=4), "budget": CosineSchedule(0.6, 0.4, 10, 0.9)}
        callbacks.append(GuideSchedule(**schedules))
    engine = quiet_trainer(epochs, device, check_val_every_n_epoch=epochs, callbacks=callbacks)
    engine.fit(module, datamodule=data)
    found = {key: float(engine.callback_metrics[key]) for key in ("val/accuracy", *guide_keys(engine))}
    [tested] = engine.test(module, datamodule=data, verbose=False)
    if keep is not None:
        module.export_student(str(folder / keep))
    if not math.isfinite(tested["test/loss"]):
        raise RuntimeError(f"{network} with {options} diverged")
    return {"options": dict(options), **found, "test/accuracy": tested["test/accuracy"]}


def guide_keys(engine: Trainer) -> list[str]:
    return [key for key in engine.callback_metrics if key in ("guide/mean", "guide/help_cost", "guide/budget")]


def report(name: str, record: Mapping[str, Any]) -> None:
    """Print a row per method, with the difference from KD seed by seed."""
    rows = []
    runs = record["runs"]
    for method, seeds in runs.items():
        found = [100 * each["test/accuracy"] for each in seeds.values()]
        ahead = (
            [100 * (each["test/accuracy"] - runs["KD"][seed]["test/accuracy"]) for seed, each in seeds.items()]
            if "KD" in runs
            else []
        )
        spread = f"{statistics.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        rows.append([method, spread, f"{statistics.mean(ahead):+.2f}", sum(one > 0 for one in ahead)])
    title = f"{name}: {record['task']['teacher']} ({100 * record['teacher']['test/accuracy']:.2f} %) to "
    title += f"{record['task']['student']} ({100 * record['warm']:.2f} % at the start), test accuracy, %"
    table(title, ["", "mean (range)", "over KD", f"seeds above KD, of {len(runs['CE'])}"], rows)


def study(
    name: str, seeds: int, device: str, jobs: int, task: Task | None = None, methods: Sequence[str] = tuple(METHODS)
) -> dict[str, Any]:
    """Run a task, and save what there is after each run; methods that are left out stay as they were saved."""
    task = task or TASKS[name]
    file = RESULTS / f"disk_images_{name.replace('-', '_')}.json"
    before = json.loads(file.read_text()) if file.exists() and len(methods) < len(METHODS) else {}
    every = [*range(seeds), SELECTION_SEED]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        go = partial(pool.submit, train, task)
        ends = {"device": device, "folder": Path(scratch)}
        ce = METHODS["CE"][0]
        teacher = go(task.teacher, ce, task.teacher_epochs, 0, keep="teacher.pt", **ends)
        warm = [go(task.student, ce, task.warm_epochs, seed, keep=f"{seed}.pt", **ends) for seed in every]
        record: dict[str, Any] = {"task": vars(task), "device": device_name(device), "teacher": teacher.result()}
        record["warm"] = statistics.mean(each.result()["test/accuracy"] for each in warm)

        def runs_of(options: Mapping[str, Any], seed: int) -> Future[dict[str, Any]]:
            return go(task.student, options, task.epochs, seed, start=f"{seed}.pt", **ends)

        tried = {
            method: [runs_of(options, SELECTION_SEED) for options in grid]
            for method, grid in METHODS.items()
            if len(grid) > 1 and method in methods
        }
        selection = {method: [run.result() for run in runs] for method, runs in tried.items()}
        record["selection"] = before.get("selection", {}) | selection
        chosen = {
            method: max(found, key=lambda each: each["val/accuracy"])["options"] for method, found in selection.items()
        }
        final = {
            (method, seed): runs_of(chosen.get(method, grid[0]), seed)
            for seed in range(seeds)
            for method, grid in METHODS.items()
            if method in methods
        }
        record["runs"] = before.get("runs", {}) | {method: {} for method in methods}
        record["commands"] = before.get("commands", {}) | dict.fromkeys(methods, command_line("disk_images"))
        for (method, seed), run in final.items():
            record["runs"][method][str(seed)] = run.result()
            save(f"disk_images_{name.replace('-', '_')}", record, script="disk_images")
    report(name, record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    for name in arguments.tasks:
        study(name, arguments.seeds, arguments.device, arguments.jobs, methods=arguments.methods)


if __name__ == "__main__":
    main()
