"""One line for what torch.export and torchao say, and silence where a user cannot act on it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

from lightning_efficient.errors import ConfigurationError, require

_LINE = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s+(\S.*)')
_COLOUR = re.compile(r"\x1b\[\d*m")
_LONGEST = 200


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch.export and torchao from printing, logging and warning; errors pass."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def require_torchao() -> None:
    """Import torchao, which logs a deprecation of its own as it loads, or raise what names the extra."""
    with quiet():
        require("torchao.quantization.pt2e.quantize_pt2e", "quantize")


def graph_problem(what: str, error: BaseException) -> ConfigurationError:
    """Return one line that says at which operator or line of code a network could not be quantised.

    Args:
        what: What failed, such as ``torch.export``.
        error: What was raised.
    """
    chain = [error]
    while (deeper := chain[-1].__cause__) is not None and deeper not in chain:
        chain.append(deeper)
    text = "\n".join(_COLOUR.sub("", str(each)) for each in reversed(chain))
    if "specialized it to be a constant" in text:
        reason = "its forward fixes the batch size; keep the first dimension free, such as by flatten(1)"
    elif "data-dependent" in text:
        reason = "its forward decides by the values of tensors; keep such decisions outside the network"
    else:
        reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    reason = " ".join(reason.split())
    reason = reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 1]}…"
    if found := _LINE.search(text):
        reason += f" (at {found[1]}:{found[2]}: {found[3].strip()})"
    return ConfigurationError(f"the network cannot be quantised: {what} stops: {reason}")
