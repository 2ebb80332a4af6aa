"""What a predictor that routes shows to a monitor, and what it asks of one."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from lightning_efficient.inference.events import RoutingEvent


class RoutedBatch(NamedTuple):
    """One batch as a monitor sees it.

    Attributes:
        query_score: Float32 or wider ``(N,)``.
        base_prediction: The class that the base model answers, int64 ``(N,)``.
        source: Who answered, int64 ``(N,)``, as an index into ``SOURCES``.
        compared: Rows on which both models answered, int64 ``(K,)``: those asked about, and those audited.
        agrees: Whether they answered the same there, bool ``(K,)``.
    """

    query_score: Tensor
    base_prediction: Tensor
    source: Tensor
    compared: Tensor
    agrees: Tensor


class Monitor(Protocol):
    """What a predictor asks of a monitor; see ``DriftMonitor``."""

    def draw_audit(self, candidates: Tensor) -> Tensor:
        """Return those of the kept rows, int64 ``(K,)``, that are sent to the global model all the same."""

    def observe(self, batch: RoutedBatch) -> list[RoutingEvent]:
        """Take note of a batch, and return what there is to tell."""
