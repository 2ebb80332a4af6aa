"""Trials side by side on one machine: a process for each, and one of them timed at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

GRACE_S = 15.0
"""How long a trial that is told to end may take."""

_PRELOADED = ["lightning_efficient.cli._search_preload", "lightning_efficient.cli._search_trial"]

Report = Callable[[int, Mapping[str, float], Mapping[str, Any] | None], bool]
"""Called after every validation with its number, the metrics and the profile; true ends the trial."""


@dataclass(frozen=True)
class TrialJob:
    """What a trial's process is told.

    Attributes:
        number: Of the trial.
        config: File of the whole config.
        log: File for what the trial prints.
        threads: Intra-op threads of torch while it trains; None as torch has it.
        profile_early: Whether to measure the model at the first validation already, for the reward of each epoch.
    """

    number: int
    config: Path
    log: Path
    threads: int | None = None
    profile_early: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        kind: ``done``, ``pruned``, ``failed`` or ``interrupted``.
        metrics: Of the checkpoint kept.
        footprint: Of the trained model, if it was measured.
        reason: Of a failure, in one line.
        run: The run folder.
    """

    kind: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    footprint: Mapping[str, Any] | None = None
    reason: str = ""
    run: str = ""


class Processes:
    """Runs trials in processes of their own, from several threads.

    While one trial measures its model, the processes of all others are stopped, so that none takes its cores.
    """

    def __init__(self) -> None:
        # forked from a process that has loaded torch once; elsewhere a fork of such a process is not safe
        self._context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            self._context.set_forkserver_preload(_PRELOADED)
        self._running: set[BaseProcess] = set()
        self._alone = threading.RLock()
        self._stopping = threading.Event()

    def warm_up(self) -> None:
        """Begin to load torch for the trials."""
        if sys.platform == "linux":
            from multiprocessing import forkserver

            forkserver.ensure_running()

    def run(self, job: TrialJob, report: Report) -> Outcome:
        """Run a trial and return how it ended."""
        from lightning_efficient.cli._search_preload import begin

        ours, theirs = self._context.Pipe()
        with self._alone:  # while a model is timed nothing starts
            if self._stopping.is_set():
                return Outcome("interrupted")
            process = self._context.Process(target=begin, args=(job, theirs), daemon=False)
            process.start()
            theirs.close()
            self._running.add(process)
        try:
            outcome = self._listen(process, ours, report)
        finally:
            ours.close()  # a trial that still waits for an answer ends
            process.join(GRACE_S)
            self._running.discard(process)
            if process.is_alive():
                _signal(process, signal.SIGKILL)
                process.join()
        if self._stopping.is_set() and outcome.kind == "failed":
            return Outcome("interrupted")
        return outcome

    def stop(self) -> None:
        """End all trials: first as Ctrl-C does, then for good."""
        self._stopping.set()
        for process in list(self._running):
            _signal(process, signal.SIGINT)
        until = time.monotonic() + GRACE_S
        while any(process.is_alive() for process in list(self._running)) and time.monotonic() < until:
            time.sleep(0.05)
        for process in list(self._running):
            _signal(process, signal.SIGKILL)

    def _listen(self, process: BaseProcess, link: Connection, report: Report) -> Outcome:
        with contextlib.ExitStack() as timing:
            while True:
                try:
                    message = link.recv()
                except (EOFError, OSError):
                    process.join()
                    return Outcome("failed", reason=_died(process.exitcode))
                kind = message.pop("kind")
                if kind == "epoch":
                    answer = "prune" if report(message["step"], message["metrics"], message["footprint"]) else "go on"
                    link.send(answer)
                elif kind == "measure":
                    timing.enter_context(self._others_stopped(process))
                    link.send(None)
                elif kind == "measured":
                    timing.close()
                    link.send(None)
                else:
                    return Outcome(kind, **message)

    @contextlib.contextmanager
    def _others_stopped(self, process: BaseProcess) -> Iterator[None]:
        with self._alone:
            others = [one for one in self._running if one is not process]
            try:
                for one in others:
                    _signal(one, signal.SIGSTOP)
                yield
            finally:
                for one in others:
                    _signal(one, signal.SIGCONT)


def _signal(process: BaseProcess, number: int) -> None:
    """Send a signal to a process and to those that it has started."""
    if process.pid is None or not process.is_alive():
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(process.pid, number)


def _died(status: int | None) -> str:
    if status is not None and status < 0:
        hint = ", as when memory runs out" if -status == signal.SIGKILL else ""
        return f"the process was ended by {signal.Signals(-status).name}{hint}"
    return f"the process ended with status {status} and said nothing"
