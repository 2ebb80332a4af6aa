"""What torch.export and its like say of a network: nothing where all went well, and one line where it did not."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

_LINE = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s+(\S.*)')
_OPERATOR = re.compile(r"\b(?:aten|prims|quantized|onnx|[a-z_]\w*::?[a-z_]\w*)[.:]+[A-Za-z_]\w*")
_COLOUR = re.compile(r"\x1b\[\d*m")
_LONGEST = 200


@contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from printing, logging and warning; errors pass."""
    with without_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep compilers and exporters from logging and warning, and let them print; errors pass."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def reason_of(error: BaseException, name_operator: bool = False) -> str:
    """Return in one line why a network could not become a graph, with the operator or the line of code that is told.

    Args:
        error: What the exporter raised.
        name_operator: Whether to begin with the operator that the text names, if there is one.

    Example:
        >>> reason_of(RuntimeError("No ONNX function found for aten.eigh.default"), name_operator=True)
        'aten.eigh: No ONNX function found for aten.eigh.default'
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
        reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
        if name_operator and (operator := _OPERATOR.search(text.replace("op='", "").replace("'", ""))):
            reason = f"{operator[0]}: {reason}"
    reason = " ".join(reason.split())
    reason = reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 1]}…"
    if found := _LINE.search(text):
        reason += f" (at {found[1]}:{found[2]}: {found[3].strip()})"
    return reason
