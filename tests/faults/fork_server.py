"""Run the command line in real processes without paying its imports each time.

Reads one job a line, ``{"arguments", "folder", "stderr", "environment"}``, forks, and writes the exit status of the
child, negative for a signal. It has imported torch and run nothing, so a fork of it is as good as a new process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import sys
import traceback
from typing import Any

from lightning_efficient.cli.main import main

QAT = "torchao.quantization.pt2e.quantize_pt2e"
SLOW = ("lightning_efficient.cli.efficient_cli", "sklearn.datasets", "timm", "wandb", "faults", "attrs", QAT)
"""What a run imports, some of it late."""


def run(job: dict[str, Any]) -> None:
    """Become the command."""
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    log = os.open(job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        status = main(job["arguments"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    # all that an interpreter does at its end but freeing every object, which takes longer than the run
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve() -> None:
    """Fork for every line until the input ends."""
    for name in SLOW:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else each child copies the memory that it looks through for garbage
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
