"""What a soak of the serving path prints, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _soak_checks import Check
from harness import quantile, table

WINDOWS = 60


def percentiles(took: Sequence[float]) -> dict[str, float]:
    times = sorted(1000 * seconds for seconds in took)
    return {
        **{f"p{share}_ms": quantile(times, share / 100) if times else 0.0 for share in (50, 95, 99)},
        "max_ms": times[-1] if times else 0.0,
    }


def in_windows(
    at: Sequence[float], took: Sequence[float], alone: Sequence[float], until: float
) -> list[dict[str, float]]:
    """Return latencies per window of equal lengths, and how many times those of the networks alone they are.

    Args:
        at: When each batch ended, in seconds.
        took: How long it took, in seconds.
        alone: How long its networks alone took right after it, in seconds.
        until: The end of the last window, in seconds.
    """
    length = until / WINDOWS
    batches: list[list[tuple[float, float]]] = [[] for _ in range(WINDOWS)]
    for end, *pair in zip(at, took, alone, strict=True):
        batches[min(int(end / length), WINDOWS - 1)].append((pair[0], pair[1]))
    windows = []
    for number, each in enumerate(batches):
        times = [pair[0] for pair in each]
        ratio = median(times) / median(pair[1] for pair in each) if each else 0.0
        windows.append({"begin_s": number * length, "batches": len(each), "ratio": ratio, **percentiles(times)})
    return windows


def steady(windows: Sequence[Mapping[str, float]], phases: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Return the medians of the ratios in the first and the last phase, in both of which the server is there."""
    found = []
    for phase in (next(iter(phases.values())), list(phases.values())[-1]):
        begin, end = phase["begin_s"], phase["end_s"]
        within = [each["ratio"] for each in windows if begin <= each["begin_s"] < end and each["batches"]]
        found += [median(within)] if within else []
    return found


def draw(found: Mapping[str, Any], path: Path, away: str) -> None:
    """Draw latency, resident memory and open files over time; the phase called ``away`` is the darker one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 6.4), layout="constrained")
    latency, memory, files = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    unit, per = ("minutes", 60) if found["seconds"] >= 300 else ("seconds", 1)
    times = [window["begin_s"] / per for window in found["windows"]]
    for name in ("p50", "p95", "p99"):
        latency.step(times, [window[f"{name}_ms"] for window in found["windows"]], where="post", label=name)
    latency.axhline(found["deadline_ms"], color="grey", linestyle=":", linewidth=1)
    latency.set_yscale("log")
    latency.set_ylabel("ms of a batch")
    latency.legend(ncols=3, fontsize=8, loc="lower left")
    for name, samples in found["samples"].items():
        part = name.partition(",")[0]
        colour = {"client": "tab:blue", "server": "tab:orange"}[part]
        label = part if name in ("client", "server, before") else None
        at = [each[0] / per for each in samples]
        for axes, column in ((memory, 1), (files, 2)):
            axes.plot(at, [each[column] for each in samples], color=colour, label=label)
    for axes, name in ((memory, "resident MB"), (files, "open files")):
        axes.set_ylim(bottom=0)
        axes.set_ylabel(name)
        axes.legend(fontsize=8, loc="center left")
    files.set_xlabel(unit)
    for name, phase in found["phases"].items():
        shade = 0.2 if name == away else 0.06
        for axes in (latency, memory, files):
            axes.axvspan(phase["begin_s"] / per, phase["end_s"] / per, color="grey", alpha=shade)
        middle = (phase["begin_s"] + phase["end_s"]) / 2 / per
        latency.text(middle, 1.02, name, transform=latency.get_xaxis_transform(), ha="center", fontsize=8)
    figure.savefig(path, dpi=110)


def report(found: Mapping[str, Any]) -> bool:
    """Print tables; return whether everything held."""
    names = list(next(iter(found["phases"].values())))
    rows = [[name, *(phase[name] for phase in found["phases"].values())] for name in names]
    table(f"A hybrid for {found['seconds']:g} s, deadline {found['deadline_ms']} ms", ["", *found["phases"]], rows)
    print(f"client: {found['client']}")
    checks = [Check(**check) for check in found["checks"]]
    shown = [[check.name, check.found, check.allowed, "yes" if check.held else "NO"] for check in checks]
    table("What must hold", ["", "found", "allowed", "held"], shown)
    return all(check.held for check in checks)
