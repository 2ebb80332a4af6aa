"""Where a run stands among others: a scatter of what they cost and how good they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.reporting.report.charts import Axes, Series, line_chart
from lightning_efficient.reporting.report.markup import Section, folded, paragraph, table, unit_of
from lightning_efficient.reporting.run_axes import more_is_better, resolve_axis
from lightning_efficient.reporting.run_records import RunRecord, read_run, run_folders

if TYPE_CHECKING:
    from lightning_efficient.reporting.pareto import ParetoPoint

_AXES = ("macs", "accuracy")
_MOST = 500


@dataclass(frozen=True)
class Among:
    """Which other runs, and by what.

    Attributes:
        folders: Of runs or above them; none are those beside the run.
        x: Name of the cost, or None for MACs where the runs have them.
        y: Name of the quality, or None for accuracy where the runs have it.
    """

    folders: Sequence[Path] = field(default_factory=tuple)
    x: str | None = None
    y: str | None = None

    @property
    def asked(self) -> bool:
        """Whether the reader asked for it, so that it may not be missing without a word."""
        return bool(self.folders or self.x or self.y)


def trade_off_section(run: RunRecord, among: Among) -> Iterator[Section]:
    """Return the section, nothing where nobody asked and there is no other run to compare with.

    Raises:
        ConfigurationError: a folder or an axis that was asked for is none, or the run has no such number.
    """
    records, left_out = _others(run, among)
    try:
        keys = (
            resolve_axis(among.x or _AXES[0], [run, *records], None),
            resolve_axis(among.y or _AXES[1], [run, *records], None),
        )
        maximize = _direction(keys[0], "x"), _direction(keys[1], "y")
        missing = [key for key in keys if key not in run.metrics]
        if missing:
            raise ConfigurationError(f"{run.path}: this run has no {' and no '.join(missing)}; choose --x and --y")
    except ConfigurationError:
        if among.asked:
            raise
        return
    complete = [each for each in records if all(key in each.metrics for key in keys)]
    left_out += [f"{each.name} ({each.path}) lacks an axis" for each in records if each not in complete]
    if not complete and not among.asked:
        return
    yield Section("trade-off", "Position among other runs", _body([run, *complete], keys, maximize, left_out))


def _others(run: RunRecord, among: Among) -> tuple[list[RunRecord], list[str]]:
    seen = {run.path.resolve()}
    records: list[RunRecord] = []
    left_out: list[str] = []
    for folder in among.folders or [run.path.parent if run.path.name not in ("", "..") else run.path.resolve().parent]:
        try:
            found = run_folders(folder)
        except (ConfigurationError, OSError):
            if among.folders:
                raise
            continue
        for each in found:
            if each.resolve() in seen or len(records) >= _MOST:
                continue
            seen.add(each.resolve())
            try:
                records.append(read_run(each))
            except (ConfigurationError, OSError) as error:
                left_out.append(str(error))
    return records, left_out


def _direction(key: str, option: str) -> bool:
    found = more_is_better(key)
    if found is None:
        raise ConfigurationError(
            f"--{option}: the name of {key} does not tell which way is better; choose another axis"
        )
    return found


def _body(
    records: Sequence[RunRecord], keys: tuple[str, str], maximize: tuple[bool, bool], left_out: Sequence[str]
) -> str:
    from lightning_efficient.reporting.pareto import ParetoPoint, pareto_summary  # it loads torch

    points = [ParetoPoint(each.name, each.metrics[keys[0]], each.metrics[keys[1]]) for each in records]
    summary = pareto_summary(points, maximize)
    front = sorted(((p.x, p.y) for p, on in zip(points, summary.front, strict=True) if on))
    others = [(p.x, p.y) for p, on in zip(points[1:], summary.front[1:], strict=True) if not on]
    series = [Series("front", front)]
    series += [Series("runs that another beats", others, joined=False)] if others else []
    series.append(Series("this run", [(points[0].x, points[0].y)], joined=False, names=["this run"]))
    names = [f"{key}{f', {unit}' if (unit := unit_of(key)) else ''}" for key in keys]
    better = [" (more is better)" if more else " (less is better)" for more in maximize]
    axes = Axes(
        f"{keys[1]} over {keys[0]}",
        names[0] + better[0],
        names[1] + better[1],
        tight=False,
        logarithmic=(summary.logarithmic[0], summary.logarithmic[1]),
    )
    beaten = [p.label for p in points[1:] if _beats(p, points[0], maximize)]
    if len(records) == 1:
        words = "There is no other run to compare with."
    elif summary.front[0]:
        words = (
            f"This run is on the front of {len(records)} runs: no other is better on one axis and as good on the other."
        )
    else:
        shown = ", ".join(beaten[:5]) + (f" and {len(beaten) - 5} more" if len(beaten) > 5 else "")
        words = (
            f"This run is not on the front of {len(records)} runs: {shown} beat{'s' if len(beaten) == 1 else ''} it."
        )
    rows = [
        [p.label + (" (this run)" if index == 0 else ""), p.x, p.y, "yes" if on else "no", str(records[index].path)]
        for index, (p, on) in enumerate(zip(points, summary.front, strict=True))
    ]
    rows.sort(key=lambda row: row[1])
    body = paragraph(words) + line_chart(axes, series)
    body += table(["run", keys[0], keys[1], "on the front", "folder"], rows)
    if left_out:
        body += folded(f"{len(left_out)} runs are left out", "".join(paragraph(line, "note") for line in left_out[:50]))
    return body


def _beats(other: ParetoPoint, run: ParetoPoint, maximize: tuple[bool, bool]) -> bool:
    gains = [
        (mine - theirs) * (1 if more else -1)
        for mine, theirs, more in ((other.x, run.x, maximize[0]), (other.y, run.y, maximize[1]))
    ]
    return min(gains) >= 0 and max(gains) > 0
