"""What every script of this folder shares: interleaved timing, the record of the machine, results on disk.

Scripts run as ``python benchmarks/<name>.py`` and import this file as ``harness``. It imports neither torch nor
lightning, so that a script which measures start-up may use it too.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("lightning-efficient", "torch", "lightning", "timm", "torchmetrics")


MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
NEVER = "4294967295"
"""The threshold, in bytes, from which glibc gives memory back."""
RESTARTED = "LIGHTNING_EFFICIENT_RESTARTED"


def paired(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, list[float]]:
    """Time variants in turns, so that whatever disturbs the machine disturbs all of them alike.

    Every round calls each variant once; odd rounds go through them backwards, so that none always runs first.
    Garbage is collected between the calls and never inside one.

    Args:
        variants: Names and functions without arguments. On a GPU the function must synchronise before it returns.
        rounds: How many timed calls each variant gets.
        warmup: Untimed rounds before.
        clock: What tells the seconds; ``time.process_time`` leaves out when others had the processor.

    Returns:
        Seconds of each call, in the order of the rounds, so that ``times[a][i]`` pairs with ``times[b][i]``.

    Raises:
        ValueError: no variants, ``rounds`` below 1 or ``warmup`` below 0.
    """
    if not variants or rounds < 1 or warmup < 0:
        message = f"paired needs variants, rounds >= 1 and warmup >= 0, got {list(variants)}, {rounds} and {warmup}"
        raise ValueError(message)
    times: dict[str, list[float]] = {name: [] for name in variants}
    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()  # else each collection goes through all that torch and timm ever made
    try:
        for index in range(-warmup, rounds):
            for name in list(variants) if index % 2 == 0 else reversed(list(variants)):
                gc.collect()
                start = clock()
                variants[name]()
                elapsed = clock() - start
                if index >= 0:
                    times[name].append(elapsed)
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return times


def ratio(times: Mapping[str, Sequence[float]], of: str, over: str, spread: float = 0.8) -> dict[str, float]:
    """Compare two variants round by round.

    Args:
        times: What ``paired`` returned.
        of: The numerator.
        over: The denominator.
        spread: Share of the rounds between ``low`` and ``high``.

    Returns:
        ``median``, ``low`` and ``high`` of the per-round ratios, and ``rounds``, how many there were.

    Raises:
        ValueError: the two do not have the same number of rounds.
    """
    ratios = sorted(a / b for a, b in zip(times[of], times[over], strict=True))
    tail = (1 - spread) / 2
    return {
        "median": statistics.median(ratios),
        "low": quantile(ratios, tail),
        "high": quantile(ratios, 1 - tail),
        "rounds": len(ratios),
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """Interpolate the quantile ``share`` in [0, 1] of values sorted upwards."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def environment() -> dict[str, Any]:
    """Describe what a figure depends on: versions, processor, threads, date; no host name and no path."""
    return {
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads(),
        "steady_allocator": allocator_is_steady(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def steady_allocator() -> None:
    """Start the same command anew so that the allocator keeps the memory it has; only from ``__main__``.

    glibc gives each large tensor back to the system when it is freed, and the next one pays for its pages again, which
    takes longer than many layers compute. Nothing happens without glibc, or where both thresholds are set already.
    """
    if platform.libc_ver()[0] != "glibc" or RESTARTED in os.environ or all(name in os.environ for name in MALLOC):
        return
    os.environ[RESTARTED] = "1"
    for name in MALLOC:
        os.environ.setdefault(name, NEVER)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def allocator_is_steady() -> bool:
    """Return whether glibc's allocator keeps all memory that it has, as ``steady_allocator`` makes it."""
    return platform.libc_ver()[0] == "glibc" and all(os.environ.get(name) == NEVER for name in MALLOC)


def version_of(package: str) -> str | None:
    """Return the installed version without importing the package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Return the processor's marketing name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def threads() -> int | str | None:
    """Return torch's intra-op threads if the script uses torch, else what OMP_NUM_THREADS asks for."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS")


def device_name(device: str) -> str:
    """Return the name of the GPU that ``cuda`` means, or ``cpu``."""
    if device != "cuda":
        return "cpu"
    import torch  # some studies have no use for it

    return torch.cuda.get_device_name()


def command_line(script: str) -> str:
    """Return what was typed to run a script of this folder, with its arguments."""
    return shlex.join(["python", f"benchmarks/{script}.py", *sys.argv[1:]])


def save(name: str, record: Mapping[str, Any], script: str | None = None) -> Path:
    """Write ``results/<name>.json``: the command line, the environment, then the record.

    Args:
        name: The script's name without its suffix, or another one for a part of its results.
        record: Anything that JSON can hold.
        script: The script's name, where ``name`` is another one.

    Returns:
        The file that was written.
    """
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": command_line(script or name), "environment": environment(), **record}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def resumed(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``results/<name>.json`` holds, to go on from it; nothing where it is of other settings.

    Args:
        name: The file's name without its suffix.
        settings: What must be as it was saved, by key of the record.

    Returns:
        The record without command and environment, which join those of earlier runs under ``earlier``; or ``{}``.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    record: dict[str, Any] = json.loads(path.read_text())
    if any(record.get(key) != value for key, value in json.loads(json.dumps(settings)).items()):
        print(f"{path.name} is of other settings; nothing of it is kept", flush=True)
        return {}
    before = {key: record.pop(key) for key in ("command", "environment")}
    return {**record, "earlier": [*record.get("earlier", []), before]}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; floats get four significant digits, the first column goes left and the others right."""
    grid = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        grid.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(grid)
