"""Mistakes and abstentions of the online rule against the length of the stream, beside bounds.

Experts: 12 linear classifiers of scikit-learn's digits, each trained on 900 images of which it sees 20 random pixels,
times 16 thresholds (0.2 to 0.95) on the largest softmax probability: 192. Streams: the other 897 images, drawn with
replacement.

Strict study: the first expert that errs is erased (tolerance 0). Where the reference expert (the first classifier at
threshold 0.7) answers, the label is what it says, elsewhere it is that of the image: so an expert without mistakes
exists, and excess abstentions are those beyond the fewest of any expert without mistakes on the stream. The bounds hold
for the mean over the draws, whatever the stream is; they were derived for this project and are not the paper's:
  excess abstentions <= p T + ln(N) / eta + eta A*
  mistakes <= min((N - 1) / p, (ln(N) + eta (1 + eta) A*) / p)
with constant p and eta up to 1/2, and A* the abstentions of the best expert without mistakes.

Tolerant study: the labels are those of the images, on which every expert errs, and tolerance is 0.01. Excess
abstentions are those beyond the fewest of any expert with no more mistakes than the run. A second table varies the
tolerance, and which labels are used.

Constant rates are p = T^-mu with eta = sqrt(ln(N) / T); "sqrt" is p_t = eta_t = min(1 / sqrt(t), 0.1). All runs of one
setting go side by side, with the updates of ``lightning_efficient.functional.online_abstention``. One thread. Writes
``results/online_abstention.json`` and ``docs/images/online_abstention.png``.

Run: ``python benchmarks/online_abstention.py [--runs N] [--draw]``; ``--draw`` draws the results that are there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, save, table
from sklearn.datasets import load_digits
from torch import Tensor

from lightning_efficient.functional.online_abstention import (
    ABSTAIN,
    Explore,
    abstention_step,
    draw_expert,
    expert_predictions,
    expert_probabilities,
    exploration_rate,
    observe,
)

LENGTHS = (250, 500, 1000, 2000, 4000)
POWERS = {"T^-1/4": 1 / 4, "T^-1/3": 1 / 3, "T^-1/2": 1 / 2}
RATES = (*POWERS, "sqrt")
CLASSIFIERS, PIXELS, TRAINING = 12, 20, 900
THRESHOLDS = [percent / 100 for percent in range(20, 100, 5)]
REFERENCE = THRESHOLDS.index(0.7)
TOLERANCE, TOLERANCES, TOLERANCE_LENGTH = 0.01, (0.0, 0.003, 0.01, 0.03, 0.1), 2000
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "online_abstention.png"


@dataclass(frozen=True)
class Pool:
    """What a stream is drawn from."""

    predictions: Tensor
    """int64 ``(S, N)``."""
    labels: Tensor
    """int64 ``(S,)``."""

    @property
    def silent(self) -> Tensor:
        return self.predictions == ABSTAIN

    @property
    def wrong(self) -> Tensor:
        return ~self.silent & (self.predictions != self.labels[:, None])


def make_pools(seed: int = 0) -> dict[str, Pool]:
    """Return the pool of each study; they differ in their labels only."""
    images, labels = (torch.from_numpy(values) for values in load_digits(return_X_y=True))
    images = images.float() / 16
    generator = torch.Generator().manual_seed(seed)
    train, rest = torch.randperm(len(images), generator=generator).split([TRAINING, len(images) - TRAINING])
    scores = []
    for _ in range(CLASSIFIERS):
        seen = torch.randperm(images.shape[1], generator=generator)[:PIXELS]
        weights = trained(images[train][:, seen], labels[train])
        scores.append((with_bias(images[rest][:, seen]) @ weights).softmax(-1).T)
    predictions, truth = expert_predictions(torch.stack(scores), THRESHOLDS), labels[rest]
    reference = predictions[:, REFERENCE]
    return {
        "strict": Pool(predictions, torch.where(reference == ABSTAIN, truth, reference)),
        "tolerant": Pool(predictions, truth),
    }


def trained(inputs: Tensor, labels: Tensor, steps: int = 200) -> Tensor:
    inputs = with_bias(inputs)
    weights = torch.zeros(inputs.shape[1], 10, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(inputs @ weights, labels).backward()
        optimizer.step()
    return weights.detach()


def with_bias(inputs: Tensor) -> Tensor:
    return torch.nn.functional.pad(inputs, (0, 1), value=1.0)


def simulate(
    pool: Pool,
    order: Tensor,
    explore: Explore,
    eta: float | None = None,
    tolerance: float = 0.0,
    use_all: bool = False,
    seed: int = 0,
) -> Tensor:
    """Run many streams side by side; labels come at once.

    Args:
        pool: Predictions and labels.
        order: Which samples of the pool come, int64 ``(R, T)``: runs, rounds.
        explore: As in ``OnlineAbstainer``.
        eta: As in ``OnlineAbstainer``.
        tolerance: As in ``OnlineAbstainer``.
        use_all: Whether to use the labels of all abstentions.
        seed: Of the draws.

    Returns:
        Actions, int64 ``(R, T)``.
    """
    generator = torch.Generator().manual_seed(seed)
    (runs, rounds), experts = order.shape, pool.predictions.shape[1]
    log_weights = torch.zeros(runs, experts, dtype=torch.float64)
    alive = torch.ones(runs, experts, dtype=torch.bool)
    errors, count = torch.zeros(runs, experts, dtype=torch.int64), torch.zeros(runs, dtype=torch.int64)
    actions = torch.empty_like(order)
    silent_pool, wrong_pool = pool.silent, pool.wrong
    uniforms = torch.rand(rounds, 2, runs, generator=generator, dtype=torch.float64)
    for number, (samples, (tossed, drawn)) in enumerate(zip(order.T, uniforms, strict=True), start=1):
        rate = exploration_rate(number, explore)
        coin = tossed < rate
        expert = draw_expert(expert_probabilities(log_weights, alive), drawn)
        action = torch.where(coin, ABSTAIN, pool.predictions[samples, expert])
        actions[:, number - 1] = action
        used = (action == ABSTAIN) if use_all else coin
        if used.any():
            found = observe(alive[used], errors[used], count[used], wrong_pool[samples[used]], tolerance)
            alive[used], errors[used], count[used] = found.alive, found.observed_errors, found.feedback_count
        log_weights = abstention_step(log_weights, silent_pool[samples], rate if eta is None else eta)
    return actions


def evaluate(pool: Pool, order: Tensor, actions: Tensor) -> dict[str, Tensor]:
    """Return counts of each run, ``(R,)``; differences are NaN where no expert qualifies."""
    samples = len(pool.labels)
    times = torch.stack([one.bincount(minlength=samples) for one in order]).double()
    errors, silent = times @ pool.wrong.double(), times @ pool.silent.double()
    said_nothing = actions == ABSTAIN
    mistakes = (~said_nothing & (actions != pool.labels[order])).sum(1).double()
    abstentions = said_nothing.sum(1).double()
    return {
        "mistakes": mistakes,
        "abstentions": abstentions,
        "mistake_regret": mistakes - errors.amin(1),
        "perfect": fewest(silent, errors == 0),
        "excess": abstentions - fewest(silent, errors <= mistakes[:, None]),
        "excess_of_perfect": abstentions - fewest(silent, errors == 0),
    }


def fewest(silent: Tensor, qualifies: Tensor) -> Tensor:
    least = silent.masked_fill(~qualifies, math.inf).amin(1)
    return least.masked_fill(least.isinf(), math.nan)


def bounds(rounds: int, experts: int, rate: float, eta: float, perfect: float) -> dict[str, float]:
    """Return the derived bounds on the means of a strict run; see the head of the file."""
    found = math.log(experts)
    return {
        "excess_of_perfect": rate * rounds + found / eta + eta * perfect,
        "mistakes": min(experts - 1, found + eta * (1 + eta) * perfect) / rate,
    }


def summary(values: Tensor) -> dict[str, float | int]:
    """Return mean, standard deviation over the runs and standard error of the mean, of those that are not NaN."""
    kept = values[~values.isnan()]
    if len(kept) < 2:
        return {"mean": kept.mean().item(), "sd": math.nan, "se": math.nan, "runs": len(kept)}
    deviation = kept.std().item()
    return {"mean": kept.mean().item(), "sd": deviation, "se": deviation / math.sqrt(len(kept)), "runs": len(kept)}


def rates_of(name: str, rounds: int, experts: int) -> tuple[Explore, float | None]:
    if name == "sqrt":
        return "sqrt", None
    return rounds ** -POWERS[name], math.sqrt(math.log(experts) / rounds)


def lengths_study(pool: Pool, runs: int, tolerance: float) -> dict[str, dict[str, Any]]:
    """Return, by rate and length, the summaries of all counts, and the bounds where they apply."""
    found: dict[str, dict[str, Any]] = {name: {} for name in RATES}
    experts = pool.predictions.shape[1]
    for rounds in LENGTHS:
        order = streams_of(pool, runs, rounds)
        for name in RATES:
            explore, eta = rates_of(name, rounds, experts)
            counts = evaluate(pool, order, simulate(pool, order, explore, eta, tolerance, seed=rounds + 1))
            cell: dict[str, Any] = {key: summary(values) for key, values in counts.items()}
            if tolerance == 0 and eta is not None:
                cell["bounds"] = bounds(rounds, experts, float(explore), eta, cell["perfect"]["mean"])
            found[name][str(rounds)] = cell
    return found


def tolerance_study(pool: Pool, runs: int) -> dict[str, dict[str, Any]]:
    """Return, by the labels that are used and the tolerance, the summaries at one length with the sqrt rate."""
    order = streams_of(pool, runs, TOLERANCE_LENGTH)
    return {
        feedback: {
            str(tolerance): {
                key: summary(values)
                for key, values in evaluate(
                    pool, order, simulate(pool, order, "sqrt", None, tolerance, feedback == "all", seed=1)
                ).items()
            }
            for tolerance in TOLERANCES
        }
        for feedback in ("explore", "all")
    }


def streams_of(pool: Pool, runs: int, rounds: int) -> Tensor:
    return torch.randint(len(pool.labels), (runs, rounds), generator=torch.Generator().manual_seed(rounds))


def report(record: Mapping[str, Any]) -> None:
    held = bounds_hold(record)
    rows = []
    for name, by_length in record["strict"].items():
        for rounds, cell in by_length.items():
            limit = cell.get("bounds", {})
            cells = [f"{cell['perfect']['mean']:.0f}"]
            for key in ("excess_of_perfect", "mistakes"):
                cells += [shown(cell[key]), f"{limit[key]:.0f}" if limit else ""]
            rows.append([f"{name} T={rounds}", *cells])
    print(f"Means ± standard deviations over {record['runs']} runs; within the bound: {sum(held)} of {len(held)} means")
    print(f"The nearest to its bound is below it by a factor of {nearest(record):.2f}")
    table("Strict", ["p, rounds", "A*", "excess abstentions", "bound", "mistakes", "bound"], rows)
    columns = ["", "mistakes", "regret", "abstained", "excess", "compared"]
    rows = [[f"{n} T={t}", *tolerant_cells(c)] for n, by in record["tolerant"].items() for t, c in by.items()]
    table(f"Tolerance {TOLERANCE}", columns, rows)
    rows = [[f"{n} θ={t}", *tolerant_cells(c)] for n, by in record["tolerances"].items() for t, c in by.items()]
    table(f"Labels used and tolerance: {TOLERANCE_LENGTH} rounds, sqrt", columns, rows)


def bounds_hold(record: Mapping[str, Any]) -> list[bool]:
    """Return, for each bound, whether the mean over the runs is within it."""
    return [mean <= limit for mean, limit in against_bounds(record)]


def nearest(record: Mapping[str, Any]) -> float:
    """Return the smallest ratio of a bound to its mean; means below 0 have none."""
    return min((limit / mean for mean, limit in against_bounds(record) if mean > 0), default=math.inf)


def against_bounds(record: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return each mean that has a bound, with the bound."""
    cells = [cell for by_length in record["strict"].values() for cell in by_length.values() if "bounds" in cell]
    return [(cell[key]["mean"], limit) for cell in cells for key, limit in cell["bounds"].items()]


def tolerant_cells(cell: Mapping[str, Any]) -> list[object]:
    mistakes, abstentions = (f"{cell[key]['mean']:.0f}" for key in ("mistakes", "abstentions"))
    # the last: how many runs have an expert with no more mistakes, from which the excess is taken
    return [mistakes, shown(cell["mistake_regret"]), abstentions, shown(cell["excess"]), cell["excess"]["runs"]]


def shown(one: Mapping[str, float]) -> str:
    return "{mean:.0f} ± {sd:.0f}".format(**one)


def draw(record: Mapping[str, Any], target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    curves = (
        ("strict", "excess_of_perfect", "excess abstentions, strict (dashed: derived bound)"),
        ("strict", "mistakes", "mistakes, strict (dashed: derived bound)"),
        ("tolerant", "excess", f"excess abstentions, tolerance {TOLERANCE}"),
        ("tolerant", "mistake_regret", f"mistakes beyond the best expert's, tolerance {TOLERANCE}"),
    )
    for axes, (study, key, title) in zip(panels.flat, curves, strict=True):
        for place, (name, by_length) in enumerate(record[study].items()):
            lengths = [int(length) * 1.05 ** (place - 1.5) for length in by_length]
            means, deviations = ([cell[key][part] for cell in by_length.values()] for part in ("mean", "sd"))
            axes.errorbar(lengths, means, deviations, color=f"C{place}", marker="o", ms=3, lw=1, label=label_of(name))
            limits = [cell["bounds"][key] for cell in by_length.values() if "bounds" in cell]
            if limits:
                axes.plot(lengths, limits, color=f"C{place}", ls="--", lw=1)
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log")
        axes.set_yscale("log" if (study, key) == ("strict", "mistakes") else "linear")
        axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    for axes in panels[1]:
        axes.set_xlabel("rounds T")
    figure.savefig(target, dpi=100)


def label_of(name: str) -> str:
    return "p = min(t^-1/2, 0.1)" if name == "sqrt" else f"p = {name}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="streams per setting")
    parser.add_argument("--draw", action="store_true", help="draw and print the results that are there, run nothing")
    given = parser.parse_args(arguments)
    if given.draw:
        record = json.loads((RESULTS / "online_abstention.json").read_text())
    else:
        torch.set_num_threads(1)
        record = study(given.runs)
        save("online_abstention", record)
    report(record)
    draw(record, PICTURE)


def study(runs: int) -> dict[str, Any]:
    pools = make_pools()
    return {
        "runs": runs,
        "experts": pools["strict"].predictions.shape[1],
        "strict": lengths_study(pools["strict"], runs, 0.0),
        "tolerant": lengths_study(pools["tolerant"], runs, TOLERANCE),
        "tolerances": tolerance_study(pools["tolerant"], runs),
    }


if __name__ == "__main__":
    main()
