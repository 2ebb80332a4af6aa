"""``lightning-efficient configs check``: parse configs as ``fit`` would, without building anything."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning_efficient._lightning_compat import ParsesOnly
from lightning_efficient.cli.config_files import find, is_fragment, is_search, shipped
from lightning_efficient.cli.efficient_cli import EfficientCLI
from lightning_efficient.cli.output import say
from lightning_efficient.errors import ConfigurationError

BASE = "quickstart"
"""The experiment on which fragments are tried."""


class ConfigParser(ParsesOnly, EfficientCLI):
    """The parser of ``lightning-efficient fit``."""


def check_configs(names: Sequence[str]) -> int:
    """Print one line per config, ``ok`` or what is wrong with it.

    Args:
        names: Names or files; none for all that are shipped but those of ``search``. Fragments (``trainer/``,
            ``logger/``, ``data/``) are checked on top of the quickstart.

    Returns:
        Exit status: 0, or 2 if a config does not parse.

    Raises:
        ConfigurationError: a name is neither a file nor a shipped config.
    """
    files = {
        name: find(name) for name in names or [name for name, each in shipped().items() if not is_search(each.path)]
    }
    width = max(map(len, files))
    problems = {name: _problem(file) for name, file in files.items()}
    for name, problem in problems.items():
        say(f"{name:<{width}}  {f'error: {problem}' if problem else 'ok'}")
    return 2 if any(problems.values()) else 0


def _problem(file: Path) -> str | None:
    if is_search(file):
        return "it is no config of fit; see search --space, or wandb sweep"
    files = [find(BASE), file] if is_fragment(file) else [file]
    try:
        with warnings.catch_warnings():
            # sys.argv holds the arguments of this verb, not those of fit
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            ConfigParser(args=["fit", *(word for each in files for word in ("--config", str(each)))])
    except ConfigurationError as error:
        return str(error)
    return None
