"""Packages of versions that do not go together are told in one line."""

from __future__ import annotations

import pytest
import torch

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization import _problems


@pytest.mark.parametrize(
    "error",
    [ImportError("cannot import name 'ScalingType'"), AttributeError("module 'torch' has no attribute 'new'")],
    ids=["import", "attribute"],
)
def test_a_torchao_that_asks_for_another_torch_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: str) -> None:
        raise error

    monkeypatch.setattr(_problems, "require", fails)
    with pytest.raises(ConfigurationError) as told:
        _problems.require_torchao()
    message = str(told.value)
    assert message.startswith(f"torchao does not load with torch {torch.__version__} ({error}")
    assert message.endswith("pip install --upgrade 'lightning-efficient[quantize]'")
    assert "\n" not in message
