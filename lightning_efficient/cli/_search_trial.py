"""One trial of a search, in a process of its own: ``fit`` as the command line runs it, which tells how it goes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_efficient._trainer import callbacks_of, is_rehearsal
from lightning_efficient.callbacks import LatencyProfiler
from lightning_efficient.cli._search_workers import TrialJob
from lightning_efficient.cli.efficient_cli import EfficientCLI
from lightning_efficient.cli.problems import explain
from lightning_efficient.cli.quiet import quiet
from lightning_efficient.errors import ConfigurationError, MissingExtraError, NonFiniteLossError
from lightning_efficient.reporting import run_dir

_MISTAKES = (ConfigurationError, MisconfigurationException, MissingExtraError, NonFiniteLossError)


class Pruned(Exception):  # noqa: N818  # no error: the search has seen enough
    """Raised through a fit that shall end."""


class TrialReporter(Callback):
    """Tell the search the metrics after every validation, and end the fit if it says so.

    Args:
        link: To the process of the search; None on other ranks than the first.
        profile_early: Whether the first message already has the model's profile.

    Attributes:
        history: Metrics after each validation.
    """

    def __init__(self, link: Connection | None, profile_early: bool = False) -> None:
        self.link = link
        self.profile_early = profile_early
        self.history: list[dict[str, float]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the search hold the other trials while a model is timed."""
        for profiler in callbacks_of(trainer, LatencyProfiler):
            measure = profiler.measure

            def alone(*args: Any, measure: Any = measure, **kwargs: Any) -> Any:
                self._ask({"kind": "measure"})
                try:
                    return measure(*args, **kwargs)
                finally:
                    self._ask({"kind": "measured"})

            profiler.measure = alone  # type: ignore[method-assign]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the metrics, and raise ``Pruned`` on all ranks if the search has seen enough."""
        if is_rehearsal(trainer):
            return
        metrics = numbers(trainer.callback_metrics)
        self.history.append(metrics)
        if self.profile_early and trainer.is_global_zero:
            for profiler in callbacks_of(trainer, LatencyProfiler):
                if profiler.footprint is None:
                    profiler.measure(trainer, pl_module)
        message = {"kind": "epoch", "step": len(self.history), "metrics": metrics, "footprint": footprint(trainer)}
        if trainer.strategy.broadcast(self._ask(message) == "prune"):
            raise Pruned

    def kept(self, trainer: Trainer) -> dict[str, float]:
        """Return the metrics of the checkpoint that is kept, and what else was logged by the end."""
        last = numbers(trainer.callback_metrics)
        if not self.history:
            return last
        chooser = next((one for one in callbacks_of(trainer, ModelCheckpoint) if one.monitor), None)
        best = len(self.history) - 1
        if chooser is not None and all(chooser.monitor in metrics for metrics in self.history):
            values = [metrics[str(chooser.monitor)] for metrics in self.history]
            best = values.index(max(values) if chooser.mode == "max" else min(values))
        return last | self.history[best]

    def _ask(self, message: Mapping[str, Any]) -> Any:
        if self.link is None:
            return None
        self.link.send(message)
        return self.link.recv()


class TrialCLI(EfficientCLI):
    """The command line with a reporter among the callbacks."""

    reporter: TrialReporter

    def before_fit(self) -> None:
        """Add the reporter; Lightning calls this before ``fit``."""
        self.reporter = TrialReporter(_LINK, _PROFILE_EARLY)
        self.trainer.callbacks.insert(0, self.reporter)  # type: ignore[attr-defined]


_LINK: Connection | None = None
_PROFILE_EARLY = False


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items()}


def footprint(trainer: Trainer) -> dict[str, Any] | None:
    """Return what the last profile of the model says."""
    found = [profiler.footprint for profiler in callbacks_of(trainer, LatencyProfiler) if profiler.footprint]
    return found[-1].to_dict() if found else None


def run_trial(job: TrialJob, link: Connection) -> None:
    """Run a trial in this process, which is then good for nothing else.

    The last message over ``link`` has the kind ``done``, ``pruned`` or ``failed``; without one the process has died.
    """
    global _LINK, _PROFILE_EARLY
    if job.threads and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(job.threads)
    _LINK, _PROFILE_EARLY = link, job.profile_early
    # Lightning starts the other processes of a distributed trial with these
    sys.argv = [__file__, "fit", "--config", str(job.config)]
    sys.modules["__main__"].__spec__ = find_spec(__name__)
    try:
        message = _fit()
    except Exception as error:  # told in one line; the rest is in the log
        traceback.print_exc()
        message = {"kind": "failed", "reason": _reason(error)}
    except KeyboardInterrupt:
        message = {"kind": "failed", "reason": "interrupted"}
    except SystemExit as ended:
        message = {"kind": "failed", "reason": f"ended with status {ended.code}"}
    sys.stdout.flush()
    sys.stderr.flush()
    link.send(message)


def _fit() -> dict[str, Any]:
    try:
        cli = TrialCLI()
    except Pruned:
        return {"kind": "pruned"}
    return {
        "kind": "done",
        "metrics": cli.reporter.kept(cli.trainer),
        "footprint": footprint(cli.trainer),
        "run": str(run_dir(cli.trainer)),
    }


def _reason(error: Exception) -> str:
    if isinstance(error, _MISTAKES):
        return explain(error)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:400]


if __name__ == "__main__":  # another rank of a distributed trial
    quiet()
    try:
        TrialCLI()
    except Pruned:
        sys.exit(0)
