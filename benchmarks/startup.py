"""How long a first answer takes: our command against bare LightningCLI scripts, each in a process of its own.

What needs no torch must answer in under a second; ``fit --help`` must take at most 1.2 times the processor time of a
bare ``LightningCLI`` script. The second baseline imports timm, as the script of anyone with a timm model does. Python
caches bytecode as on a user's machine, in a folder that the untimed first round fills. Prints processor and wall-clock
time and their ratios, and writes ``results/startup.json``.

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
SCRIPTS = {"bare LightningCLI": BARE, "LightningCLI + timm": f"import timm\n{BARE}"}
OURS = "lightning-efficient"
WATCHED = {"torch", "lightning", "timm", "wandb", "sklearn", "pandas"}
LIGHT_GOAL_SECONDS = 1.0
FIT_GOAL_RATIO = 1.2

Argv = Sequence[str | Path]


def run(argv: Argv, bytecode: Path, **variables: str) -> str:
    """Run a command with its output in pipes and its bytecode cached in a folder, and return its standard error."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = inherited | {"PYTHONPYCACHEPREFIX": str(bytecode)} | variables
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stderr


def loaded(argv: Argv, bytecode: Path) -> list[str]:
    """Return which of the watched packages a command of Python imports, by the interpreter's own list."""
    lines = run(argv, bytecode, PYTHONPROFILEIMPORTTIME="1").splitlines()
    return sorted(WATCHED & {line.rpartition("|")[2].strip() for line in lines})


def children_cpu() -> float:
    """Processor seconds of all finished child processes so far, in user mode and in the kernel."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(commands: Mapping[str, Argv], rounds: int, bytecode: Path) -> dict[str, Any]:
    """Run commands in turns, after one untimed round.

    Returns:
        ``seconds`` as ``{"cpu": {name: [...]}, "wall": {name: [...]}}``, and ``loads``, the watched packages of each.
    """
    cpu: dict[str, list[float]] = {name: [] for name in commands}

    def once(name: str) -> Callable[[], None]:
        def call() -> None:
            before = children_cpu()
            run(commands[name], bytecode)
            cpu[name].append(children_cpu() - before)

        return call

    wall = paired({name: once(name) for name in commands}, rounds)
    seconds = {"cpu": {name: values[-rounds:] for name, values in cpu.items()}, "wall": wall}
    return {"seconds": seconds, "loads": {name: loaded(argv, bytecode) for name, argv in commands.items()}}


def light(rounds: int, bytecode: Path) -> dict[str, Any]:
    """Measure the commands that must not load torch."""
    found = measure({" ".join(words): [COMMAND, *words] for words in LIGHT}, rounds, bytecode)
    slowest = max(statistics.median(values) for values in found["seconds"]["wall"].values())
    reached = slowest < LIGHT_GOAL_SECONDS and not any(found["loads"].values())
    return {"goal_seconds": LIGHT_GOAL_SECONDS, "reached": reached, **found}


def fit_help(rounds: int, bytecode: Path, scripts: Path) -> dict[str, Any]:
    """Measure ``fit --help`` of our command and of the scripts, which are written into a folder."""
    commands: dict[str, Argv] = {OURS: [COMMAND, *FIT_HELP]}
    for index, (name, text) in enumerate(SCRIPTS.items()):
        script = scripts / f"script{index}.py"
        script.write_text(text)
        commands[name] = [sys.executable, script, *FIT_HELP]
    found = measure(commands, rounds, bytecode)
    ratios = {name: {kind: ratio(times, OURS, name) for kind, times in found["seconds"].items()} for name in SCRIPTS}
    reached = ratios["bare LightningCLI"]["cpu"]["median"] <= FIT_GOAL_RATIO
    return {"goal_ratio": FIT_GOAL_RATIO, "reached": reached, "ratios": ratios, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        bytecode = Path(folder, "bytecode")
        record = {
            "rounds": rounds,
            "light": light(rounds, bytecode),
            "fit_help": fit_help(rounds, bytecode, Path(folder)),
        }
    report(record)
    save("startup", record)


def report(record: Mapping[str, Any]) -> None:
    found = record["light"]
    title = f"{OURS} …, {record['rounds']} rounds\ngoal: under {LIGHT_GOAL_SECONDS:g} s without torch, {verdict(found)}"
    rows = [[name, *times(found, name), ", ".join(loads) or "none"] for name, loads in found["loads"].items()]
    table(title, ["", "CPU s", "wall s", "loads"], rows)
    found = record["fit_help"]
    rows = []
    for name, loads in found["loads"].items():
        ratios = found["ratios"].get(name, {})
        cells = [interval(ratios[kind]) if ratios else "" for kind in ("cpu", "wall")]
        rows.append([name, *times(found, name), *cells, ", ".join(loads)])
    title = f"fit --help, {record['rounds']} rounds\ngoal: at most {FIT_GOAL_RATIO:g} of bare CPU, {verdict(found)}"
    table(title, ["", "CPU s", "wall s", "ours / it, CPU", "wall", "loads"], rows)


def times(found: Mapping[str, Any], name: str) -> list[str]:
    values = [found["seconds"][kind][name] for kind in ("cpu", "wall")]
    return [f"{statistics.median(each):.3g} ({min(each):.3g} to {max(each):.3g})" for each in values]


def interval(found: Mapping[str, float]) -> str:
    return "{median:.2f} ({low:.2f} to {high:.2f})".format(**found)


def verdict(found: Mapping[str, Any]) -> str:
    return "reached" if found["reached"] else "MISSED"


if __name__ == "__main__":
    main()
