"""Which router should decide when a small network asks a large one? Scores and learned routers on the same pairs.

Scenarios, networks and splits are those of ``digit_scenarios.py``. For each seed a pair is trained on the training
images; routers that learn do so on images of their own, thresholds are chosen on further ones, and everything is
reported on the test images. Reported for each router:

- accuracy of the pair where the small network keeps exactly 90, 70 and 50 % of the test inputs, the easiest by the
  router, and how far that is ahead of the largest probability (``msp``) on the same pair, mean and standard error over
  the seeds;
- coverage and accuracy on the test inputs of the threshold that keeps as much of the calibration inputs;
- the area under accuracy over coverage, and how much is missing to the best order of the same inputs.

``own images`` is the gain router fitted on as many inputs that the small network learned from. The alternation trains
both networks for further epochs with twice the weight for the inputs that each is to answer, and its control for as
many epochs with equal weights; a gain router is fitted anew after each.

The goals are those of the project: with a specialist the gain router is a point ahead of ``msp`` at 70 %, and with a
plain pair no half point away from it. The routers' epochs were chosen among 10, 25 and 60 on seeds 100 to 102, which
are not used for the results. Writes ``results/hybrid_digits.json`` after every run; ``--draw`` draws and prints what
was saved.

Run: ``python benchmarks/hybrid_digits.py [--seeds 6] [--scenarios plain mixed specialist]``
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from digit_scenarios import (
    COPIES,
    EPOCHS,
    NUM_CLASSES,
    PARTS,
    SCENARIOS,
    Outputs,
    Pair,
    Scenario,
    base_network,
    digits,
    fit,
    global_network,
    inputs_of,
    outputs_of,
    stream,
    trained_pair,
)
from harness import RESULTS, save, table
from torch import Tensor

from lightning_efficient.functional.router_losses import alternation_weights
from lightning_efficient.functional.routing import (
    accuracy_at_coverage,
    gap_to_oracle,
    hybrid_area,
    hybrid_curve,
    oracle_curve,
    query_threshold,
)
from lightning_efficient.nn.routers import Router, build_router
from lightning_efficient.profiling import count_macs

NAME = "hybrid_digits"
COVERAGES = (0.9, 0.7, 0.5)
BASELINE = "msp"
GOAL_COVERAGE = 0.7
GOALS = {"specialist": "at least +1", "plain": "within 0.5"}
ROUTERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "msp": ("msp", {}),
    "margin": ("margin", {}),
    "entropy": ("entropy", {}),
    "gini": ("gini", {}),
    "energy": ("energy", {}),
    "energy_softmax": ("energy_softmax", {}),
    "paper": ("paper", {}),
    "proxy": ("proxy", {"skip": False}),
    "proxy + skip": ("proxy", {}),
    "gain": ("gain", {}),
    "gain, no skip": ("gain", {"skip": False}),
}
"""Name in the tables, and what ``build_router`` makes of it; ``paper`` is the published network and label."""
OWN_IMAGES = "gain, own images"
ROUTER_EPOCHS, ROUTER_BATCH, ROUTER_RATE = 25, 256, 4e-3
EXTRA_EPOCHS, EXTRA_RATE = {"base": 5, "global": 3}, 1e-3
"""Further training of both networks, of the alternation and its control."""
GRID = 20
"""Steps of the curve that is kept."""


def run(scenario: Scenario, seed: int, sizes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train a pair, fit every router, and return what each achieves on the test inputs.

    Args:
        scenario: Which corruptions.
        seed: Of everything.
        sizes: ``copies`` and ``epochs`` of the training, where they are not those of ``digit_scenarios``.
    """
    parts = digits(seed)
    pair = trained_pair(scenario, parts["train"], seed, **(sizes or {}))
    asked = ask(pair, scenario, parts, seed)
    found = {name: evaluated(fitted(name, asked["router"], seed), asked) for name in ROUTERS}
    seen = outputs_of(pair.base, pair.global_model, *pair.base_data)
    some = torch.randperm(len(seen.labels), generator=torch.Generator().manual_seed(seed))[
        : len(asked["router"].labels)
    ]
    own = Outputs(*(each[some] for each in seen))
    found[OWN_IMAGES] = evaluated(fitted("gain", own, seed), asked)
    return {
        **described(asked["test"]),
        "routers": found,
        "alternation": alternation(pair, scenario, parts, asked, seed),
    }


def ask(pair: Pair, scenario: Scenario, parts: Mapping[str, tuple[Tensor, Tensor]], seed: int) -> dict[str, Outputs]:
    """Return what both networks say of the inputs that they did not learn from."""
    return {
        part: outputs_of(
            pair.base, pair.global_model, *inputs_of(parts[part], scenario, COPIES[part], stream(seed, part))
        )
        for part in ("router", "calibration", "test")
    }


def described(outputs: Outputs) -> dict[str, Any]:
    """Return how good both networks are, and the best that any router could make of them."""
    base, other = outputs.base_correct, outputs.global_correct
    oracle = oracle_curve(base, other)
    return {
        "base": share(base),
        "global": share(other),
        "base_only": share(base & ~other),
        "global_only": share(other & ~base),
        "oracle": {f"{coverage:g}": accuracy_at_coverage(oracle, coverage) for coverage in COVERAGES},
        "oracle_area": hybrid_area(oracle),
        "oracle_curve": [round(accuracy_at_coverage(oracle, step / GRID), 5) for step in range(GRID + 1)],
    }


def fitted(name: str, outputs: Outputs, seed: int) -> Router:
    """Return a router, after it learned from these outputs if it learns at all."""
    kind, options = ROUTERS[name]
    torch.manual_seed(seed)
    router = build_router(kind, NUM_CLASSES, outputs.base_features.shape[1], options)
    if not router.learns:
        return router.eval()
    base, other = outputs.base_correct, outputs.global_correct
    steps = ROUTER_EPOCHS * (len(base) // ROUTER_BATCH)
    optimizer = torch.optim.AdamW(router.parameters(), lr=ROUTER_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, ROUTER_RATE, total_steps=steps, div_factor=2)
    router.train()
    for _ in range(ROUTER_EPOCHS):
        for chosen in torch.randperm(len(base)).split(ROUTER_BATCH)[: len(base) // ROUTER_BATCH]:
            features = outputs.base_features[chosen]
            loss = router.loss(outputs.base_logits[chosen], features, base[chosen], other[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return router.eval()


@torch.no_grad()
def evaluated(router: Router, asked: Mapping[str, Outputs]) -> dict[str, Any]:
    """Rank the test inputs, and choose thresholds on the calibration inputs."""
    scores = {part: router(asked[part].base_logits, asked[part].base_features) for part in ("calibration", "test")}
    test = asked["test"]
    base, other = test.base_correct, test.global_correct
    curve = hybrid_curve(scores["test"], base, other)
    found: dict[str, Any] = {
        "area": hybrid_area(curve),
        "gap": gap_to_oracle(curve, oracle_curve(base, other)),
        "curve": [round(accuracy_at_coverage(curve, step / GRID), 5) for step in range(GRID + 1)],
    }
    for coverage in COVERAGES:
        threshold = query_threshold(scores["calibration"], coverage)
        kept = scores["test"] <= threshold
        found[f"{coverage:g}"] = {
            "equal": accuracy_at_coverage(curve, coverage),
            "threshold": threshold,
            "coverage": share(kept),
            "accuracy": share(torch.where(kept, base, other)),
        }
    return found


def alternation(
    pair: Pair,
    scenario: Scenario,
    parts: Mapping[str, tuple[Tensor, Tensor]],
    asked: Mapping[str, Outputs],
    seed: int,
) -> dict[str, Any]:
    """Train both networks further, with the weights of a router and with equal weights, and fit a router anew."""
    router = fitted("gain", asked["router"], seed)
    with torch.no_grad():
        threshold = query_threshold(
            router(asked["calibration"].base_logits, asked["calibration"].base_features), GOAL_COVERAGE
        )
        queried = [
            router(*pair.base.outputs(inputs)) > threshold for inputs in (pair.base_data[0], pair.global_data[0])
        ]
    weights = {
        "alternation": (alternation_weights(queried[0]).base, alternation_weights(queried[1]).global_model),
        "control": tuple(torch.ones(len(each)) for each in queried),
    }
    found: dict[str, Any] = {"queried": share(queried[0])}
    for name, (of_base, of_global) in weights.items():
        more = Pair(copy.deepcopy(pair.base), copy.deepcopy(pair.global_model), pair.base_data, pair.global_data)
        # the mean weight is divided out, so that both take steps of the same size
        for part, network, data, weight in (
            ("base", more.base, pair.base_data, of_base),
            ("global", more.global_model, pair.global_data, of_global),
        ):
            even = weight / weight.mean()
            fit(network, *data, epochs=EXTRA_EPOCHS[part], seed=seed + 1, rate=EXTRA_RATE, weight=even)
        again = ask(more, scenario, parts, seed)
        result = evaluated(fitted("gain", again["router"], seed), again)
        found[name] = {
            "base": share(again["test"].base_correct),
            "global": share(again["test"].global_correct),
            "area": result["area"],
            **{f"{coverage:g}": result[f"{coverage:g}"]["equal"] for coverage in COVERAGES},
        }
    return found


def share(which: Tensor) -> float:
    return float(which.double().mean())


def difference(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the paired differences and its standard error, in points of percent."""
    ahead = [100 * (one - other) for one, other in zip(values, others, strict=True)]
    error = statistics.stdev(ahead) / math.sqrt(len(ahead)) if len(ahead) > 1 else math.nan
    return statistics.mean(ahead), error


def shown(mean: float, error: float) -> str:
    """Write a difference with its standard error, which one seed does not have."""
    return f"{mean:+.2f}" if math.isnan(error) else f"{mean:+.2f} ± {error:.2f}"


def ahead_of(runs: Sequence[Mapping[str, Any]], name: str, other: str, key: str) -> tuple[float, float]:
    """Compare two routers at equal coverage, or by ``area``."""
    both = [
        [run["routers"][one]["area"] if key == "area" else run["routers"][one][key]["equal"] for run in runs]
        for one in (name, other)
    ]
    return difference(*both)


def goals(record: Mapping[str, Any]) -> list[str]:
    """Say of each goal what was found and whether it was met."""
    said = []
    for scenario, goal in GOALS.items():
        runs = list(record["scenarios"].get(scenario, {}).values())
        if not runs:
            continue
        ahead, error = ahead_of(runs, "gain", BASELINE, f"{GOAL_COVERAGE:g}")
        met = ahead >= 1 if scenario == "specialist" else abs(ahead) <= 0.5
        said.append(
            f"{scenario}: gain over {BASELINE} at {GOAL_COVERAGE:g} is {shown(ahead, error)} points; wanted "
            f"{goal}: {'met' if met else 'NOT met'}"
        )
    return said


def report(record: Mapping[str, Any]) -> None:
    """Print tables for each scenario: accuracies in percent, differences in points with their standard errors."""
    for scenario, seeds in record["scenarios"].items():
        runs = list(seeds.values())

        def mean(*keys: str, runs: Sequence[Mapping[str, Any]] = runs) -> float:
            values = []
            for value in runs:
                for key in keys:
                    value = value[key]
                values.append(100 * value)
            return statistics.mean(values)

        title = (
            f"{scenario}, {len(runs)} seeds: base {mean('base'):.1f}, global {mean('global'):.1f}, only the base right "
            f"{mean('base_only'):.1f}, only the global {mean('global_only'):.1f} %"
        )
        names = [f"{coverage:g}" for coverage in COVERAGES]
        rows = []
        for name in runs[0]["routers"]:
            cells = []
            for key in [*names, "area"]:
                level = mean("routers", name, "area") if key == "area" else mean("routers", name, key, "equal")
                ahead = "" if name == BASELINE else f"({shown(*ahead_of(runs, name, BASELINE, key))})"
                cells.append(f"{level:.2f} {ahead}".strip())
            cells.append(f"{mean('routers', name, 'gap'):.2f}")
            rows.append([name, *cells])
        rows.append(
            ["best order", *(f"{mean('oracle', key):.2f}" for key in names), f"{mean('oracle_area'):.2f}", "0.00"]
        )
        columns = ["", *(f"accuracy at {key}" for key in names), "area", "gap to the best"]
        table(f"{title}; in brackets: ahead of {BASELINE}", columns, rows)
        rows = []
        for name in runs[0]["routers"]:
            kept = [(mean("routers", name, key, "coverage"), mean("routers", name, key, "accuracy")) for key in names]
            rows.append([name, *(f"{one:.1f} / {other:.2f}" for one, other in kept)])
        table(
            f"{scenario}: coverage / accuracy on test of the calibration part's threshold",
            ["", *(f"for {key}" for key in names)],
            rows,
        )
        rows = []
        for name in ("alternation", "control"):
            rows.append([name, *(f"{mean('alternation', name, key):.2f}" for key in ("base", "global", *names))])
        pairs = [
            difference(*([run["alternation"][one][key] for run in runs] for one in ("alternation", "control")))
            for key in ("base", "global", *names)
        ]
        rows.append(["difference", *(shown(*each) for each in pairs)])
        table(f"{scenario}: weights of a router against equal weights", ["", "base", "global", *names], rows)
    print("\n".join(goals(record)))


def study(names: Sequence[str], seeds: int) -> dict[str, Any]:
    """Run scenarios, and save what there is after each run; scenarios that are left out stay as they were saved."""
    file = RESULTS / f"{NAME}.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    kept = {name: runs for name, runs in before.get("scenarios", {}).items() if name not in names}
    example = torch.zeros(1, 1, 16, 16)
    record: dict[str, Any] = {
        "macs": {
            "base": count_macs(base_network().eval(), example).macs,
            "global": count_macs(global_network().eval(), example).macs,
        },
        "images": PARTS,
        "copies": COPIES,
        "epochs": EPOCHS,
        "scenarios": {},
    }
    for name in SCENARIOS:
        if name in names:
            record["scenarios"][name] = {}
        elif name in kept:
            record["scenarios"][name] = kept[name]
    for seed in range(seeds):
        for name in names:
            record["scenarios"][name][str(seed)] = run(SCENARIOS[name], seed)
            save(NAME, record)
    report(record)
    return record


def draw(file: Path) -> None:
    """Draw the mean accuracy over coverage of some routers, a panel per scenario."""
    from matplotlib.figure import Figure

    record = json.loads((RESULTS / f"{NAME}.json").read_text())
    scenarios = record["scenarios"]
    figure = Figure(figsize=(4.0 * len(scenarios), 3.6), dpi=85, layout="constrained")
    panels = figure.subplots(1, len(scenarios), squeeze=False)[0]
    coverage = [100 * step / GRID for step in range(GRID + 1)]
    colors = {"msp": "#343a40", "entropy": "#868e96", "proxy + skip": "#e8590c", "gain": "#3b5bdb"}
    for ax, (name, seeds) in zip(panels, scenarios.items(), strict=True):
        runs = list(seeds.values())
        lines = {"best order": ("#adb5bd", [run["oracle_curve"] for run in runs])}
        lines |= {each: (color, [run["routers"][each]["curve"] for run in runs]) for each, color in colors.items()}
        for label, (color, curves) in lines.items():
            means = [100 * statistics.mean(values) for values in zip(*curves, strict=True)]
            style = (0, (4, 3)) if label == "best order" else "-"
            ax.plot(coverage, means, color=color, linestyle=style, linewidth=1.6, label=label)
        ax.set_title(name, loc="left", fontsize=11, fontweight="bold", color="#343a40")
        ax.set_xlabel("answered by the small network, %")
        ax.set_ylabel("accuracy, %")
        ax.grid(color="#e9ecef", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--draw", metavar="FILE", help="draw and print what was saved")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.draw:
        draw(Path(arguments.draw))
        report(json.loads((RESULTS / f"{NAME}.json").read_text()))
        return
    study(arguments.scenarios, arguments.seeds)


if __name__ == "__main__":
    main()
