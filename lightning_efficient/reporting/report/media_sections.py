"""Tables and pictures as they were logged."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from lightning_efficient.reporting.report.markup import Section, folded, paragraph, table, text
from lightning_efficient.reporting.report.method_sections import is_drawn
from lightning_efficient.reporting.run_history import RunHistory

_LARGEST_PICTURE, _LARGEST_OF_ALL = 3_000_000, 12_000_000
_PNG = b"\x89PNG\r\n\x1a\n"


def tables_section(run: RunHistory) -> Iterator[Section]:
    """Return all tables, folded, but those that are drawn with their numbers."""
    parts = [
        folded(
            f"{each.key} ({len(each.rows):,} row{'s' if len(each.rows) != 1 else ''})", table(each.columns, each.rows)
        )
        for each in run.tables
        if not is_drawn(each)
    ]
    if parts:
        yield Section("tables", "Tables", "".join(parts))


def pictures_section(run: RunHistory) -> Iterator[Section]:
    """Return the PNG files of the run inside the page, up to a size."""
    parts: list[str] = []
    used = 0
    for name, file in run.pictures.items():
        size = file.stat().st_size
        if size > _LARGEST_PICTURE or used + size > _LARGEST_OF_ALL:
            parts.append(
                paragraph(f"{file.name} is left out: {size / 1e6:.1f} MB would make the page too large", "note")
            )
            continue
        content = file.read_bytes()
        if not content.startswith(_PNG):
            parts.append(paragraph(f"{file.name} is left out: it is no PNG", "note"))
            continue
        used += size
        data = base64.b64encode(content).decode("ascii")
        words = text(f"Picture {name} as the run drew it; its numbers are in the sections and tables of this page.")
        parts.append(
            f'<figure class="picture"><figcaption>{text(name)}</figcaption>'
            f'<img src="data:image/png;base64,{data}" alt="{words}"></figure>'
        )
    if parts:
        yield Section("pictures", "Pictures", "".join(parts))
