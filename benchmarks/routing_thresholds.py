"""Do the promises on the accuracy drop hold? Rules for the threshold of a hybrid against a population known in full.

A small and a large network are trained on corrupted digits (scenario ``plain`` of ``digit_scenarios.py``, seed 0), and
every test image is corrupted 110 times; these inputs are the population. Both networks answer all of them once, so that
the true drop and the true coverage of any threshold are known. The query score is the maximum softmax probability of
the small network. A pilot of 2,000 inputs makes a path of 101 thresholds.

Every rule then chooses a threshold on each of many calibration sets drawn from the population, at a tolerated drop of
1 % or 2 % of all samples and, where the rule has one, a confidence of 90 %. Reported are how often the true drop
exceeds what is tolerated, the mean of the true coverage and of the true drop, and the largest coverage on the path
whose true drop is tolerated. ``published`` is the rule of cascaded inference, which sets the threshold from the small
network alone.

``betting``, ``binomial`` and ``difference`` promise that at most 10 % of the calibration sets exceed the target;
``conformal`` promises the mean drop only. What breaks a promise by more than chance allows is named at the end.

Writes ``results/routing_thresholds.json``.

Run: ``python benchmarks/routing_thresholds.py [--draws 2000] [--seed 0] [--draw]``, about two minutes on one
thread; ``--draw`` only prints the results that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from digit_scenarios import PARTS, SCENARIOS, base_network, digits, fit, global_network, inputs_of, outputs_of
from harness import RESULTS, save, table
from torch import Tensor

from lightning_efficient.functional.cascade import published_thresholds
from lightning_efficient.functional.confidence import msp
from lightning_efficient.functional.drop_control import DROP_RULES, DROP_RULES_WITH_LEVEL, DropRule, choose_drop_point
from lightning_efficient.functional.threshold_path import threshold_path

DELTA = 0.1
SETTINGS = ((300, 0.01), (1000, 0.01), (3000, 0.01), (3000, 0.02))
RULES = ("empirical", "published", "conformal", "binomial", "difference", "betting")
PILOT = 2000


class Size(NamedTuple):
    """How much is trained and how large the population is."""

    copies: int = 110
    train_copies: int = 20
    epochs: int = 12
    parts: Mapping[str, int] = PARTS


class Population(NamedTuple):
    """Query scores ``(N,)`` and whether each network is right, ``(N,)``."""

    query_score: Tensor
    base_correct: Tensor
    full_correct: Tensor

    def system_correct(self, path: Tensor) -> Tensor:
        """Return whether the hybrid is right at each threshold of a path, ``(N, T)``."""
        kept = self.query_score.double().unsqueeze(1) <= path.squeeze(1)
        return torch.where(kept, self.base_correct.unsqueeze(1), self.full_correct.unsqueeze(1))

    def outcome(self, threshold: float) -> tuple[float, float]:
        """Return the true coverage and the true drop of a threshold."""
        kept = self.query_score.double() <= threshold
        lost = (kept & self.full_correct & ~self.base_correct).sum()
        gained = (kept & self.base_correct & ~self.full_correct).sum()
        return int(kept.sum()) / len(kept), int(lost - gained) / len(kept)


def population(seed: int, size: Size) -> Population:
    """Train both networks and let them answer every corrupted test image."""
    plain, parts = SCENARIOS["plain"], digits(seed, size.parts)
    torch.manual_seed(seed)
    base, large = base_network(), global_network()
    inputs, labels = inputs_of(parts["train"], plain, size.train_copies, seed)
    for network in (base, large):
        fit(network, inputs, labels, epochs=size.epochs, seed=seed)
    outputs = outputs_of(base, large, *inputs_of(parts["test"], plain, size.copies, seed + 1))
    return Population(-msp(outputs.base_logits), outputs.base_correct, outputs.global_correct)


def study(found: Population, draws: int, seed: int) -> dict[str, Any]:
    """Return a row for each setting and rule, and what is best possible."""
    draw = torch.Generator().manual_seed(seed)
    count = len(found.query_score)
    path = threshold_path(found.query_score[torch.randint(count, (PILOT,), generator=draw)])
    correct = found.system_correct(path)
    truth = [found.outcome(threshold) for threshold in path.squeeze(1).tolist()]
    rows = []
    for samples, max_drop in SETTINGS:
        best = max(coverage for coverage, drop in truth if drop <= max_drop)
        outcomes: dict[str, list[tuple[float, float]]] = {rule: [] for rule in RULES}
        for _ in range(draws):
            chosen = torch.randint(count, (samples,), generator=draw)
            for rule in RULES:
                outcomes[rule].append(outcome(rule, found, chosen, correct, truth, max_drop))
        rows += [
            {"samples": samples, "max_drop": max_drop, "rule": rule, "best_coverage": best, **summary(each, max_drop)}
            for rule, each in outcomes.items()
        ]
    return {
        "population": count,
        "base_accuracy": found.base_correct.double().mean().item(),
        "full_accuracy": found.full_correct.double().mean().item(),
        "rows": rows,
    }


def outcome(
    rule: str,
    found: Population,
    chosen: Tensor,
    correct: Tensor,
    truth: Sequence[tuple[float, float]],
    max_drop: float,
) -> tuple[float, float]:
    """Return the true coverage and drop of the threshold that a rule chooses on some samples."""
    if rule == "published":
        confidence = -found.query_score[chosen].unsqueeze(0)
        threshold = published_thresholds(confidence, found.base_correct[chosen].unsqueeze(0), max_drop)
        return found.outcome(-float(threshold))
    named: DropRule = next(each for each in DROP_RULES if each == rule)
    delta = DELTA if named in DROP_RULES_WITH_LEVEL else None
    choice = choose_drop_point(correct[chosen], found.full_correct[chosen], max_drop=max_drop, delta=delta, rule=named)
    return truth[choice.index] if choice.index >= 0 else (0.0, 0.0)


def summary(outcomes: Sequence[tuple[float, float]], max_drop: float) -> dict[str, float | None]:
    """Return how often the true drop exceeds the target, means, and how far the mean drop lies above the target."""
    drops = [drop for _, drop in outcomes]
    error = statistics.stdev(drops) / math.sqrt(len(drops))
    return {
        "violations": sum(drop > max_drop for drop in drops) / len(drops),
        "coverage": statistics.fmean(coverage for coverage, _ in outcomes),
        "drop": statistics.fmean(drops),
        "z": (statistics.fmean(drops) - max_drop) / error if error else None,
    }


def beyond_noise(rows: Sequence[Mapping[str, Any]], draws: int) -> list[Mapping[str, Any]]:
    """Return the rows that break their promise by more than chance in so many rows allows."""
    from scipy.stats import binom, norm

    promised = [row for row in rows if row["rule"] in (*DROP_RULES_WITH_LEVEL, "conformal")]
    level = 0.01 / max(len(promised), 1)

    def broken(row: Mapping[str, Any]) -> bool:
        if row["rule"] == "conformal":
            return row["z"] > norm.isf(level) if row["z"] is not None else row["drop"] > row["max_drop"]
        return binom.sf(round(row["violations"] * draws) - 1, draws, DELTA) < level

    return [row for row in promised if broken(row)]


def report(record: Mapping[str, Any]) -> None:
    title = (
        f"violations %, coverage, drop %; {record['draws']} draws from {record['population']:,} inputs; accuracy "
        f"{100 * record['base_accuracy']:.1f} % and {100 * record['full_accuracy']:.1f} %"
    )
    settings = list(dict.fromkeys((row["samples"], row["max_drop"]) for row in record["rows"]))
    of = {(row["rule"], row["samples"], row["max_drop"]): row for row in record["rows"]}
    lines = [[rule, *(cell(of[rule, *setting]) for setting in settings)] for rule in RULES]
    lines.append(["best possible", *(f"{of[RULES[0], *setting]['best_coverage']:.3f}" for setting in settings)])
    table(title, ["rule", *(f"n = {samples}, {100 * drop:g} %" for samples, drop in settings)], lines)
    named = [f"{row['rule']} {row['samples']} {row['max_drop']}" for row in record["beyond_noise"]]
    print("promises that are broken:", ", ".join(named) or "none")


def cell(row: Mapping[str, Any]) -> str:
    return f"{100 * row['violations']:.1f}  {row['coverage']:.3f}  {100 * row['drop']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw", action="store_true", help="print the results that are there, run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.draw:
        report(json.loads((RESULTS / "routing_thresholds.json").read_text()))
        return
    found = study(population(arguments.seed, Size()), arguments.draws, arguments.seed)
    record = {
        "draws": arguments.draws,
        "seed": arguments.seed,
        "delta": DELTA,
        "beyond_noise": beyond_noise(found["rows"], arguments.draws),
        **found,
    }
    save("routing_thresholds", record)
    report(record)


if __name__ == "__main__":
    main()
