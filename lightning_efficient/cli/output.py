"""The two ways in which a command speaks: its answer, and the one line that says what was wrong."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line of the answer to standard output."""
    sys.stdout.write(f"{text}\n")


def complain(problem: object) -> None:
    """Write the one line of an error to standard error."""
    sys.stderr.write(f"error: {problem}\n")
