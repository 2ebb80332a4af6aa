"""Files of a run as artifacts, for loggers that keep them: W&B does; to the others nothing is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from lightning_efficient._trainer import is_rehearsal
from lightning_efficient.reporting.run_folder import run_dir
from lightning_efficient.reporting.steady_wandb import SteadyWandbLogger

REMEMBERED = "wandb_run.json"
"""In a run folder: which W&B run it belongs to, so that later commands add their files to that run."""


@dataclass(frozen=True)
class Artifact:
    """Files under one name, of which a logger keeps every version.

    Attributes:
        name: Letters, digits, ``.``, ``-`` and ``_``; see :func:`artifact_name`.
        kind: Such as ``model``, ``graph`` or ``threshold``; what W&B groups artifacts by.
        paths: Files and folders; a folder is stored with what it holds.
        metadata: What JSON can hold.
        aliases: Names of this version; W&B adds ``latest``.
    """

    name: str
    kind: str
    paths: Sequence[Path]
    metadata: Mapping[str, Any]
    aliases: Sequence[str] = ()


def artifact_name(*parts: str) -> str:
    """Return a name that W&B accepts.

    Example:
        >>> artifact_name("export", "best v2", "4f1c")
        'export-best_v2-4f1c'
    """
    return re.sub(r"[^\w.-]", "_", "-".join(parts))[:128]


@singledispatch
def send_artifact(logger: Logger, artifact: Artifact) -> None:
    """Keep files as one version of an artifact; register a function for a logger of your own, as for ``send_table``."""


@send_artifact.register
def _(logger: WandbLogger, artifact: Artifact) -> None:
    import wandb

    # `mutable` copies files at once into W&B's own folder, `immutable` reads them where they are when they are sent
    policy = logger.add_file_policy
    made = wandb.Artifact(artifact.name, type=artifact.kind, metadata=dict(artifact.metadata))
    for path in artifact.paths:
        if path.is_dir():
            made.add_dir(str(path), policy=policy)
        else:
            made.add_file(str(path), policy=policy)
    if isinstance(logger, SteadyWandbLogger):
        logger.log_artifact(made, aliases=list(artifact.aliases))
    else:
        logger.experiment.log_artifact(made, aliases=list(artifact.aliases))


def log_artifact(trainer: Trainer, artifact: Artifact) -> None:
    """Keep files with every logger of a Trainer that can; call this on every rank, the first acts."""
    if trainer.is_global_zero and not is_rehearsal(trainer):
        _send(trainer.loggers, artifact)


def log_run_files(trainer: Trainer) -> None:
    """Keep what callbacks wrote into the run folder: config, curves, pictures, profile, a pruned network.

    Checkpoints are not among it, since ``log_model`` of the logger keeps them, nor is ``metrics.csv``.
    """
    if not _writes_to_wandb(trainer):
        return
    folder = run_dir(trainer)
    files = sorted(each for each in folder.glob("*") if each.is_file() and each.name not in ("metrics.csv", REMEMBERED))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and files:
            name = artifact_name("run", str(logger.version))
            _send([logger], Artifact(name, "run-files", files, {"metrics": metrics}))


def remember_run(trainer: Trainer) -> None:
    """Write into the run folder which W&B run it belongs to, if it belongs to one."""
    if not _writes_to_wandb(trainer):
        return
    logger = next(each for each in trainer.loggers if isinstance(each, WandbLogger))
    run = logger.experiment
    known = {"id": run.id, "project": run.project or logger.name, "entity": run.entity or None}
    (run_dir(trainer) / REMEMBERED).write_text(f"{json.dumps(known, indent=2)}\n", encoding="utf-8")


def log_with_checkpoint(loggers: Iterable[Logger], checkpoint: str | Path, artifact: Artifact) -> None:
    """Keep files that were made of a checkpoint, in the W&B run that trained it where the run folder tells which.

    Args:
        loggers: Those of this command; a W&B logger that has not begun a run continues the one that trained.
        checkpoint: Its file, in ``checkpoints/`` of a run folder.
        artifact: What to keep. The run's id is appended to its name.
    """
    trained_by = _remembered(Path(checkpoint).resolve().parent.parent / REMEMBERED)
    for logger in loggers:
        if isinstance(logger, SteadyWandbLogger) and trained_by is not None:
            logger.belong_to(trained_by["id"])
        if isinstance(logger, WandbLogger):
            _ = logger.experiment  # it has no id before
            name = artifact_name(artifact.name, str(logger.version))
            _send([logger], Artifact(name, artifact.kind, artifact.paths, artifact.metadata, artifact.aliases))


def _remembered(file: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and isinstance(known.get("id"), str) else None


def _writes_to_wandb(trainer: Trainer) -> bool:
    wandb_loggers = [each for each in trainer.loggers if isinstance(each, WandbLogger)]
    return bool(wandb_loggers) and trainer.is_global_zero and not is_rehearsal(trainer)


def _send(loggers: Iterable[Logger], artifact: Artifact) -> None:
    for logger in loggers:
        try:
            send_artifact(logger, artifact)
        except Exception as error:  # the files are written; that a copy cannot be kept ends no command
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            rank_zero_warn(
                f"the artifact {artifact.name} could not be logged ({reason}); its files stay where they are"
            )
