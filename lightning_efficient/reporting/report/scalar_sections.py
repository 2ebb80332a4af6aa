"""Learning curves, and the numbers that were logged once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lightning_efficient.reporting.report.charts import Axes, Series, line_chart
from lightning_efficient.reporting.report.markup import Section, folded, measured, table, text, unit_of
from lightning_efficient.reporting.run_history import Point, RunHistory

_SPLITS = ("train", "val", "test")
_MOST_CHARTS = 120
_STEPS = "optimizer step"


def curves_section(run: RunHistory) -> Iterator[Section]:
    """Return a chart for each number over the steps, the splits of one in one chart, by the first part of the key."""
    groups: dict[str, dict[str, list[tuple[str, list[Point]]]]] = {}
    for key, points in sorted(run.scalars.items(), key=lambda item: _order(item[0])):
        group, name, split = parted(key)
        groups.setdefault(group, {}).setdefault(name, []).append((split, points))
    parts: list[str] = []
    drawn = left_out = 0
    for group, names in groups.items():
        charts = []
        for name, series in names.items():
            if all(len(points) < 2 for _, points in series):
                continue
            if drawn >= _MOST_CHARTS:
                left_out += 1
                continue
            unit = unit_of(name)
            shown = [Series(split or name, xy(points)) for split, points in series]
            chart = line_chart(Axes(name, _STEPS, f"{name}, {unit}" if unit else name), shown)
            charts.append(chart or _nothing_finite(name))
            drawn += 1
        if charts:
            title = group or "training, validation, test"
            parts.append(f'<h3>{text(title)}</h3><div class="charts">{"".join(charts)}</div>')
    if left_out:
        parts.append(f'<p class="note">{left_out} more numbers are in metrics.csv and not drawn.</p>')
    if parts:
        yield Section("curves", "Learning curves", "".join(parts))


def results_section(run: RunHistory) -> Iterator[Section]:
    """Return the final number of each key: what was logged last, of validation at the best checkpoint."""
    metrics = run.record.metrics
    rows = [(key, metrics[key]) for key in sorted(metrics, key=_order) if key not in ("epoch", "step")]
    first = [(key, value) for key, value in rows if parted(key)[0] == "" and not key.startswith("train/")]
    if not rows:
        return
    lead = _named(first) if first else ""
    summary = f"all {len(rows)} numbers"
    note = "Validation counts at the epoch whose checkpoint is the best by its monitor; all else is the last value."
    body = f'<p class="note">{note}</p>{lead}' + folded(summary, _named(rows), unfolded=not first)
    yield Section("results", "Results", body)


def parted(key: str) -> tuple[str, str, str]:
    """Split a key into its group, the name of the number and the split it is of.

    Example:
        >>> parted("val/loss"), parted("selective/val_aurc"), parted("fptt/distance"), parted("lr")
        (('', 'loss', 'val'), ('selective', 'aurc', 'val'), ('fptt', 'distance', ''), ('other', 'lr', ''))
    """
    first, _, rest = key.partition("/")
    if not rest:
        return "other", key, ""
    if first in _SPLITS:
        return "", rest, first
    for split in _SPLITS:
        if rest.startswith(f"{split}_"):
            return first, rest.removeprefix(f"{split}_"), split
    return first, rest, ""


def xy(points: Iterable[Point]) -> list[tuple[float, float]]:
    """Return points as pairs."""
    return [(point.step, point.value) for point in points]


def _order(key: str) -> tuple[bool, str, bool, str, int]:
    group, name, split = parted(key)
    return bool(group), group, name not in ("loss", "accuracy"), name, _SPLITS.index(split) if split else -1


def _named(rows: Sequence[tuple[str, float]]) -> str:
    return table(["number", "value"], [[key, measured(key, value)] for key, value in rows], most=1000)


def _nothing_finite(name: str) -> str:
    return f'<figure><figcaption>{text(name)}</figcaption><p class="bad">no value is finite</p></figure>'
