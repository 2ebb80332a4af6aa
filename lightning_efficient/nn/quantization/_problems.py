"""What torchao says as it loads, and one line where a network cannot be quantised."""

from __future__ import annotations

import torch

from lightning_efficient._graph_problems import quiet, reason_of
from lightning_efficient.errors import ConfigurationError, MissingExtraError, require


def require_torchao() -> None:
    """Import torchao, which logs a deprecation of its own as it loads, or raise what names the extra.

    Raises:
        MissingExtraError: torchao is not installed.
        ConfigurationError: it is, and asks for another torch than there is.
    """
    try:
        with quiet():
            require("torchao.quantization.pt2e.quantize_pt2e", "quantize")
    except MissingExtraError:
        raise
    except (ImportError, AttributeError) as error:  # names of torch that are not there yet, or no more
        raise ConfigurationError(
            f"torchao does not load with torch {torch.__version__} ({reason_of(error)}); install versions that go "
            "together with: pip install --upgrade 'lightning-efficient[quantize]'"
        ) from error


def graph_problem(what: str, error: BaseException) -> ConfigurationError:
    """Return one line that says at which operator or line of code a network could not be quantised.

    Args:
        what: What failed, such as ``torch.export``.
        error: What was raised.
    """
    return ConfigurationError(f"the network cannot be quantised: {what} stops: {reason_of(error)}")
