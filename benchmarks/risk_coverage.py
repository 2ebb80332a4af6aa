"""Four selective-classification metrics in one collection: ours against torch-uncertainty.

One million samples of ten classes in batches of 1000, one thread, both sides in one process and in turns. Prints times,
the size of the state and the difference of the values, and writes ``results/risk_coverage.json``.

Run: ``python benchmarks/risk_coverage.py [--samples N] [--rounds N]``
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter

import torch
from harness import paired, ratio, save, table
from torch import Tensor
from torch_uncertainty.metrics import classification as peer
from torchmetrics import MetricCollection

from lightning_efficient.metrics import AUGRC, AURC, CoverageAtRisk, RiskAtCoverage

NAMES = ("AURC", "AUGRC", "coverage at 5% risk", "risk at 80% coverage")
BATCH = 1000


def make_data(samples: int, classes: int = 10) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return batches of softmax outputs of a noisy classifier (about one error in three) and of its targets."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(classes, (samples,), generator=generator)
    logits = torch.randn(samples, classes, generator=generator)
    logits[torch.arange(samples), target] += 2
    return logits.softmax(-1).split(BATCH), target.split(BATCH)


def make_collections() -> dict[str, MetricCollection]:
    theirs = (peer.AURC(), peer.AUGRC(), peer.CovAt5Risk(), peer.RiskAt80Cov())
    return {
        "torch-uncertainty": MetricCollection(dict(zip(NAMES, theirs, strict=True))),
        "ours, exact": MetricCollection(our_metrics()),
        "ours, 1000 bins": MetricCollection(our_metrics(bins=1000)),
    }


def our_metrics(bins: int | None = None) -> dict[str, AURC | AUGRC | CoverageAtRisk | RiskAtCoverage]:
    options = {"input": "probs", "bins": bins}
    metrics = (AURC(**options), AUGRC(**options), CoverageAtRisk(0.05, **options), RiskAtCoverage(0.8, **options))
    return dict(zip(NAMES, metrics, strict=True))


def state_bytes(collection: MetricCollection) -> int:
    """Bytes of the distinct storages behind all states; members of a compute group share theirs."""
    storages = {}
    for state in collection.metric_state.values():
        for values in state.values():
            for tensor in values if isinstance(values, list) else [values]:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    probs, targets = make_data(arguments.samples)
    collections = make_collections()
    parts: dict[str, dict[str, list[float]]] = {name: {"update": [], "compute": []} for name in collections}
    values: dict[str, dict[str, Tensor]] = {}

    def evaluate(name: str) -> Callable[[], None]:
        def once() -> None:
            metrics = collections[name]
            metrics.reset()
            start = perf_counter()
            for batch, target in zip(probs, targets, strict=True):
                metrics.update(batch, target)
            middle = perf_counter()
            values[name] = metrics.compute()
            parts[name]["update"].append(middle - start)
            parts[name]["compute"].append(perf_counter() - middle)

        return once

    times = paired({name: evaluate(name) for name in collections}, arguments.rounds)
    reference = values["torch-uncertainty"]
    record = {"samples": arguments.samples, "batch": BATCH, "threads": 1, "rounds": arguments.rounds, "variants": {}}
    for name, metrics in collections.items():
        seconds = {part: taken[-arguments.rounds :] for part, taken in parts[name].items()} | {"total": times[name]}
        record["variants"][name] = {
            "seconds": seconds,
            "faster": ratio(times, of="torch-uncertainty", over=name),
            "state_bytes": state_bytes(metrics),
            "values": {metric: float(value) for metric, value in values[name].items()},
            "difference": {metric: float(value) - float(reference[metric]) for metric, value in values[name].items()},
        }
    report(record)
    save("risk_coverage", record)


def report(record: dict) -> None:
    variants = record["variants"]
    title = f"AURC, AUGRC, Cov@5%, Risk@80%: {record['samples']} samples, {record['rounds']} rounds, one thread"
    rows = []
    for name, found in variants.items():
        cells = [spread([1000 * value for value in found["seconds"][part]]) for part in ("update", "compute", "total")]
        faster = "{median:.2f} ({low:.2f} to {high:.2f})".format(**found["faster"])
        rows.append([name, *cells, faster, f"{found['state_bytes']:,}"])
    table(title, ["", "update ms", "compute ms", "total ms", "times faster", "state bytes"], rows)
    rows = [[name, *(f"{found['difference'][metric]:+.1e}" for metric in NAMES)] for name, found in variants.items()]
    table("Difference of the values from torch-uncertainty", ["", *NAMES], rows)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    main()
