"""The trials of a search as Optuna keeps them: what is tried next, what counts, and who may go on with it."""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_efficient.cli._search_objectives import Aims
from lightning_efficient.cli._search_workers import Outcome
from lightning_efficient.cli.search_space import SearchSpace
from lightning_efficient.errors import ConfigurationError, require

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

SAMPLERS = ("tpe", "random", "nsga2", "grid")
PRUNERS = ("median", "hyperband", "none")
INTERRUPTED = "interrupted"

_CONTRACT, _OWNER, _RESULT = "lightning_efficient", "owner", "result"
"""What is kept with a study, with a trial as it begins, and as it ends."""

_SAME_WAY = 3
"""That many first trials that fail for one reason end a search."""


@dataclass(frozen=True)
class Finished:
    """A trial as it is shown.

    Attributes:
        number: Of the trial.
        state: ``complete``, ``pruned`` or ``failed``.
        values: Objectives and reward by name; empty unless complete.
        chosen: Label or number for each key of the space that varied.
        reason: Of a failure, in one line.
        seconds: That it took.
        folder: With its files.
    """

    number: int
    state: str
    values: Mapping[str, float]
    chosen: Mapping[str, Any]
    reason: str = ""
    seconds: float = 0.0
    folder: str = ""


class Study:
    """The trials of a search. Not for several threads at once.

    Args:
        storage: ``*.db`` file or SQLAlchemy URL; a file with another suffix such as ``*.journal`` for a shared disk.
        name: Of the study in its storage.
        aims: What is optimised.
        space: What is varied.
        terms: What else must be the same for trials to be compared: config, how models are timed.
        sampler: One of ``SAMPLERS``.
        pruner: One of ``PRUNERS``.
        seed: Of the sampler; the same seed samples the same, also after an interruption.
        epochs: Most reports of a trial, for Hyperband.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigurationError: the storage cannot be opened, or its study of that name wants something else.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        aims: Aims,
        space: SearchSpace,
        terms: Mapping[str, Any],
        sampler: str = "tpe",
        pruner: str = "none",
        seed: int = 0,
        epochs: int | None = None,
    ) -> None:
        self.optuna: Any = require("optuna", "hpo")
        self.optuna.logging.set_verbosity(logging.ERROR)
        warnings.filterwarnings("ignore", category=self.optuna.exceptions.ExperimentalWarning)
        self.aims, self.space, self.seed, self.sampler = aims, space, seed, sampler
        self.grid = space.grid() if sampler == "grid" else None
        self._study = self._open(storage, name, pruner, epochs)
        self._agree({"space": space.to_dict(), **aims.to_dict(), **terms})
        self._host, self._mark = socket.gethostname(), _mark(os.getpid())
        self._reasons: list[str] = []
        self.left = self._leave_dead()

    def counted(self) -> int:
        """Number of trials that are finished, or that live processes run; those cut short do not count."""
        return sum(self._counts(trial) for trial in self._trials())

    def ask(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """Begin a trial and return it with the labels and numbers chosen, None when a grid is exhausted."""
        if self.grid is not None and not self._waiting() and not self._enqueue_grid_point():
            return None
        self._study.sampler = self._sampler()
        trial = self._study.ask()
        # one entry, since each is written to the disk before the next
        trial.set_user_attr(_OWNER, {"host": self._host, "pid": os.getpid(), "mark": self._mark})
        return trial, self.space.suggest(trial)

    def report(self, trial: optuna.Trial, step: int, value: float) -> bool:
        """Keep a value of the objective on the way, and tell whether the trial is hopeless."""
        trial.report(value, step)
        return bool(trial.should_prune())

    def tell(self, trial: optuna.Trial, outcome: Outcome, seconds: float, batch: int, folder: str = "") -> Finished:
        """End a trial, and return how it is shown."""
        states = self.optuna.trial.TrialState
        state, values, reason = states.FAIL, {}, outcome.reason
        if outcome.kind == "done":
            try:
                values = self.aims.read(outcome.metrics, outcome.footprint, batch)
                state = states.COMPLETE
            except ConfigurationError as error:
                reason = str(error)
        elif outcome.kind == "pruned":
            state = states.PRUNED
        elif outcome.kind == "interrupted":
            reason = INTERRUPTED
        result = {"values": values, "reason": reason, "seconds": round(seconds, 2), "folder": folder}
        trial.set_user_attr(_RESULT, result)
        self._study.tell(trial, self.aims.optimised(values) if state == states.COMPLETE else None, state=state)
        if outcome.kind != "interrupted":
            self._reasons.append(reason if state == states.FAIL else "")
        return self.finished(trial.number)

    def same_failure(self) -> str | None:
        """Return the reason for which all of the first trials of this command failed, None if they did not."""
        first = self._reasons[:_SAME_WAY]
        alike = {re.sub(r"\d+", "N", reason) for reason in first}
        return first[0] if len(first) == _SAME_WAY and len(alike) == 1 and first[0] else None

    def finished(self, number: int) -> Finished:
        """Return how one trial is shown."""
        return _finished(self._trials()[number])

    def all_finished(self) -> list[Finished]:
        """Return all trials that ended, without those cut short."""
        return [_finished(trial) for trial in self._trials() if trial.state.is_finished() and self._counts(trial)]

    def _open(self, storage: str, name: str, pruner: str, epochs: int | None) -> Any:
        directions = ["maximize" if more else "minimize" for more in self.aims.directions]
        pruners = self.optuna.pruners
        chosen = {
            "median": pruners.MedianPruner,
            "hyperband": lambda: pruners.HyperbandPruner(max_resource=epochs or "auto"),
            "none": pruners.NopPruner,
        }[pruner]()
        try:
            opened = self._storage(storage)
            known = {
                one.study_name: one for one in self.optuna.get_all_study_summaries(opened, include_best_trial=False)
            }
            if name in known and [one.name.lower() for one in known[name].directions] != directions:
                theirs = known[name].user_attrs.get(_CONTRACT, {}).get("objectives", "others")
                raise ConfigurationError(_differs(name, "objectives", theirs, self.aims.to_dict()["objectives"]))
            return self.optuna.create_study(
                storage=opened, study_name=name, directions=directions, pruner=chosen, load_if_exists=True
            )
        except ConfigurationError:
            raise
        except Exception as error:  # of SQLAlchemy, a database driver, or a file system
            first = str(error).strip().splitlines()
            raise ConfigurationError(f"--storage {storage}: {first[0] if first else type(error).__name__}") from error

    def _storage(self, given: str) -> Any:
        storages = self.optuna.storages
        if "://" in given:
            url = given
        elif Path(given).suffix in (".db", ".sqlite", ".sqlite3"):
            url = f"sqlite:///{given}"
        else:
            return storages.JournalStorage(storages.journal.JournalFileBackend(given))
        # two commands may share the file: wait for each other's writing
        more = {"engine_kwargs": {"connect_args": {"timeout": 60}}} if url.startswith("sqlite") else {}
        return storages.RDBStorage(url, **more)

    def _agree(self, contract: dict[str, Any]) -> None:
        theirs = self._study.user_attrs.get(_CONTRACT)
        if theirs is None:
            if self._trials():
                raise ConfigurationError(
                    f"the study {self._study.study_name!r} was not made by this command; give --study"
                )
            self._study.set_user_attr(_CONTRACT, contract)
            return
        for part, ours in contract.items():
            if (place := _difference(theirs.get(part), ours, part)) is not None:
                raise ConfigurationError(_differs(self._study.study_name, *place))

    def _sampler(self) -> Any:
        samplers, number = self.optuna.samplers, len(self._trials())
        seed = (self.seed * 1_000_003 + number) % 2**32  # of each trial, so that an interruption changes nothing
        if self.sampler == "tpe":
            return samplers.TPESampler(seed=seed)
        if self.sampler == "nsga2":
            return samplers.NSGAIISampler(seed=seed)
        return samplers.RandomSampler(seed=seed)

    def _enqueue_grid_point(self) -> bool:
        assert self.grid is not None
        used = [trial.user_attrs.get("grid") for trial in self._trials() if self._counts(trial)]
        # neighbours of a grid are alike, so go through it in an order that the seed decides
        import random

        order = random.Random(self.seed).sample(range(len(self.grid)), len(self.grid))
        index = next((one for one in order if one not in used), None)
        if index is None:
            return False
        self._study.enqueue_trial(self.grid[index], user_attrs={"grid": index})
        return True

    def _leave_dead(self) -> list[int]:
        """Mark the trials of dead processes of this machine failed, queue them again, and return their numbers."""
        dead = []
        for trial in self._trials():
            if trial.state.name == "RUNNING" and self._is_dead(trial):
                self._study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
                dead.append(trial)
            elif _result(trial).get("reason") == INTERRUPTED:
                dead.append(trial)
        again = {trial.user_attrs.get("again") for trial in self._trials()}
        queued = [trial for trial in dead if trial.number not in again and trial.params]
        for trial in queued:
            kept = {name: trial.user_attrs[name] for name in ("grid",) if name in trial.user_attrs}
            self._study.enqueue_trial(trial.params, user_attrs={"again": trial.number, **kept})
        return [trial.number for trial in queued]

    def _is_dead(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(_OWNER, {})
        return owner.get("host") == self._host and owner["mark"] != _mark(owner["pid"])

    def _counts(self, trial: FrozenTrial) -> bool:
        if trial.state.name == "FAIL":
            return _result(trial).get("reason", INTERRUPTED) != INTERRUPTED
        return trial.state.is_finished() or (trial.state.name == "RUNNING" and _OWNER in trial.user_attrs)

    def _waiting(self) -> bool:
        return any(trial.state.name == "WAITING" for trial in self._trials())

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def _finished(trial: FrozenTrial) -> Finished:
    state = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed")
    result = _result(trial)
    values = result.get("values", {}) if state == "complete" else {}
    more = {name: result[name] for name in ("reason", "seconds", "folder") if name in result}
    return Finished(trial.number, state, values, dict(trial.params), **more)


def _result(trial: FrozenTrial) -> Mapping[str, Any]:
    return trial.user_attrs.get(_RESULT, {})


def _difference(theirs: Any, ours: Any, name: str) -> tuple[str, Any, Any] | None:
    """Return the first key under which two settings differ, with both values."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in dict.fromkeys([*theirs, *ours]):
            if (key in theirs) != (key in ours):
                return f"{name} {key}", theirs.get(key, "absent"), ours.get(key, "absent")
            if (found := _difference(theirs[key], ours[key], f"{name} {key}")) is not None:
                return found
        return None
    lists = isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours)
    if lists and any(isinstance(one, Mapping) for one in ours):  # such as callbacks
        pairs = enumerate(zip(theirs, ours, strict=True))
        return next((found for at, (one, other) in pairs if (found := _difference(one, other, f"{name} {at}"))), None)
    return None if theirs == ours else (name, theirs, ours)


def _differs(study: str, name: str, theirs: Any, ours: Any) -> str:
    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 80 else f"{text[:79]}…"

    return (
        f"the study {study!r} was begun with other terms: {name} was {short(theirs)} and is {short(ours)}; "
        "give another --study or --out"
    )


def _mark(pid: int) -> str | None:
    """Return what tells a process from others that had its number, None if there is no such process."""
    try:
        # the name in parentheses may hold blanks; the 20th word after it is when the process began
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
