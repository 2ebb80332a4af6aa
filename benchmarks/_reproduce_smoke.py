"""The studies behind the table of results at toy size, in this process: does every row still come out finite?

Each function runs the functions of a study with smaller constants and saves a record of the same form. A process that
has run one must not be used for a study at its full size.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any


class InProcess:
    """Stands in for a pool of processes: each call is run at once, here."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:  # as a pool does: who asks for the result gets it
            future.set_exception(error)
        return future


def sequences(seeds: int) -> None:
    import fptt_tasks as study
    import harness

    from lightning_efficient.datamodules import SequentialImages

    task = study.Task(lambda: SequentialImages("Digits", steps="rows", train_samples=128), parts=2, epochs=1, hidden=8)
    wanted = [("lstm", "BPTT"), ("lstm", "ChunkedBackprop"), ("lstm", "FPTT"), ("irnn", "BPTT"), ("tarnn", "BPTT")]
    runs: dict[str, Any] = {}
    for network, method in wanted:
        found = {str(seed): study.run(task, network, method, seed) for seed in range(seeds)}
        runs.setdefault(network, {})[method] = found
    harness.save("fptt_tasks_digits", {"runs": runs}, script="fptt_tasks")


def adding(seeds: int) -> None:
    import fptt_adding as study
    import harness

    most = {10: 20, 20: 20}
    runs = {
        str(length): {
            method: {str(seed): study.run(method, length, seed, batches) for seed in range(seeds)}
            for method in study.METHODS
        }
        for length, batches in most.items()
    }
    harness.save("fptt_adding", {"most_batches": most, "runs": runs})


def memory(seeds: int) -> None:
    import fptt_memory as study
    import harness

    study.LENGTHS, study.HIDDEN, study.BATCH = (1_000,), 8, 2
    harness.save("fptt_memory", {"peak_bytes": study.peaks("cpu")})


def blocks(seeds: int) -> None:
    import blocks_images as study

    study.RATES, study.ROUNDS, study.ProcessPoolExecutor = study.RATES[:1], 1, InProcess
    task = replace(study.TASKS["digits"], layers=(2, 2, 2, 2), widths=(4, 8, 8, 8), epochs=1, batch=512)
    wanted = [
        "base",
        "Global, K=1",
        "condensed, depthwise",
        "narrow as Global",
        "interpolated",
        "narrow as interpolated",
    ]
    for name in set(study.VARIANTS) - set(wanted):
        del study.VARIANTS[name]
    study.study("digits", seeds, "cpu", 1, wanted, task)


def selective(seeds: int) -> None:
    import selective_images as study

    study.ProcessPoolExecutor = InProcess
    study.TASKS["digits"] = replace(study.TASKS["digits"], backbone="cifar_resnet10_xxxs", epochs=2, batch=256)
    study.METHODS = {method: grid[:1] for method, grid in study.METHODS.items()}
    study.study("digits", seeds, "cpu", 1, tuple(study.METHODS))


def distilled(seeds: int) -> None:
    import disk_images as study

    study.ProcessPoolExecutor = InProcess
    tiny = "cifar_resnet10_xxxs"
    task = replace(
        study.TASKS["digits"], teacher=tiny, student=tiny, teacher_epochs=1, warm_epochs=1, epochs=1, batch=512
    )
    study.METHODS = {method: study.METHODS[method][:1] for method in ("CE", "KD", "DiSK")}
    study.study("digits", seeds, "cpu", 1, task, tuple(study.METHODS))


def distilled_toy(seeds: int) -> None:
    import disk_toy as study
    import harness

    study.TEACHER_STEPS, study.WARM_STEPS, study.STEPS = 20, 10, 20
    study.KD_GRID, study.DKD_GRID, study.HELP_GRID = study.KD_GRID[:1], study.DKD_GRID[:1], study.HELP_GRID[:1]
    tasks = [study.prepare(seed) for seed in range(seeds)]
    runs = {
        str(hidden): {str(task.seed): {"methods": study.compare(task, hidden)} for task in tasks} for hidden in (4, 8)
    }
    harness.save("disk_toy", {"runs": runs})


def routed(seeds: int) -> None:
    import digit_scenarios
    import hybrid_digits as study

    study.ROUTER_EPOCHS, study.EXTRA_EPOCHS = 1, {"base": 1, "global": 1}
    digit_scenarios.COPIES.update(router=1, calibration=1, test=1)
    study.run = partial(study.run, sizes={"copies": 1, "epochs": {"base": 1, "global": 1}})
    study.study(list(study.SCENARIOS), seeds)


def routing_promises(seeds: int) -> None:
    import harness
    import routing_thresholds as study

    study.SETTINGS, study.PILOT = ((300, 0.05), (600, 0.05)), 200
    size = study.Size(copies=2, train_copies=1, epochs=1, parts={"train": 300, "test": 100})
    harness.save("routing_thresholds", study.study(study.population(0, size), 10, 0))


def promises(seeds: int) -> None:
    import harness
    import selective_thresholds as study

    study.TARGETS = (0.05,)
    harness.save("selective_thresholds", study.study(10, [300]))


def online(seeds: int) -> None:
    import harness
    import online_abstention as study

    study.LENGTHS, study.TOLERANCES, study.TOLERANCE_LENGTH = (50, 100), (0.01,), 50
    harness.save("online_abstention", study.study(seeds))


def compressed(seeds: int) -> None:
    import compression as study
    import harness

    task = replace(study.TASKS["digits"], side=16, epochs=1, more_epochs=1, batch=512)
    runs = {
        name: {str(seed): study.run(task, "test_resnet", seed) for seed in range(seeds)} for name in study.NETWORKS[:1]
    }
    # the form of the record is what is looked at: one small network stands for both
    runs = dict.fromkeys(study.NETWORKS, runs[study.NETWORKS[0]])
    harness.save("compression_digits", {"runs": runs}, script="compression")


TOYS: Mapping[str, Callable[[int], None]] = {
    "compression_digits": compressed,
    "selective_images_digits": selective,
    "hybrid_digits": routed,
    "blocks_images_digits": blocks,
    "disk_images_digits": distilled,
    "fptt_tasks_digits": sequences,
    "disk_toy": distilled_toy,
    "fptt_adding": adding,
    "fptt_memory": memory,
    "routing_thresholds": routing_promises,
    "selective_thresholds": promises,
    "online_abstention": online,
}
"""By the study's JSON, the longest first."""


def prepare(folder: Path) -> None:
    """Make a process write into a folder, quietly, on one thread."""
    import harness
    import torch

    harness.RESULTS = folder
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def toy(name: str, seeds: int, folder: Path) -> float:
    """Run a study at toy size, and return its seconds; raises what it raises."""
    before = perf_counter()
    quiet = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))
    # callbacks leave pictures where a study runs
    with quiet[0], quiet[1], contextlib.chdir(folder):
        for module in modules_of(name):
            module.RESULTS = folder
        TOYS[name](seeds)
    return perf_counter() - before


def modules_of(name: str) -> list[ModuleType]:
    """Return the study's module if it keeps the folder of results under a name of its own."""
    import importlib

    from _reproduce_studies import STUDIES

    module = importlib.import_module(STUDIES[name].words[0])
    return [module] if hasattr(module, "RESULTS") else []
