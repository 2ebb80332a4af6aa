"""Counters of a predictor that routes, and what a batch adds to them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

LATENCIES_KEPT = 1000
"""Calls over which the quantiles of the latency go."""

Part: TypeAlias = Literal["base", "global"]


def _recent() -> deque[float]:
    return deque(maxlen=LATENCIES_KEPT)


@dataclass
class RoutingStatistics:
    """What a predictor did since it was made or since ``reset``.

    Attributes:
        calls: Batches.
        global_calls: Calls of the global model, those that failed included.
        rows: Inputs.
        queried: Inputs whose query score asked for the global model.
        sent: Inputs that were sent to it for their answer.
        audited: Inputs that were sent to it beside, without a part in the answer.
        over_budget: Inputs that were not sent because of the budget.
        answered: Inputs by who answered them: ``base``, ``global``, ``fallback``.
        seconds: The last latencies of each part, one per call: ``base`` with the router and the decision, ``global``
            with gathering its rows.

    Example:
        >>> statistics = RoutingStatistics(calls=2, rows=10, queried=3)
        >>> statistics.seconds["base"].extend([0.001, 0.003])
        >>> statistics.query_rate, statistics.latency("base", 0.5)
        (0.3, 0.002)
    """

    calls: int = 0
    global_calls: int = 0
    rows: int = 0
    queried: int = 0
    sent: int = 0
    audited: int = 0
    over_budget: int = 0
    answered: dict[str, int] = field(default_factory=lambda: {"base": 0, "global": 0, "fallback": 0})
    seconds: dict[Part, deque[float]] = field(default_factory=lambda: {"base": _recent(), "global": _recent()})

    @property
    def query_rate(self) -> float:
        """Share of the inputs whose query score asked for the global model; 0 without inputs."""
        return self.queried / self.rows if self.rows else 0.0

    @property
    def fallback_rate(self) -> float:
        """Share of the inputs that fell back; 0 without inputs."""
        return self.answered["fallback"] / self.rows if self.rows else 0.0

    def latency(self, part: Part, share: float) -> float | None:
        """Return a quantile of the last latencies of a part, seconds; ``None`` where it was never called."""
        ordered = sorted(self.seconds[part])
        if not ordered:
            return None
        position = share * (len(ordered) - 1)
        below = int(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold, with the rates, and the latencies at p50 and p95."""
        counts = {name: value for name, value in vars(self).items() if name != "seconds"}
        latency = {
            f"{part}_p{percent}_s": self.latency(part, percent / 100) for part in self.seconds for percent in (50, 95)
        }
        rates = {"query_rate": self.query_rate, "fallback_rate": self.fallback_rate}
        return {**counts, "answered": dict(self.answered), **rates, **latency}

    def reset(self) -> None:
        """Count from zero again."""
        vars(self).update(vars(RoutingStatistics()))


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
