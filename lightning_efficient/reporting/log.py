"""Log scalars, tables, curves and figures once: to every logger of a Trainer and to the run folder.

Call these on every rank; the first rank acts. Under ``fast_dev_run`` and during the sanity check they do nothing. A
file that cannot be written costs a warning, never the training.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_efficient._trainer import is_rehearsal
from lightning_efficient.reporting.run_folder import artefact
from lightning_efficient.reporting.senders import send_curve, send_figure, send_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE_POINTS = 500
"""A curve is thinned to about this many points for a logger; the file in the run folder keeps them all."""


def log_scalars(trainer: Trainer, values: Mapping[str, float], module: LightningModule | None = None) -> None:
    """Log named numbers.

    Args:
        trainer: The Trainer whose loggers receive them.
        values: Names and numbers.
        module: The LightningModule, inside hooks where ``module.log`` is allowed (epoch ends): the values then also
            reach the progress bar and ``ModelCheckpoint(monitor=...)``. The values must be the same on every rank.
    """
    if module is not None:
        # the values are equal already; without `sync_dist` Lightning warns that they might not be
        numbers = {name: float(value) for name, value in values.items()}
        module.log_dict(numbers, add_dataloader_idx=False, sync_dist=True)
    elif _writes(trainer):
        for logger in trainer.loggers:
            logger.log_metrics(dict(values), step=trainer.global_step)
            logger.save()


def log_table(trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Log a table, and write it as ``<run_dir>/<last part of key>.csv``."""
    if _writes(trainer):
        _write_csv(artefact(trainer, key, ".csv"), columns, rows)
        for logger in trainer.loggers:
            send_table(logger, key, columns, rows, trainer.global_step)


def log_curve(trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
    """Log a curve given as rows of ``(x, y, ...)``, and write all of it as ``<run_dir>/<last part of key>.csv``."""
    if _writes(trainer):
        _write_csv(artefact(trainer, key, ".csv"), columns, rows)
        thinned = thin(rows, CURVE_POINTS)
        for logger in trainer.loggers:
            send_curve(logger, key, columns, thinned, trainer.global_step)


def log_figure(trainer: Trainer, key: str, draw: Callable[[], Figure]) -> None:
    """Draw a matplotlib figure where it is needed, log it, and write ``<run_dir>/<last part of key>.png``."""
    if not _writes(trainer):
        return
    png = artefact(trainer, key, ".png")
    figure = draw()
    if _saved(png, lambda: figure.savefig(png, dpi=150)):
        for logger in trainer.loggers:
            send_figure(logger, key, figure, png, trainer.global_step)


def thin(rows: Sequence[Sequence[float]], most: int) -> list[Sequence[float]]:
    """Keep about ``most`` evenly spaced rows, the first and the last among them.

    Example:
        >>> thin([(0,), (1,), (2,), (3,), (4,)], 3)
        [(0,), (2,), (4,)]
    """
    if len(rows) <= most:
        return list(rows)
    step = (len(rows) - 1) / (most - 1)
    return [rows[round(i * step)] for i in range(most)]


def _writes(trainer: Trainer) -> bool:
    return trainer.is_global_zero and not trainer.sanity_checking and not is_rehearsal(trainer)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    def write() -> None:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])

    _saved(path, write)


def _saved(path: Path, write: Callable[[], None]) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        rank_zero_warn(f"{path} could not be written ({error.strerror or error}); training goes on without it")
        return False
    return True
