"""What exporters say: nothing where all went well, and one line where it did not."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

from lightning_efficient.errors import ConfigurationError

_LINE = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s+(\S.*)')
_OPERATOR = re.compile(r"\b(?:aten|prims|quantized|onnx|[a-z_]\w*::?[a-z_]\w*)[.:]+[A-Za-z_]\w*")
_COLOUR = re.compile(r"\x1b\[\d*m")
_LONGEST = 200


@contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from printing, logging and warning; errors pass."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def export_problem(part: str, target: str, error: BaseException) -> ConfigurationError:
    """Return the error of a part that an exporter refuses, with the operator or the line of code where it says so.

    Args:
        part: Name of the part.
        target: What it was to become, such as ``ONNX``.
        error: What the exporter raised.

    Example:
        >>> print(export_problem("edge", "ONNX", RuntimeError("No ONNX function found for aten.eigh.default")))
        part 'edge' cannot be exported to ONNX: aten.eigh: No ONNX function found for aten.eigh.default
    """
    chain = [error]
    while (deeper := chain[-1].__cause__) is not None and deeper not in chain:
        chain.append(deeper)
    text = "\n".join(_COLOUR.sub("", str(each)) for each in reversed(chain))
    if "specialized it to be a constant" in text:
        reason = "its forward fixes the batch size; keep the first dimension free, such as by flatten(1)"
    elif "data-dependent" in text:
        reason = "its forward decides by the values of tensors; keep such decisions, as routing, outside the graph"
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        if operator := _OPERATOR.search(text.replace("op='", "").replace("'", "")):
            reason = f"{operator[0]}: {reason}"
    reason = " ".join(reason.split())
    reason = reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 1]}…"
    if found := _LINE.search(text):
        reason += f" (at {found[1]}:{found[2]}: {found[3].strip()})"
    return ConfigurationError(f"part {part!r} cannot be exported to {target}: {reason}")
