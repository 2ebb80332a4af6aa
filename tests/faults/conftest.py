"""The command line in processes of its own, which may die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # configs name the callbacks of faults.py
TINY = ("fit", "--config", "quickstart", "--config", str(HERE / "tiny.yaml"))


@dataclass(frozen=True)
class Finished:
    """How a process ended: its exit status, or the negative number of the signal that killed it."""

    status: int
    stderr: str


@pytest.fixture(scope="session")
def server() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, HERE / "fork_server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def fit(server: subprocess.Popen[str], tmp_path: Path) -> Callable[..., Finished]:
    """``fit(*arguments, folder=tmp_path, environment=None) -> Finished``: the tiny run, in a process of its own."""

    def run(*arguments: str | Path, folder: Path = tmp_path, environment: Mapping[str, str] | None = None) -> Finished:
        folder.mkdir(exist_ok=True)
        log = tmp_path / "stderr.log"
        words = [str(word) for word in (*TINY, *arguments)]
        job = {"arguments": words, "folder": str(folder), "stderr": str(log), "environment": dict(environment or {})}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return Finished(int(server.stdout.readline()), log.read_text())

    return run
