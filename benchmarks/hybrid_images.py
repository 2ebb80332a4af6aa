"""A small and a large network on real images, and routers between them: accuracy, kept promises, MACs and latency.

Both networks of a pair are timm's, trained from scratch for the same epochs with the same recipe (AdamW, one cycle of
the learning rate, random shifts and, except for digits, flips; bfloat16 on a GPU). Each seed shares out the official
training images anew: those that both networks learn, those of the router, and those of the thresholds; the official
test part is the test part, and chooses nothing. Scores of the base's logits (``msp``, ``margin``, ``entropy``,
``energy``) stand beside the two routers that learn (``proxy``, ``gain``), all with the options that they come with.
Reported per router: accuracy at equal coverage, area under accuracy over coverage and what the best order of the same
images would add, seed by seed against ``msp``; then thresholds of the calibration part for three coverages, and those
that promise, with 90 % confidence, a drop of at most 1 point (digits: 5) below the global model, with what they do on
the test part. A test part knows a drop only with an error, so that a promise can look broken, or kept, by chance; told
is also how often the drop is larger than promised by more than two standard errors.

At the end latencies of base, global model and both behind the ``gain`` router are measured in turns in one process, for
batches of 1 and 64, on the CPU with one thread and with ``--device cuda`` on the GPU as well; ``--measure`` repeats
that alone, with the networks of seed 0 where ``--weights`` holds them, else with random weights, which only changes
which images are asked about, not how many. No network link is in these figures.

``digits`` are scikit-learn's; ``fashion`` (FashionMNIST) and ``cifar10`` read the folder that
``LIGHTNING_EFFICIENT_DATA`` names; ``fashion-6k`` and ``cifar10-6k`` train on 6,000 of their images, for CPUs, and
``fashion-timm`` and ``cifar10-timm`` a MobileNetV3 and a ResNet-10 of timm on 8,000. With ``--jobs N`` so many seeds
are trained at the same time. Writes ``hybrid_images_<task>.json`` into ``results`` or the folder of ``--results`` after
every seed; ``--draw`` draws and prints what was saved. Beside our figures stand those of the paper's poster, which are
of other networks and images.

Run: ``LIGHTNING_EFFICIENT_DATA=FOLDER python benchmarks/hybrid_images.py fashion cifar10 --device cuda --jobs 5``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import harness
from _hybrid_latency import latencies
from _hybrid_pairs import BASELINE, COVERAGES, GRID, ROUTERS, TIMED, Task, footprint, train
from _hybrid_published import PUBLISHED
from harness import command_line, device_name, save, steady_allocator, table

_POCKET, _PHONE = ("cifar_resnet10_xxxs", "cifar_resnet10_m"), ("mobilenetv3_small_050", "resnet18d")
_TIMM = ("mobilenetv3_small_050", "resnet10t")
TASKS = {
    "digits": Task(
        "Digits", 1, 8, "cifar_resnet10_xxxs", "cifar_resnet10_s", epochs=15, batch=64, shift=1, flips=False,
        router=300, calibration=300, max_drop=0.05, rate=1e-2,
    ),
    "fashion": Task(
        "FashionMNIST", 1, 64, *_PHONE, epochs=20, batch=512, shift=2, flips=True, router=6_000, calibration=5_000
    ),
    "cifar10": Task(
        "CIFAR10", 3, 64, *_PHONE, epochs=25, batch=512, shift=4, flips=True, router=6_000, calibration=5_000
    ),
    "fashion-6k": Task(
        "FashionMNIST", 1, 32, *_POCKET, epochs=12, batch=128, shift=2, flips=True,
        router=4_000, calibration=5_000, trained_on=6_000, rate=1e-2,
    ),
    "cifar10-6k": Task(
        "CIFAR10", 3, 32, *_POCKET, epochs=16, batch=128, shift=4, flips=True,
        router=4_000, calibration=5_000, trained_on=6_000, rate=1e-2,
    ),
    "fashion-timm": Task(
        "FashionMNIST", 1, 32, *_TIMM, epochs=12, batch=128, shift=2, flips=True,
        router=4_000, calibration=5_000, trained_on=8_000,
    ),
    "cifar10-timm": Task(
        "CIFAR10", 3, 32, *_TIMM, epochs=16, batch=128, shift=4, flips=True,
        router=4_000, calibration=5_000, trained_on=8_000,
    ),
}  # fmt: skip


def study(
    name: str, seeds: int, device: str, jobs: int, weights: Path | None = None, task: Task | None = None
) -> dict[str, Any]:
    """Run a task, and save what there is after each seed; then time the pair."""
    task = task or TASKS[name]
    record: dict[str, Any] = {
        "task": vars(task),
        "device": device_name(device),
        "commands": {"runs": command_line("hybrid_images")},
        "networks": footprint(task),
        "runs": {},
        "latency": {},
        "published": PUBLISHED,
    }
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        # the networks of one seed are enough to time
        kept = [None if weights is None or seed else str(file_of_weights(weights, name)) for seed in range(seeds)]
        runs = {pool.submit(train, task, seed, device, file): seed for seed, file in enumerate(kept)}
        for run in as_completed(runs):
            record["runs"][str(runs[run])] = run.result()
            record["runs"] = dict(sorted(record["runs"].items()))
            save(result_name(name), record, script="hybrid_images")
            print(f"{name}: seed {runs[run]} took {run.result()['seconds']:.0f} s", flush=True)
    # after the runs, which would disturb it
    return measure(name, record, task, device, weights)


def measure(name: str, record: dict[str, Any], task: Task, device: str, weights: Path | None) -> dict[str, Any]:
    """Time the pair of a record on the CPU, and on a GPU where there is one, save it, and print all."""
    record["commands"]["latency"] = command_line("hybrid_images")
    saved_weights = None if weights is None else file_of_weights(weights, name)
    for where in dict.fromkeys(("cpu", device)):
        machine = harness.environment()["cpu"] if where == "cpu" else device_name(where)
        record["latency"][where] = {"machine": machine, **latencies(task, where, saved_weights)}
        save(result_name(name), record, script="hybrid_images")
    report(name, record)
    return record


def report(name: str, record: Mapping[str, Any]) -> None:
    """Print networks, routers, thresholds and latencies; means over the seeds, in percent unless said otherwise."""
    report_pair(name, record)
    report_routers(name, record)
    report_thresholds(name, record)
    report_latency(name, record)


def report_pair(name: str, record: Mapping[str, Any]) -> None:
    task, networks, runs = (record[key] for key in ("task", "networks", "runs"))
    rows = []
    for label, key, accuracy in (
        ("base", "base", "base_accuracy"),
        ("global", "global_model", "global_accuracy"),
    ):
        cost = networks[key]
        found = spread([100 * run[accuracy] for run in runs.values()])
        rows.append([f"{label}, {task[key]}", found, f"{cost['macs'] / 1e6:.2f}", f"{cost['params'] / 1e3:.0f}"])
    cost = networks["router"]
    rows.append([f"router, {TIMED}", "", f"{cost['macs'] / 1e6:.4f}", f"{cost['params'] / 1e3:.1f}"])
    ratio = networks["global_model"]["macs"] / networks["base"]["macs"]
    title = f"{name}: {len(runs)} seeds ({record['device']}); the global model has {ratio:.0f} times the base's MACs"
    table(title, ["", "accuracy, %", "MACs, M", "params, K"], rows)
    only = [statistics.mean(100 * run[f"only_{who}_right"] for run in runs.values()) for who in ("base", "global")]
    print(f"right alone: base {only[0]:.1f} %, global model {only[1]:.1f} % of the test part")


def report_routers(name: str, record: Mapping[str, Any]) -> None:
    runs = record["runs"].values()
    rows = []
    for router in ROUTERS:
        found = [run["routers"][router] for run in runs]
        hindsight = list(zip(*(each["hindsight"].values() for each in found), strict=True))
        cells = [spread([100 * each["area"] for each in found]), f"{100 * mean_of(found, 'gap'):.2f}"]
        cells += [f"{100 * statistics.mean(each['at'][f'{share:g}'] for each in found):.2f}" for share in COVERAGES]
        cells += [f"{100 * statistics.mean(coverages):.1f}" for coverages in hindsight]
        rows.append([router, *cells])
    oracle = [run["oracle"] for run in runs]
    best = [100 * statistics.mean(each["curve"][round(GRID * share)] for each in oracle) for share in COVERAGES]
    rows.append(["best order", spread([100 * each["area"] for each in oracle]), "0", *(f"{each:.2f}" for each in best)])
    dropped = 100 * record["task"]["max_drop"]
    columns = ["", "area", "gap to the best", *(f"keeping {100 * share:g} %" for share in COVERAGES)]
    columns += ["coverage without loss", f"coverage at -{dropped:g}"]
    rows[-1] += [""] * (len(columns) - len(rows[-1]))
    table(
        f"{name}: accuracy of the pair at equal coverage of the test part; the last two known afterwards", columns, rows
    )
    rows = [
        [router, *(f"{middle:+.2f} ± {error:.2f} ({ahead}/{len(runs)})" for middle, error, ahead in compared)]
        for router, compared in comparisons(record).items()
    ]
    columns = ["", "area", *(f"keeping {100 * share:g} %" for share in COVERAGES)]
    table(f"{name}: points over {BASELINE}, seed by seed; mean ± standard error (seeds ahead)", columns, rows)


def comparisons(record: Mapping[str, Any]) -> dict[str, list[tuple[float, float, int]]]:
    """Return, for each other router, points ahead of the baseline in area and accuracies: mean, error, seeds ahead."""
    found = {}
    for router in ROUTERS:
        if router == BASELINE:
            continue
        columns = []
        for key in (None, *(f"{share:g}" for share in COVERAGES)):
            pairs = [(run["routers"][router], run["routers"][BASELINE]) for run in record["runs"].values()]
            ahead = [
                100 * (one["area"] - other["area"] if key is None else one["at"][key] - other["at"][key])
                for one, other in pairs
            ]
            columns.append((statistics.mean(ahead), standard_error(ahead), sum(each > 0 for each in ahead)))
        found[router] = columns
    return found


def report_thresholds(name: str, record: Mapping[str, Any]) -> None:
    runs = record["runs"].values()
    rows = []
    for router in ROUTERS:
        found = [run["routers"][router] for run in runs]
        cells = []
        for share in COVERAGES:
            points = [each["thresholds"][f"{share:g}"] for each in found]
            cells.append(f"{spread([100 * each['coverage'] for each in points])}: {100 * mean_of(points, 'drop'):+.2f}")
        promises = [each["promise"] for each in found]
        drops = [100 * each["drop"] for each in promises]
        cells.append(spread([100 * each["coverage"] for each in promises]))
        cells.append(f"{statistics.mean(drops):+.2f} ({min(drops):+.2f} to {max(drops):+.2f})")
        error = 100 * mean_of(promises, "drop_error")
        surely = sum(each["drop"] - 2 * each["drop_error"] > record["task"]["max_drop"] for each in promises)
        cells += [f"{error:.2f}", f"{sum(each['held'] for each in promises)}/{len(promises)}", str(surely)]
        rows.append([router, *cells])
    dropped = 100 * record["task"]["max_drop"]
    columns = [
        "",
        *(f"for {100 * share:g} %" for share in COVERAGES),
        f"promised -{dropped:g}: coverage",
        "drop",
        "its error",
        "held",
        "surely broken",
    ]
    table(f"{name}: thresholds of the calibration part on the test part; coverage: drop, in points", columns, rows)


def report_latency(name: str, record: Mapping[str, Any]) -> None:
    for timings in record["latency"].values():
        rows = [
            [
                variant,
                size,
                f"{100 * each['asked']:.1f}" if "asked" in each else "",
                *(f"{each[key]:.2f}" for key in ("p50", "p95", "mean")),
                f"{each['median']:.2f} ({each['low']:.2f} to {each['high']:.2f})",
            ]
            for size in (key for key in timings if key.isdigit())
            for variant, each in timings[size].items()
        ]
        columns = ["", "batch", "asked, %", "p50, ms", "p95, ms", "mean, ms", "time over the global's (80 % of rounds)"]
        table(f"{name}: latency, {timings['weights']} weights ({timings['machine']})", columns, rows)


def report_published() -> None:
    for each in PUBLISHED["tables"]:
        table(f"published, not ours ({PUBLISHED['source']}): {each['title']}", each["columns"], each["rows"])


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def mean_of(found: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.mean(each[key] for each in found)


def result_name(task: str) -> str:
    return f"hybrid_images_{task.replace('-', '_')}"


def file_of_weights(folder: Path, task: str) -> Path:
    return folder / f"{result_name(task)}.pt"


def saved(task: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((harness.RESULTS / f"{result_name(task)}.json").read_text())
    return record


COLORS = {
    "msp": "#343a40", "margin": "#868e96", "entropy": "#0ca678", "energy": "#e8590c", "proxy": "#9c36b5",
    "gain": "#3b5bdb",
}  # fmt: skip


def draw(names: Sequence[str], file: Path) -> None:
    """Draw accuracy over coverage, and over the latency of a batch of 64, a row of panels per task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 3.4 * len(names) + 0.8), dpi=85, layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    coverage = [100 * step / GRID for step in range(GRID + 1)]
    for name, (left, right) in zip(names, panels, strict=True):
        record = saved(name)
        runs = record["runs"].values()
        for router in ROUTERS:
            curves = zip(*(run["routers"][router]["curve"] for run in runs), strict=True)
            style = {"color": COLORS[router], "linewidth": 2.4 if router == BASELINE else 1.5}
            left.plot(coverage, [100 * statistics.mean(values) for values in curves], label=router, **style)
        best = [100 * statistics.mean(values) for values in zip(*(run["oracle"]["curve"] for run in runs), strict=True)]
        left.plot(coverage, best, color="#adb5bd", linewidth=1, linestyle=(0, (4, 3)), label="best order")
        left.set_title(name, loc="left", fontsize=11, fontweight="bold", color="#343a40")
        left.set_xlabel("answered by the base, % of the test part")
        left.set_ylabel("accuracy of the pair, %")
        timings = record["latency"]["cpu"]["64"]
        accuracy = {
            "base": mean_of(list(runs), "base_accuracy"),
            **{
                f"routed, {share:g}": statistics.mean(run["routers"][TIMED]["at"][f"{share:g}"] for run in runs)
                for share in COVERAGES
            },
            "global": mean_of(list(runs), "global_accuracy"),
        }
        points = [(timings[variant]["p50"], 100 * value, variant) for variant, value in accuracy.items()]
        right.plot(*list(zip(*points, strict=True))[:2], color=COLORS[TIMED], marker="o", linewidth=1)
        for milliseconds, value, variant in points:
            right.annotate(variant, (milliseconds, value), (5, -10), textcoords="offset points", fontsize=8)
        right.set_xlim(0, 1.25 * max(each[0] for each in points))
        right.set_xlabel("ms for a batch of 64 on the CPU, one thread (median)")
        for ax in (left, right):
            ax.grid(color="#e9ecef", linewidth=0.8)
            ax.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, metavar="DIR", help="where results are written and read")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="where the networks of seed 0 are kept")
    parser.add_argument("--measure", action="store_true", help="only time the pairs of what was saved again")
    parser.add_argument("--draw", metavar="FILE", help="draw and print what was saved of these tasks")
    arguments = parser.parse_args()
    if arguments.results is not None:
        harness.RESULTS = arguments.results
    # results tell the command, without folders of this machine
    sys.argv = [each for each in sys.argv if not each.startswith("--results=")]
    if "--results" in sys.argv:
        where = sys.argv.index("--results")
        del sys.argv[where : where + 2]
    if arguments.draw:
        draw(arguments.tasks, Path(arguments.draw))
    for name in arguments.tasks:
        if arguments.draw:
            report(name, saved(name))
        elif arguments.measure:
            measure(name, saved(name), TASKS[name], arguments.device, arguments.weights)
        else:
            study(name, arguments.seeds, arguments.device, arguments.jobs, arguments.weights)
    report_published()


if __name__ == "__main__":
    steady_allocator()
    main()
