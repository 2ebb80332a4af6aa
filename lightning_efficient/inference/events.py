"""What happens beside the answers while inputs are routed: fallbacks, budgets, alarms."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal, TypeAlias

EventKind: TypeAlias = Literal[
    "budget", "global_unavailable", "global_not_finite", "base_not_finite", "query_rate_drift", "kept_disagreement"
]

LOGGER_NAME = "lightning_efficient.routing"


class GlobalUnavailable(Exception):  # noqa: N818
    """The global model cannot answer now: no connection, a deadline that passed, a server that refuses.

    A :class:`~lightning_efficient.inference.routed.RoutedPredictor` answers with the base model where a global model
    raises this; every other exception is an error of the program and goes on to the caller.
    """


@dataclass(frozen=True)
class RoutingEvent:
    """Something that whoever runs a hybrid should know.

    Attributes:
        kind: ``budget``: more inputs than may be sent; ``global_unavailable``: the global model raised
            :class:`GlobalUnavailable`; ``global_not_finite`` and ``base_not_finite``: logits without a probability;
            ``query_rate_drift`` and ``kept_disagreement``: alarms of a drift monitor.
        message: One sentence.
        details: Numbers and words that JSON can hold.
    """

    kind: EventKind
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)


class EventLog:
    """Hand every event to a callback, and write some of them to the log ``lightning_efficient.routing``.

    It writes at most one warning per kind and period, which says how many it left out since the one before.

    Args:
        on_event: Called with each event; what it raises goes on to the caller.
        period_s: Seconds between two lines of a kind.
        clock: What tells the seconds.

    Attributes:
        counts: How many events there were of each kind.

    Example:
        >>> seen = []
        >>> log = EventLog(seen.append)
        >>> log(RoutingEvent("budget", "3 inputs are over the budget", {"rows": 3}))
        >>> seen[0].kind, log.counts["budget"]
        ('budget', 1)
    """

    def __init__(
        self,
        on_event: Callable[[RoutingEvent], object] | None = None,
        period_s: float = 60.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.on_event, self.period_s, self.clock = on_event, period_s, clock
        self.counts: Counter[str] = Counter()
        self._written: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()

    def __call__(self, event: RoutingEvent) -> None:
        """Count an event, write it unless one of its kind was just written, and hand it on."""
        self.counts[event.kind] += 1
        now = self.clock()
        if event.kind in self._written and now - self._written[event.kind] < self.period_s:
            self._left_out[event.kind] += 1
        else:
            more = self._left_out.pop(event.kind, 0)
            suffix = f" ({more} more of this kind since the last line)" if more else ""
            logging.getLogger(LOGGER_NAME).warning("%s: %s%s", event.kind, event.message, suffix)
            self._written[event.kind] = now
        if self.on_event is not None:
            self.on_event(event)
