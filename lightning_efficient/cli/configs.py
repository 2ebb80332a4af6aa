"""``lightning-efficient configs``: list, show, copy and check the shipped configs."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from lightning_efficient.cli.config_files import OWN, ConfigFile, find, shipped
from lightning_efficient.cli.option_parser import OptionParser
from lightning_efficient.cli.output import exit_status, say
from lightning_efficient.cli.quiet import quiet
from lightning_efficient.errors import ConfigurationError


def run_configs(arguments: Sequence[str]) -> int:
    """Run ``configs ls | cat | cp | check`` and return the exit status."""
    return exit_status(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(prog="lightning-efficient configs", description="The configs that --config finds by name.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls | cat | cp | check")
    actions.add_parser("ls", help="list names, and what each is")
    actions.add_parser("cat", help="print a config").add_argument("name")
    copy = actions.add_parser("cp", help="copy a config to a file of your own, to be edited")
    copy.add_argument("name")
    copy.add_argument("target", nargs="?", type=Path, default=Path(), help="file or folder; by default this folder")
    copy.add_argument("--force", action="store_true", help="overwrite the target")
    check = actions.add_parser("check", help="parse configs as fit would (loads torch)")
    check.add_argument("names", nargs="*", help="names or files; by default all that are shipped")
    return parser


def _run(options: argparse.Namespace) -> int:
    match options.action:
        case "ls":
            say(_listing(list(shipped().values())))
        case "cat":
            say(find(options.name).read_text(encoding="utf-8").rstrip("\n"))
        case "cp":
            say(str(_copy(find(options.name), options.target, options.force)))
        case "check":
            quiet()  # before the import: torch may have something to say as it loads
            from lightning_efficient.cli.configs_check import check_configs

            return check_configs(options.names)
    return 0


def _listing(configs: list[ConfigFile]) -> str:
    width = max(len(config.name) for config in configs) + 2
    lines = []
    for config in configs:
        origin = "" if config.owner == OWN else f"  [{config.owner}]"
        lines.append(f"{config.name:<{width}}{config.summary}{origin}")
    return "\n".join(lines)


def _copy(source: Path, target: Path, force: bool) -> Path:
    target = target / source.name if target.is_dir() else target
    if target.exists() and not force:
        raise ConfigurationError(f"{target} exists; choose another name, or overwrite it with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
