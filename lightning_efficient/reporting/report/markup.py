"""The pieces that a page is made of; whatever comes from a file goes through ``text``."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN_ROWS = 200
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_PREFIXES = ("", "k", "M", "G", "T")
_UNITS = {
    "bytes": "B",
    "compressed": "B",
    "ms": "ms",
    "joules": "J",
    "seconds": "s",
    "throughput": "samples/s",
    "macs": "MACs",
    "flops": "FLOPs",
}
_MOST_LETTERS = 400


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in the table of contents.

    Attributes:
        ident: Of its heading, unique on the page.
        title: Plain text.
        body: HTML.
    """

    ident: str
    title: str
    body: str


def text(value: object) -> str:
    r"""Escape a value for HTML, in text and in quoted attributes alike.

    Example:
        >>> text("<script>"), text('a"b'), text("bell\x07")
        ('&lt;script&gt;', 'a&quot;b', 'bell�')
    """
    return html.escape(_CONTROLS.sub("\ufffd", str(value)), quote=True)


def number(value: float) -> str:
    """Write a number for people: four significant digits, and words where there is no number.

    Example:
        >>> number(0.123456), number(1200.0), number(float("nan")), number(3e-9)
        ('0.1235', '1,200', 'NaN', '3e-09')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def quantity(value: float, unit: str = "") -> str:
    """Write a count, with a decimal prefix where it is large.

    Example:
        >>> quantity(1_593_224), quantity(6_120_000, "B"), quantity(1.5, "ms"), quantity(8e6, "MACs")
        ('1.59 M', '6.12 MB', '1.5 ms', '8 M MACs')
    """
    scaled, power = float(value), 0
    while math.isfinite(scaled) and abs(scaled) >= 999.5 and power < len(_PREFIXES) - 1:
        scaled, power = scaled / 1000, power + 1
    shown = f"{scaled:.3g}" if math.isfinite(scaled) else number(scaled)
    apart = " " if len(unit) > 2 and _PREFIXES[power] else ""
    return f"{shown} {_PREFIXES[power]}{apart}{unit}".rstrip()


def unit_of(key: str) -> str:
    """Return the unit that the name of a number says, or nothing.

    Example:
        >>> unit_of("profile/latency_ms_p50_b1"), unit_of("val/loss")
        ('ms', '')
    """
    if "ratio" in key:
        return ""
    words = re.split(r"[/_ ]", key)
    return next((_UNITS[word] for word in reversed(words) if word in _UNITS), "")


def measured(key: str, value: float) -> str:
    """Write a number with the unit that its name says.

    Example:
        >>> measured("profile/bytes_on_disk", 2_424_919), measured("latency_ms_p50_b1", 1.778431)
        ('2.42 MB', '1.778 ms')
    """
    unit = unit_of(key)
    scaled = unit in ("B", "MACs", "FLOPs") and abs(value) >= 1000
    return quantity(value, unit) if scaled else f"{number(value)} {unit}".rstrip()


def entries(value: Any) -> list[Any]:
    """Return a list from a file, and an empty one where the file has something else.

    Example:
        >>> entries([1]), entries("a"), entries(None)
        ([1], [], [])
    """
    return value if isinstance(value, list) else []


def cell(value: Any, column: str = "") -> str:
    """Return a cell of a table; numbers go to the right, and counts of bytes and operations are scaled."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            whole = value if len(value) <= _MOST_LETTERS else value[:_MOST_LETTERS] + "…"
            return f"<td>{text(whole)}</td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{'' if value is None else text(str(value)[:_MOST_LETTERS])}</td>"
    return f'<td class="n">{text(measured(column, value))}</td>'


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", *, most: int = SHOWN_ROWS) -> str:
    """Return a table; of many rows evenly spaced ones, the first and the last among them, and a note.

    Args:
        columns: Heads, plain text.
        rows: Values.
        caption: Plain text above it.
        most: Rows at most.
    """
    shown, note = rows, ""
    if len(rows) > most:
        step = (len(rows) - 1) / (most - 1)
        shown = [rows[round(index * step)] for index in range(most)]
        note = f"{most} of {len(rows):,} rows, evenly spaced"
    above = " · ".join(filter(None, (caption, note)))
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(cell(value, columns[i] if i < len(columns) else "") for i, value in enumerate(row)) + "</tr>"
        for row in shown
    )
    said = f"<caption>{text(above)}</caption>" if above else ""
    return f'<div class="scroll"><table>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values, plain text, as a list of definitions."""
    items = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def folded(summary: str, body: str, *, unfolded: bool = False) -> str:
    """Return a part that opens with a click and needs no script; the summary is plain text."""
    return f"<details{' open' if unfolded else ''}><summary>{text(summary)}</summary>{body}</details>"


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{text(words)}</p>"
