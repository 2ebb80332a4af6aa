"""A breaker opens on failures, waits, lets one probe through, and believes it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.circuit_breaker import CircuitBreaker


class Clock:
    """Time that goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def a_breaker(**options: Any) -> tuple[CircuitBreaker, Clock]:
    clock = Clock()
    return CircuitBreaker(**{"probe_after_s": (10, 10), "clock": clock, **options}), clock


def calls(breaker: CircuitBreaker, outcomes: str) -> None:
    """Make a call per letter: f failed, s succeeded."""
    for outcome in outcomes:
        assert breaker.allow()
        (breaker.failure if outcome == "f" else breaker.success)()


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("", "closed"),
        ("ffff", "closed"),
        ("fffff", "open"),
        ("ffffsffff", "closed"),
        ("fs" * 10, "closed"),  # half of the last 20, not more
        ("fs" * 9 + "ff", "open"),  # 11 of 20
        ("ffs" * 6, "closed"),  # 12 of 18: the window is not full
        ("ffs" * 6 + "f", "closed"),
        ("ffs" * 6 + "ff", "open"),
        ("s" * 20 + "ffs" * 4, "closed"),  # 8 of the last 20
        ("s" * 20 + "ffs" * 5 + "f", "open"),  # 11 of the last 20
    ],
)
def test_it_opens_after_five_failures_in_a_row_or_more_than_half_of_twenty(outcomes: str, state: str) -> None:
    breaker, _ = a_breaker()
    calls(breaker, outcomes)
    assert breaker.state == state


def test_open_it_lets_nothing_through_until_its_time() -> None:
    breaker, clock = a_breaker(failures=1)
    calls(breaker, "f")
    assert not breaker.allow()
    clock.now += 9.99
    assert (breaker.allow(), breaker.state) == (False, "open")
    clock.now += 0.01
    assert breaker.state == "half_open"
    assert [breaker.allow() for _ in range(3)] == [True, False, False]
    assert breaker.state == "half_open"


def test_a_probe_that_succeeds_closes_it_and_the_past_is_forgotten() -> None:
    breaker, clock = a_breaker(failures=3, window=4)
    calls(breaker, "fff")
    clock.now += 10
    calls(breaker, "s")
    assert breaker.state == "closed"
    calls(breaker, "ff")
    assert breaker.state == "closed"
    calls(breaker, "f")
    assert breaker.state == "open"


def test_a_probe_that_fails_opens_it_for_a_new_time() -> None:
    breaker, clock = a_breaker(failures=2)
    calls(breaker, "ff")
    clock.now += 10
    calls(breaker, "f")
    assert breaker.state == "open"
    clock.now += 9
    assert not breaker.allow()
    clock.now += 1
    assert breaker.allow()


def test_a_late_failure_of_a_call_from_before_does_not_prolong_it() -> None:
    breaker, clock = a_breaker(failures=1)
    assert breaker.allow()
    assert breaker.allow()
    breaker.failure()
    clock.now += 9
    breaker.failure()
    clock.now += 1
    assert breaker.allow()


def test_a_probe_that_is_released_or_never_reported_makes_room_for_another() -> None:
    breaker, clock = a_breaker(failures=1, probe_after_s=(10, 20), seed=0)
    calls(breaker, "f")
    clock.now += 20
    assert breaker.allow()
    breaker.release()
    assert breaker.allow()
    assert not breaker.allow()
    clock.now += 20
    assert breaker.allow()


def test_times_are_drawn_between_the_bounds_and_differ() -> None:
    times = set()
    for seed in range(50):
        breaker, clock = a_breaker(failures=1, probe_after_s=(10, 30), seed=seed)
        calls(breaker, "f")
        while breaker.state == "open":
            clock.now += 0.5
        times.add(clock.now - 100)
    assert min(times) >= 10
    assert max(times) <= 30.5
    assert len(times) > 20


def test_of_many_threads_one_probes() -> None:
    breaker, clock = a_breaker(failures=1)
    calls(breaker, "f")
    clock.now += 10
    allowed: list[bool] = []
    start = threading.Barrier(16)

    def ask() -> None:
        start.wait(10)
        allowed.append(breaker.allow())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(allowed) == [False] * 15 + [True]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["ask", "failure", "success", "release", "wait"]), max_size=60))
def test_whatever_happened_a_good_call_after_the_longest_time_closes_it(events: list[str]) -> None:
    breaker, clock = a_breaker(failures=2, window=4, probe_after_s=(10, 30), seed=1)
    for event in events:
        if event == "wait":
            clock.now += 7
        else:
            getattr(breaker, "allow" if event == "ask" else event)()
    clock.now += 30
    assert breaker.allow()
    breaker.success()
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"failures": 0}, "failures=0 must be an integer of at least 1"),
        ({"window": 2.5}, "window=2.5 must be an integer"),
        ({"failure_share": 50}, "failure_share=50 is outside"),
        ({"probe_after_s": (0, 1)}, r"probe_after_s\[0\]=0 must be a finite number above 0"),
        ({"probe_after_s": (30, 10)}, "the shortest first"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        CircuitBreaker(**options)
