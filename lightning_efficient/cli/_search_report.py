"""What a search shows and leaves behind: lines, a table, a CSV, pictures and configs."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_efficient.cli._search_objectives import Aims
from lightning_efficient.cli._search_study import Finished
from lightning_efficient.cli.search_space import SearchSpace, names_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Group

MOST_ROWS = 10


def ranked(trials: Sequence[Finished], aims: Aims) -> list[Finished]:
    """Return the Pareto front in the order of the first objective, or of one objective all trials, the best first."""
    complete = [trial for trial in trials if trial.state == "complete"]
    best_first = sorted(complete, key=lambda trial: _key(trial, aims))
    if len(aims.names) == 1 or not complete:
        return best_first
    import torch

    from lightning_efficient.functional.pareto import pareto_mask

    points = torch.tensor([[trial.values[name] for name in aims.names] for trial in best_first], dtype=torch.float64)
    mask = pareto_mask(points, aims.directions).tolist()
    return [trial for trial, on_front in zip(best_first, mask, strict=True) if on_front]


def _key(trial: Finished, aims: Aims) -> tuple[float, ...]:
    pairs = zip(aims.names, aims.directions, strict=True)
    return (*(-trial.values[name] if more else trial.values[name] for name, more in pairs), float(trial.number))


def line(trial: Finished, trials: Sequence[Finished], aims: Aims, space: SearchSpace) -> str:
    """Return the line of a trial that has just ended."""
    names = names_of(space.parameters)
    chosen = ", ".join(f"{names.get(key, key)} {shown(value)}" for key, value in trial.chosen.items())
    if trial.state != "complete":
        return f"trial {trial.number:>3}  {trial.state}{f': {trial.reason}' if trial.reason else ''}  ({chosen})"
    values = "  ".join(f"{name} {shown(trial.values[name])}" for name in aims.shown)
    return f"trial {trial.number:>3}  {values}  {_standing(trial, trials, aims)}  ({chosen})"


def _standing(trial: Finished, trials: Sequence[Finished], aims: Aims) -> str:
    best = ranked(trials, aims)
    if len(aims.names) > 1:
        on_front = trial.number in [one.number for one in best]
        return f"on the front of {len(best)}" if on_front else f"beaten, the front has {len(best)}"
    if best[0].number == trial.number:
        return "the best so far"
    return f"best {shown(best[0].values[aims.names[0]])} of trial {best[0].number}"


def table(trials: Sequence[Finished], aims: Aims, space: SearchSpace) -> Group:
    """Return the front, or the best trials of one objective, as a table."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = ranked(trials, aims)
    if len(aims.names) > 1:
        title = f"front: {len(rows)} of {_count(trials)}"
    else:
        title = f"best by {aims.names[0]}: {min(MOST_ROWS, len(rows))} of {_count(trials)}"
        rows = rows[:MOST_ROWS]
    names = names_of(space.parameters)
    page = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("trial", *aims.shown):
        page.add_column(column, justify="right", no_wrap=True)
    for parameter in space.parameters:  # numbers stay whole, and names are folded where the terminal is narrow
        page.add_column(names[parameter.key], overflow="fold", no_wrap=not parameter.choices)
    for trial in rows:
        values = [shown(trial.values[name]) if name in trial.values else "" for name in aims.shown]
        page.add_row(str(trial.number), *values, *(shown(trial.chosen.get(key, "")) for key in names))
    return Group(Text(title), page)  # the title of a table is folded at its width


def _count(trials: Sequence[Finished]) -> str:
    counts = {state: sum(trial.state == state for trial in trials) for state in ("complete", "pruned", "failed")}
    more = ", ".join(f"{count} {state}" for state, count in counts.items() if count and state != "complete")
    return f"{len(trials)} trials{f' ({more})' if more else ''}"


def write_csv(file: Path, trials: Sequence[Finished], aims: Aims, space: SearchSpace) -> None:
    """Write one row for every trial."""
    keys = [parameter.key for parameter in space.parameters]
    front = {trial.number for trial in ranked(trials, aims)[: None if len(aims.names) > 1 else 1]}
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["trial", "state", "best", *aims.shown, *keys, "seconds", "reason", "folder"])
        for trial in trials:
            values = [trial.values.get(name, "") for name in aims.shown]
            chosen = [trial.chosen.get(key, "") for key in keys]
            best = int(trial.number in front)
            writer.writerow(
                [trial.number, trial.state, best, *values, *chosen, trial.seconds, trial.reason, trial.folder]
            )


def write_configs(
    out: Path, trials: Sequence[Finished], aims: Aims, made: Callable[[Mapping[str, Any]], str]
) -> list[Path]:
    """Write the whole config of every trial of the front, or of the best one, and return the files.

    Args:
        out: Folder of the search.
        trials: All of them.
        aims: What is optimised.
        made: Makes the text of a config from what a trial chose.
    """
    best = ranked(trials, aims)
    if len(aims.names) == 1:
        files = dict.fromkeys([out / "best.yaml"], best[0]) if best else {}
    else:
        folder = out / "front"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("[0-9]*.yaml"):
            old.unlink()
        files = {folder / f"{index:02}.yaml": trial for index, trial in enumerate(best)}
    for file, trial in files.items():
        values = ", ".join(f"{name} {shown(trial.values[name])}" for name in aims.shown if name in trial.values)
        file.write_text(f"# trial {trial.number} of {out}: {values}\n{made(trial.chosen)}", encoding="utf-8")
    return list(files)


def write_pictures(out: Path, trials: Sequence[Finished], aims: Aims) -> list[Path]:
    """Draw the front of two objectives, or the course of one, and return the files."""
    complete = [trial for trial in trials if trial.state == "complete"]
    figures = {}
    if len(aims.names) == 1:
        figures["history.png"] = history_figure(trials, aims)
    if len(aims.objectives) > 1:
        figures["pareto.png"] = _front_figure(complete, aims)
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=150)
    return [out / name for name in figures]


def _front_figure(trials: Sequence[Finished], aims: Aims) -> Figure:
    from lightning_efficient.reporting.pareto import ParetoPoint, pareto_figure

    # what is paid goes along, what is had goes up
    x, y = sorted(aims.objectives[:2], key=lambda one: one.maximize)
    points = [ParetoPoint(str(trial.number), trial.values[x.name], trial.values[y.name]) for trial in trials]
    more = " (of several objectives, the first two)" if len(aims.objectives) > 2 else ""
    title = f"trials by their number{more}"
    return pareto_figure(points, x.name, y.name, maximize=(x.maximize, y.maximize), title=title)


def history_figure(trials: Sequence[Finished], aims: Aims) -> Figure:
    """Draw one objective over the trials, with the best so far."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    name, more = aims.names[0], aims.directions[0]
    complete = [trial for trial in trials if trial.state == "complete"]
    numbers = [trial.number for trial in complete]
    values = [trial.values[name] for trial in complete]
    best: list[float] = []
    for value in values:
        best.append(value if not best else max(best[-1], value) if more else min(best[-1], value))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    if best:
        last = trials[-1].number
        axes.step([*numbers, last], [*best, best[-1]], where="post", color="tab:blue", label="best so far")
    axes.scatter(numbers, values, color="tab:blue", s=24, label="trial", zorder=3)
    pruned = [trial.number for trial in trials if trial.state == "pruned"]
    if pruned:  # they have no value: at the foot of the picture
        foot = axes.get_xaxis_transform()
        axes.scatter(pruned, [0.02] * len(pruned), color="tab:grey", marker="x", label="pruned", transform=foot)
    axes.set(xlabel="trial", ylabel=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def shown(value: Any) -> str:
    """Return a value in few characters."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 10_000 and float(value).is_integer()):
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return f"{value:.4g}"


def as_yaml(config: Mapping[str, Any]) -> str:
    """Return a config as text."""
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False)
