"""Count what a predictor that routes did with a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_efficient.inference._routing_statistics import RoutingStatistics


class BatchNotes(NamedTuple):
    """What happened to one batch.

    Attributes:
        source: Who answered, int64 ``(N,)``, as an index into the keys of ``RoutingStatistics.answered``.
        asked: Where the query score asks for the global model, bool ``(N,)``.
        sent: How many inputs were sent to it for their answer.
        audited: How many were sent beside.
        base_seconds: What the base took, with router and decision.
        global_seconds: What the global model took; ``None`` where it was not called.
    """

    source: Tensor
    asked: Tensor
    sent: int
    audited: int
    base_seconds: float
    global_seconds: float | None

    def add_to(self, statistics: RoutingStatistics) -> None:
        """Add the batch to counters and latencies."""
        asked = int(self.asked.sum())
        statistics.calls += 1
        statistics.rows += len(self.asked)
        statistics.queried += asked
        statistics.sent += self.sent
        statistics.over_budget += asked - self.sent
        statistics.audited += self.audited
        statistics.seconds["base"].append(self.base_seconds)
        if self.global_seconds is not None:
            statistics.global_calls += 1
            statistics.seconds["global"].append(self.global_seconds)
        names = list(statistics.answered)
        for name, count in zip(names, self.source.bincount(minlength=len(names)).tolist(), strict=True):
            statistics.answered[name] += count
