"""Where a run keeps its files."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer


def run_dir(trainer: Trainer) -> Path:
    """Return the folder of a run, the one that also holds ``checkpoints/``.

    ``<save_dir>/<name>/<version>`` of the first logger, whatever its kind, as ``ModelCheckpoint`` has it; without a
    logger, the Trainer's ``default_root_dir``. Only the first rank knows the version that a logger chose, so call
    it there.
    """
    for logger in trainer.loggers[:1]:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version
    return Path(trainer.default_root_dir)


def artefact(trainer: Trainer, key: str, suffix: str) -> Path:
    """Return the file of a logged key: ``selective/risk_coverage`` gives ``<run_dir>/risk_coverage<suffix>``."""
    return run_dir(trainer) / f"{key.rsplit('/', maxsplit=1)[-1]}{suffix}"
