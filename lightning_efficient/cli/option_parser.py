"""The parser of the verbs that are not LightningCLI's."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from lightning_efficient.errors import ConfigurationError, did_you_mean


class OptionParser(argparse.ArgumentParser):
    """A parser of whole option names whose errors are ours.

    Args:
        options: As ``argparse.ArgumentParser`` takes them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raise a ``ConfigurationError`` in place of ending the process."""
        if found := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            known = [option for action in self._actions for option in action.option_strings]
            message = f"unknown option {found[1]}.{did_you_mean(found[1], known)}"
        raise ConfigurationError(f"{message.rstrip('.')}; see {self.prog} --help")
