"""Do the promises of thresholds hold? Rules against populations whose true risk is known at every threshold.

A sample has a rank u, uniform in [0, 1], and the confidence 1 - u; it is wrong with a probability e(u). So the coverage
at a threshold is the largest rank that is accepted, and the risks are integrals of e in closed form. Populations:

- ``smooth``: e(u) = 0.4 u³, which is 10 % in all;
- ``ties``: the same, with confidences rounded to two decimals;
- ``overconfident``: the same and 5 % more errors among the surest 5 %, so that the selective risk first falls with the
  coverage. There ``sgr`` and ``fixed_sequence`` promise nothing.

Every rule chooses a threshold on each of many calibration sets. Reported are how often the true risk exceeds the
target, the mean of the true coverage and of the true risk (0 where nothing is answered), and the largest coverage whose
true risk meets the target. A rule is not tried where the calibration set is too small for it.

Two rules promise a mean over calibration sets, and z tests it: the distance of the mean over the draws from what is
promised, in its standard errors. ``conformal`` promises that the mean true risk is at most the target, so that only a
z far above 0 breaks it. ``coverage`` promises a mean true coverage of k / (n + 1) for k = ceil(target * n), and with
``ties`` at least that, so that a z far below 0 breaks it, and one far above 0 too where nothing ties. Errors play no
part in it, so ``overconfident`` is left out.

Writes ``results/selective_thresholds.json`` and ``docs/images/thresholds.png``.

Run: ``python benchmarks/selective_thresholds.py [--draws 400] [--samples 300 1000 5000] [--draw]``, about a minute;
``--draw`` only draws the picture again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import RESULTS, save, table
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.operating_points import RiskKind
from lightning_efficient.functional.risk_coverage import RiskCoverage, risk_coverage_summary
from lightning_efficient.functional.thresholds import (
    ThresholdChoice,
    conformal_threshold,
    coverage_threshold,
    empirical_threshold,
    fixed_sequence_threshold,
    rcps_threshold,
    sgr_threshold,
)

TARGETS = (0.005, 0.01, 0.02, 0.05)
DELTAS = (0.1, 0.05)
COVERAGES = (0.5, 0.8, 0.9)
SCALE, POWER = 0.4, 3
OVERCONFIDENT, SUREST = 0.05, 0.05
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "thresholds.png"


class Population(NamedTuple):
    """How many decimals confidences have, if they are rounded, and how many more of the surest samples are wrong."""

    decimals: int | None = None
    more: float = 0.0

    def draw(self, samples: int, generator: torch.Generator) -> RiskCoverage:
        rank = torch.rand(samples, generator=generator, dtype=torch.float64)
        rate = SCALE * rank**POWER + self.more * (rank < SUREST)
        wrong = torch.rand(samples, generator=generator, dtype=torch.float64) < rate
        confidence = 1 - rank
        return risk_coverage_summary(confidence if self.decimals is None else self.rounded(confidence), wrong)

    def rounded(self, confidence: Tensor) -> Tensor:
        # whole numbers: a rounded decimal would not compare right with the sum below
        return (confidence * 10**self.decimals + 0.5).floor()

    def coverage(self, threshold: float) -> float:
        """Return the share of all samples at or above a threshold."""
        if math.isinf(threshold):
            return 0.0
        least = threshold if self.decimals is None else (threshold - 0.5) / 10**self.decimals
        return min(1 - least, 1.0)

    def risk(self, coverage: float, kind: RiskKind) -> float:
        """Return the true risk of answering the surest; 0 where none is."""
        if coverage == 0:
            return 0.0
        joint = SCALE * coverage ** (POWER + 1) / (POWER + 1) + self.more * min(coverage, SUREST)
        return joint / coverage if kind == "selective" else joint

    def best(self, target: float, kind: RiskKind) -> float:
        """Return the largest coverage that a threshold can have without exceeding the target."""
        steps = 10_000 if self.decimals is None else 10**self.decimals
        thresholds = [step / steps for step in range(steps)] if self.decimals is None else list(range(steps + 1))
        allowed = [c for t in thresholds if self.risk(c := self.coverage(t), kind) <= target]
        return max(allowed, default=0.0)


POPULATIONS = {
    "smooth": Population(),
    "ties": Population(decimals=2),
    "overconfident": Population(more=OVERCONFIDENT),
}


class RuleOfStudy(NamedTuple):
    """A rule, the risk it is about, and how often it may exceed the target; ``None`` for no such promise."""

    kind: RiskKind
    delta: float | None
    choose: Callable[[RiskCoverage, float], ThresholdChoice]


def rules() -> dict[str, RuleOfStudy]:
    found = {
        "empirical, selective": RuleOfStudy("selective", None, lambda s, risk: empirical_threshold(s, risk=risk)),
        "empirical, joint": RuleOfStudy(
            "generalized", None, lambda s, risk: empirical_threshold(s, risk=risk, kind="generalized")
        ),
        "conformal": RuleOfStudy("generalized", None, lambda s, risk: conformal_threshold(s, risk=risk)),
    }
    for delta in DELTAS:
        found[f"sgr, {delta:g}"] = RuleOfStudy(
            "selective", delta, lambda s, risk, delta=delta: sgr_threshold(s, risk=risk, delta=delta)
        )
        found[f"fixed_sequence, {delta:g}"] = RuleOfStudy(
            "selective", delta, lambda s, risk, delta=delta: fixed_sequence_threshold(s, risk=risk, delta=delta)
        )
        found[f"rcps, {delta:g}"] = RuleOfStudy(
            "generalized", delta, lambda s, risk, delta=delta: rcps_threshold(s, risk=risk, delta=delta)
        )
    return found


def study(draws: int, sizes: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the risk rules, and those of the two promised means, by population, size, rule and target."""
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "conformal_means": [], "coverage_means": []}
    for name, population in POPULATIONS.items():
        for samples in sizes:
            generator = torch.Generator().manual_seed(samples)
            sets = [population.draw(samples, generator) for _ in range(draws)]
            case = {"population": name, "samples": samples}
            for rule, (kind, delta, choose) in rules().items():
                for target in TARGETS:
                    values, risks = outcome(population, sets, kind, target, choose)
                    given = {**case, "rule": rule, "kind": kind, "delta": delta, "target": target}
                    found["rows"].append({**given, "best_coverage": population.best(target, kind), **values})
                    if rule == "conformal" and risks:
                        found["conformal_means"].append({**case, "target": target, **against(risks, target)})
            if population.more:  # the confidences are those of another population
                continue
            for target in COVERAGES:
                coverages = [population.coverage(coverage_threshold(s, coverage=target).threshold) for s in sets]
                promised = math.ceil(target * samples - 1e-9) / (samples + 1)
                found["coverage_means"].append({**case, "target": target, **against(coverages, promised)})
    return found


def against(values: Sequence[float], promised: float) -> dict[str, float | None]:
    """Return a mean, its ratio to a promise, and how many standard errors it lies above; no z where nothing varies."""
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    z = (mean - promised) / error if error else None
    return {"promised": promised, "mean": mean, "ratio": mean / promised, "standard_error": error, "z": z}


def outcome(
    population: Population,
    sets: Sequence[RiskCoverage],
    kind: RiskKind,
    target: float,
    choose: Callable[[RiskCoverage, float], ThresholdChoice],
) -> tuple[dict[str, float | None], list[float]]:
    """Return what a rule does on average, and the true risk of each threshold; none where samples are too few."""
    try:
        thresholds = [choose(calibration, target).threshold for calibration in sets]
    except ConfigurationError as error:
        if "needs at least" not in str(error):
            raise
        return {"violations": None, "coverage": None, "risk": None}, []
    coverages = [population.coverage(threshold) for threshold in thresholds]
    risks = [population.risk(coverage, kind) for coverage in coverages]
    values = {
        "violations": sum(risk > target for risk in risks) / len(sets),
        "coverage": sum(coverages) / len(sets),
        "risk": sum(risks) / len(sets),
    }
    return values, risks


def beyond_noise(rows: Sequence[Mapping[str, Any]], draws: int) -> list[Mapping[str, Any]]:
    """Return the rows that exceed their target more often than promised, by more than chance in so many rows allows."""
    from scipy.stats import binom

    promised = [row for row in rows if row["delta"] is not None and row["violations"] is not None]
    return [
        row
        for row in promised
        if binom.sf(round(row["violations"] * draws) - 1, draws, row["delta"]) < 0.01 / len(promised)
    ]


def means_beyond_noise(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """Return the rows whose mean breaks its promise by more than chance in so many rows allows."""
    from scipy.stats import norm

    low = found["coverage_means"]
    high = [*found["conformal_means"], *(row for row in low if POPULATIONS[row["population"]].decimals is None)]
    limit = norm.isf(0.01 / max(len(low) + len(high), 1))
    return [row for row in high if distance(row) > limit] + [row for row in low if distance(row) < -limit]


def distance(row: Mapping[str, Any]) -> float:
    """Return z, infinite where a mean without spread is not what was promised."""
    if row["z"] is not None:
        return row["z"]
    return math.copysign(math.inf, row["mean"] - row["promised"]) if row["mean"] != row["promised"] else 0.0


def report(record: Mapping[str, Any]) -> None:
    sizes = sorted({row["samples"] for row in record["rows"]})
    for population in POPULATIONS:
        for target in TARGETS:
            rows = []
            for rule in rules():
                of_rule = [row for row in chosen(record, population, target) if row["rule"] == rule]
                cells = [cell(row) for row in sorted(of_rule, key=lambda row: row["samples"])]
                rows.append([rule, f"{of_rule[0]['best_coverage']:.3f}", *cells])
            title = f"{population}, target {100 * target:g} %: violations %, coverage, risk %; {record['draws']} draws"
            table(title, ["rule", "best", *(f"n = {size}" for size in sizes)], rows)
    rows = []
    for rule in rules():
        shares = [row["violations"] for row in record["rows"] if row["rule"] == rule and row["violations"] is not None]
        rows.append([rule, *(f"{100 * share:.1f} %" for share in (statistics.median(shares), max(shares)))])
    table("calibration sets above the target, over all populations, sizes and targets", ["", "median", "largest"], rows)
    named = [f"{row['population']} {row['rule']} {row['samples']} {row['target']}" for row in record["beyond_noise"]]
    print("more violations than promised:", ", ".join(named) or "none")
    report_means(record)


def report_means(record: Mapping[str, Any]) -> None:
    titles = {
        "conformal_means": "conformal: mean true risk over target (z)",
        "coverage_means": "coverage: mean true coverage, promised in brackets (z)",
    }
    for key, title in titles.items():
        sizes = sorted({row["samples"] for row in record[key]})
        rows = []
        for population, target in dict.fromkeys((row["population"], row["target"]) for row in record[key]):
            of_line = {r["samples"]: r for r in record[key] if (r["population"], r["target"]) == (population, target)}
            cells = [mean_cell(of_line.get(size), key) for size in sizes]
            rows.append([population, f"{100 * target:g} %", *cells])
        table(f"{title}; {record['draws']} draws", ["", "target", *(f"n = {size}" for size in sizes)], rows)
    named = [f"{row['population']} {row['samples']} {row['target']}" for row in record["means_beyond_noise"]]
    print("means that break their promise:", ", ".join(named) or "none")


def mean_cell(row: Mapping[str, Any] | None, key: str) -> str:
    if row is None:
        return "too few"
    z = "" if row["z"] is None else f" ({row['z']:+.1f})"
    if key == "conformal_means":
        return f"{row['ratio']:.3f}{z}"
    return f"{row['mean']:.4f} [{row['promised']:.4f}]{z}"


def chosen(record: Mapping[str, Any], population: str, target: float) -> list[Mapping[str, Any]]:
    return [row for row in record["rows"] if row["population"] == population and row["target"] == target]


def cell(row: Mapping[str, Any]) -> str:
    if row["violations"] is None:
        return "too few"
    return f"{100 * row['violations']:.1f}  {row['coverage']:.3f}  {100 * row['risk']:.2f}"


def draw(record: Mapping[str, Any], target: Path) -> None:
    """Draw how often each rule exceeds its target, and the coverage it reaches at 1 %."""
    from matplotlib.figure import Figure

    sys.path.append(str(PICTURE.parents[1]))
    from make_pictures import small

    figure = Figure(figsize=(10.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    order = ["empirical, selective", *(f"{rule}, {d:g}" for rule in ("sgr", "fixed_sequence") for d in DELTAS)]
    order += ["empirical, joint", "conformal"]
    order += [f"rcps, {d:g}" for d in DELTAS]
    for place, rule in enumerate(order):
        for shift, population in enumerate(POPULATIONS):
            rows = [row for row in record["rows"] if (row["rule"], row["population"]) == (rule, population)]
            rates = [100 * row["violations"] for row in rows if row["violations"] is not None]
            where = [place + 0.22 * (shift - 1)] * len(rates)
            left.plot(where, rates, "o", ms=3.5, color=f"C{shift}", label=population if place == 0 else None)
        if (delta := rules()[rule].delta) is not None:
            left.plot([place - 0.4, place + 0.4], [100 * delta] * 2, color="black", lw=1.5)
    left.set_xticks(range(len(order)), [rule.replace("_", " ") for rule in order], fontsize=8, rotation=40, ha="right")
    left.set(ylabel="calibration sets, %", title="true risk above its target", ylim=(-2, None))
    left.legend(fontsize=8, title="population; line: promised", title_fontsize=8)
    for number, rule in enumerate(order):
        rows = [row for row in chosen(record, "smooth", 0.01) if row["rule"] == rule and row["coverage"] is not None]
        style = "-" if rules()[rule].kind == "selective" else "--"
        sizes, values = [row["samples"] for row in rows], [row["coverage"] for row in rows]
        right.plot(sizes, values, f"o{style}", ms=4, color=f"C{number}", label=rule.replace("_", " "))
    for kind, style in (("selective", "-"), ("generalized", "--")):
        right.axhline(POPULATIONS["smooth"].best(0.01, kind), color="black", lw=0.8, ls=style)
    right.set_xscale("log")
    sizes = sorted({row["samples"] for row in record["rows"]})
    right.set_xticks(sizes, [str(size) for size in sizes])
    right.minorticks_off()
    right.set(xlabel="calibration samples", ylabel="coverage", ylim=(0, None), title="smooth, target 1 %; black: best")
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(target, dpi=110)
    small(target, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--samples", type=int, nargs="+", default=[300, 1000, 5000])
    parser.add_argument("--draw", action="store_true", help="draw and print the results that are there, run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.draw:
        record = json.loads((RESULTS / "selective_thresholds.json").read_text())
        report(record)
        draw(record, PICTURE)
        return
    found = study(arguments.draws, arguments.samples)
    record = {
        "draws": arguments.draws,
        "beyond_noise": beyond_noise(found["rows"], arguments.draws),
        "means_beyond_noise": means_beyond_noise(found),
        **found,
    }
    save("selective_thresholds", record)
    report(record)
    draw(record, PICTURE)


if __name__ == "__main__":
    main()
