"""What a soak of the serving path must hold: pure functions from what was seen to one line each, held or not.

Memory is judged by a slope, not by two readings: the median of the slopes between all pairs of readings (Theil and Sen)
does not mind a few high ones. Open files and threads come and go with connections, so that their lowest counts are
compared: a leak lifts the lowest, a burst does not. Nothing here is a bound in milliseconds: a busy machine breaks it.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

WARM_UP = 0.3
"""Share of a stretch without faults that is left out at its beginning."""
GROWTH_MB = 16.0
"""By how much memory may grow over what is left of a stretch."""
MORE_FILES, MORE_THREADS = 8, 2
"""By how much the lowest count of a last third may lie above that of the first."""
SLOWER = 10.0
"""How many times the median of a batch over that of its networks alone may grow from the first window to the last."""
LATE_SHARE = 0.01
"""Share of batches that may be later than the deadline allows."""
RECOVERY_S, STOP_S, HANG_S = 120.0, 30.0, 30.0
FEWEST = 6
"""Readings of a stretch without which it is not judged."""


class Sample(NamedTuple):
    """One reading of some processes together."""

    at: float
    """Seconds since the beginning."""
    resident_mb: float
    files: int
    threads: int


class Check(NamedTuple):
    """One thing that must hold."""

    name: str
    found: str
    allowed: str
    held: bool


def read_processes(of: Sequence[int], at: float) -> Sample:
    """Return resident memory, open files and threads of processes, from Linux's ``/proc``.

    Raises:
        OSError: one of them ended meanwhile.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    folders = [Path(f"/proc/{process}") for process in of]
    pages = sum(int((folder / "statm").read_text().split()[1]) for folder in folders)
    files = sum(len(list((folder / "fd").iterdir())) for folder in folders)
    threads = sum(int((folder / "stat").read_text().rpartition(")")[2].split()[17]) for folder in folders)
    return Sample(at, pages * page / 1e6, files, threads)


def session_of(leader: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def warm(samples: Sequence[Sample], share: float = WARM_UP) -> list[Sample]:
    """Return the samples after the warm-up, at least half of them in time."""
    if not samples:
        return []
    begin, end = samples[0].at, samples[-1].at
    return [sample for sample in samples if sample.at >= begin + share * (end - begin)]


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the median slope between all pairs, per second; 0 where there are fewer than two times.

    Example:
        >>> slope([0, 1, 2, 3, 4], [0.0, 2.0, 4.0, 900.0, 8.0])
        2.0
    """
    points = list(zip(times, values, strict=True))
    points = points[:: 1 + len(points) // 400]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0]]
    return statistics.median(slopes) if slopes else 0.0


def check_memory(name: str, samples: Sequence[Sample]) -> list[Check]:
    """Check that memory does not grow after the warm-up of a stretch without faults."""
    rest = warm(samples)
    if len(rest) < FEWEST:
        return []
    per_second = slope([sample.at for sample in rest], [sample.resident_mb for sample in rest])
    seconds = rest[-1].at - rest[0].at
    found = f"{per_second * seconds:+.1f} MB in {seconds:.0f} s ({3600 * per_second:+.0f} MB/h)"
    return [Check(f"{name}: memory", found, f"+{GROWTH_MB:g} MB", per_second * seconds <= GROWTH_MB)]


def check_counts(name: str, samples: Sequence[Sample]) -> list[Check]:
    """Check that open files and threads stay as many, by the lowest counts of the first and the last third."""
    rest = warm(samples)
    if len(rest) < FEWEST:
        return []
    third = len(rest) // 3
    checks = []
    for kind, more in (("files", MORE_FILES), ("threads", MORE_THREADS)):
        counts = [getattr(sample, kind) for sample in rest]
        first, last = min(counts[:third]), min(counts[-third:])
        checks.append(Check(f"{name}: {kind}", f"{first} to {last}", f"+{more}", last - first <= more))
    return checks


def check_answers(phases: Mapping[str, Mapping[str, Any]], problems: Sequence[str], hung: int) -> list[Check]:
    """Check that each row had its answer and each answer was that of the network it names."""
    wrong = sum(phase["wrong"] for phase in phases.values())
    rows = sum(phase["rows"] for phase in phases.values())
    first = f", first: {problems[0]}" if problems else ""
    return [
        Check("wrong answers", f"{wrong} of {rows}", "0", wrong == 0 and rows > 0),
        Check("missing answers, refusals not given", f"{len(problems)}{first}", "0", not problems),
        Check("threads that hang", str(hung), "0", hung == 0),
    ]


def check_fallback(phases: Mapping[str, Mapping[str, Any]], away: str) -> list[Check]:
    """Check that the base answered while the server was away, and the global model in all other phases."""
    checks = []
    for name, phase in phases.items():
        if name == away:
            held = phase["asked"] > 0 and phase["fallback"] == 1
            checks.append(Check(f"{name}: fallbacks of {phase['asked']}", f"{phase['fallback']:.1%}", "100%", held))
        else:
            checks.append(
                Check(f"{name}: global answers", f"{phase['global']:.1%}", "more than 0", phase["global"] > 0)
            )
    return checks


def is_late(took: float, deadline: float, grace: float, stall: float) -> bool:
    """Tell whether a batch took longer than the deadline allows on a machine that held a sleeper up for ``stall`` s."""
    return took > deadline + grace + 10 * stall


def check_latency(batches: int, late: int, slowest_s: float, ratios: Sequence[float]) -> list[Check]:
    """Check that batches end by their deadline, that none hangs, and that they do not become slower.

    Args:
        batches: How many there were.
        late: How many of them ``is_late``.
        slowest_s: The longest, in seconds.
        ratios: Per window, the median time of a batch over that of its networks alone, measured at the same time.
    """
    checks = [
        Check("late batches", f"{late} of {batches}", f"{LATE_SHARE:.0%}", late <= LATE_SHARE * batches),
        Check("slowest batch", f"{slowest_s:.2f} s", f"{HANG_S:g} s", slowest_s <= HANG_S),
    ]
    if len(ratios) > 1:
        found = f"{ratios[0]:.2f} to {ratios[-1]:.2f} times its networks"
        checks.append(Check("slower with time", found, f"{SLOWER:g} times", ratios[-1] <= SLOWER * ratios[0]))
    return checks


def check_recovery(recovery: Mapping[str, float], stops: Mapping[str, tuple[int, int, float]]) -> list[Check]:
    """Check that the global model came back after each fault, and that the server ends as asked.

    Args:
        recovery: Seconds from a fault's end to the first answer of the global model; negative where none came.
        stops: Per way of ending it the exit status, the status that is meant, and the seconds that it took.
    """
    checks = [
        Check(f"{name}: back after", f"{found:.1f} s", f"{RECOVERY_S:g} s", 0 <= found <= RECOVERY_S)
        for name, found in recovery.items()
    ]
    for name, (status, meant, seconds) in stops.items():
        held = status == meant and seconds <= STOP_S
        checks.append(Check(f"ends by {name}", f"{status} after {seconds:.1f} s", f"{meant} in {STOP_S:g} s", held))
    return checks
