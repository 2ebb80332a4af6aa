"""A hybrid in use is compared with the calibration of its threshold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.drift import ks_distance
from lightning_efficient.inference._routed_batch import RoutedBatch
from lightning_efficient.inference.drift_monitor import DriftMonitor, ReferenceRates
from lightning_efficient.inference.events import RoutingEvent
from lightning_efficient.inference.routing_thresholds import calibrate_routing


class Stream:
    """A hybrid whose query rate and disagreement on kept inputs are given, with calibration samples of its own."""

    def __init__(self, seed: int, rate: float = 0.3, disagreement: float = 0.05, samples: int = 1000) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.rate, self.disagreement = rate, disagreement
        asked = int(self.draw(samples, rate).sum())
        differ = int(self.draw(samples - asked, disagreement).sum())
        self.reference = ReferenceRates(0.0, samples, asked / samples, differ / (samples - asked))

    def draw(self, count: int, probability: float) -> torch.Tensor:
        return torch.rand(count, generator=self.generator) < probability

    def feed(self, monitor: DriftMonitor, batches: int, size: int = 100) -> list[RoutingEvent]:
        events = []
        for _ in range(batches):
            above = self.draw(size, self.rate)
            scores = torch.where(above, 1.0, -1.0) * torch.rand(size, generator=self.generator)
            audited = monitor.draw_audit((~above).nonzero().squeeze(1))
            asked = above.nonzero().squeeze(1)
            agrees = torch.cat([self.draw(len(asked), 0.5), ~self.draw(len(audited), self.disagreement)])
            prediction = torch.randint(3, (size,), generator=self.generator)
            batch = RoutedBatch(scores, prediction, above.long(), torch.cat([asked, audited]), agrees)
            events += monitor.observe(batch)
        return events


def observed(scores: list[float], **options: Any) -> RoutedBatch:
    nothing = torch.zeros(0, dtype=torch.int64)
    values: dict[str, Any] = {
        "query_score": torch.tensor(scores),
        "base_prediction": torch.zeros(len(scores), dtype=torch.int64),
        "source": torch.zeros(len(scores), dtype=torch.int64),
        "compared": nothing,
        "agrees": nothing.bool(),
    }
    return RoutedBatch(**{**values, **options})


# ---- alarms


def test_a_stream_that_stays_as_it_was_raises_no_alarm_in_nearly_all_runs():
    alarmed = 0
    for seed in range(40):
        stream = Stream(seed)
        monitor = DriftMonitor(stream.reference, window=500, audit_share=0.2, alarm_delta=0.05)
        alarmed += bool(stream.feed(monitor, 30))
    assert alarmed <= 2


@pytest.mark.parametrize("rate", [0.1, 0.55])
def test_another_query_rate_raises_its_alarm_once_until_it_is_reset(rate):
    stream = Stream(0)
    monitor = DriftMonitor(stream.reference, window=500)
    assert stream.feed(monitor, 10) == []
    stream.rate = rate
    events = stream.feed(monitor, 30)
    assert [event.kind for event in events] == ["query_rate_drift"]
    assert events[0].details["recent"] == pytest.approx(rate, abs=0.1)
    assert (events[0].details["limit"] < 0.3) == (rate < 0.3)
    assert monitor.alarms == {"query_rate_drift"}
    assert monitor.to_dict()["alarms"] == ["query_rate_drift"]
    monitor.reset()
    assert monitor.alarms == set()
    assert [event.kind for event in stream.feed(monitor, 20)] == ["query_rate_drift"]


def test_more_disagreement_on_kept_inputs_raises_its_alarm_and_no_other():
    stream = Stream(0)
    monitor = DriftMonitor(stream.reference, window=500, audit_share=0.5)
    assert stream.feed(monitor, 10) == []
    stream.disagreement = 0.3
    events = stream.feed(monitor, 30)
    assert [event.kind for event in events] == ["kept_disagreement"]
    assert "of the kept inputs" in events[0].message
    assert monitor.windows[-1].disagreement_low > monitor.windows[0].disagreement_low


def test_less_disagreement_raises_none():
    stream = Stream(0, disagreement=0.3)
    monitor = DriftMonitor(stream.reference, window=500, audit_share=0.5)
    stream.disagreement = 0.0
    assert stream.feed(monitor, 30) == []


def test_few_calibration_samples_make_for_patience():
    def first_alarm(samples: int) -> int:
        monitor = DriftMonitor(ReferenceRates(0.0, samples, 0.3), window=500)
        stream = Stream(0, rate=0.5)
        return next(batch for batch in range(200) if stream.feed(monitor, 1))

    assert first_alarm(100_000) < first_alarm(200)


def test_one_large_batch_alarms_like_many_small_ones():
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.1), window=500)
    assert [event.kind for event in monitor.observe(observed([0.9] * 2000))] == ["query_rate_drift"]


def test_the_calibrated_threshold_counts_and_not_the_one_in_use():
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.1, 0.1), window=4)
    source = torch.tensor([1, 1, 0, 0])
    compared, agrees = torch.arange(4), torch.tensor([False, True, False, True])
    monitor.observe(observed([0.9, 0.4, 0.3, 0.9], source=source, compared=compared, agrees=agrees))
    window = monitor.windows[0]
    assert window.query_rate == 0.5
    assert (window.audited, window.disagreement) == (1, 1.0)
    assert window.wasted == 0.0


# ---- windows


def test_a_window_is_closed_by_the_batch_that_fills_it():
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.5), window=10)
    for _ in range(5):
        monitor.observe(observed([0.9, 0.1, 0.9, math.nan]))
    assert [window.rows for window in monitor.windows] == [12]
    assert monitor.windows[0].query_rate == 0.75
    assert (monitor.windows[0].inside, monitor.windows[0].audited) == (True, 0)
    assert (monitor.windows[0].disagreement, monitor.windows[0].wasted) == (None, None)


def test_a_window_counts_classes_and_fallbacks():
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.5), window=4)
    prediction, source = torch.tensor([2, 0, 2, 5]), torch.tensor([0, 1, 2, 2])
    monitor.observe(observed([0.1] * 4, base_prediction=prediction, source=source))
    assert monitor.windows[0].classes == (1, 0, 2, 0, 0, 1)
    assert monitor.windows[0].fallback_rate == 0.5


def test_scores_are_compared_with_a_reference():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(500, generator=generator)
    same, shifted = torch.randn(400, generator=generator), torch.randn(400, generator=generator) + 1
    monitor = DriftMonitor(ReferenceRates(0.0, 500, 0.5), window=400, reference_scores=reference)
    monitor.observe(observed(same.tolist()))
    monitor.observe(observed(shifted.tolist()))
    first, second = monitor.windows
    assert first.distance == pytest.approx(ks_distance(reference, same))
    assert first.distance < first.distance_limit < second.distance
    assert 0 <= first.stability < 0.1 < second.stability


def test_constant_reference_scores_are_one_bin_and_a_bit():
    monitor = DriftMonitor(ReferenceRates(0.5, 10, 0.5), window=2, reference_scores=torch.zeros(10))
    monitor.observe(observed([0.0, 0.0]))
    assert monitor.windows[0].distance == 0.0


def test_most_windows_of_streams_that_stay_as_they_were_lie_in_their_band():
    inside = []
    for seed in range(80):  # windows of one stream share its calibration, so one of each
        stream = Stream(seed)
        monitor = DriftMonitor(stream.reference, window=500)
        stream.feed(monitor, 5)
        inside += [window.inside for window in monitor.windows]
    assert len(inside) == 80
    assert sum(inside) >= 76


# ---- the audit


def test_the_audit_draws_its_share_by_its_own_seed():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    rates, candidates = ReferenceRates(0.5, 1000, 0.5), torch.arange(100, 10_100)
    first, second = (DriftMonitor(rates, audit_share=0.1, seed=3).draw_audit(candidates) for _ in range(2))
    other = DriftMonitor(rates, audit_share=0.1, seed=4).draw_audit(candidates)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert 900 < len(first) < 1100
    assert first.min() >= 100
    assert torch.equal(torch.get_rng_state(), state)


# ---- where the rates come from


def test_it_takes_a_calibrated_threshold():
    scores = torch.arange(200) / 200
    stages = torch.stack([torch.zeros(200), (torch.arange(200) % 10 == 0).float()], 1).long()
    found = calibrate_routing(scores, stages, stages[:, 1], coverage=0.7)
    monitor = DriftMonitor(found)
    assert (monitor.threshold, monitor.samples) == (found.thresholds[0], 200)
    assert monitor.query_rate == pytest.approx(0.3)
    assert set(monitor.to_dict()["e_values"]) == {"more", "fewer", "differ"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"window": 0}, "window=0 must be an integer of at least 1"),
        ({"audit_share": 2}, "audit_share=2 is outside"),
        ({"alarm_delta": 0.0}, "delta=0.0 is outside"),
        ({"reference_scores": torch.zeros(0)}, "reference_scores has shape"),
        ({"reference_scores": torch.tensor([math.nan])}, "at least one finite"),
    ],
)
def test_unusable_options_are_refused(options, match):
    with pytest.raises(ConfigurationError, match=match):
        DriftMonitor(ReferenceRates(0.5, 1000, 0.3), **options)


def test_a_longer_cascade_is_refused():
    scores, stages = torch.rand(50, 2), torch.zeros(50, 3, dtype=torch.int64)
    found = calibrate_routing(scores, stages, stages[:, 2], coverage=0.5)
    with pytest.raises(ConfigurationError, match="calibrated has 2 thresholds, of a cascade"):
        DriftMonitor(found)


def test_an_empty_batch_is_nothing():
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.3), window=1)
    assert monitor.observe(observed([])) == []
    assert len(monitor.windows) == 0
