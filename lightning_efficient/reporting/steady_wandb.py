"""A W&B logger whose faults cost a warning, never the training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_efficient.errors import did_you_mean
from lightning_efficient.reporting._wandb_offline import read_wandb_file

PATIENCE: Mapping[str, Any] = {"init_timeout": 30, "finish_timeout": 120}
"""Seconds that W&B may take to begin and to end a run; by itself it takes 90, and for ever."""

_KEPT = 10_000  # W&B writes rows down at least every 15 seconds; this many are those since then and more


class SteadyWandbLogger(WandbLogger):
    """Lightning's ``WandbLogger``, with faults of W&B that do not reach the training.

    Where W&B does not answer when a run begins, or nobody is logged in, the run is written offline. Where W&B's process
    dies in mid-run, a new one goes on offline under the same id, in a folder that has all rows from the first.
    Where that fails too, nothing more is logged. Each costs one warning.

    What goes past the logger is not covered: ``wandb.log`` or ``logger.experiment.log`` in code of one's own, and
    ``watch``.

    Args:
        name: What W&B shows for the run; by default it invents one.
        save_dir: Holds the folder ``wandb``.
        offline: Write the run to the disk only; ``wandb sync`` sends it. Here ``log_model`` works offline too.
        project: The run belongs to.
        log_model: Log checkpoints as artifacts: ``true`` at the end of training, ``all`` while it runs.
        add_file_policy: ``mutable`` copies files of artifacts at once, ``immutable`` reads them where they lie when
            they are sent.
        id: Of a run to go on with.
        entity: User or team, by default the user's own.
        group: Runs that W&B shows together, such as the seeds of one experiment.
        tags: Words to filter by.
        job_type: Such as ``train``.
        settings: Of ``wandb.Settings``; what is not given here is as in ``PATIENCE``.
        **kwargs: Other arguments of Lightning's ``WandbLogger``.

    Raises:
        MisconfigurationException: W&B has no such setting, or not with that value. (Of a ``ValueError`` jsonargparse
            would say that no type of a logger fits.)

    Example:
        >>> logger = SteadyWandbLogger(project="digits", offline=True, settings={"silent": True})
        >>> logger.name
        'digits'
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | Path = ".",
        offline: bool = False,
        project: str | None = None,
        log_model: Literal["all"] | bool = False,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        id: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        job_type: str | None = None,
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        options = {**kwargs, "entity": entity, "group": group, "tags": tags, "job_type": job_type}
        options["settings"] = {**PATIENCE, **(settings or {})}
        _check_settings(options["settings"])
        if offline:  # Lightning's own `offline` refuses `log_model`, and changes the environment for other loggers
            options["mode"] = "offline"
        options |= {"log_model": log_model, "add_file_policy": add_file_policy, "id": id}
        super().__init__(name=name, save_dir=save_dir, project=project, **options)
        if not self._wandb_init.get("anonymous"):
            self._wandb_init.pop("anonymous", None)  # W&B warns of it, even of None
        self._recent: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._silenced = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; it is begun when this is first asked for."""
        if self._experiment is not None:
            return self._experiment
        Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)  # else W&B writes to a temporary folder
        self._wandb_init["id"] = self._wandb_init.get("id") or uuid4().hex[:8]  # one, whatever comes
        try:
            return super().experiment
        except _faults() as error:
            if self._wandb_init.get("mode") == "offline":
                raise
            rank_zero_warn(f"W&B: {_one_line(error)}; the run goes on offline, and `wandb sync` can send it later")
        _tear_down()  # W&B's process may be dead, or takes the id for one in use
        self._wandb_init["mode"] = "offline"
        return super().experiment

    def belong_to(self, run_id: str) -> None:
        """Continue an earlier run, where this logger has not begun one or been given an ``id``."""
        if self._experiment is None and self._id is None:
            self._wandb_init |= {"id": run_id, "resume": "allow"}
            self._id = run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers."""
        self._steadily(lambda: super(SteadyWandbLogger, self).log_metrics(metrics, step))
        self._recent.append({**metrics, **({} if step is None else {"trainer/global_step": step})})

    def log_hyperparams(self, params: Any) -> None:
        """Log what the run was configured with."""
        self._steadily(lambda: super(SteadyWandbLogger, self).log_hyperparams(params))

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Log a table."""
        self._steadily(lambda: super(SteadyWandbLogger, self).log_table(*args, **kwargs))

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """Log pictures."""
        self._steadily(lambda: super(SteadyWandbLogger, self).log_image(*args, **kwargs))

    def log_artifact(self, artifact: Any, aliases: list[str] | None = None) -> None:
        """Log files, given as a ``wandb.Artifact``."""
        self._steadily(lambda: self.experiment.log_artifact(artifact, aliases=aliases))

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Log a checkpoint, or remember to do so at the end."""
        self._steadily(lambda: super(SteadyWandbLogger, self).after_save_checkpoint(checkpoint_callback))

    def finalize(self, status: str) -> None:
        """Log the checkpoints that were remembered."""
        self._steadily(lambda: super(SteadyWandbLogger, self).finalize(status))

    @rank_zero_only
    def _steadily(self, log: Callable[[], None]) -> None:
        if self._silenced:
            return
        try:
            log()
        except _faults() as error:
            if self._experiment is None:  # it never began: a mistake in its options
                raise
            try:
                self._go_on_in_a_new_process(error)
                log()
            except Exception as again:  # whatever W&B has now, the training shall not have it
                self._silenced = True
                rank_zero_warn(f"W&B cannot go on ({_one_line(again)}); nothing more is logged to it")

    def _go_on_in_a_new_process(self, error: Exception) -> None:
        dead: Any = self._experiment
        folder = Path(dead.dir).parent
        rank_zero_warn(f"W&B's process has died ({_one_line(error)}); run {dead.id} goes on offline in a new one")
        # read first: within the same second the new folder is the old one
        rows: list[Mapping[str, Any]] = [row for file in folder.glob("*.wandb") for row in read_wandb_file(file).rows]
        _tear_down()
        self._wandb_init |= {"id": dead.id, "config": dict(dead.config), "mode": "offline"}
        self._experiment = None
        run = super().experiment
        written = {_numbers_of(row) for row in rows}
        rows += [row for row in self._recent if _numbers_of(row) and _numbers_of(row) not in written]
        for row in rows:
            run.log({key: value for key, value in row.items() if isinstance(value, int | float)})


def _faults() -> tuple[type[Exception], ...]:
    """Return what W&B raises where its server does not answer or its process is gone."""
    from wandb.errors import Error
    from wandb.sdk.lib.asyncio_manager import AlreadyJoinedError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return ConnectionError, Error, HandleAbandonedError, MailboxClosedError, AlreadyJoinedError


def _tear_down() -> None:
    import wandb

    with suppress(Exception):  # there is nobody left to say goodbye to
        wandb.teardown()
    wandb.run = None  # W&B leaves the dead one there, and would return it


def _numbers_of(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    # as text, since NaN is not itself
    numbers = ((key, value) for key, value in row.items() if isinstance(value, int | float))
    return tuple(sorted((key, repr(float(value))) for key, value in numbers if not key.startswith("_")))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _check_settings(settings: Mapping[str, Any]) -> None:
    from wandb import Settings

    try:
        Settings(**settings)
    except ValueError as error:
        problem = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
        name = ".".join(map(str, problem["loc"]))
        if name in Settings.model_fields or not name:
            raise MisconfigurationException(f"settings.{name} of W&B: {problem['msg']}") from error
        known = did_you_mean(name, list(Settings.model_fields))
        raise MisconfigurationException(f"W&B has no setting {name!r}.{known}") from error
