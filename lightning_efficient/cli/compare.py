"""``lightning-efficient compare``: runs side by side, and which of them no other beats."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_efficient.cli.option_parser import OptionParser
from lightning_efficient.cli.output import exit_status, say
from lightning_efficient.cli.quiet import quiet
from lightning_efficient.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lightning_efficient.reporting.pareto import ParetoPoint, ParetoSummary
    from lightning_efficient.reporting.run_records import RunRecord

_ABOUT = "Draw runs by what they cost and how good they are, and mark those that no other beats on both."
_AXES = (
    "An axis is a number that runs have: a key such as val/loss or pruning/sparsity, or a short name such as accuracy, "
    "macs, parameters, bytes_on_disk or latency_ms_p50 (batch 1). accuracy is test/accuracy or val/accuracy, whichever "
    "more runs have. Validation counts at the epoch whose checkpoint is the best."
)
_TIMED = ("latency", "throughput", "energy", "joules", "time", "seconds", "watts")


@dataclass(frozen=True)
class _Comparison:
    """All that is shown: points and what they amount to, in words for each output."""

    keys: tuple[str, str]
    maximize: tuple[bool, bool]
    points: list[ParetoPoint]
    groups: list[list[RunRecord]]
    summary: ParetoSummary
    left_out: list[str]
    warnings: list[str]


def run_compare(arguments: Sequence[str]) -> int:
    """Compare runs and return the exit status: 2 for a mistake."""
    return exit_status(lambda: _compare(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(prog="lightning-efficient compare", description=_ABOUT, epilog=_AXES)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run folder, wandb/offline-run-*, or a folder of such")
    add("--x", default="macs", metavar="AXIS", help="horizontal axis (default: macs)")
    add("--y", default="accuracy", metavar="AXIS", help="vertical axis (default: accuracy)")
    add("--maximize", action="append", default=[], metavar="AXIS", help="more of it is better")
    add("--minimize", action="append", default=[], metavar="AXIS", help="less of it is better")
    add("--split", choices=("test", "val"), help="whose metrics a short name means (default: what more runs have)")
    add("--reference", nargs=2, type=float, metavar=("X", "Y"), help="point up to which the hypervolume counts")
    add("--group", action="store_true", help="average runs that differ in nothing but seeds")
    add("--labels", nargs="+", metavar="LABEL", help="what to call them, in their order")
    add("--out", type=Path, default=Path(), metavar="DIR", help="where pareto.png and pareto.csv go (default: here)")
    add("--wandb", metavar="PROJECT", help="also a W&B run with table and picture; offline unless WANDB_MODE=online")
    add("--json_file", metavar="FILE", help="also the figures as JSON; - prints them instead of the table")
    return parser


def _compare(options: argparse.Namespace) -> int:
    for run in options.runs:  # before the import of torch
        if not Path(run).is_dir():
            raise ConfigurationError(f"{run} is no run: there is no such folder")
    folder = Path(options.json_file or "").parent
    if not folder.is_dir():
        raise ConfigurationError(f"--json_file {options.json_file}: there is no folder {folder}")
    quiet()
    from lightning_efficient.reporting.pareto import pareto_figure

    compared = _compared(options)
    figure = pareto_figure(
        compared.points, *compared.keys, maximize=compared.maximize, summary=compared.summary, title=_title(compared)
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    columns, rows = _rows(compared)
    figures = _figures(compared)

    png, table = options.out / "pareto.png", options.out / "pareto.csv"
    written = [str(png), str(table)]
    text = json.dumps(figures, indent=2)
    with _told("--out", options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    if options.json_file not in (None, "-"):
        with _told("--json_file", options.json_file):
            Path(options.json_file).write_text(text + "\n", encoding="utf-8")
        written.append(options.json_file)
    with _told("--out", options.out):
        png.write_bytes(picture.getvalue())
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])
    if options.wandb:
        written.append(_send(options.wandb, options.out, columns, rows, figure, png))
    for line in (*compared.left_out, *compared.warnings):
        sys.stderr.write(f"warning: {line}\n")
    if options.json_file == "-":
        say(text)
        return 0
    _show(_page(compared))
    say(f"wrote {', '.join(written)}")
    return 0


@contextmanager
def _told(option: str, given: object) -> Iterator[None]:
    """Name the option of what cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{option} {given}: it cannot be written ({error.strerror or error})") from error


def _compared(options: argparse.Namespace) -> _Comparison:
    from lightning_efficient.reporting.pareto import pareto_summary
    from lightning_efficient.reporting.run_axes import resolve_axis
    from lightning_efficient.reporting.run_records import grouped, read_runs

    records: list[RunRecord] = []
    for run in options.runs:
        seen = {record.path.resolve() for record in records}
        records += [record for record in read_runs(run) if record.path.resolve() not in seen]
    keys = resolve_axis(options.x, records, options.split), resolve_axis(options.y, records, options.split)
    if keys[0] == keys[1]:
        raise ConfigurationError(f"--x {options.x} and --y {options.y} are the same axis, {keys[0]}")
    maximize = _directions(options, keys, records)
    groups = grouped(records) if options.group else [[record] for record in records]
    labels = _labels(groups, options.labels)
    points, kept = [], []
    left_out: list[str] = []
    for label, group in zip(labels, groups, strict=True):
        complete = [record for record in group if all(key in record.metrics for key in keys)]
        left_out += [_without(record, keys) for record in group if record not in complete]
        if complete:
            points.append(_point(label, complete, keys))
            kept.append(complete)
    if not points:
        raise ConfigurationError(f"no run has both {keys[0]} and {keys[1]}; {left_out[0]}")
    return _Comparison(
        keys, maximize, points, kept, pareto_summary(points, maximize, options.reference), left_out, _doubts(kept, keys)
    )


def _without(record: RunRecord, keys: tuple[str, str]) -> str:
    missing = " and no ".join(key for key in keys if key not in record.metrics)
    return f"left out {record.name} ({record.path}): it has no {missing}"


def _directions(options: argparse.Namespace, keys: tuple[str, str], records: Sequence[RunRecord]) -> tuple[bool, bool]:
    from lightning_efficient.reporting.run_axes import more_is_better, resolve_axis

    said: dict[str, bool] = {}
    for option, names, more in (("maximize", options.maximize, True), ("minimize", options.minimize, False)):
        for name in names:
            key = resolve_axis(name, records, options.split)
            if key not in keys:
                raise ConfigurationError(f"--{option} {name} is no axis of the picture; these are {' and '.join(keys)}")
            if said.setdefault(key, more) != more:
                raise ConfigurationError(f"{name} cannot be both maximized and minimized")
    found = []
    for key in keys:
        more_or_none = said.get(key, more_is_better(key))
        if more_or_none is None:
            raise ConfigurationError(f"which way is {key} better? Say --maximize {key} or --minimize {key}")
        found.append(more_or_none)
    return found[0], found[1]


def _labels(groups: Sequence[Sequence[RunRecord]], given: Sequence[str] | None) -> list[str]:
    if given:
        if len(given) != len(groups):
            found = ", ".join(group[0].name for group in groups)
            raise ConfigurationError(f"--labels names {len(given)} of {len(groups)} points, which are {found}")
        return list(given)
    names = [_name(group) for group in groups]
    return [name if names.count(name) == 1 else str(group[0].path) for name, group in zip(names, groups, strict=True)]


def _name(group: Sequence[RunRecord]) -> str:
    if len(group) == 1:
        return group[0].name
    parents = {record.name.split("/")[0] for record in group}
    return parents.pop() if len(parents) == 1 else group[0].name


def _point(label: str, group: Sequence[RunRecord], keys: tuple[str, str]) -> ParetoPoint:
    from lightning_efficient.reporting.pareto import ParetoPoint

    x, y = ([record.metrics[key] for record in group] for key in keys)
    spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (x, y)]
    return ParetoPoint(label, statistics.fmean(x), statistics.fmean(y), *spread)


def _doubts(groups: Sequence[Sequence[RunRecord]], keys: tuple[str, str]) -> list[str]:
    """Return a line for each run that has not ended, and for each axis that was measured in different ways."""
    runs = [record for group in groups for record in group]
    lines = [
        f"{record.name} ({record.path}) was killed or still runs; what it wrote so far counts"
        for record in runs
        if not record.finished
    ]
    for key in keys:
        part = key.split("/", maxsplit=1)[0]
        lines += [
            f"{record.name} ({record.path}): {part} was measured for a part of the run only"
            for record in runs
            if part in record.incomplete
        ]
        if not any(word in key for word in _TIMED):
            continue
        ways: dict[str, list[str]] = {}
        for record in runs:
            noted = record.conditions.get(part, {})
            way = ", ".join(f"{name} {value}" for name, value in noted.items()) or "conditions unknown"
            ways.setdefault(way, []).append(record.name)
        if len(ways) > 1:
            seen = "; ".join(f"{way} ({_some(names)})" for way, names in ways.items())
            lines.append(f"{key} was measured in different ways and is not comparable: {seen}")
    return lines


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _rows(compared: _Comparison) -> tuple[list[str], list[list[Any]]]:
    x, y = compared.keys
    columns = ["run", "runs", x, f"{x} std", y, f"{y} std", "front", "knee", "path"]
    rows = [
        [
            point.label,
            len(group),
            point.x,
            point.x_std,
            point.y,
            point.y_std,
            int(compared.summary.front[number]),
            int(number == compared.summary.knee),
            " ".join(str(record.path) for record in group),
        ]
        for number, (point, group) in enumerate(zip(compared.points, compared.groups, strict=True))
    ]
    return columns, rows


def _figures(compared: _Comparison) -> dict[str, Any]:
    summary = compared.summary
    axes = {
        name: {"key": key, "better": "more" if more else "less", "reference": reference, "logarithmic": logarithmic}
        for name, key, more, reference, logarithmic in zip(
            "xy", compared.keys, compared.maximize, summary.reference, summary.logarithmic, strict=True
        )
    }
    points = [
        {
            "label": point.label,
            "x": point.x,
            "y": point.y,
            "x_std": point.x_std,
            "y_std": point.y_std,
            "front": on_front,
            "paths": [str(record.path) for record in group],
        }
        for point, on_front, group in zip(compared.points, summary.front, compared.groups, strict=True)
    ]
    return {
        "axes": axes,
        "points": points,
        "knee": None if summary.knee is None else compared.points[summary.knee].label,
        "hypervolume": summary.hypervolume,
        "hypervolume_share": summary.share,
        "left_out": compared.left_out,
        "warnings": compared.warnings,
    }


def _title(compared: _Comparison) -> str:
    runs, points = sum(map(len, compared.groups)), len(compared.points)
    several = runs > points
    many = f"{points} model{'s' if points > 1 else ''}, mean ± std over seeds" if several else f"{runs} runs"
    return f"{'1 run' if runs == 1 else many}, {sum(compared.summary.front)} on the front"


def _page(compared: _Comparison) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    summary, (x, y) = compared.summary, compared.keys
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("run", overflow="fold")
    several = any(len(group) > 1 for group in compared.groups)
    if several:
        table.add_column("seeds", justify="right")
    for key, more in zip(compared.keys, compared.maximize, strict=True):
        table.add_column(f"{key} {'↑' if more else '↓'}", justify="right")
    for number in sorted(range(len(compared.points)), key=lambda index: compared.points[index].x):
        point, on_front = compared.points[number], summary.front[number]
        cells = (_shown(x, point.x, point.x_std), _shown(y, point.y, point.y_std))
        name = f"{point.label}{'  ← knee' if number == summary.knee else ''}"
        seeds = [str(len(compared.groups[number]))] if several else []
        table.add_row("★" if on_front else "", Text(name), *seeds, *cells, style=None if on_front else "dim")
    reference = f"{x} {_shown(x, summary.reference[0])}, {y} {_shown(y, summary.reference[1])}"
    knee = "none, the front does not bend" if summary.knee is None else compared.points[summary.knee].label
    lines = [
        "★ no other run is better on one axis and at least as good on the other",
        f"knee: {knee}"
        + (" (on logarithms, as drawn)" if summary.knee is not None and any(summary.logarithmic) else ""),
        f"hypervolume: {summary.hypervolume:.4g}, {100 * summary.share:.1f} % of the box between the best of each axis",
        f"  and the reference point ({reference})",
    ]
    return Group(table, *(Text(f"  {line}") for line in lines))


def _shown(key: str, value: float, spread: float = 0.0) -> str:
    from lightning_efficient.profiling.render import human, milliseconds

    words = set(re.split("[/_]", key))

    def write(number: float, digits: int = 4) -> str:
        if "bytes" in words:
            return human(number, "B")
        if "ms" in words:
            return milliseconds(number)
        return human(number) if words & {"macs", "flops", "parameters"} else f"{number:.{digits}g}"

    return f"{write(value)} ± {write(spread, 2)}" if spread else write(value)


def _show(page: RenderableType) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120, soft_wrap=False).print(page)


def _send(project: str, out: Path, columns: list[str], rows: list[list[Any]], figure: Any, png: Path) -> str:
    """Send table and picture to a W&B run of their own and return its folder."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    from lightning_efficient.reporting.senders import send_figure, send_table

    mode: Any = "online" if os.environ.get("WANDB_MODE") == "online" else "offline"
    # the folder must be absolute: W&B's own process may have been started elsewhere
    run = wandb.init(
        project=project, name="compare", dir=out.resolve(), mode=mode, settings=wandb.Settings(silent=True)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the logger says that there is a run already
        logger = WandbLogger(experiment=run)
        send_table(logger, "compare/pareto", columns, rows, 0)
        send_figure(logger, "compare/pareto_front", figure, png, 0)
    folder = str(Path(run.dir).parent)
    run.finish()
    return folder
