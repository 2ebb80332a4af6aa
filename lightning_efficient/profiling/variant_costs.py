"""The record of one model in several forms, against its eager float form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FLOAT = "float"
"""The module as it was given, run operator by operator: what the others are compared with."""


@dataclass(frozen=True)
class VariantTime:
    """How long a form takes at one batch size.

    Attributes:
        batch_size: Samples per forward pass.
        p50_ms: Median, milliseconds per forward pass.
        ratio: Median over the rounds of its time over that of the float form: 0.5 is half the time.
        low: The 10th percentile of that ratio.
        high: The 90th percentile of that ratio.
        rounds: How many rounds were timed.
    """

    batch_size: int
    p50_ms: float
    ratio: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class VariantCost:
    """What one form costs, or why it cannot run.

    Attributes:
        name: ``"float"``, or one of ``VARIANTS``.
        timings: One entry per batch size; fewer where time was up.
        bytes_on_disk: Of its state dict, or of the file in which it is deployed.
        difference: Largest difference of an output from that of the float form, as a share of the largest float
            output; None where it did not run.
        reason: Why it does not run, None where it does.
        note: What a reader of its figures must know.
    """

    name: str
    timings: tuple[VariantTime, ...] = ()
    bytes_on_disk: int | None = None
    difference: float | None = None
    reason: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class VariantComparison:
    """One model in several forms, timed in turns in one process.

    Attributes:
        rows: The float form first.
        threads: Intra-op threads.
        device: Where the float form ran.
        left_out: What the time did not suffice for.

    Example:
        >>> time = VariantTime(1, 2.0, 0.5, 0.4, 0.6, 10)
        >>> comparison = VariantComparison((VariantCost("bf16", (time,), 100, 0.01),), 1, "cpu")
        >>> VariantComparison.from_dict(comparison.to_dict()) == comparison
        True
    """

    rows: tuple[VariantCost, ...]
    threads: int
    device: str
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, numbers and strings, ready for JSON."""
        rows = [vars(row) | {"timings": [dict(vars(each)) for each in row.timings]} for row in self.rows]
        return {"rows": rows, "threads": self.threads, "device": self.device, "left_out": list(self.left_out)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> VariantComparison:
        """Rebuild what ``to_dict`` returned, also after a round trip through JSON."""
        rows = [
            VariantCost(**{**row, "timings": tuple(VariantTime(**each) for each in row["timings"])})
            for row in content["rows"]
        ]
        return cls(tuple(rows), content["threads"], content["device"], tuple(content["left_out"]))

    def row(self, name: str) -> VariantCost | None:
        """Return the form of that name, None where it was not asked for."""
        return next((row for row in self.rows if row.name == name), None)
