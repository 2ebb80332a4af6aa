"""What each callback adds to a training step and to an epoch, against the same Trainer without it.

Steps are those of a module that computes next to nothing, so that the microseconds of a callback show. Lightning itself
takes some for any callback, so one that does nothing is among the variants, and a second bare Trainer tells how much of
a difference is noise. Goal: LatencyProfiler and SelectiveCoverage cost no more than the one that does nothing.

Callbacks that change what a step computes are timed in steps of a real network (a timm classifier, batches of 64 images
of 32 pixels), against the same network without them: pruning of weights and of channels, fake quantisation, a
constraint, and an energy meter with a counter that costs nothing. What FPTT, ChunkedBackprop, DiSK and GuideSchedule
cost is in ``fptt_memory.py`` and ``disk_step.py``, beside the training that they replace.

The epoch is a small real job: a timm classifier trains once through the data and validates, with and without
SelectiveCoverage, whose hooks are also timed by themselves. Goal: under 2 % of the epoch; the figure at the end of the
fit is counted apart. One thread. Writes ``results/callback_overhead.json``.

The data are scikit-learn's digits, or FashionMNIST (6,000 images to train and 6,000 to validate) from the folder that
the environment variable ``LIGHTNING_EFFICIENT_DATA`` names.

Run: ``python benchmarks/callback_overhead.py [--rounds N] [--method-rounds N] [--epoch-rounds N]``
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping
from time import perf_counter, process_time
from typing import Any

import torch
from harness import RESULTS, command_line, environment, paired, quantile, ratio, save, table
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_efficient import Digits, ExactResume, FiniteLoss, ImageClassifier, TorchvisionImages
from lightning_efficient.callbacks import (
    Constraint,
    EnergyMeter,
    GradualPruning,
    LatencyProfiler,
    QuantizationAware,
    SelectiveCoverage,
)
from lightning_efficient.profiling import EnergyReading

DATA_VARIABLE = "LIGHTNING_EFFICIENT_DATA"
BACKBONE = "mobilenetv3_small_050"
PARTS = ("step", "method", "epoch")
BARE, CONTROL, EMPTY = "bare", "bare again", "empty Callback"
STEP_VARIANTS: Mapping[str, Callable[[], list[Callback]]] = {
    BARE: list,
    CONTROL: list,
    EMPTY: lambda: [Callback()],
    "LatencyProfiler": lambda: [LatencyProfiler(min_run_time_s=0.01)],
    "SelectiveCoverage": lambda: [SelectiveCoverage()],
    "FiniteLoss": lambda: [FiniteLoss()],
    "ExactResume": lambda: [ExactResume()],
    "EnergyMeter": lambda: [EnergyMeter(counter=FreeCounter())],
}
SHAPE = (3, 32, 32)
METHOD_VARIANTS: Mapping[str, Callable[[], list[Callback]]] = {
    BARE: list,
    CONTROL: list,
    "EnergyMeter": lambda: [EnergyMeter(counter=FreeCounter())],
    "Constraint": lambda: [Constraint("train/loss", at_most=0.5)],
    "GradualPruning, weights": lambda: [GradualPruning(0.8, rounds=4, input_shape=SHAPE, measure=False)],
    "GradualPruning, first order": lambda: [
        GradualPruning(0.8, rounds=4, saliency="first_order", input_shape=SHAPE, measure=False)
    ],
    "GradualPruning, channels": lambda: [
        GradualPruning(0.5, structure="channels", rounds=4, input_shape=SHAPE, measure=False)
    ],
    "QuantizationAware": lambda: [QuantizationAware(input_shape=SHAPE, measure=False)],
}
FREE = ("LatencyProfiler", "SelectiveCoverage")
EPOCH_GOAL_SHARE = 0.02
AFTER_THE_EPOCH = "on_fit_end"
UNTIMED_STEPS = 20


class FreeCounter:
    """An energy counter that costs nothing to read."""

    def available(self) -> str | None:
        return None

    def begin(self, key: str) -> None:
        pass

    def end(self, key: str) -> EnergyReading:
        return EnergyReading(1.0, 1.0, {"cpu:0": 1.0})


class TinyModule(LightningModule):
    """A module that computes next to nothing and reads the clock at the start of its training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.clock: list[float] = []

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        # processor time: no callback waits for anything, and whoever shares the machine does not count
        self.clock.append(process_time())
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"logits": self(batch[0]), "target": batch[1]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class StepClock(Callback):
    """Processor time at the start of each training step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.times.append(process_time())


class Stopwatch(Callback):
    """Wall-clock seconds of an epoch, validation included."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = -perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += perf_counter()


def timed_hooks(callback: Callback) -> dict[str, float]:
    """Wrap the hooks that a callback overrides; return a mapping that then holds the seconds spent in each."""
    spent: dict[str, float] = {}

    def timed(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            result = hook(*args, **kwargs)
            spent[name] = spent.get(name, 0.0) + perf_counter() - start
            return result

        return call

    for name in vars(type(callback)):
        if name.startswith("on_"):
            setattr(callback, name, timed(name, getattr(callback, name)))
    return spent


def trainer(folder: str, callbacks: list[Callback], **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    shared = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, "default_root_dir": folder}
    return Trainer(callbacks=callbacks, **shared, **quiet, **options)


def batches(count: int) -> DataLoader:
    """Return the same batch again and again, at the least cost."""
    return DataLoader([(torch.ones(4, 4), torch.tensor([0, 1, 0, 1]))] * count, batch_size=None)


def steps(rounds: int, count: int, folder: str) -> dict[str, Any]:
    """Time ``count`` training steps per variant and round; validation is on, since ExactResume asks whether it is."""
    seconds: dict[str, list[float]] = {name: [] for name in STEP_VARIANTS}

    def fit(name: str) -> Callable[[], None]:
        def once() -> None:
            module = TinyModule()
            engine = trainer(folder, STEP_VARIANTS[name](), logger=False)
            engine.fit(module, batches(count + UNTIMED_STEPS + 1), batches(1))
            seconds[name].append((module.clock[-1] - module.clock[UNTIMED_STEPS]) / count)

        return once

    paired({name: fit(name) for name in STEP_VARIANTS}, rounds)
    seconds = {name: values[-rounds:] for name, values in seconds.items()}
    extra = {name: added(seconds[name], seconds[BARE]) for name in STEP_VARIANTS if name != BARE}
    own = {name: added(seconds[name], seconds[EMPTY]) for name in STEP_VARIANTS if name not in (BARE, CONTROL, EMPTY)}
    noise = max(abs(extra[CONTROL]["low"]), abs(extra[CONTROL]["high"]))
    return {
        "rounds": rounds,
        "steps": count,
        "noise_us": noise,
        "reached": {name: own[name]["median"] <= noise for name in FREE},
        "over_bare_us": extra,
        "over_empty_us": own,
        "ratio": {name: ratio(seconds, name, BARE) for name in extra},
        "cpu_seconds_per_step": seconds,
    }


def methods(rounds: int, count: int, folder: str) -> dict[str, Any]:
    """Time ``count`` training steps of a real network per variant and round; the median step of each run counts."""
    seconds: dict[str, list[float]] = {name: [] for name in METHOD_VARIANTS}
    batch = torch.randn(64, *SHAPE), torch.randint(10, (64,))

    def fit(name: str) -> Callable[[], None]:
        def once() -> None:
            seed_everything(0, verbose=False)
            clock, module = StepClock(), ImageClassifier(BACKBONE, num_classes=10)
            engine = trainer(folder, [clock, *METHOD_VARIANTS[name]()], logger=False)
            engine.fit(module, DataLoader([batch] * (count + 1), batch_size=None))
            each = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
            seconds[name].append(statistics.median(each))

        return once

    paired({name: fit(name) for name in METHOD_VARIANTS}, rounds)
    seconds = {name: values[-rounds:] for name, values in seconds.items()}
    return {
        "rounds": rounds,
        "steps": count,
        "model": BACKBONE,
        "ratio": {name: ratio(seconds, name, BARE) for name in METHOD_VARIANTS if name != BARE},
        "cpu_seconds_per_step": seconds,
    }


def added(ours: list[float], bare: list[float]) -> dict[str, float]:
    """Median and the middle 80 % of the microseconds added, round by round."""
    extra = sorted(1e6 * (a - b) for a, b in zip(ours, bare, strict=True))
    return {"median": statistics.median(extra), "low": quantile(extra, 0.1), "high": quantile(extra, 0.9)}


def data() -> LightningDataModule:
    root = os.environ.get(DATA_VARIABLE)
    return TorchvisionImages("FashionMNIST", root=root, train_samples=6000) if root else Digits()


def epochs(rounds: int, folder: str) -> dict[str, Any]:
    """Time whole epochs with and without SelectiveCoverage, and its hooks."""
    seconds: dict[str, list[float]] = {BARE: [], "SelectiveCoverage": []}
    hooks: list[dict[str, float]] = []
    sizes: dict[str, int] = {}

    def fit(name: str) -> Callable[[], None]:
        def once() -> None:
            seed_everything(0, verbose=False)
            callbacks = STEP_VARIANTS[name]()
            hooks.extend(timed_hooks(callback) for callback in callbacks)
            watch, images = Stopwatch(), data()
            engine = trainer(folder, [watch, *callbacks], logger=CSVLogger(folder))
            engine.fit(ImageClassifier(BACKBONE, num_classes=10), datamodule=images)
            seconds[name].append(watch.seconds)
            sizes.update({split: len(images.datasets[split]) for split in ("train", "val")})

        return once

    paired({name: fit(name) for name in seconds}, rounds)
    seconds = {name: values[-rounds:] for name, values in seconds.items()}
    hooks = hooks[-rounds:]
    own = [sum(spent for hook, spent in each.items() if hook != AFTER_THE_EPOCH) for each in hooks]
    share = statistics.median(a / b for a, b in zip(own, seconds["SelectiveCoverage"], strict=True))
    return {
        "rounds": rounds,
        "job": {"model": BACKBONE, "data": type(data()).__name__, "batch_size": data().batch_size, **sizes},
        "goal_share": EPOCH_GOAL_SHARE,
        "reached": share < EPOCH_GOAL_SHARE,
        "own_share": share,
        "own_seconds": own,
        "hook_seconds": {name: statistics.median(each[name] for each in hooks) for name in hooks[0]},
        "ratio": ratio(seconds, "SelectiveCoverage", BARE),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--method-rounds", type=int, default=9)
    parser.add_argument("--method-steps", type=int, default=40)
    parser.add_argument("--epoch-rounds", type=int, default=9)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the others stay as saved")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Callable[[], dict[str, Any]]] = {
            "step": lambda: steps(arguments.rounds, arguments.steps, folder),
            "method": lambda: methods(arguments.method_rounds, arguments.method_steps, folder),
            "epoch": lambda: epochs(arguments.epoch_rounds, folder),
        }
        record = {part: made[part]() for part in arguments.parts}
    report(record)
    if len(record) < len(PARTS):
        before = json.loads((RESULTS / "callback_overhead.json").read_text())
        commands = before.get("commands", dict.fromkeys(PARTS, before["command"]))
        record = {part: found | {"environment": environment()} for part, found in record.items()}
        record = before | record | {"commands": commands | dict.fromkeys(record, command_line("callback_overhead"))}
    save("callback_overhead", record)


def report(record: Mapping[str, Any]) -> None:
    for part, printed in (("step", report_step), ("method", report_method), ("epoch", report_epoch)):
        if part in record:
            printed(record[part])


def report_step(found: Mapping[str, Any]) -> None:
    rows = []
    for name, values in found["cpu_seconds_per_step"].items():
        times_bare = interval(found["ratio"][name], 3) if name in found["ratio"] else ""
        own = interval(found["over_empty_us"][name], 1) if name in found["over_empty_us"] else ""
        goal = verdict(found["reached"][name]) if name in FREE else ""
        rows.append([name, f"{1e6 * statistics.median(values):.1f}", times_bare, own, goal])
    goal = f"goal of {' and '.join(FREE)}: nothing over an empty one, within the noise of {found['noise_us']:.1f} µs"
    title = f"A training step, {found['rounds']} rounds of {found['steps']} steps\n{goal}"
    table(title, ["", "CPU µs", "times bare", "µs over empty", "goal"], rows)


def report_method(found: Mapping[str, Any]) -> None:
    rows = [
        [name, f"{1e3 * statistics.median(values):.1f}", interval(found["ratio"][name], 3) if name != BARE else ""]
        for name, values in found["cpu_seconds_per_step"].items()
    ]
    title = f"A training step of {found['model']}, batch 64, {found['rounds']} rounds of {found['steps']} steps"
    table(title, ["", "CPU ms", "times bare"], rows)


def report_epoch(found: Mapping[str, Any]) -> None:
    job = "{model}, {data}, {train} to train, {val} to validate, batch {batch_size}".format(**found["job"])
    title = f"SelectiveCoverage in an epoch, {found['rounds']} rounds\n{job}"
    rows = [
        ["epoch without, s", f"{statistics.median(found['seconds'][BARE]):.3f}"],
        ["epoch with, s", f"{statistics.median(found['seconds']['SelectiveCoverage']):.3f}"],
        ["with / without", interval(found["ratio"], 3)],
        *([f"{hook}, ms", f"{1000 * spent:.1f}"] for hook, spent in found["hook_seconds"].items()),
        [f"all but {AFTER_THE_EPOCH}, of the epoch", f"{found['own_share']:.2%}"],
        [f"goal: under {EPOCH_GOAL_SHARE:.0%}", verdict(found["reached"])],
    ]
    table(title, ["", ""], rows)


def interval(found: Mapping[str, float], digits: int) -> str:
    return f"{found['median']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


if __name__ == "__main__":
    main()
