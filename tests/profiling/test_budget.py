"""A time budget is divided, remembers what it leaves out, and interrupts what takes too long."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.budget import TimeBudget, TimeIsUp, interrupted_after


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_is_shared_and_never_more_than_wanted() -> None:
    clock = Clock()
    budget = TimeBudget(10, clock=clock)
    assert (budget.share(4, most=1.0), budget.share(4, most=9.0)) == (1.0, 2.5)
    clock.now = 8.0
    assert (budget.remaining(), budget.share(4, most=9.0)) == (2.0, 0.5)
    clock.now = 12.0
    assert budget.remaining() == 0


def test_without_a_limit_everything_fits() -> None:
    budget = TimeBudget()
    assert budget.suffices("all", needed=1e9)
    assert budget.part(0.1).suffices("all", needed=1e9)
    assert budget.left_out == []


def test_a_part_ends_sooner_and_tells_the_whole_what_it_leaves_out() -> None:
    clock, told = Clock(), []
    budget = TimeBudget(10, tell=told.append, clock=clock)
    part = budget.part(0.5)
    clock.now = 6.0
    assert not part.suffices("a latency")
    assert budget.suffices("energy", needed=3.9)
    assert budget.left_out == ["a latency: does not fit into 10 s"]
    part.tell("now")
    assert told == ["now"]


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_budget_must_be_positive(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="time_budget_s must be above 0, or None for no limit, got"):
        TimeBudget(seconds)


def forever() -> None:
    try:
        while True:
            time.sleep(0.01)
    except Exception:
        pytest.fail("an ordinary except clause caught the end of time")


def test_work_is_interrupted_and_the_timer_put_back() -> None:
    handler, before = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    with pytest.raises(TimeIsUp), interrupted_after(0.05):
        forever()
    assert signal.getsignal(signal.SIGALRM) == handler
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (before[0] > 0)


class SlowToDie:
    """Its finaliser takes longer than there is time."""

    def __del__(self) -> None:
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            pass


def test_what_a_finaliser_swallows_is_raised_again_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        thing = SlowToDie()
        del thing
        forever()

    hook = sys.unraisablehook
    with pytest.raises(TimeIsUp), interrupted_after(0.03):
        work()
    assert capsys.readouterr().err == ""
    assert sys.unraisablehook is hook


def test_work_in_time_is_left_alone_and_errors_pass() -> None:
    with interrupted_after(30):
        pass
    with pytest.raises(ValueError, match="broken"), interrupted_after(30):
        raise ValueError("broken")
    with interrupted_after(float("inf")):
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] != pytest.approx(30, abs=1)


def test_in_another_thread_nothing_is_interrupted() -> None:
    done = []

    def work() -> None:
        with interrupted_after(0.01):
            time.sleep(0.05)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
