"""Stop asking what keeps failing, and try again now and then."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeAlias

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_count, check_fraction, check_positive

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """Count outcomes of calls, and refuse further ones while they fail.

    Closed, it lets every call through. It opens after ``failures`` failures in a row, or when the last ``window`` calls
    are complete and more than ``failure_share`` of them failed. Open, it lets none through, for a time drawn anew each
    time between the two of ``probe_after_s``: many devices would else ask a server again at once. Then it is half open:
    one call goes through as a probe, which closes or opens it. A probe that nobody reports is given up after the
    longer of the two times. All methods may be called from several threads.

    Args:
        failures: Failures in a row that open it.
        window: Number of last calls of which the share is taken.
        failure_share: Share of failures among these that must be exceeded.
        probe_after_s: Shortest and longest time for which it stays open, in seconds.
        clock: Returns the time in seconds, never going back.
        seed: Of the draws; by default every breaker draws differently.

    Raises:
        ConfigurationError: a count below 1, a share outside ``(0, 1]``, or times that are not 0 < shortest <= longest.

    Example:
        >>> now = 0.0
        >>> breaker = CircuitBreaker(failures=2, probe_after_s=(10, 10), clock=lambda: now)
        >>> for _ in range(2):
        ...     _ = breaker.allow(), breaker.failure()
        >>> breaker.state, breaker.allow()
        ('open', False)
        >>> now = 10.0
        >>> breaker.allow(), breaker.allow()  # one probe
        (True, False)
        >>> breaker.success(), breaker.state
        (None, 'closed')

    Reference:
        M. T. Nygard, "Release It! Design and Deploy Production-Ready Software", Pragmatic Bookshelf, 2007.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        window: int = 20,
        failure_share: float = 0.5,
        probe_after_s: tuple[float, float] = (10.0, 30.0),
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        check_count("failures", failures)
        check_count("window", window)
        check_fraction("failure_share", failure_share, zero=False)
        shortest, longest = probe_after_s
        check_positive("probe_after_s[0]", shortest)
        check_positive("probe_after_s[1]", longest)
        if shortest > longest:
            raise ConfigurationError(f"probe_after_s={probe_after_s!r} must be (shortest, longest), the shortest first")
        self.failures, self.window, self.failure_share = failures, window, failure_share
        self.probe_after_s = (shortest, longest)
        self._clock, self._draws, self._lock = clock, random.Random(seed), threading.Lock()
        self._in_a_row, self._last = 0, deque[bool](maxlen=window)
        self._opened_until: float | None = None
        self._probe_until: float | None = None

    @property
    def state(self) -> BreakerState:
        """``closed``, ``open``, or ``half_open`` where the next call, or one on its way, is a probe."""
        with self._lock:
            if self._opened_until is None:
                return "closed"
            return "half_open" if self._clock() >= self._opened_until else "open"

    def allow(self) -> bool:
        """Tell whether a call may be made; where it is, report by ``success``, ``failure`` or ``release``."""
        with self._lock:
            if self._opened_until is None:
                return True
            now = self._clock()
            if now < self._opened_until or (self._probe_until is not None and now < self._probe_until):
                return False
            self._probe_until = now + self.probe_after_s[1]
            return True

    def success(self) -> None:
        """Report a call that was answered: an open breaker closes and forgets."""
        with self._lock:
            if self._opened_until is not None:
                self._last.clear()
            self._opened_until = self._probe_until = None
            self._in_a_row = 0
            self._last.append(False)

    def failure(self) -> None:
        """Report a call that was not answered."""
        with self._lock:
            self._in_a_row += 1
            self._last.append(True)
            if self._opened_until is not None:
                # calls that began before it opened say nothing new; the probe does
                if self._probe_until is not None:
                    self._open()
                return
            full = len(self._last) == self.window
            if self._in_a_row >= self.failures or (full and sum(self._last) > self.failure_share * self.window):
                self._open()

    def release(self) -> None:
        """Report a call that says nothing of the other side, so that another may probe."""
        with self._lock:
            self._probe_until = None

    def _open(self) -> None:
        self._opened_until = self._clock() + self._draws.uniform(*self.probe_after_s)
        self._probe_until = None
        self._last.clear()
