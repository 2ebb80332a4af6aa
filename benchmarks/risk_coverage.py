"""Four selective-classification metrics in one collection: ours against torch-uncertainty, from 1e4 to 1e7 samples.

Ten classes, one thread, both sides in one process and in turns, batches of 1,000 samples (10,000 from 1e7 samples on,
and then 3 rounds). Prints times, the size of the state, what a fresh process needs beyond the data (the growth of its
largest resident set from the first update to the end of compute), and the difference of the values. Writes
``results/risk_coverage.json``.

Run: ``python benchmarks/risk_coverage.py [--samples N ...] [--rounds N] [--no-processes]``
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from harness import paired, ratio, save, table
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_efficient.metrics import AUGRC, AURC, CoverageAtRisk, RiskAtCoverage

NAMES = ("AURC", "AUGRC", "coverage at 5% risk", "risk at 80% coverage")
SAMPLES = (10_000, 100_000, 1_000_000, 10_000_000)
MANY = 10_000_000
PEER = "torch-uncertainty"


def our_metrics(bins: int | None = None) -> MetricCollection:
    options = {"input": "probs", "bins": bins}
    metrics = (AURC(**options), AUGRC(**options), CoverageAtRisk(0.05, **options), RiskAtCoverage(0.8, **options))
    return MetricCollection(dict(zip(NAMES, metrics, strict=True)))


def their_metrics() -> MetricCollection:
    from torch_uncertainty.metrics import classification as peer

    metrics = (peer.AURC(), peer.AUGRC(), peer.CovAt5Risk(), peer.RiskAt80Cov())
    return MetricCollection(dict(zip(NAMES, metrics, strict=True)))


VARIANTS: dict[str, Callable[[], MetricCollection]] = {
    PEER: their_metrics,
    "ours, exact": our_metrics,
    "ours, 1000 bins": lambda: our_metrics(bins=1000),
}


def make_data(samples: int, batch: int, classes: int = 10) -> list[tuple[Tensor, Tensor]]:
    """Return batches of softmax outputs of a noisy classifier (about one error in three) and of its targets."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for start in range(0, samples, batch):
        size = min(batch, samples - start)
        target = torch.randint(classes, (size,), generator=generator)
        logits = torch.randn(size, classes, generator=generator)
        logits[torch.arange(size), target] += 2
        batches.append((logits.softmax(-1), target))
    return batches


def state_bytes(collection: MetricCollection) -> int:
    """Bytes of the distinct storages behind all states; members of a compute group share theirs."""
    storages = {}
    for state in collection.metric_state.values():
        for values in state.values():
            for tensor in values if isinstance(values, list) else [values]:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def compare(samples: int, batch: int, rounds: int, processes: bool = True) -> dict[str, Any]:
    """Measure every variant on one number of samples."""
    peaks = {name: peak_bytes(name, samples, batch) for name in VARIANTS} if processes else {}
    data = make_data(samples, batch)
    collections = {name: make() for name, make in VARIANTS.items()}
    parts: dict[str, dict[str, list[float]]] = {name: {"update": [], "compute": []} for name in collections}
    values: dict[str, Mapping[str, Tensor]] = {}

    def evaluate(name: str) -> Callable[[], None]:
        def once() -> None:
            metrics = collections[name]
            metrics.reset()
            start = perf_counter()
            for probs, target in data:
                metrics.update(probs, target)
            middle = perf_counter()
            values[name] = metrics.compute()
            parts[name]["update"].append(middle - start)
            parts[name]["compute"].append(perf_counter() - middle)

        return once

    times = paired({name: evaluate(name) for name in collections}, rounds)
    record: dict[str, Any] = {"samples": samples, "batch": batch, "rounds": rounds, "variants": {}}
    for name, metrics in collections.items():
        seconds = {part: taken[-rounds:] for part, taken in parts[name].items()} | {"total": times[name]}
        record["variants"][name] = {
            "seconds": {part: spread(taken) for part, taken in seconds.items()},
            "faster": ratio(times, of=PEER, over=name),
            "state_bytes": state_bytes(metrics),
            **({"peak_bytes": peaks[name]} if processes else {}),
            "values": {metric: float(value) for metric, value in values[name].items()},
            "difference": {metric: float(value - values[PEER][metric]) for metric, value in values[name].items()},
        }
    return record


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def peak_bytes(name: str, samples: int, batch: int) -> int:
    """Ask a fresh process, whose memory no other variant has touched."""
    command = [sys.executable, __file__, "--child", name, str(samples), str(batch)]
    return int(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def growth(metrics: MetricCollection, samples: int, batch: int) -> int:
    """Bytes by which the largest resident set of this process grows beyond the data and a first batch."""
    data = make_data(samples, batch)
    metrics.update(*data[0])
    metrics.compute()
    metrics.reset()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before = largest_resident_set()
    for probs, target in data:
        metrics.update(probs, target)
    metrics.compute()
    return largest_resident_set() - before


def largest_resident_set() -> int:
    """Bytes, from the kernel's account of this process; getrusage would start from the parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=list(SAMPLES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        name, samples, batch = arguments.child
        sys.stdout.write(json.dumps(growth(VARIANTS[name](), int(samples), int(batch))))
        return
    sizes = []
    for samples in arguments.samples:
        batch, rounds = (10_000, min(3, arguments.rounds)) if samples >= MANY else (1_000, arguments.rounds)
        sizes.append(compare(samples, batch, rounds, arguments.processes))
        report(sizes[-1])
    save("risk_coverage", {"threads": 1, "sizes": sizes})


def report(record: Mapping[str, Any]) -> None:
    variants = record["variants"]
    title = f"{', '.join(NAMES)}: {record['samples']:,} samples, {record['rounds']} rounds, one thread"
    rows = []
    for name, found in variants.items():
        cells = [f"{1000 * found['seconds'][part]['median']:.4g}" for part in ("update", "compute", "total")]
        faster = "{median:.2f} ({low:.2f} to {high:.2f})".format(**found["faster"])
        peak = f"{found['peak_bytes'] / 1e6:,.1f}" if "peak_bytes" in found else ""
        rows.append([name, *cells, faster, f"{found['state_bytes']:,}", peak])
    table(title, ["", "update ms", "compute", "total", "times faster", "state bytes", "peak MB"], rows)
    rows = [[name, *(f"{found['difference'][metric]:+.1e}" for metric in NAMES)] for name, found in variants.items()]
    table(f"Difference of the values from {PEER}", ["", *NAMES], rows)


if __name__ == "__main__":
    main()
