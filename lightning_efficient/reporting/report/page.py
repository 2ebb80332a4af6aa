"""The page: one file, nothing from elsewhere, no script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_efficient._version import __version__
from lightning_efficient.reporting.report.cost_sections import cost_sections
from lightning_efficient.reporting.report.markup import Section, text
from lightning_efficient.reporting.report.media_sections import pictures_section, tables_section
from lightning_efficient.reporting.report.method_sections import method_sections
from lightning_efficient.reporting.report.run_sections import (
    checkpoints_section,
    config_section,
    files_section,
    header,
)
from lightning_efficient.reporting.report.scalar_sections import curves_section, results_section
from lightning_efficient.reporting.report.style import STYLE
from lightning_efficient.reporting.report.trade_off import Among, trade_off_section
from lightning_efficient.reporting.run_history import RunHistory, read_history

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_report(folder: Path, output: Path, among: Among | None = None) -> str:
    """Return a run as a page of HTML.

    Args:
        folder: A run folder, or one of W&B, as ``run_folders`` returns them.
        output: Where the page will lie; it is not listed among the files.
        among: The runs to compare with; by default those beside it.

    Raises:
        ConfigurationError: the run cannot be read, or what was asked for is not there.
    """
    run = read_history(folder)
    sections = list(_sections(run, output, among or Among()))
    contents = "".join(f'<li><a href="#{each.ident}">{text(each.title)}</a></li>' for each in sections)
    shown = "".join(
        f'<section aria-labelledby="{each.ident}"><h2 id="{each.ident}">{text(each.title)}</h2>{each.body}</section>'
        for each in sections
    )
    nothing = "" if sections else "<p>This run left nothing to show.</p>"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(run.record.name)}</title><style>{STYLE}</style></head><body>"
        f"{header(run)}"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav><main>{shown}{nothing}</main>'
        f"<footer>Made by lightning-efficient {text(__version__)} from the files of the run; no server was asked."
        "</footer></body></html>\n"
    )


def _sections(run: RunHistory, output: Path, among: Among) -> Iterator[Section]:
    yield from results_section(run)
    yield from trade_off_section(run.record, among)
    yield from curves_section(run)
    yield from method_sections(run)
    yield from cost_sections(run)
    yield from tables_section(run)
    yield from pictures_section(run)
    yield from config_section(run)
    yield from checkpoints_section(run)
    yield from files_section(run, output)
