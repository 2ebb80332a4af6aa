"""What each kind of logger does with a table, a curve or a figure.

A logger that is not named here gets nothing, which loses nothing: the same content lies in the run folder. Teach
another one by registering it, for instance ``@send_figure.register`` on a function whose first argument is
annotated with the logger's class.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger


@singledispatch
def send_table(logger: Logger, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
    """Send a table of numbers and strings."""


@send_table.register
def _(logger: WandbLogger, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
    logger.log_table(key, columns=list(columns), data=[list(row) for row in rows], step=step)


@send_table.register
def _(logger: TensorBoardLogger, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
    lines = ["|".join(map(str, row)) for row in (columns, ["---"] * len(columns), *rows)]
    logger.experiment.add_text(key, "\n".join(lines), global_step=step)


@singledispatch
def send_curve(logger: Logger, key: str, columns: Sequence[str], rows: Sequence[Sequence[float]], step: int) -> None:
    """Send a curve given as rows of ``(x, y, ...)``; the first two columns are drawn."""


@send_curve.register
def _(logger: WandbLogger, key: str, columns: Sequence[str], rows: Sequence[Sequence[float]], step: int) -> None:
    import wandb

    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    chart = wandb.plot.line(table, x=columns[0], y=columns[1], title=key)
    logger.log_metrics({key: chart}, step=step)  # type: ignore[dict-item]  # the logger passes any W&B value on


@singledispatch
def send_figure(logger: Logger, key: str, figure: Any, png: Path, step: int) -> None:
    """Send a matplotlib figure, which is also at hand as a PNG file."""


@send_figure.register
def _(logger: WandbLogger, key: str, figure: Any, png: Path, step: int) -> None:
    logger.log_image(key, [str(png)], step=step)


@send_figure.register
def _(logger: TensorBoardLogger, key: str, figure: Any, png: Path, step: int) -> None:
    logger.experiment.add_figure(key, figure, global_step=step, close=False)
