"""Watch whether a hybrid in use still behaves as it did when its threshold was calibrated, without labels."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_count, check_fraction
from lightning_efficient.functional.binomial import check_delta, clopper_pearson_upper
from lightning_efficient.functional.drift import (
    bet_against,
    clopper_pearson_lower,
    e_value,
    ks_distance,
    ks_limit,
    population_stability,
    rate_band,
)
from lightning_efficient.inference._routed_batch import RoutedBatch
from lightning_efficient.inference.events import RoutingEvent
from lightning_efficient.inference.routing_thresholds import CalibratedRouting

BAND_DELTA = 0.01
"""Share of the windows of an unchanged stream that lie outside the bands they show."""
BINS = 10
WINDOWS_KEPT = 1000
_GLOBAL, _FALLBACK = 1, 2


@dataclass(frozen=True)
class ReferenceRates:
    """What a threshold did on its calibration samples, for a monitor of a hybrid that has no ``CalibratedRouting``.

    Attributes:
        threshold: Largest query score that is kept.
        samples: How many samples there were.
        query_rate: Share of them above the threshold.
        kept_disagreement: Share of the kept ones on which both models differ; ``None`` where it is not known.
    """

    threshold: float
    samples: int
    query_rate: float
    kept_disagreement: float | None = None


@dataclass(frozen=True)
class DriftWindow:
    """What a monitor saw in one window.

    Attributes:
        rows: Inputs.
        query_rate: Share with a query score above the calibrated threshold.
        low: Lowest share within the band of an unchanged stream, for one look at one window.
        high: Highest share within that band.
        fallback_rate: Share that fell back.
        classes: How often the base answered each class, from class 0 to the largest seen.
        audited: Kept inputs on which both models were compared.
        disagreement: Share of these on which they differ; ``None`` without any.
        disagreement_low: Lower limit of that share among all kept inputs, at a confidence of 99 %.
        wasted: Share of the inputs asked about on which both models answered the same; ``None`` without any.
        stability: Population stability index of the query scores against the reference; ``None`` without a reference.
        distance: Kolmogorov-Smirnov distance likewise.
        distance_limit: What that distance exceeds in at most 1 % of the windows of an unchanged stream.
    """

    rows: int
    query_rate: float
    low: float
    high: float
    fallback_rate: float
    classes: tuple[int, ...]
    audited: int
    disagreement: float | None
    disagreement_low: float
    wasted: float | None
    stability: float | None
    distance: float | None
    distance_limit: float | None

    @property
    def inside(self) -> bool:
        """Whether the query rate lies within its band."""
        return self.low <= self.query_rate <= self.high


class DriftMonitor:
    """Compare a stream with the calibration of its threshold, and raise alarms that seldom are false.

    Two alarms, each raised once until ``reset``. ``query_rate_drift``: the share of inputs above the calibrated
    threshold is no longer what it was; more queries cost, fewer may hide errors. ``kept_disagreement``: on the inputs
    that the base keeps, it differs from the global model more often than at calibration, which bounds the drop of
    accuracy without labels. For the latter a random share of the kept inputs is sent along with those asked about; the
    answers stay as they are. If the stream stays as it was, of independent inputs, an alarm is ever raised with
    probability at most ``alarm_delta``, however long it runs: the calibrated rates count as the estimates they are, and
    the tests are bets that may be looked at all the time. That the threshold was chosen among others on the same
    samples is not accounted for, unless it is a quantile of theirs. What cannot be seen: errors that both models share.

    Beside, every window is summed up in ``windows``, with a band for one look at one window. Costs a few operations on
    ``N`` numbers per batch, and one transfer from the device where the scores are elsewhere.

    Args:
        calibrated: Of two models, or the rates alone.
        window: Inputs after which a window is closed, with the batch that fills it.
        audit_share: Share of the kept inputs that is sent along, 0 for none. A batch that keeps all its inputs, but of
            which some are compared, waits for the global model; 0 leaves such batches at the edge.
        alarm_delta: Probability of a false alarm of either kind, ever.
        reference_scores: Query scores of the calibration samples, ``(n,)``, to compare the distribution with.
        seed: Of the draws of the audit.

    Attributes:
        windows: The last 1000 windows.
        alarms: Kinds of alarms that were raised.

    Raises:
        ConfigurationError: an option out of range, or thresholds of more than two models.

    Example:
        >>> monitor = DriftMonitor(ReferenceRates(threshold=0.5, samples=1000, query_rate=0.3), window=500)
        >>> scores = torch.rand(4000, generator=torch.Generator().manual_seed(0))
        >>> nothing = torch.zeros(0, dtype=torch.int64)
        >>> kept = torch.zeros(4000, dtype=torch.int64)
        >>> events = monitor.observe(RoutedBatch(scores, kept, kept, nothing, nothing.bool()))
        >>> events[0].kind, monitor.windows[-1].inside
        ('query_rate_drift', False)
    """

    _classes: Tensor

    def __init__(
        self,
        calibrated: CalibratedRouting | ReferenceRates,
        *,
        window: int = 1000,
        audit_share: float = 0.01,
        alarm_delta: float = 0.001,
        reference_scores: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        check_count("window", window)
        check_fraction("audit_share", audit_share, zero=True)
        check_delta(alarm_delta)
        rates = calibrated if isinstance(calibrated, ReferenceRates) else _rates(calibrated)
        check_count("samples", rates.samples)
        check_fraction("query_rate", rates.query_rate, zero=True)
        self.threshold, self.samples, self.query_rate = rates.threshold, rates.samples, rates.query_rate
        self.window, self.audit_share, self.alarm_delta = window, audit_share, alarm_delta
        self._bands: dict[int, tuple[float, float]] = {}
        self.windows: deque[DriftWindow] = deque(maxlen=WINDOWS_KEPT)
        self._generator = torch.Generator().manual_seed(seed)
        self._asked = round(rates.query_rate * rates.samples)
        kept = rates.samples - self._asked
        # three tests, each of which may be wrong about the calibrated rate or about the stream
        self._delta = alarm_delta / 6
        high = float(clopper_pearson_upper(self._asked, rates.samples, self._delta))
        low = clopper_pearson_lower(self._asked, rates.samples, self._delta)
        self._limits = {"more": high, "fewer": 1 - low}
        if rates.kept_disagreement is not None and kept:
            differ = round(rates.kept_disagreement * kept)
            self._limits["differ"] = float(clopper_pearson_upper(differ, kept, self._delta))
        self._reference = None
        if reference_scores is not None:
            scores = reference_scores.detach().double().cpu()
            self._reference = scores[scores.isfinite()].sort().values
            if scores.ndim != 1 or not len(self._reference):
                raise ConfigurationError(
                    f"reference_scores has shape {tuple(scores.shape)}; give query scores (N,), at least one finite."
                )
            inner = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
            self._edges = self._reference.quantile(inner).unique()
        self.reset()

    def reset(self) -> None:
        """Start anew, as after a calibration of the same rates: no alarms, no evidence, an empty window."""
        self.alarms: set[str] = set()
        self._tests = {
            name: _RateTest(limit, self._first_guess(name), self.window) for name, limit in self._limits.items()
        }
        self._open()

    def draw_audit(self, candidates: Tensor) -> Tensor:
        """Return a random share of the kept rows, int64 ``(K,)``, to be compared with the global model."""
        drawn = torch.rand(len(candidates), generator=self._generator) < self.audit_share
        return candidates[drawn.to(candidates.device)]

    def observe(self, batch: RoutedBatch) -> list[RoutingEvent]:
        """Take note of a batch, and return the alarms that it raises."""
        scores = batch.query_score.detach().double().cpu()
        if not len(scores):
            return []
        compared, agrees = batch.compared.cpu(), batch.agrees.cpu()
        above = ~((scores <= self.threshold) & scores.isfinite())
        # under another threshold than the calibrated one, neither group is what it was
        kept = ~above[compared] & (batch.source.cpu()[compared] != _GLOBAL)
        asked = above[compared] & (batch.source.cpu()[compared] == _GLOBAL)
        counts = {
            "rows": len(scores),
            "above": int(above.sum()),
            "fallbacks": int((batch.source == _FALLBACK).sum()),
            "audited": int(kept.sum()),
            "differ": int((kept & ~agrees).sum()),
            "asked": int(asked.sum()),
            "wasted": int((asked & agrees).sum()),
        }
        for name, count in counts.items():
            self._counts[name] += count
        classes = batch.base_prediction.detach().cpu()
        self._classes = _added(self._classes, classes[classes >= 0].bincount())
        if self._reference is not None:
            self._scores.append(scores[scores.isfinite()])
        events = self._alarms({"more": above, "fewer": ~above, "differ": ~agrees[kept]})
        if self._counts["rows"] >= self.window:
            self._close()
        return events

    def _alarms(self, seen: dict[str, Tensor]) -> list[RoutingEvent]:
        events = []
        for name, test in self._tests.items():
            if test.update(seen[name]) >= 1 / self._delta:
                kind = "kept_disagreement" if name == "differ" else "query_rate_drift"
                if kind not in self.alarms:
                    self.alarms.add(kind)
                    events.append(self._event(name, test))
        return events

    def _event(self, name: str, test: _RateTest) -> RoutingEvent:
        recent = 1 - test.guess if name == "fewer" else test.guess
        limit = 1 - test.limit if name == "fewer" else test.limit
        details: dict[str, Any] = {"recent": recent, "limit": limit, "e_value": test.wealth, "seen": test.seen}
        if name == "differ":
            message = f"both models differ on about {recent:.1%} of the kept inputs, and did on at most {limit:.1%}"
            return RoutingEvent("kept_disagreement", f"{message}; calibrate again on fresh samples", details)
        side = "at least" if name == "fewer" else "at most"
        message = f"about {recent:.1%} of the inputs are asked about, and {side} {limit:.1%} were at calibration"
        return RoutingEvent("query_rate_drift", f"{message}; calibrate again on fresh samples", details)

    def _first_guess(self, name: str) -> float:
        return {"more": self.query_rate, "fewer": 1 - self.query_rate}.get(name, self._limits[name] / 2)

    def _open(self) -> None:
        self._counts = dict.fromkeys(("rows", "above", "fallbacks", "audited", "differ", "asked", "wasted"), 0)
        self._classes = torch.zeros(0, dtype=torch.int64)
        self._scores: list[Tensor] = []

    def _close(self) -> None:
        counts, rows = self._counts, self._counts["rows"]
        if rows not in self._bands:
            self._bands[rows] = rate_band(self._asked, self.samples, rows, BAND_DELTA)
        low, high = self._bands[rows]
        audited, differ, asked = counts["audited"], counts["differ"], counts["asked"]
        stability = distance = limit = None
        scores = torch.cat(self._scores) if self._scores else torch.zeros(0)
        if self._reference is not None and len(scores):
            before, after = (_histogram(each, self._edges) for each in (self._reference, scores))
            stability, distance = population_stability(before, after), ks_distance(self._reference, scores)
            limit = ks_limit(len(self._reference), len(scores), BAND_DELTA)
        self.windows.append(
            DriftWindow(
                rows=rows,
                query_rate=counts["above"] / rows,
                low=low,
                high=high,
                fallback_rate=counts["fallbacks"] / rows,
                classes=tuple(self._classes.tolist()),
                audited=audited,
                disagreement=differ / audited if audited else None,
                disagreement_low=clopper_pearson_lower(differ, audited, BAND_DELTA) if audited else 0.0,
                wasted=counts["wasted"] / asked if asked else None,
                stability=stability,
                distance=distance,
                distance_limit=limit,
            )
        )
        self._open()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold: the calibrated rates, the alarms, and the last window."""
        return {
            "query_rate": self.query_rate,
            "samples": self.samples,
            "alarms": sorted(self.alarms),
            "e_values": {name: test.wealth for name, test in self._tests.items()},
            "window": asdict(self.windows[-1]) if self.windows else None,
        }


class _RateTest:
    """Bets against the hypothesis that a rate is at most a limit, with a guess that follows the last samples."""

    def __init__(self, limit: float, guess: float, window: int) -> None:
        self.limit, self.window, self.seen = limit, window, 0
        self._step, self._log_wealth = 0, -math.inf
        # as if some samples of the first guess had been seen
        self._trials = min(20.0, window)
        self._hits = guess * self._trials

    @property
    def guess(self) -> float:
        return self._hits / self._trials

    @property
    def wealth(self) -> float:
        return e_value(self._log_wealth, self._step)

    def update(self, happened: Tensor) -> float:
        """Bet on each sample of a batch, bool ``(n,)``, and return the most that was won on the way."""
        most = 0.0
        # in pieces, so that what a large batch shows first makes the bets on the rest of it
        for piece in happened.split(max(1, self.window // 10)) if len(happened) else ():
            hits, samples = int(piece.sum()), len(piece)
            self._step += 1
            bet = {"limit": self.limit, "guess": self.guess}
            self._log_wealth = bet_against(self._log_wealth, self._step, hits, samples, **bet)
            forget = math.exp(-samples / self.window)
            self._hits, self._trials = self._hits * forget + hits, self._trials * forget + samples
            self.seen += samples
            most = max(most, self.wealth)
        return most


def _rates(calibrated: CalibratedRouting) -> ReferenceRates:
    if len(calibrated.thresholds) != 1:
        count = len(calibrated.thresholds)
        raise ConfigurationError(f"calibrated has {count} thresholds, of a cascade; a monitor watches two models.")
    rate = 1 - calibrated.coverage
    return ReferenceRates(calibrated.thresholds[0], calibrated.samples, rate, calibrated.kept_disagreement)


def _added(first: Tensor, second: Tensor) -> Tensor:
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    total = longer.clone()
    total[: len(shorter)] += shorter
    return total


def _histogram(scores: Tensor, edges: Tensor) -> Tensor:
    return torch.bucketize(scores, edges).bincount(minlength=len(edges) + 1)
