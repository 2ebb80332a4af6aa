"""How long a first answer takes: our command against bare LightningCLI scripts, each in a process of its own.

What needs no torch must answer in under a second; ``fit --help`` must take at most 1.2 times the processor time of a
bare ``LightningCLI`` script. The second baseline imports timm, as the script of anyone with a timm model does. Prints
processor and wall-clock time and their ratios, and writes ``results/startup.json``.

Run: ``python benchmarks/startup.py [--rounds N]``
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import paired, ratio, save, table

COMMAND = Path(sys.executable).with_name("lightning-efficient")
LIGHT = (["--help"], ["--version"], ["configs", "ls"])
FIT_HELP = ["fit", "--help"]
BARE = "from lightning.pytorch.cli import LightningCLI\n\nLightningCLI()\n"
SCRIPTS = {"bare LightningCLI": BARE, "LightningCLI, timm": f"import timm\n{BARE}"}
OURS = "lightning-efficient"
LIGHT_GOAL_SECONDS = 1.0
FIT_GOAL_RATIO = 1.2

Argv = Sequence[str | Path]


def run(argv: Argv, **variables: str) -> str:
    """Run a command with its output in pipes, as a test or an editor would, and return its standard error."""
    done = subprocess.run(argv, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return done.stderr


def loads_torch(argv: Argv) -> bool:
    """Tell whether a command of Python imports torch, by the interpreter's own list of imports."""
    imports = run(argv, PYTHONPROFILEIMPORTTIME="1").splitlines()
    return any(line.rpartition("|")[2].strip() == "torch" for line in imports)


def children_cpu() -> float:
    """Processor seconds of all finished child processes so far, in user mode and in the kernel."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(commands: Mapping[str, Argv], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Run commands in turns, after one untimed round that fills the file cache.

    Returns:
        ``{"cpu": {name: seconds}, "wall": {name: seconds}}``.
    """
    cpu: dict[str, list[float]] = {name: [] for name in commands}

    def once(name: str) -> Callable[[], None]:
        def call() -> None:
            before = children_cpu()
            run(commands[name])
            cpu[name].append(children_cpu() - before)

        return call

    wall = paired({name: once(name) for name in commands}, rounds)
    return {"cpu": {name: seconds[-rounds:] for name, seconds in cpu.items()}, "wall": wall}


def light(rounds: int) -> dict[str, Any]:
    """Measure the commands that must not load torch."""
    commands = {" ".join(words): [COMMAND, *words] for words in LIGHT}
    seconds = measure(commands, rounds)
    slowest = max(statistics.median(each) for each in seconds["wall"].values())
    loaded = {name: loads_torch(argv) for name, argv in commands.items()}
    reached = slowest < LIGHT_GOAL_SECONDS and not any(loaded.values())
    return {"goal_seconds": LIGHT_GOAL_SECONDS, "reached": reached, "loads_torch": loaded, "seconds": seconds}


def fit_help(rounds: int) -> dict[str, Any]:
    """Measure ``fit --help`` of our command and of the two scripts."""
    with tempfile.TemporaryDirectory() as folder:
        commands: dict[str, Argv] = {OURS: [COMMAND, *FIT_HELP]}
        for index, (name, script) in enumerate(SCRIPTS.items()):
            file = Path(folder) / f"script{index}.py"
            file.write_text(script)
            commands[name] = [sys.executable, file, *FIT_HELP]
        seconds = measure(commands, rounds)
    ratios = {name: {kind: ratio(times, OURS, name) for kind, times in seconds.items()} for name in SCRIPTS}
    reached = ratios["bare LightningCLI"]["cpu"]["median"] <= FIT_GOAL_RATIO
    return {"goal_ratio": FIT_GOAL_RATIO, "reached": reached, "ratios": ratios, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    record = {"rounds": rounds, "without_torch": light(rounds), "fit_help": fit_help(rounds)}
    report(record)
    save("startup", record)


def report(record: dict[str, Any]) -> None:
    found = record["without_torch"]
    rows = [
        [name, *(spread(found["seconds"][kind][name]) for kind in ("cpu", "wall")), "yes" if torch else "no"]
        for name, torch in found["loads_torch"].items()
    ]
    goal = f"goal: under {LIGHT_GOAL_SECONDS:g} s and no torch, {verdict(found)}"
    table(f"lightning-efficient …, {record['rounds']} rounds; {goal}", ["", "CPU s", "wall s", "torch"], rows)
    found = record["fit_help"]
    rows = []
    for name in (OURS, *SCRIPTS):
        ratios = found["ratios"].get(name)
        cells = [spread(found["seconds"][kind][name]) for kind in ("cpu", "wall")]
        rows.append([name, *cells, *(interval(ratios[kind]) if ratios else "" for kind in ("cpu", "wall"))])
    goal = f"goal: CPU at most {FIT_GOAL_RATIO:g} times the bare script's, {verdict(found)}"
    columns = ["", "CPU s", "wall s", "ours / this, CPU", "ours / this, wall"]
    table(f"fit --help, {record['rounds']} rounds; {goal}", columns, rows)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def interval(found: Mapping[str, float]) -> str:
    return "{median:.2f} ({low:.2f} to {high:.2f})".format(**found)


def verdict(found: Mapping[str, Any]) -> str:
    return "reached" if found["reached"] else "MISSED"


if __name__ == "__main__":
    main()
