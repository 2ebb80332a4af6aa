"""The two ways in which a command speaks: its answer, and the one line that says what was wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from lightning_efficient.errors import ConfigurationError


def say(text: str) -> None:
    """Write a line of the answer to standard output."""
    sys.stdout.write(f"{text}\n")


def complain(problem: object) -> None:
    """Write the one line of an error to standard error."""
    sys.stderr.write(f"error: {problem}\n")


def exit_status(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; a mistake becomes one line, and 2."""
    try:
        return command()
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        raise
    except (ConfigurationError, OSError) as error:
        complain(error)
        return 2
