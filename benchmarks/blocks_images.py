"""What efficient blocks cost and keep in accuracy: one base network, its surgery, and controls of as many MACs.

The base is a narrow residual network of four stages, three basic blocks each. From it come condensed networks (the
first block of every stage stays, a Global layer takes the next place, the others go), the same with a plain depthwise
3x3 convolution in the layer's place and with nothing, networks whose blocks run at a quarter of the pixels
(``SpatialInterpolation``), with and without the cheap branch at full size, and the base with fewer channels, so many
that its MACs are nearest to those of the Global and of the interpolated network. All are trained from scratch for the
same epochs with the same recipe: SGD with Nesterov momentum, a cosine over the run, random shifts and, except for
digits, flips. Only the learning rate is chosen per network, the better of the same two, by the accuracy of the first
seed on the validation part, never on the test part; the run of that rate is then the first seed's. Reported is the
accuracy on the test part after the last epoch. Each seed has its own order of images, the same one for all networks,
and networks are compared seed by seed. Latencies are measured at the end, with all networks in turns in one process and
one thread; ``--measure`` repeats that alone. ``digits`` are scikit-learn's; ``fashion`` (FashionMNIST) and ``cifar10``
read the folder that ``LIGHTNING_EFFICIENT_DATA`` names; ``fashion-6k`` and ``cifar10-6k`` train on 6,000 of their
images, for CPUs. With ``--jobs N`` so many runs go on at the same time. Writes ``results/blocks_images_<task>.json``
after those of the first seed, and after each one from then on; ``--draw`` draws and prints what was saved.

Run: ``LIGHTNING_EFFICIENT_DATA=FOLDER python benchmarks/blocks_images.py digits fashion-6k cifar10-6k --jobs 2``
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _blocks_variants import BASE, VARIANTS, Task, classifier, footprint, latencies, widths_of
from harness import RESULTS, command_line, device_name, resumed, save, steady_allocator, table
from images import OnDevice, quiet_trainer, settle

_BLOCKS, _NARROW, _WIDE = (3, 3, 3, 3), (8, 16, 32, 32), (16, 32, 64, 64)
TASKS = {
    "digits": Task("Digits", 1, 8, _BLOCKS, _NARROW, epochs=30, batch=64, shift=1, flips=False),
    "fashion": Task("FashionMNIST", 1, 32, _BLOCKS, _WIDE, epochs=20, batch=256, shift=2, flips=True),
    "cifar10": Task("CIFAR10", 3, 32, _BLOCKS, _WIDE, epochs=30, batch=256, shift=4, flips=True),
    "fashion-6k": Task(
        "FashionMNIST", 1, 32, _BLOCKS, _NARROW, epochs=12, batch=64, shift=2, flips=True, samples=6_000
    ),
    "cifar10-6k": Task("CIFAR10", 3, 32, _BLOCKS, _NARROW, epochs=12, batch=64, shift=4, flips=True, samples=6_000),
}
RATES: Sequence[Mapping[str, float]] = tuple({"lr": lr, "weight_decay": 5e-4} for lr in (0.1, 0.4))
"""What is tried for every network, on the first seed."""
ROUNDS = 40


def train(
    task: Task, name: str, widths: tuple[int, ...], rate: Mapping[str, float], seed: int, device: str
) -> dict[str, Any]:
    """Train a network from scratch, and return its accuracies on the validation and test parts."""
    settle(seed)
    data = OnDevice(task, seed, device)
    steps = task.epochs * len(data.train_dataloader())
    module = classifier(
        task,
        name,
        widths,
        optimizer=partial(
            torch.optim.SGD, lr=rate["lr"], weight_decay=rate["weight_decay"], momentum=0.9, nesterov=True
        ),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
        lr_interval="step",
    )
    module.data_config = {}  # the images are normalised here
    engine = quiet_trainer(task.epochs, device, check_val_every_n_epoch=task.epochs)
    engine.fit(module, datamodule=data)
    held_out = {key: float(engine.callback_metrics[key]) for key in ("val/accuracy", "val/loss")}
    [tested] = engine.test(module, datamodule=data, verbose=False)
    return {
        "rate": dict(rate),
        "val_accuracy": held_out["val/accuracy"],
        "val_loss": held_out["val/loss"],
        "accuracy": tested["test/accuracy"],
        # the test part is told, and chooses nothing
        "diverged": not (math.isfinite(held_out["val/loss"]) and math.isfinite(tested["test/loss"])),
    }


def choose(found: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the run that is most accurate on the validation part; of equal ones that with the smaller loss."""
    return max(found, key=lambda each: (math.isfinite(each["val_loss"]), each["val_accuracy"], -each["val_loss"]))


def go_on(name: str, seeds: int, device: str, jobs: int, task: Task | None = None) -> dict[str, Any]:
    """Add the seeds that the saved record of a task lacks; its rates and latencies stay."""
    task = task or TASKS[name]
    record = resumed(result_name(name), {"task": vars(task), "device": device_name(device)})
    if not record:
        return study(name, seeds, device, jobs, task=task)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {
            (variant, str(seed)): pool.submit(
                train, task, variant, widths_of(task, variant), found["0"]["rate"], seed, device
            )
            for seed in range(seeds)
            for variant, found in record["runs"].items()
            if str(seed) not in found
        }
        for (variant, seed), run in pending.items():
            record["runs"][variant][seed] = run.result()
            save(result_name(name), record, script="blocks_images")
    report(name, record)
    return record


def study(
    name: str, seeds: int, device: str, jobs: int, variants: Sequence[str] = tuple(VARIANTS), task: Task | None = None
) -> dict[str, Any]:
    """Run a task, and save what there is after each run; networks that are left out stay as they were saved."""
    task = task or TASKS[name]
    before = saved(name) if len(variants) < len(VARIANTS) and file_of(name).exists() else {}
    if before and (before["task"], len(before["runs"][BASE])) != (json.loads(json.dumps(vars(task))), seeds):
        raise SystemExit(f"{file_of(name)} is of another task or number of seeds; run all variants together")
    widths = {variant: widths_of(task, variant) for variant in variants}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:

        def run_of(variant: str, rate: Mapping[str, float], seed: int) -> Future[dict[str, Any]]:
            return pool.submit(train, task, variant, widths[variant], rate, seed, device)

        tried = {variant: [run_of(variant, rate, 0) for rate in RATES] for variant in variants}
        selection = {variant: [run.result() for run in runs] for variant, runs in tried.items()}
        chosen = {variant: choose(found) for variant, found in selection.items()}
        final = {
            (variant, seed): run_of(variant, chosen[variant]["rate"], seed)
            for seed in range(1, seeds)
            for variant in variants
        }
        others = before.get("runs", {})
        record: dict[str, Any] = {
            "task": vars(task),
            "device": device_name(device),
            "commands": before.get("commands", {}) | dict.fromkeys(variants, command_line("blocks_images")),
            "selection": before.get("selection", {}) | selection,
            "networks": before.get("networks", {}) | {variant: footprint(task, variant) for variant in variants},
            "runs": {
                variant: {"0": chosen[variant]} if variant in chosen else others[variant]
                for variant in VARIANTS
                if variant in chosen or variant in others
            },
            "latency": {},
        }
        for (variant, seed), run in final.items():
            record["runs"][variant][str(seed)] = run.result()
            save(result_name(name), record, script="blocks_images")
    # after the runs, which would disturb it
    return measure(name, record, task, device)


def measure(name: str, record: dict[str, Any], task: Task, device: str) -> dict[str, Any]:
    """Time the networks of a record, save it, and print it."""
    record["latency"] = latencies(task, list(record["runs"]), device, ROUNDS)
    save(result_name(name), record, script="blocks_images")
    report(name, record)
    return record


def report(name: str, record: Mapping[str, Any]) -> None:
    """Print what each network reaches, what it costs, and how far it is ahead of its controls, seed by seed."""
    task, networks, runs, latency = (record[key] for key in ("task", "networks", "runs", "latency"))
    rows = []
    for variant, seeds in runs.items():
        cost = networks[variant]
        found = [100 * each["accuracy"] for each in seeds.values()]
        deviation = statistics.stdev(found) if len(found) > 1 else 0.0
        solver = f" + {cost['solver_macs'] / 1e6:.3f}" if cost["solver_macs"] else ""
        share = f" ({100 * (cost['macs'] / networks[BASE]['macs'] - 1):+.0f} %)" if BASE in networks else ""
        rows.append(
            [
                variant + (" (diverged)" if any(each["diverged"] for each in seeds.values()) else ""),
                f"{statistics.mean(found):.2f} ± {deviation:.2f}",
                f"{cost['params'] / 1e3:.1f}",
                f"{cost['macs'] / 1e6:.3f}{solver}{share}",
                f"{seeds['0']['rate']['lr']:g}",
            ]
        )
    shape = f"{task['layers']} blocks of {task['widths']} channels"
    title = f"{name}: base of {shape}, {task['epochs']} epochs, {len(seeds)} seeds; mean ± deviation"
    table(title, ["", "accuracy, %", "params, K", "MACs + solver, M", "lr"], rows)
    rows = [
        [variant, batch, f"{each['ms']:.2f}", f"{each['median']:.2f}", f"{each['low']:.2f} to {each['high']:.2f}"]
        for variant, timings in latency.items()
        for batch, each in timings.items()
    ]
    title = f"{name}: latency, and how many times faster than the base ({record['device']})"
    table(title, ["", "batch", "ms", "speed-up", "80 % of rounds"], rows)
    rows = [
        [variant, control, f"{statistics.mean(ahead):+.2f}", f"{min(ahead):+.2f} to {max(ahead):+.2f}",
         sum(one > 0 for one in ahead)]
        for variant, control, ahead in comparisons(runs)
    ]  # fmt: skip
    columns = ["", "over", "points", "range", f"ahead, of {len(seeds)}"]
    table(f"{name}: test accuracy over the base and over the controls, seed by seed", columns, rows)


def comparisons(runs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, list[float]]]:
    """Return each network, one that it is compared with, and by how many points it is ahead on each seed."""
    return [
        (variant, control, [100 * (each["accuracy"] - runs[control][seed]["accuracy"]) for seed, each in seeds.items()])
        for variant, seeds in runs.items()
        for control in (BASE, *VARIANTS[variant].controls)
        if control in runs and control != variant
    ]


def result_name(task: str) -> str:
    return f"blocks_images_{task.replace('-', '_')}"


def file_of(task: str) -> Path:
    return RESULTS / f"{result_name(task)}.json"


def saved(task: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file_of(task).read_text())
    return record


COLORS = {BASE: "#343a40", "Global": "#3b5bdb", "condensed": "#0ca678", "interpolated": "#e8590c", "narrow": "#868e96"}
MARKERS = "osD^vP"


def draw(names: Sequence[str], file: Path) -> None:
    """Draw accuracy against MACs and against latency, a row of panels per task, whiskers from worst to best seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 3.4 * len(names) + 1.1), dpi=85, layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, sharey="row")
    for name, row in zip(names, panels, strict=True):
        record = saved(name)
        markers = {group: iter(MARKERS) for group in COLORS}
        for variant, seeds in record["runs"].items():
            found = [100 * each["accuracy"] for each in seeds.values()]
            middle = statistics.mean(found)
            group = VARIANTS[variant].group
            style = {"color": COLORS[group], "marker": next(markers[group]), "markersize": 7, "capsize": 2}
            where = (record["networks"][variant]["macs"] / 1e6, record["latency"][variant]["64"]["ms"])
            for ax, position in zip(row, where, strict=True):
                whiskers = [[middle - min(found)], [max(found) - middle]]
                ax.errorbar(position, middle, yerr=whiskers, linestyle="", linewidth=1, label=variant, **style)
        row[0].set_title(name, loc="left", fontsize=11, fontweight="bold", color="#343a40")
        row[0].set_ylabel("test accuracy, %")
        row[0].set_xlabel("million MACs of one image, without the solver")
        row[1].set_xlabel("ms for a batch of 64, one thread" if record["device"] == "cpu" else "ms for a batch of 64")
        for ax in row:
            ax.set_xlim(left=0)
            ax.grid(color="#e9ecef", linewidth=0.8)
            ax.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--resume", action="store_true", help="keep the seeds that were saved with these settings")
    parser.add_argument("--measure", action="store_true", help="only time the networks of what was saved again")
    parser.add_argument("--draw", metavar="FILE", help="draw and print what was saved of these tasks")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(arguments.tasks, Path(arguments.draw))
    for name in arguments.tasks:
        if arguments.draw:
            report(name, saved(name))
        elif arguments.measure:
            measure(name, saved(name), TASKS[name], arguments.device)
        elif arguments.resume:
            go_on(name, arguments.seeds, arguments.device, arguments.jobs)
        else:
            study(name, arguments.seeds, arguments.device, arguments.jobs, arguments.variants)


if __name__ == "__main__":
    steady_allocator()
    main()
