"""What routing costs: a batch through a hybrid, against what its two networks take on their shares of it.

Two pairs with random weights: small networks for images of 16 by 16 pixels, and timm's mobilenetv3_small_050 with
resnet18 at 64 by 64. The router is the gain router with the base's features. At each coverage the threshold is the
quantile of the batch's own query scores, so that exactly that share is kept. Everything runs in one process in turns,
with one thread, without gradients:

* ``edge``: base and router called directly on the batch; ``global``: the global model on the whole batch;
* ``routed``: ``RoutedPredictor`` at a coverage, against ``edge + (1 - coverage) global``, round by round: 1 means that
  routing costs nothing beside its networks, less that a part of a batch takes less than its share of the time;
* ``apart``: both networks called directly, the global one on the first rows that are as many: what is left is the cost
  of deciding, gathering and merging;
* ``varying``: at 0.7 on average, with another number of inputs for the global model in nearly every call, as in use:
  on a CPU, oneDNN prepares a convolution anew for each batch size that it has not seen lately;
* ``watched``: at 0.7 with a calibrated threshold, so that weights are compared at each call, and with a
  ``DriftMonitor`` without an audit, which would vary the number too;
* ``one by one``: ``RoutedPredictor`` on batches of one.

Times are those of the process on the processor. Writes ``results/routed_latency.json``.

Run: ``python benchmarks/routed_latency.py [--pairs P ...] [--batch 256] [--rounds 31] [--quick]``; ``--quick`` prints a
try of a minute and saves nothing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from time import process_time
from typing import Any

import torch
from harness import paired, quantile, save, steady_allocator, table
from torch import Tensor, nn

from lightning_efficient.functional.routing import query_threshold
from lightning_efficient.inference.drift_monitor import DriftMonitor
from lightning_efficient.inference.routed import GLOBAL, RoutedPredictor
from lightning_efficient.inference.routing_thresholds import calibrate_routing
from lightning_efficient.nn.routers import GainRouter
from lightning_efficient.nn.views import ViewTap
from lightning_efficient.profiling import count_macs

COVERAGES = (0.9, 0.7, 0.5, 0.0)
WATCHED = 0.7
"""The coverage at which what can be added is measured."""


def convolutions(channels: Sequence[int], strides: Sequence[int], classes: int = 10) -> nn.Module:
    """A plain network for images of one channel."""
    layers: list[nn.Module] = []
    for before, after, stride in zip((1, *channels), channels, strides, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


def small() -> tuple[nn.Module, nn.Module, tuple[int, int, int]]:
    return convolutions((8, 16), (2, 2)), convolutions((16, 32, 64, 48), (1, 2, 2, 1)), (1, 16, 16)


def timm_pair() -> tuple[nn.Module, nn.Module, tuple[int, int, int]]:
    import timm

    base, other = (timm.create_model(name, num_classes=100) for name in ("mobilenetv3_small_050", "resnet18"))
    return base, other, (3, 64, 64)


PAIRS: dict[str, Callable[[], tuple[nn.Module, nn.Module, tuple[int, int, int]]]] = {
    "small, 16x16": small,
    "mobilenetv3_small_050 and resnet18, 64x64": timm_pair,
}


class Hybrid:
    """A pair of networks with a router, and a batch for them."""

    def __init__(self, pair: str, batch: int) -> None:
        torch.manual_seed(0)
        self.base, self.other, size = PAIRS[pair]()
        self.base.eval()
        self.other.eval()
        self.images = torch.randn(batch, *size)
        self.tap = ViewTap(self.base, features=True)
        assert self.tap.num_classes is not None
        assert self.tap.feature_dim is not None
        self.router = GainRouter(self.tap.num_classes, self.tap.feature_dim).eval()
        self.macs = {
            "base": count_macs(self.base, self.images[:1]).macs,
            "global": count_macs(self.other, self.images[:1]).macs,
        }
        self.scores = self.edge()

    @torch.inference_mode()
    def edge(self) -> Tensor:
        views = self.tap(self.images)
        return self.router(views.logits, views.features)

    @torch.inference_mode()
    def cloud(self, rows: int | None = None) -> Tensor:
        return self.other(self.images[:rows])

    def predictor(self, coverage: float, *, watched: bool = False) -> RoutedPredictor:
        threshold: Any = query_threshold(self.scores, coverage)
        options: dict[str, Any] = {}
        if watched:
            with torch.inference_mode():
                stages = torch.stack([self.base(self.images).argmax(1), self.cloud().argmax(1)], 1)
            threshold = calibrate_routing(self.scores, stages, stages[:, 1], coverage=coverage)
            options = {"monitor": DriftMonitor(threshold, audit_share=0.0)}
        return RoutedPredictor(self.base, self.router, self.other, threshold, **options)

    def asked(self, coverage: float) -> int:
        return int((self.predictor(coverage)(self.images).source == GLOBAL).sum())

    def variants(self) -> dict[str, Callable[[], object]]:
        def apart(rows: int) -> object:
            return self.edge(), self.cloud(rows) if rows else None

        found: dict[str, Callable[[], object]] = {"edge": self.edge, "global": self.cloud}
        for coverage in COVERAGES:
            routed, rows = self.predictor(coverage), self.asked(coverage)
            found[f"routed {coverage}"] = lambda routed=routed: routed(self.images)
            found[f"apart {coverage}"] = lambda rows=rows: apart(rows)
        watched, single = self.predictor(WATCHED, watched=True), self.predictor(WATCHED)
        varying = self.predictor(WATCHED)
        thresholds = [query_threshold(self.scores, WATCHED + step / 400) for step in range(-40, 41)]
        order = torch.randperm(len(thresholds), generator=torch.Generator().manual_seed(0)).tolist()
        turns = itertools.cycle(thresholds[index] for index in order)

        def vary() -> object:
            varying.threshold = next(turns)
            return varying(self.images)

        found["varying"] = vary
        found["watched"] = lambda: watched(self.images)
        found["one by one"] = lambda: [single(image[None]) for image in self.images]
        return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, and the range of 80 % of the rounds."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "low": quantile(ordered, 0.1), "high": quantile(ordered, 0.9)}


def against(times: Mapping[str, Sequence[float]], name: str, coverage: float) -> dict[str, float]:
    """Return a variant over ``edge + (1 - coverage) global``, round by round."""
    parts = zip(times[name], times["edge"], times["global"], strict=True)
    return spread([own / (edge + (1 - coverage) * other) for own, edge, other in parts])


def summary(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return milliseconds of each variant, and the ratios that the study is about."""
    return {
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in times.items()},
        "over_linear": {str(coverage): against(times, f"routed {coverage}", coverage) for coverage in COVERAGES},
        "over_apart": {
            str(coverage): spread(
                [a / b for a, b in zip(times[f"routed {coverage}"], times[f"apart {coverage}"], strict=True)]
            )
            for coverage in COVERAGES
        },
        "varying_over_linear": against(times, "varying", WATCHED),
        "watched_over_routed": spread(
            [a / b for a, b in zip(times["watched"], times[f"routed {WATCHED}"], strict=True)]
        ),
        "one_by_one_over_routed": spread(
            [a / b for a, b in zip(times["one by one"], times[f"routed {WATCHED}"], strict=True)]
        ),
    }


def study(pair: str, batch: int, rounds: int) -> dict[str, Any]:
    hybrid = Hybrid(pair, batch)
    shares = {str(coverage): 1 - hybrid.asked(coverage) / batch for coverage in COVERAGES}
    times = paired(hybrid.variants(), rounds, warmup=2, clock=process_time)
    return {"pair": pair, "batch": batch, "macs": hybrid.macs, "kept": shares, **summary(times)}


def words(found: Mapping[str, float]) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def show(record: Mapping[str, Any]) -> None:
    times = record["milliseconds"]
    rows: list[list[object]] = [["edge", times["edge"], "", ""], ["global", times["global"], "", ""]]
    for coverage in COVERAGES:
        ratios = [words(record[name][str(coverage)]) for name in ("over_linear", "over_apart")]
        rows.append([f"routed, coverage {coverage}", times[f"routed {coverage}"], *ratios])
    rows.append([f"varying, about {WATCHED}", times["varying"], words(record["varying_over_linear"]), ""])
    rows.append([f"watched, {WATCHED}", times["watched"], "", ""])
    rows.append([f"one by one, {WATCHED}", times["one by one"], "", ""])
    macs = ", ".join(f"{name} {count / 1e6:.3g} M" for name, count in record["macs"].items())
    title = f"{record['pair']} ({macs} MACs), batch {record['batch']}, one thread"
    table(title, ["", "ms", "over edge + (1 - c) global", "over both called apart"], rows)
    print(f"watched over routed: {words(record['watched_over_routed'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for pair in options.pairs:
        records.append(study(pair, 32 if options.quick else options.batch, 3 if options.quick else options.rounds))
        show(records[-1])
    if not options.quick:
        save("routed_latency", {"pairs": records})


if __name__ == "__main__":
    steady_allocator()
    main()
