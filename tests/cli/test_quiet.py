from __future__ import annotations

import logging
import warnings

import pytest
from lightning.pytorch import seed_everything

from lightning_efficient.cli.quiet import quiet

LOGGER = logging.getLogger("lightning.pytorch.utilities.rank_zero")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet()


@pytest.mark.parametrize(
    "message",
    ["💡 Tip: For seamless cloud uploads", "GPU available: False, used: False", "TPU available: False, using: 0"],
)
def test_advertisements_and_hardware_lines_are_hidden(caplog: pytest.LogCaptureFixture, message: str) -> None:
    with caplog.at_level(logging.INFO, logger=LOGGER.name):
        LOGGER.info(message)
        LOGGER.info("Loaded model weights")
    assert caplog.messages == ["Loaded model weights"]


def test_the_seed_is_not_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with caplog.at_level(logging.INFO):
        seed_everything(3)
        assert caplog.messages == []
        # fails when Lightning says it through another logger, which would make the line above true for nothing
        monkeypatch.setattr(logging.getLogger("lightning.fabric.utilities.seed"), "filters", [])
        seed_everything(3)
    assert caplog.messages == ["Seed set to 3"]


def test_calling_twice_filters_once() -> None:
    before = len(LOGGER.filters)
    quiet()
    assert len(LOGGER.filters) == before


def test_warnings_of_users_stay() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet()
        for noise in ("function 'set_vital' is deprecated", "`tensorboardX` has been removed as a dependency of"):
            warnings.warn(noise, stacklevel=1)
        warnings.warn("the loss is large", stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["the loss is large"]
