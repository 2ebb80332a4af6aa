"""Run the command line in real processes without paying its imports each time.

Reads one job a line, ``{"arguments", "folder", "stderr"}``, forks, and writes the exit status of the child, negative
for a signal. It has imported torch and run nothing, so a fork of it is as good as a new process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

from lightning_efficient.cli.main import main

SLOW = ("lightning_efficient.cli.efficient_cli", "sklearn.datasets", "timm", "wandb")
"""What a run imports, some of it late."""


def run(job: dict[str, str]) -> None:
    """Become the command."""
    os.chdir(job["folder"])
    log = os.open(job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.exit(main(job["arguments"]))


def serve() -> None:
    """Fork for every line until the input ends."""
    for name in SLOW:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
