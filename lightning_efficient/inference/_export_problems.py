"""One line where an exporter refuses a part."""

from __future__ import annotations

from lightning_efficient._graph_problems import reason_of
from lightning_efficient.errors import ConfigurationError


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
    return ConfigurationError(f"part {part!r} cannot be exported to {target}: {reason_of(error, name_operator=True)}")
