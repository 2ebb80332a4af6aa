"""A lock for objects that are copied and pickled."""

from __future__ import annotations

from threading import RLock
from typing import Any


class FreshLock:
    """A reentrant lock whose copies, by ``deepcopy`` or pickle, are new locks that nobody holds.

    Example:
        >>> from copy import deepcopy
        >>> lock = FreshLock()
        >>> with lock:
        ...     deepcopy(lock) is lock
        False
    """

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return FreshLock, ()
