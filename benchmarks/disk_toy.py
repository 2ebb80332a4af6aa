"""Students too small for their task, taught by labels, by a teacher, and by a teacher with a guide that helps.

The task: 50 classes of three Gaussian modes each in 24 dimensions, 4000 training, 1000 validation and 4000 test
samples. Teacher: one hidden layer of 256, stopped after 100 steps, from which KD at temperature 1 got more than from
one of 400 (seeds 100-102); students: one of ``--hidden``. Per seed (data, teacher, initial weights) and width all
methods go on from one student trained on labels for 400 steps, with the same batches of 256 for 1000 steps, Adam at
0.01 falling as a cosine. Options of KD, of DKD and the value of constant help are chosen by validation accuracy, for
each seed and width; test accuracy is taken at the end and decides nothing. DiSK is run once, with the options of the
design study (temperature 1, ten classes, multiplier 1 to 5, budget 0.6 to 0.4, 16 steps in turns, guide 256-16-1) but
for batch normalisation in the guide: without it all units of the guide died on one of the seeds 100-102, and no help
was left. A step of the guide costs a forward pass of the student beside its own work, so "KD, twice the steps" has as
many steps as student and guide together, without the warm-up of the guide.

Plain loops over the losses and guides; no Trainer. One thread. Writes ``results/disk_toy.json`` after every seed, and
``docs/images/disk_toy.png``.

Published (Kag, Acar, Gangrade, Saligrama, 2023): DiSK above KD, most where the student is far smaller than the teacher.

Run: ``python benchmarks/disk_toy.py [--seeds N] [--hidden 4 8 16 32]``; the results in this folder are with all four.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import torch
from harness import save, table
from torch import Tensor, nn

from lightning_efficient.datamodules.gaussian_modes import GaussianModes, LabelledVectors
from lightning_efficient.functional.phases import Alternation
from lightning_efficient.functional.schedules import CosineSchedule
from lightning_efficient.losses.disk import DiSKLoss
from lightning_efficient.losses.distillation import CrossEntropyObjective, DecoupledDistillation, KnowledgeDistillation
from lightning_efficient.losses.guided import GuidedDistillation
from lightning_efficient.nn.guides import ConstantGuide, FeaturesGuide
from lightning_efficient.nn.teacher import Teacher
from lightning_efficient.nn.views import ModelViews

BATCH, RATE, GUIDE_RATE = 256, 0.01, 0.02
TEACHER_STEPS, WARM_STEPS, STEPS = 100, 400, 1000
TURNS = Alternation(student=16, guide=16, warmup=50, unit="step")
MULTIPLIER, BUDGET = CosineSchedule(1.0, 5.0), CosineSchedule(0.6, 0.4)
KD_GRID = list(itertools.product((1.0, 1.5, 2.0, 4.0), (0.0, 0.1)))
DKD_GRID = list(itertools.product((1.0, 2.0), (1.0, 4.0)))
HELP_GRID = (0.05, 0.1, 0.2)
METHODS = ("CE", "KD", "KD, twice the steps", "DKD", "DiSK, no help", "DiSK, constant help", "DiSK")
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "disk_toy.png"


@dataclass(frozen=True)
class Task:
    """Data of one seed, what its teacher shows of the training samples, and which of them each step gets."""

    data: Mapping[str, LabelledVectors]
    views: ModelViews
    batches: Tensor
    seed: int
    teacher_accuracy: float

    def batch(self, step: int, features: bool = False) -> tuple[Tensor, ModelViews, Tensor]:
        index, train = self.batches[step], self.data["train"]
        views = ModelViews(self.views.logits[index], self.views.features[index] if features else None)
        return train.inputs[index], views, train.target[index]


def prepare(seed: int) -> Task:
    data = GaussianModes(seed=seed, batch_size=BATCH)
    data.setup("fit")
    train = data.datasets["train"]
    torch.manual_seed(seed)
    longest = max(TEACHER_STEPS, WARM_STEPS, TURNS.warmup + 2 * STEPS)
    batches = torch.randint(len(train), (longest, BATCH))
    network = perceptron(256)
    blank = ModelViews(torch.empty(len(train), 0))
    learn(network, CrossEntropyObjective(), Task(data.datasets, blank, batches, seed, math.nan), TEACHER_STEPS)
    teacher = Teacher(network, features=True)
    return Task(data.datasets, teacher(train.inputs), batches, seed, accuracy(network, data.datasets["test"]))


def perceptron(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, hidden), nn.ReLU(), nn.Linear(hidden, 50))


def learn(network: nn.Module, objective: nn.Module, task: Task, steps: int) -> None:
    """Train in place on the task's batches, from the first one."""
    optimizer, rate = adam(network, RATE), CosineSchedule(RATE, 0.0)
    for step in range(steps):
        inputs, teacher, target = task.batch(step)
        optimizer.param_groups[0]["lr"] = rate(step / steps)
        advance(optimizer, objective(ModelViews(network(inputs)), teacher, target).loss)


def learn_in_turns(network: nn.Module, objective: GuidedDistillation, task: Task, steps: int) -> None:
    """Train in place: the student on the same batches as ``learn``, its guide in between."""
    students, guides = adam(network, RATE), adam(objective.guide, GUIDE_RATE)
    rate, done, count = CosineSchedule(RATE, 0.0), 0, 0
    total = TURNS.warmup + steps // TURNS.student * TURNS.length + steps % TURNS.student
    while done < steps:
        progress = TURNS.progress(count, total)
        objective.loss.multiplier, objective.loss.budget = MULTIPLIER(progress), BUDGET(progress)
        objective.phase = TURNS.phase(count)
        if objective.phase == "student":
            inputs, teacher, target = task.batch(done, features=True)
            students.param_groups[0]["lr"] = rate(done / steps)
            advance(students, objective(ModelViews(network(inputs)), teacher, target).loss)
            done += 1
        else:
            inputs, teacher, target = task.batch(count, features=True)
            with torch.no_grad():
                views = ModelViews(network(inputs))
            advance(guides, objective(views, teacher, target).loss)
        count += 1


def adam(network: nn.Module, rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=rate, fused=True)


def advance(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def accuracy(network: nn.Module, samples: LabelledVectors) -> float:
    return (network(samples.inputs).argmax(1) == samples.target).float().mean().item()


def scaffold(guide: nn.Module) -> GuidedDistillation:
    loss = DiSKLoss(top_k=10, student_temperature=1.0, teacher_temperature=1.0)
    objective = GuidedDistillation(guide, loss)
    objective.phase = "student"
    return objective


def compare(task: Task, hidden: int) -> dict[str, dict[str, Any]]:
    """Return what each method reaches from one start; ``CE, start`` is the start itself."""
    torch.manual_seed(1000 + task.seed)
    start = perceptron(hidden)
    begun = process_time()
    learn(start, CrossEntropyObjective(), task, WARM_STEPS)
    found = {"CE, start": outcome(start, task, begun)}

    def plain(objective: nn.Module, steps: int = STEPS, **options: float) -> dict[str, Any]:
        student, begun = copy.deepcopy(start), process_time()
        learn(student, objective, task, steps)
        return {"options": options, **outcome(student, task, begun)}

    def kd(temperature: float, supervised: float, steps: int = STEPS) -> dict[str, Any]:
        objective = KnowledgeDistillation(temperature, weight=1 - supervised, supervised_weight=supervised)
        return plain(objective, steps, temperature=temperature, supervised_weight=supervised)

    def dkd(temperature: float, other: float) -> dict[str, Any]:
        objective = DecoupledDistillation(temperature, other_weight=other, supervised_weight=0.1)
        return plain(objective, temperature=temperature, other_weight=other)

    found["CE"] = plain(CrossEntropyObjective())
    found["KD"] = best(kd(*options) for options in KD_GRID)
    found["KD, twice the steps"] = kd(*found["KD"]["options"].values(), steps=2 * STEPS)
    found["DKD"] = best(dkd(*options) for options in DKD_GRID)
    found["DiSK, no help"] = plain(scaffold(ConstantGuide(0.0)))
    found["DiSK, constant help"] = best(plain(scaffold(ConstantGuide(help_)), help=help_) for help_ in HELP_GRID)

    torch.manual_seed(2000 + task.seed)
    objective = scaffold(FeaturesGuide(256, hidden=(16,), batch_norm=True, output_bias=-1.0))
    student, begun = copy.deepcopy(start), process_time()
    learn_in_turns(student, objective, task, STEPS)
    found["DiSK"] = outcome(student, task, begun) | watched(student, objective, task)
    return found


def outcome(student: nn.Module, task: Task, begun: float) -> dict[str, float]:
    seconds = process_time() - begun
    reached = {f"{split}_accuracy": accuracy(student, task.data[split]) for split in ("val", "test")}
    return {**reached, "cpu_seconds": seconds}


def best(tried: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the one with the highest validation accuracy, and all that were tried; its seconds are those of all."""
    runs = list(tried)
    chosen = max(runs, key=lambda run: run["val_accuracy"])
    return {**chosen, "cpu_seconds": sum(run["cpu_seconds"] for run in runs), "tried": runs}


@torch.no_grad()
def watched(student: nn.Module, objective: GuidedDistillation, task: Task) -> dict[str, float]:
    """Return what the guide gives in the end, on the training samples."""
    train = task.data["train"]
    logits = student(train.inputs)
    terms = objective(ModelViews(logits), task.views, train.target)
    right = logits.argmax(1) == train.target
    return {
        "guide_mean": terms.guide.mean().item(),
        "guide_mean_right": terms.guide[right].mean().item(),
        "guide_mean_wrong": terms.guide[~right].mean().item(),
        "help_cost": terms.help_cost.item(),
        "budget": objective.loss.budget,
    }


def summary(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return means over the seeds of one width, and DiSK against others, seed by seed; accuracies in percent."""
    by_method = {
        name: [100 * run["methods"][name]["test_accuracy"] for run in runs.values()] for name in ("CE, start", *METHODS)
    }
    return {
        "accuracy": {name: {"mean": statistics.fmean(each), "se": error(each)} for name, each in by_method.items()},
        "DiSK minus": {name: against(by_method["DiSK"], by_method[name]) for name in METHODS if name != "DiSK"},
        "cpu_seconds": seconds_of(runs, ("CE, start", *METHODS)),
        "cpu_seconds_of_CE_KD_DiSK": seconds_of(runs, ("CE, start", "CE", "KD", "DiSK")),
    }


def seconds_of(runs: Mapping[str, Any], methods: Sequence[str]) -> float:
    """Return CPU seconds of some methods over all seeds; those of a grid are of all that was tried."""
    return sum(run["methods"][name]["cpu_seconds"] for run in runs.values() for name in methods)


def against(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    gaps = [one - other for one, other in zip(ours, theirs, strict=True)]
    return {"mean": statistics.fmean(gaps), "se": error(gaps), "wins": sum(gap > 0 for gap in gaps), "seeds": gaps}


def error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def report(record: Mapping[str, Any]) -> None:
    rows = []
    for hidden, found in record["summary"].items():
        for name, reached in found["accuracy"].items():
            gap = found["DiSK minus"].get(name)
            cells = [f"{gap['mean']:+.2f} ± {gap['se']:.2f}", f"{gap['wins']}/{len(gap['seeds'])}"] if gap else ["", ""]
            rows.append([f"{hidden} {name}", f"{reached['mean']:.2f} ± {reached['se']:.2f}", *cells])
        seconds = f"{found['cpu_seconds_of_CE_KD_DiSK']:.0f} of {found['cpu_seconds']:.0f} CPU s"
        rows.append([f"{hidden} CE, KD and DiSK", seconds, "", ""])
    table("test accuracy in percent", ["hidden units, method", "mean ± s.e.", "DiSK minus it", "wins"], rows)


def draw(record: Mapping[str, Any], target: Path) -> None:
    from matplotlib.figure import Figure

    widths = sorted(map(int, record["runs"]))
    figure = Figure(figsize=(1 + 2.6 * len(widths), 3.6), layout="constrained")
    panels = figure.subplots(1, len(widths), squeeze=False)[0]
    for axes, hidden in zip(panels, widths, strict=True):
        runs = record["runs"][str(hidden)].values()
        for place, name in enumerate(METHODS):
            reached = [100 * run["methods"][name]["test_accuracy"] for run in runs]
            color = "C3" if name == "DiSK" else "C1" if name.startswith("DiSK") else "C0"
            axes.scatter(spread(place, len(reached)), reached, s=12, color=color, alpha=0.6, linewidths=0)
            axes.hlines(statistics.fmean(reached), place - 0.35, place + 0.35, color=color, lw=2)
        axes.set_xticks(range(len(METHODS)), METHODS, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_title(f"{hidden} hidden units", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    figure.savefig(target, dpi=110)


def spread(place: float, count: int) -> list[float]:
    return [place + 0.12 * (index - (count - 1) / 2) for index in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hidden", type=int, nargs="+", default=[8])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"teachers": {}, "summary": {}, "runs": {}}
    for seed in range(arguments.seeds):
        begun = process_time()
        task = prepare(seed)
        seconds = process_time() - begun
        record["teachers"][str(seed)] = {"test_accuracy": task.teacher_accuracy, "cpu_seconds": seconds}
        for hidden in arguments.hidden:
            runs = record["runs"].setdefault(str(hidden), {})
            runs[str(seed)] = {"methods": compare(task, hidden)}
            record["summary"][str(hidden)] = summary(runs)
        save("disk_toy", record)
        report(record)
    draw(record, PICTURE)


if __name__ == "__main__":
    main()
