"""Rows of the table of results: what a claim's pairs come to, and how far that is from the published gain."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _reproduce_claims import Claim
from _reproduce_readers import Pairs
from _reproduce_studies import saved


@dataclass(frozen=True)
class Row:
    """A claim and its pairs.

    Attributes:
        claim: What is claimed.
        pairs: Values of method and baseline.
        environment: Versions, machine and date of the study.
        dates: Days of the runs that it holds, as ``YYYY-MM-DD``.
    """

    claim: Claim
    pairs: Pairs
    environment: Mapping[str, Any]
    dates: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.pairs.method)

    @property
    def differences(self) -> list[float]:
        """The method's value minus its baseline's, pair by pair."""
        return [one - other for one, other in zip(self.pairs.method, self.pairs.baseline, strict=True)]

    @property
    def gain(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def spread(self) -> float:
        """Standard deviation of the differences; 0 for one pair."""
        return deviation(self.differences)

    @property
    def gap(self) -> float | None:
        """How much ours is beyond the published gain, in the good direction; None without a published one."""
        if self.claim.published is None:
            return None
        sign = 1 if self.claim.better == "higher" else -1
        return sign * (self.gain - self.claim.published.gain)

    @property
    def reached(self) -> bool | None:
        """Whether ours is at least the published gain; None without a published one."""
        return None if self.gap is None else self.gap >= 0

    def told(self) -> dict[str, Any]:
        """Return the row as JSON holds it."""
        claim = self.claim
        return {
            "claim": claim.key,
            "method": claim.method,
            "variant": claim.variant,
            "baseline": claim.baseline,
            "task": claim.task,
            "measure": claim.measure,
            "better": claim.better,
            "study": claim.study,
            "pairs": self.pairs._asdict(),
            "gain": self.gain,
            "spread": self.spread,
            "published": None if claim.published is None else vars(claim.published),
            "gap": self.gap,
            "reached": self.reached,
            "environment": dict(self.environment),
            "dates": list(self.dates),
        }


def deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def rows_of(claims: Sequence[Claim], folder: Path, failed: Mapping[str, str]) -> tuple[list[Row], dict[str, str]]:
    """Read every claim's study.

    Args:
        claims: The rows that are wanted.
        folder: Where the studies' JSON are.
        failed: Studies that failed, and how; their rows are not read.

    Returns:
        The rows, and by the key of each other claim why it has none.
    """
    rows, lost = [], {}
    for claim in claims:
        record = None if claim.study in failed else saved(claim.study, folder)
        if record is None:
            lost[claim.key] = failed.get(claim.study, f"{claim.study} was not run")
            continue
        try:
            environments = [*(run["environment"] for run in record.get("earlier", [])), record["environment"]]
            dates = tuple(dict.fromkeys(each["date"][:10] for each in environments))
            rows.append(Row(claim, claim.read(record), record["environment"], dates))
        except (ValueError, LookupError, TypeError, ZeroDivisionError) as error:
            lost[claim.key] = f"{claim.study} cannot be read: {error!r}"
    return rows, lost
