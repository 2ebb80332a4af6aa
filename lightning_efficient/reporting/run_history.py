"""All that a run logged, in its order: numbers over steps, tables, pictures, and the files that it left."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.reporting._wandb_offline import WandbRun
from lightning_efficient.reporting.run_records import RunRecord, csv_rows, opened, read_run, wandb_file

_COUNTERS = ("epoch", "step", "trainer/global_step")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LARGEST_TABLE = 32_000_000
_LARGEST_JSON = 32_000_000


@dataclass(frozen=True)
class Point:
    """One number that was logged.

    Attributes:
        step: Optimizer steps before it, or W&B's own count where the run has none.
        value: The number; it may be NaN or infinite.
    """

    step: float
    value: float


@dataclass(frozen=True)
class LoggedTable:
    """One table or curve.

    Attributes:
        key: Under which it was logged, or the name of its file.
        columns: Their names.
        rows: Numbers and strings.
    """

    key: str
    columns: list[str]
    rows: list[list[Any]]

    @property
    def stem(self) -> str:
        """The last part of the key, without what W&B puts behind it: the name that the file of it has."""
        return self.key.rsplit("/", maxsplit=1)[-1].removesuffix("_table")

    def column(self, name: str) -> list[float]:
        """Return a column as numbers, NaN where there is none."""
        index = self.columns.index(name)
        return [as_number(row[index]) if index < len(row) else math.nan for row in self.rows]


@dataclass(frozen=True)
class RunHistory:
    """One run with all that it logged.

    Attributes:
        record: Its final numbers, its config and what it is called.
        own: The folder that our callbacks wrote to; it may be missing.
        scalars: For each key what was logged, in its order.
        epochs: Epoch by the step at which it was logged.
        tables: The last table of each key.
        pictures: Files by key.
        reports: What the JSON files hold, by the name of the file without its ending.
        wandb: The W&B run, if there is one.
        versions: Of packages that matter, as far as W&B noted them.
        problems: A line for each file that could not be read.
    """

    record: RunRecord
    own: Path
    scalars: dict[str, list[Point]]
    epochs: dict[float, float]
    tables: list[LoggedTable]
    pictures: dict[str, Path]
    reports: dict[str, Any]
    wandb: WandbRun | None
    versions: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_history(folder: Path) -> RunHistory:
    """Read one run with its history.

    Args:
        folder: A run folder, or one of W&B, as ``run_folders`` returns them.

    Raises:
        ConfigurationError: it is no run, or what ``read_run`` needs of it cannot be read.
    """
    own, wandb_run = opened(folder)
    file = wandb_file(folder)
    media = file.parent / "files" if file else None
    rows: Iterable[Mapping[str, float]] = csv_rows(own / "metrics.csv")
    if not rows and wandb_run:
        rows = [{"step": step, **row} for step, row in zip(wandb_run.steps, wandb_run.rows, strict=True)]
    problems: list[str] = []
    tables = {table.stem: table for table in _wandb_tables(wandb_run, media, problems)}
    tables |= {table.stem: table for table in _csv_tables(own, problems)}
    scalars, epochs = _over_steps(rows)
    return RunHistory(
        record=read_run(folder),
        own=own,
        scalars=scalars,
        epochs=epochs,
        tables=list(tables.values()),
        pictures=_pictures(own, wandb_run, media),
        reports=_reports(own),
        wandb=wandb_run,
        versions=_versions(media),
        problems=tuple(problems),
    )


def as_number(value: Any) -> float:
    """Return a cell of a table as a number, NaN if it is none.

    Example:
        >>> as_number("0.5"), as_number(""), as_number(True)
        (0.5, nan, 1.0)
    """
    try:
        return float(_NOT_FINITE.get(value, value) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        return math.nan


def _over_steps(rows: Iterable[Mapping[str, float]]) -> tuple[dict[str, list[Point]], dict[float, float]]:
    scalars: dict[str, list[Point]] = {}
    epochs: dict[float, float] = {}
    for number, row in enumerate(rows):
        step = row.get("trainer/global_step", row.get("step", float(number)))
        if "epoch" in row:
            epochs[step] = row["epoch"]
        for key, value in row.items():
            if key not in _COUNTERS:
                scalars.setdefault(key, []).append(Point(step, value))
    return scalars, epochs


def _wandb_tables(run: WandbRun | None, media: Path | None, problems: list[str]) -> Iterable[LoggedTable]:
    if run is None or media is None:
        return
    for key, logged in run.media.items():
        last = [each for each in logged if each.get("_type") == "table-file"][-1:]
        for file in filter(None, (_inside(media, each.get("path")) for each in last)):
            content = _loaded(file, problems)
            if isinstance(content, dict) and isinstance(content.get("data"), list):
                columns = [str(column) for column in content.get("columns", [])]
                yield LoggedTable(key, columns, [list(row) for row in content["data"] if isinstance(row, list)])


def _csv_tables(own: Path, problems: list[str]) -> Iterable[LoggedTable]:
    for file in sorted(own.glob("*.csv")):
        if file.name == "metrics.csv":
            continue
        if file.stat().st_size > _LARGEST_TABLE:
            problems.append(f"{file.name} is left out: it has more than {_LARGEST_TABLE // 10**6} MB")
            continue
        try:
            with file.open(newline="", encoding="utf-8") as lines:
                columns, *rows = list(csv.reader(lines)) or [[]]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            problems.append(f"{file.name} cannot be read: {' '.join(str(error).split())}")
            continue
        yield LoggedTable(file.stem, columns, [list(row) for row in rows])


def _pictures(own: Path, run: WandbRun | None, media: Path | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for key, logged in run.media.items() if run and media else ():
        names = [name for each in logged for name in _picture_names(each)]
        if media and names and (file := _inside(media, names[-1])):
            found[key.rsplit("/", maxsplit=1)[-1]] = file
    return found | {file.stem: file for file in sorted(own.glob("*.png"))}


def _picture_names(logged: Mapping[str, Any]) -> list[Any]:
    """Return the first file of pictures that were logged together, or that of one logged alone."""
    if logged.get("_type") == "image-file":
        return [logged.get("path")]
    return logged["filenames"][:1] if isinstance(logged.get("filenames"), list) else []


def _inside(folder: Path, name: object) -> Path | None:
    """Return a file that a run names, unless it is missing or lies elsewhere."""
    if not isinstance(name, str):
        return None
    file = folder / name
    return file if file.is_file() and file.resolve().is_relative_to(folder.resolve()) else None


def _reports(own: Path) -> dict[str, Any]:
    # those that cannot be read were refused by read_run
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(own.glob("*.json"))
        if file.stat().st_size <= _LARGEST_JSON
    }


def _loaded(file: Path, problems: list[str]) -> Any:
    try:
        if file.stat().st_size <= _LARGEST_TABLE:
            return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, ConfigurationError) as error:
        problems.append(f"{file.name} cannot be read: {' '.join(str(error).split())}")
    return None


def _versions(media: Path | None) -> dict[str, str]:
    listed = media / "requirements.txt" if media else None
    if listed is None or not listed.is_file():
        return {}
    lines = (line.split("==") for line in listed.read_text(encoding="utf-8", errors="replace").splitlines())
    known = {parts[0].strip(): parts[1].strip() for parts in lines if len(parts) == 2}
    wanted = ("lightning-efficient", "lightning_efficient", "torch", "lightning", "timm", "torchmetrics", "wandb")
    return {name: known[name] for name in wanted if name in known}
