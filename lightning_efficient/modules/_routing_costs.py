"""What a hybrid of two models costs at each share of inputs that the base answers: MACs, and measured time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lightning_efficient.functional.routing import query_threshold
from lightning_efficient.inference.routed import RoutedPredictor
from lightning_efficient.profiling import count_macs, undisturbed
from lightning_efficient.profiling.in_turns import time_in_turns

if TYPE_CHECKING:
    from lightning_efficient.modules._hybrid_evaluation import HybridEvaluation

ROUNDS = 15


@dataclass(frozen=True)
class RoutingCosts:
    """MACs and latencies of the two halves, and of the whole.

    Attributes:
        edge_macs: Of base and router, per sample.
        global_macs: Of the global model, per sample.
        kept_ms: Median latency of one input that the base answers, milliseconds.
        asked_ms: Median latency of one input about which the global model is asked.
        batch_size: Of ``batch_ms``.
        batch_ms: Median latency of a batch of which a share is kept, by that share; empty where none was measured.
    """

    edge_macs: int
    global_macs: int
    kept_ms: float
    asked_ms: float
    batch_size: int
    batch_ms: Mapping[float, float]

    columns: ClassVar[tuple[str, ...]] = ("macs", "latency_ms_mean_b1", "batch_size", "latency_ms_p50_batch")

    def macs(self, coverage: float) -> float:
        """Return mean MACs per sample where the base answers a share of the inputs."""
        return self.edge_macs + (1 - coverage) * self.global_macs

    def at(self, coverage: float) -> tuple[float, float, int, float | None]:
        """Return a row under ``columns``."""
        single = coverage * self.kept_ms + (1 - coverage) * self.asked_ms
        return self.macs(coverage), single, self.batch_size, self.batch_ms.get(coverage)


@torch.no_grad()
def routing_costs(
    module: HybridEvaluation, example: Tensor, coverages: Iterable[float], batch_size: int
) -> RoutingCosts:
    """Count and measure, on the device of the module.

    Args:
        module: A hybrid with ``edge_graph`` and ``global_graph``.
        example: Some inputs, shape ``(N, ...)``.
        coverages: Shares to measure at.
        batch_size: Of the batch; at most ``N``, and 0 to measure none.
    """
    with undisturbed(module):
        module.eval()
        batch, single = example[: batch_size or 1], example[:1]
        scores = module.router(*module.base_outputs(batch))
        parts = (module.base_outputs, module.router, module.global_logits)
        calls: dict[str, Callable[[], object]] = {
            "kept": partial(RoutedPredictor(*parts, float("inf")), single),
            "asked": partial(RoutedPredictor(*parts, float("-inf")), single),
        }
        for coverage in coverages if batch_size else ():
            # of these very inputs, so that the share is what it says
            threshold = float("-inf") if coverage == 0 else query_threshold(scores, coverage)
            calls[str(coverage)] = partial(RoutedPredictor(*parts, threshold), batch)
        times = time_in_turns(calls, rounds=ROUNDS, device=example.device)
    middle = {name: 1000 * median(values) for name, values in times.items()}
    return RoutingCosts(
        count_macs(module.edge_graph(), single).macs,
        count_macs(module.global_graph(), single).macs,
        middle.pop("kept"),
        middle.pop("asked"),
        len(batch) if batch_size else 0,
        {float(name): value for name, value in middle.items()},
    )
