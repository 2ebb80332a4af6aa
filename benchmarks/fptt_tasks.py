"""Accuracy of lstm, gru, irnn and tarnn on real sequences, by plain back-propagation, in parts, and with FPTT.

Per data set, network, method and seed one run on a Trainer with Adam, clipped gradients and a fixed number of epochs,
the same for all methods of a data set. Reported is the accuracy on the test part after the last epoch: no epoch, rate
or option is chosen by looking at it. "No reset" leaves out what the released code does at the end of each epoch, to
go on from the running mean. ``digits``: scikit-learn's, 64 steps of one pixel. ``rows``: MNIST by rows. ``har``: nine
channels of a smartphone, official split by subject. ``speech``: log-mel frames of spoken commands. All but digits
read the folder that ``LIGHTNING_EFFICIENT_DATA`` names, on as many training samples as the table below says. One
thread. Writes ``results/fptt_tasks_<name>.json`` after every run.

Run: ``LIGHTNING_EFFICIENT_DATA=FOLDER python benchmarks/fptt_tasks.py digits [--seeds N] [--networks lstm gru]``
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from harness import resumed, save, table
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything

from lightning_efficient.callbacks import FPTT, ChunkedBackprop
from lightning_efficient.datamodules import HumanActivity, SequentialImages, SpokenCommands
from lightning_efficient.modules import SequenceClassifier

DATA_VARIABLE = "LIGHTNING_EFFICIENT_DATA"


def folder(*parts: str) -> str:
    return str(Path(os.environ.get(DATA_VARIABLE, "data"), *parts))


@dataclass(frozen=True)
class Task:
    """A data set and how to train on it."""

    data: Callable[[], LightningDataModule]
    parts: int
    epochs: int
    hidden: int = 64
    rate: float = 2e-3


NETWORKS: Mapping[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {},
    "irnn": {"activation": "tanh", "inner_steps": 3, "step_size": 0.9},
    "tarnn": {"activation": "tanh", "step_size": 1.0, "gate": "inside"},
}
"""What ``irnn`` and ``tarnn`` use is the best of a few settings by validation accuracy on digits, seed 0."""

TASKS = {
    "digits": Task(lambda: SequentialImages("Digits"), parts=8, epochs=25),
    "rows": Task(lambda: SequentialImages("MNIST", root=folder(), steps="rows", train_samples=10_000), 7, 5),
    "har": Task(lambda: HumanActivity(folder("UCI_HAR")), parts=8, epochs=5),
    "speech": Task(lambda: SpokenCommands(folder("speech_commands_test")), parts=9, epochs=20),
}
METHODS: Mapping[str, Callable[[int], list[Callback]]] = {
    "BPTT": lambda parts: [],
    "ChunkedBackprop": lambda parts: [ChunkedBackprop(parts)],
    "FPTT": lambda parts: [FPTT(parts)],
    "FPTT, no reset": lambda parts: [FPTT(parts, reset="never")],
}


def run(task: Task, network: str, method: str, seed: int) -> dict[str, Any]:
    seed_everything(seed, verbose=False)
    data = task.data()
    module = SequenceClassifier(
        input_size=data.input_size, num_classes=data.num_classes, rnn=network, hidden_size=task.hidden,
        rnn_kwargs=NETWORKS[network], optimizer=partial(torch.optim.Adam, lr=task.rate),
    )  # fmt: skip
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    engine = Trainer(
        max_epochs=task.epochs, accelerator="cpu", devices=1, gradient_clip_val=1.0, num_sanity_val_steps=0,
        enable_checkpointing=False, callbacks=METHODS[method](task.parts), **quiet
    )  # fmt: skip
    start = process_time()
    engine.fit(module, datamodule=data)
    seconds = process_time() - start
    validation = float(engine.callback_metrics["val/accuracy"])
    [tested] = engine.test(module, datamodule=data, verbose=False)
    return {
        "test_accuracy": tested["test/accuracy"],
        "val_accuracy": validation,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "cpu_seconds": seconds,
    }


def report(name: str, record: Mapping[str, Any]) -> None:
    rows = []
    for network, methods in record["runs"].items():
        for method, seeds in methods.items():
            found = [100 * each["test_accuracy"] for each in seeds.values()]
            spread = f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"
            seconds = statistics.mean(each["cpu_seconds"] for each in seeds.values())
            rows.append(
                [f"{network} {method}", spread, f"{next(iter(seeds.values()))['parameters']:,}", f"{seconds:.0f}"]
            )
    table(f"{name}: test accuracy, %", ["", "mean (range)", "parameters", "CPU s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=["lstm", "gru", "irnn", "tarnn"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--resume", action="store_true", help="keep the seeds that were saved with these settings")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    task = TASKS[arguments.task]
    settings = {
        "task": arguments.task,
        "parts": task.parts,
        "epochs": task.epochs,
        "hidden_size": task.hidden,
        "learning_rate": task.rate,
        "networks": dict(NETWORKS),
    }
    before = resumed(f"fptt_tasks_{arguments.task}", settings) if arguments.resume else {}
    record: dict[str, Any] = {**settings, "runs": {}, **before}
    for seed in range(arguments.seeds):
        for network in arguments.networks:
            for method in arguments.methods:
                found = record["runs"].setdefault(network, {}).setdefault(method, {})
                if str(seed) in found:
                    continue
                found[str(seed)] = run(task, network, method, seed)
                save(f"fptt_tasks_{arguments.task}", record, script="fptt_tasks")
        report(arguments.task, record)


if __name__ == "__main__":
    main()
