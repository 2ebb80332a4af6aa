"""A time limit for a measurement of many parts: what each may take, and what had to be left out."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from types import FrameType
from typing import Any

from lightning_efficient.errors import ConfigurationError


class TimeIsUp(BaseException):
    """Raised inside work that takes longer than it may; no ``except Exception`` on the way may swallow it."""


class TimeBudget:
    """Seconds that a measurement may take, shared by its parts.

    Args:
        seconds: How many from now on; None for no limit.
        tell: Is told what is being measured.
        clock: What tells the seconds.

    Attributes:
        seconds: What was given.
        left_out: What the time did not suffice for, in words.

    Raises:
        ConfigurationError: ``seconds`` is not above 0.

    Example:
        >>> budget = TimeBudget(10, clock=lambda: 0.0)
        >>> budget.share(parts=4, most=5.0), budget.suffices("a long one", needed=11), budget.left_out
        (2.5, False, ['a long one: does not fit into 10 s'])
    """

    def __init__(
        self,
        seconds: float | None = None,
        tell: Callable[[str], None] | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        if seconds is not None and not seconds > 0:
            raise ConfigurationError(f"time_budget_s must be above 0, or None for no limit, got {seconds}")
        self.seconds = seconds
        self.left_out: list[str] = []
        self.tell = tell or (lambda text: None)
        self._clock = clock
        self._end = float("inf") if seconds is None else clock() + seconds

    def remaining(self) -> float:
        """Return the seconds that are left, infinity without a limit."""
        return max(0.0, self._end - self._clock())

    def share(self, parts: float, most: float) -> float:
        """Return what one of so many equal parts may take, at most ``most``."""
        return min(most, self.remaining() / parts)

    def suffices(self, what: str, needed: float = 0.0) -> bool:
        """Tell whether more than ``needed`` seconds are left; where not, write down ``what`` as left out."""
        enough = self.remaining() > needed
        if not enough:
            self.leave_out(what)
        return enough

    def leave_out(self, what: str) -> None:
        """Write down what the time does not suffice for."""
        self.left_out.append(f"{what}: does not fit into {self.seconds:g} s")

    def part(self, share: float) -> TimeBudget:
        """Return a budget for a share of what is left, which writes down here what it leaves out."""
        smaller = TimeBudget(None, self.tell, self._clock)
        smaller.seconds, smaller.left_out = self.seconds, self.left_out
        smaller._end = min(self._end, self._clock() + share * self.remaining()) if self.seconds else self._end
        return smaller


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise ``TimeIsUp`` inside the block once it has taken so long, where the system can.

    That needs a system with interval timers, the main thread, and nobody else's timer that ends earlier; elsewhere
    the block takes as long as it takes.

    Args:
        seconds: Infinity for no limit.
    """
    timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    pending = signal.getitimer(signal.ITIMER_REAL)[0] if timed else 0.0
    if not timed or seconds == float("inf") or 0 < pending <= seconds:
        yield
        return

    raising = True

    def stop(number: int, frame: FrameType | None) -> None:
        if raising:
            raise TimeIsUp

    def unraisable(hidden: Any) -> None:
        if not issubclass(hidden.exc_type, TimeIsUp):
            said(hidden)

    said, sys.unraisablehook = sys.unraisablehook, unraisable
    began, handler = perf_counter(), signal.signal(signal.SIGALRM, stop)
    # again and again, since what is raised inside a finaliser is lost
    before, interval = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 1.0)
    try:
        try:
            yield
        finally:
            raising = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        sys.unraisablehook = said
        if before:
            signal.setitimer(signal.ITIMER_REAL, max(before - (perf_counter() - began), 1e-3), interval)
