"""What older versions of timm cannot do with a network; the package itself asks for none of it."""

from __future__ import annotations

import pytest
import timm
from torch import nn


def needs(network: nn.Module, method: str) -> None:
    """Skip where timm has not yet given a family of networks one of its methods."""
    if not hasattr(network, method):
        pytest.skip(f"timm {timm.__version__} has no {method} for a {type(network).__name__}")
