"""Abstaining classifiers on real images: every objective on the same backbone with the same budget.

Each network starts from its seed and trains for the same epochs with the same optimiser (AdamW, a cosine over the
run) on images with random shifts and, except for digits, flips. Options of a method are chosen on a seed of their own
(100), not used for the results, by the coverage that 1 % of joint risk leaves on the validation part; nothing is
chosen on the test part, and no epoch is chosen at all. A threshold is the one with the largest coverage whose joint
risk on the validation part is within the target; reported are coverage and joint risk of that threshold on the test
part. Joint risk is the share of all samples that are answered wrongly. AURC and AUGRC are of the test part.
``digits`` are scikit-learn's; ``fashion`` (FashionMNIST) and ``cifar10`` read the folder that
``LIGHTNING_EFFICIENT_DATA`` names; ``fashion-6k`` and ``cifar10-6k`` train on 6,000 of their images, for CPUs;
``fashion-2k`` on 2,000 without shifts and flips and for longer, until the network fits them. With ``--jobs N`` so
many runs go on at the same time. Writes ``results/selective_images_<task>.json`` after every run; ``--draw`` draws
and prints what was saved.

Run: ``LIGHTNING_EFFICIENT_DATA=FOLDER python benchmarks/selective_images.py cifar10 --device cuda --jobs 8``
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, command_line, device_name, save, table
from images import OnDevice, quiet_trainer, settle
from torch import Tensor

from lightning_efficient import functional as LF
from lightning_efficient.modules.selective_classifier import SelectiveClassifier

SELECTION_SEED = 100
RISKS = (0.005, 0.01, 0.02)
COVERAGES = (1.0, 0.95, 0.9)
BASELINE = "CE + SR"
GRID = 50
"""Points of the curve that are kept."""


@dataclass(frozen=True)
class Task:
    """A data set, a backbone, and how long to train."""

    data: str
    backbone: str
    channels: int
    epochs: int
    batch: int
    shift: int
    flips: bool
    samples: int | None = None
    rate: float = 5e-3


TASKS = {
    "digits": Task("Digits", "cifar_resnet10_xxs", 1, 20, 64, 1, False),
    "fashion": Task("FashionMNIST", "cifar_resnet10_m", 1, 20, 256, 2, True),
    "cifar10": Task("CIFAR10", "cifar_resnet10_l", 3, 40, 256, 4, True),
    "fashion-6k": Task("FashionMNIST", "cifar_resnet10_xs", 1, 12, 128, 2, True, 6_000),
    "cifar10-6k": Task("CIFAR10", "cifar_resnet10_xs", 3, 16, 128, 4, True, 6_000),
    "fashion-2k": Task("FashionMNIST", "cifar_resnet10_s", 1, 40, 128, 0, False, 2_000),
}
METHODS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    BASELINE: [{"objective": "ce"}],
    "OSP": [
        {"objective": "osp", "objective_kwargs": {"price": price, "dual": dual}}
        for dual in ("minimax", "fixed")
        for price in (1.0, 2.0)
    ],
    "SelectiveNet": [
        {"objective": "selectivenet", "objective_kwargs": {"coverage": coverage}} for coverage in (0.7, 0.85)
    ],
    "Deep Gamblers": [{"objective": "gamblers", "objective_kwargs": {"payoff": payoff}} for payoff in (2.2, 4.0, 8.0)],
    "SAT": [{"objective": "sat", "objective_kwargs": {"momentum": momentum}} for momentum in (0.9, 0.99)],
    "SAT + EM": [
        {"objective": "sat", "objective_kwargs": {"momentum": momentum}, "entropy_weight": weight, "score": "msp"}
        for momentum, weight in ((0.9, 0.001), (0.9, 0.01), (0.99, 0.01))
    ],
}
"""Each method with the options that are tried for it; those with a score of their own are also ranked by SR."""


def train(task: Task, options: Mapping[str, Any], seed: int, device: str) -> dict[str, Any]:
    """Train a network with a method, and return what it does when it may abstain."""
    settle(seed)
    data = OnDevice(task, seed, device, indices=options["objective"] == "sat")
    steps = task.epochs * len(data.train_dataloader())
    module = SelectiveClassifier(
        task.backbone,
        num_classes=10,
        in_chans=task.channels,
        optimizer=partial(torch.optim.AdamW, lr=task.rate, weight_decay=0.01),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
        lr_interval="step",
        **options,
    )
    engine = quiet_trainer(task.epochs, device, limit_val_batches=0)
    engine.fit(module, datamodule=data)
    module.eval().to(device)
    scores = [module.score] if module.score == "msp" else [module.score, "msp"]
    found = {score: evaluated(module, data, score) for score in scores}
    if not all(math.isfinite(each["aurc"]) for each in found.values()):
        raise RuntimeError(f"{options} diverged")
    return {"options": dict(options), "seed": seed, "scores": found}


def evaluated(module: SelectiveClassifier, data: OnDevice, score: str) -> dict[str, Any]:
    """Choose thresholds on the validation part and report on the test part."""
    module.score = score
    chosen_on, reported_on = (summary_of(module, *data.parts[part]) for part in ("val", "test"))
    points = LF.risk_coverage_curve(reported_on)
    found: dict[str, Any] = {
        "accuracy": 1 - float(points.selective_risk[-1]),
        "aurc": float(LF.aurc(reported_on)),
        "augrc": float(LF.augrc(reported_on)),
        "curve": [
            round(float(LF.risk_at_coverage(reported_on, coverage=(step + 1) / GRID, kind="generalized")[0]), 5)
            for step in range(GRID)
        ],
    }
    for risk in RISKS:
        coverage, threshold = LF.coverage_at_risk(chosen_on, risk=risk, kind="generalized")
        found[f"risk_{risk:g}"] = {"val_coverage": float(coverage), **on_test(reported_on, float(threshold))}
    for share in COVERAGES:
        _, threshold = LF.risk_at_coverage(chosen_on, coverage=share)
        # everything is answered at full coverage, also what is less sure than all of the validation part
        found[f"coverage_{share:g}"] = on_test(reported_on, float(threshold) if share < 1 else -math.inf)
    return found


@torch.inference_mode()
def summary_of(module: SelectiveClassifier, images: Tensor, labels: Tensor) -> LF.RiskCoverage:
    scored = [module.scored(batch) for batch in images.split(1000)]
    confidence = torch.cat([each[1] for each in scored])
    wrong = torch.cat([each[0].argmax(1) for each in scored]) != labels
    return LF.risk_coverage_summary(confidence.cpu(), wrong.cpu())


def on_test(summary: LF.RiskCoverage, threshold: float) -> dict[str, float]:
    """Coverage and joint risk of a threshold."""
    coverage = 1 - float(LF.abstention_rate(summary, threshold=threshold))
    selective = float(LF.selective_accuracy(summary, threshold=threshold)) if coverage else 1.0
    return {"threshold": threshold, "coverage": coverage, "risk": coverage * (1 - selective)}


def choose(grid: Sequence[Mapping[str, Any]], found: Sequence[dict[str, Any]]) -> Mapping[str, Any]:
    """Return the options with the largest coverage at 1 % of joint risk on the validation part, by their own score."""
    coverages = [next(iter(each["scores"].values()))["risk_0.01"]["val_coverage"] for each in found]
    return grid[coverages.index(max(coverages))]


def report(name: str, record: Mapping[str, Any]) -> None:
    """Print a row per method and score: means and standard deviations over the seeds, in percent."""
    rows = []
    for method, label, seeds in series(record):
        cells = [spread([100 * each[key] for each in seeds]) for key in ("accuracy", "aurc", "augrc")]
        cells += [
            f"{spread([100 * each[key]['coverage'] for each in seeds])} / "
            f"{statistics.mean(100 * each[key]['risk'] for each in seeds):.2f}"
            for key in (f"risk_{risk:g}" for risk in RISKS)
        ]
        rows.append([f"{method}{label}", *cells])
    count = len(next(iter(record["runs"].values())))
    title = f"{name}: {record['task']['backbone']}, {count} seeds; all in %, mean ± standard deviation"
    columns = ["", "accuracy", "AURC", "AUGRC", *(f"coverage / joint risk at {100 * risk:g} %" for risk in RISKS)]
    table(title, columns, rows)
    [(_, _, baseline)] = [each for each in series(record) if each[0] == BASELINE]
    rows = []
    for method, label, seeds in series(record):
        ahead = [100 * (one["augrc"] - other["augrc"]) for one, other in zip(seeds, baseline, strict=True)]
        cells = [f"{statistics.mean(ahead):+.2f}", sum(one < 0 for one in ahead)]
        for share in COVERAGES:
            found = [each[f"coverage_{share:g}"] for each in seeds]
            shown = (statistics.mean(100 * each[key] for each in found) for key in ("coverage", "risk"))
            cells.append("{:.1f} / {:.2f}".format(*shown))
        rows.append([f"{method}{label}", *cells])
    columns = ["", "AUGRC over the baseline", "seeds ahead", *(f"answered {100 * share:g} %" for share in COVERAGES)]
    table(f"{name}: against {BASELINE}, and coverage / joint risk where so much is answered", columns, rows)
    chosen = [f"{method}: {dict(options)}" for method, options in record["chosen"].items()]
    print("\n".join(["chosen by validation:", *chosen]))


def series(record: Mapping[str, Any]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return method, what is added to its name, and its results by seed, for each score that it was ranked by."""
    found = []
    for method, seeds in record["runs"].items():
        for score in next(iter(seeds.values()))["scores"]:
            own = len(next(iter(seeds.values()))["scores"]) > 1
            label = " (by SR)" if own and score == "msp" else ""
            found.append((method, label, [each["scores"][score] for each in seeds.values()]))
    return found


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def study(name: str, seeds: int, device: str, jobs: int, methods: Sequence[str] = tuple(METHODS)) -> dict[str, Any]:
    """Run a task, and save what there is after each run; methods that are left out stay as they were saved."""
    task = TASKS[name]
    file = RESULTS / f"{result_name(name)}.json"
    before = json.loads(file.read_text()) if file.exists() and len(methods) < len(METHODS) else {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:

        def run_of(options: Mapping[str, Any], seed: int) -> Future[dict[str, Any]]:
            return pool.submit(train, task, options, seed, device)

        tried = {
            method: [run_of(options, SELECTION_SEED) for options in grid]
            for method, grid in METHODS.items()
            if len(grid) > 1 and method in methods
        }
        selection = {method: [run.result() for run in runs] for method, runs in tried.items()}
        chosen = {method: choose(METHODS[method], found) for method, found in selection.items()}
        for found in selection.values():
            for each in found:
                for score in each["scores"].values():
                    del score["curve"]
        final = {
            (method, seed): run_of(chosen.get(method, grid[0]), seed)
            for seed in range(seeds)
            for method, grid in METHODS.items()
            if method in methods
        }
        runs = before.get("runs", {})
        record: dict[str, Any] = {
            "task": vars(task),
            "device": device_name(device),
            "selection": before.get("selection", {}) | selection,
            "chosen": before.get("chosen", {}) | chosen,
            "commands": before.get("commands", {}) | dict.fromkeys(methods, command_line("selective_images")),
            "runs": {method: {} if method in methods else runs[method] for method in METHODS},
        }
        for (method, seed), run in final.items():
            record["runs"][method][str(seed)] = run.result()
            save(result_name(name), record, script="selective_images")
    report(name, record)
    return record


def result_name(task: str) -> str:
    return f"selective_images_{task.replace('-', '_')}"


def draw(names: Sequence[str], file: Path) -> None:
    """Draw the mean joint risk against coverage of every method, by its own score, a panel per task."""
    from matplotlib.figure import Figure

    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.5 * rows), dpi=85, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[len(names) :]:
        spare.remove()
    colors = ("#343a40", "#3b5bdb", "#0ca678", "#e8590c", "#9c36b5", "#c2255c")
    coverage = [100 * (step + 1) / GRID for step in range(GRID)]
    for ax, name in zip(panels, names, strict=False):
        record = json.loads((RESULTS / f"{result_name(name)}.json").read_text())
        own = [(method, seeds) for method, label, seeds in series(record) if not label]
        for (method, seeds), color in zip(own, colors, strict=True):
            risk = [100 * statistics.mean(values) for values in zip(*(each["curve"] for each in seeds), strict=True)]
            ax.plot(coverage, risk, color=color, linewidth=2.6 if method == BASELINE else 1.5, label=method)
        wrong = 1 - statistics.mean(each["accuracy"] for each in own[0][1])
        perfect = [max(0.0, share - 100 * (1 - wrong)) for share in coverage]
        ax.plot(coverage, perfect, color="#adb5bd", linewidth=1, linestyle=(0, (4, 3)), label="perfect ranking of CE's")
        ax.set_title(name, loc="left", fontsize=11, fontweight="bold", color="#343a40")
        ax.set_xlabel("answered, % of all samples")
        ax.set_ylabel("answered wrongly, % of all samples")
        ax.set_xlim(*limits(name))
        shown = [risk for share, risk in zip(coverage, perfect, strict=True) if share <= ax.get_xlim()[1]]
        ax.set_ylim(0, 1.15 * max(max(line.get_ydata()) for line in ax.lines) if shown else None)
        ax.grid(color="#e9ecef", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(file)


def limits(name: str) -> tuple[float, float]:
    """Return the range of coverages in which the methods can be told apart."""
    return (80, 100) if name == "digits" else (0, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--draw", metavar="FILE", help="draw and print what was saved of these tasks")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(arguments.tasks, Path(arguments.draw))
        for name in arguments.tasks:
            report(name, json.loads((RESULTS / f"{result_name(name)}.json").read_text()))
        return
    for name in arguments.tasks:
        study(name, arguments.seeds, arguments.device, arguments.jobs, arguments.methods)


if __name__ == "__main__":
    main()
