"""``lightning-efficient report``: a run as one page that opens anywhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_efficient.cli.option_parser import OptionParser
from lightning_efficient.cli.output import exit_status, say
from lightning_efficient.cli.quiet import quiet
from lightning_efficient.errors import ConfigurationError

_ABOUT = "Write a run as one HTML file: config, curves, tables, pictures, costs, and its place among other runs."
_AXES = (
    "The page asks nothing of a network and needs no script. An axis is a number that runs have, as in "
    "lightning-efficient compare."
)


def run_report(arguments: Sequence[str]) -> int:
    """Write the page and return the exit status: 2 for a mistake."""
    return exit_status(lambda: _report(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(prog="lightning-efficient report", description=_ABOUT, epilog=_AXES)
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run folder, wandb/offline-run-*, or a folder with one of these")
    add("--output", metavar="FILE", type=Path, help="the page (default: report.html in the folder of the run)")
    add("--among", nargs="+", type=Path, default=[], metavar="FOLDER", help="runs to compare with (default: beside it)")
    add("--x", metavar="AXIS", help="horizontal axis of the comparison (default: macs)")
    add("--y", metavar="AXIS", help="vertical axis of the comparison (default: accuracy)")
    add("--open", action="store_true", help="also show it in the browser")
    return parser


def _report(options: argparse.Namespace) -> int:
    if not options.run.is_dir():  # before anything slow is imported
        raise ConfigurationError(f"{options.run} is no run: there is no such folder")
    if options.output and options.output.is_dir():
        raise ConfigurationError(f"--output {options.output} is a folder; name a file such as report.html")
    quiet()
    from lightning_efficient._files import replacing
    from lightning_efficient.reporting.report.page import render_report
    from lightning_efficient.reporting.report.trade_off import Among
    from lightning_efficient.reporting.run_records import run_folders

    folders = run_folders(options.run)
    if len(folders) > 1:
        named = ", ".join(map(str, folders[:10])) + (f" and {len(folders) - 10} more" if len(folders) > 10 else "")
        raise ConfigurationError(f"{options.run} holds {len(folders)} runs; name one of {named}")
    output = options.output or folders[0] / "report.html"
    page = render_report(folders[0], output, Among(options.among, options.x, options.y))
    try:
        with replacing(output) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--output {output}: it cannot be written ({error.strerror or error})") from error
    say(str(output))
    if options.open:
        import webbrowser

        webbrowser.open(output.resolve().as_uri())
    return 0
