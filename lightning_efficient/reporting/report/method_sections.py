"""What each method left: what abstaining buys, whom a router asks, how far weights went, what was cut away."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_efficient.reporting.report.charts import Axes, Series, bar_chart, heat_map, line_chart
from lightning_efficient.reporting.report.markup import Section, entries, facts, folded, measured, paragraph, table
from lightning_efficient.reporting.report.scalar_sections import xy
from lightning_efficient.reporting.run_history import LoggedTable, RunHistory, as_number

_MOST_BARS = 40


def method_sections(run: RunHistory) -> Iterator[Section]:
    """Return a section for each method that left something."""
    yield from _curves(run, "risk-coverage", "Risk and coverage", "coverage", "risk", _RISK)
    yield from _curves(run, "routing", "Accuracy and coverage of the router", "coverage", "accuracy", _ROUTER)
    yield from _curves(run, "cascade", "Accuracy and cost of the cascade", "macs", "accuracy", _CASCADE)
    yield from _guide(run)
    yield from _fptt(run)
    yield from _pruning(run)
    yield from _quantization(run)
    yield from _energy(run)


_RISK = "The share of inputs that the model answers, surest first, and the risk of those answers."
_ROUTER = "The share of inputs that the base answers itself, and the accuracy of the whole."
_CASCADE = "Mean cost of an answer along the thresholds, and the accuracy."


def _curves(run: RunHistory, ident: str, title: str, x: str, y: str, words: str) -> Iterator[Section]:
    charts = []
    for logged in run.tables:
        if len(logged.columns) < 2 or logged.columns[0] != x or not logged.columns[1].endswith(y):
            continue
        points = list(zip(logged.column(x), logged.column(logged.columns[1]), strict=True))
        unit = "MACs per input, mean" if x == "macs" else "coverage (share answered)"
        axes = Axes(logged.key, unit, f"{logged.columns[1]} (share)", logarithmic=(False, False))
        charts.append(line_chart(axes, [Series(logged.key, sorted(points))]))
    if any(charts):
        yield Section(ident, title, paragraph(words, "note") + f'<div class="charts">{"".join(charts)}</div>')


def _guide(run: RunHistory) -> Iterator[Section]:
    body = []
    for logged in run.tables:
        if not logged.stem.endswith("histogram") or logged.columns[:1] != ["epoch"] or len(logged.columns) < 3:
            continue
        rows = [[as_number(value) for value in row[1:]] for row in logged.rows if len(row) == len(logged.columns)]
        epochs = [_epoch(row[0]) for row in logged.rows if len(row) == len(logged.columns)]
        body.append(heat_map(f"{logged.key}: help over the epochs", epochs, rows, ("epoch", "help g(x)")))
    body += [_pair(run, "guide", ("help_cost", "budget"), "cost of the help and its budget, nats")]
    if any(body[:-1]):
        yield Section("guide", "Guide", '<div class="charts">' + "".join(body) + "</div>")


def _fptt(run: RunHistory) -> Iterator[Section]:
    for key in sorted(run.scalars):
        if key.endswith("/distance"):
            name = key.removesuffix("/distance")
            norm = Axes("norm of W - W̄", "optimizer step", "norm of W - W̄")
            charts = [line_chart(norm, [Series(norm.title, xy(run.scalars[key]))])]
            ratio = f"{name}/gradient_ratio"
            if ratio in run.scalars:
                share = Axes("regulariser's gradient over the data's", "optimizer step", "ratio of norms")
                charts.append(line_chart(share, [Series(share.title, xy(run.scalars[ratio]))]))
            words = "How far the weights are from their running mean, towards which the regulariser pulls them."
            title = "FPTT" if name == "fptt" else f"FPTT: {name}"
            yield Section(
                f"fptt-{_slug(name)}",
                title,
                paragraph(words, "note") + f'<div class="charts">{"".join(charts)}</div>',
            )


def _pruning(run: RunHistory) -> Iterator[Section]:
    for name, found in run.reports.items():
        if not isinstance(found, dict) or "sparsity" not in found or not isinstance(found.get("layers"), list):
            continue
        body = facts(_flat(found, without=("layers", "history")))
        history = [each for each in entries(found.get("history")) if isinstance(each, dict)]
        steps = [(as_number(each.get("step")), as_number(each.get("sparsity"))) for each in history]
        title = f"{name}: sparsity over the steps"
        chart = line_chart(Axes(title, "optimizer step", "share removed"), [Series(title, steps)]) if steps else ""
        layers = [each for each in found["layers"] if isinstance(each, dict)]
        bars = [(str(each.get("layer")), as_number(each.get("share"))) for each in layers][:_MOST_BARS]
        first = f", the first {_MOST_BARS} of {len(layers)}" if len(layers) > _MOST_BARS else ""
        kept = bar_chart(
            f"{name}: share kept in each layer{first}", bars, "", [f"{100 * share:.0f} %" for _, share in bars]
        )
        if layers:
            columns = list(layers[0])
            kept += folded("all layers", table(columns, [[each.get(key) for key in columns] for each in layers]))
        yield Section(
            f"report-{_slug(name)}", "Pruning" if name == "pruning" else f"Pruning: {name}", body + chart + kept
        )


def _quantization(run: RunHistory) -> Iterator[Section]:
    for name, found in run.reports.items():
        if not isinstance(found, dict) or "scheme" not in found or not isinstance(found.get("size"), dict):
            continue
        layers = entries(found.get("quantized"))
        pairs = [("scheme", str(found["scheme"])), ("layers as integers", str(len(layers)))]
        pairs += [(key, str(found[key])) for key in ("file", "threads", "torch") if key in found]
        sizes = {key: each for key, each in found["size"].items() if isinstance(each, dict)}
        rows = [[key, each.get("bytes"), each.get("compressed")] for key, each in sizes.items()]
        body = facts(pairs) + table(["network", "bytes", "compressed"], rows, "size on disk")
        timed = [each for each in entries(found.get("latency")) if isinstance(each, dict)]
        if timed:
            columns = [column for column in timed[0] if column != "rounds"]
            listed = [[each.get(column) for column in columns] for each in timed]
            said = "time of a forward pass, in turns; speed_up is over float in the same form"
            body += table(columns, listed, said)
        if layers:
            body += folded("layers", table(["layer"], [[layer] for layer in layers], most=500))
        title = "Quantization" if name == "quantization" else f"Quantization: {name}"
        yield Section(f"report-{_slug(name)}", title, body)


def _energy(run: RunHistory) -> Iterator[Section]:
    for name, found in run.reports.items():
        if not isinstance(found, dict) or "joules" not in found or not isinstance(found.get("epochs"), list):
            continue
        epochs = [each for each in found["epochs"] if isinstance(each, dict)]
        series = [
            Series(label, [(as_number(each.get("epoch")), as_number(each.get(key))) for each in epochs])
            for label, key in (("training", "train_joules"), ("validation", "val_joules"))
        ]
        axes = Axes(f"{name}: joules of each epoch", "epoch", "energy, J")
        body = facts(_flat(found, without=("epochs", "gaps"))) + (line_chart(axes, series) if epochs else "")
        body += "".join(paragraph(f"not measured: {gap}", "bad") for gap in entries(found.get("gaps")))
        yield Section(f"report-{_slug(name)}", "Energy" if name == "energy" else f"Energy: {name}", body)


def _pair(run: RunHistory, group: str, names: tuple[str, ...], title: str) -> str:
    series = [Series(name, xy(run.scalars[f"{group}/{name}"])) for name in names if f"{group}/{name}" in run.scalars]
    return line_chart(Axes(title, "optimizer step", "nats"), series) if series else ""


def _flat(found: Mapping[str, Any], without: tuple[str, ...], prefix: str = "") -> list[tuple[str, str]]:
    """Return the numbers and words of a report by what they are called, with units."""
    pairs: list[tuple[str, str]] = []
    for key, value in found.items():
        name = f"{prefix}{key}".replace("_", " ")
        if key in without:
            continue
        if isinstance(value, dict):
            pairs += _flat(value, without, f"{prefix}{key} · ")
        elif isinstance(value, bool | str):
            pairs.append((name, str(value)))
        elif isinstance(value, int | float):
            pairs.append((name, measured(f"{prefix}{key}".replace(" · ", "/"), value)))
    return pairs


def _epoch(value: Any) -> str:
    found = as_number(value)
    return str(int(found)) if math.isfinite(found) else "?"


def _slug(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower())


def is_drawn(logged: LoggedTable) -> bool:
    """Tell whether a section above shows a table as a chart."""
    columns = logged.columns
    curve = len(columns) > 1 and columns[0] in ("coverage", "macs") and columns[1].endswith(("risk", "accuracy"))
    return curve or (logged.stem.endswith("histogram") and columns[:1] == ["epoch"])
