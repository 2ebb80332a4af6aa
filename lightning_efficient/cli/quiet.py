"""Silence what a reader of our output can do nothing about."""

from __future__ import annotations

import logging
import warnings

# an advertisement, and what config.yaml and the footprint tell; a GPU left unused is a warning of its own
_NOISE = ("💡 Tip", "Seed set to", "GPU available", "TPU available")


def quiet() -> None:
    """Hide advertisements and deprecations inside Lightning and torch; our own messages and users' stay."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # a toolkit without a GPU
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_is_no_noise)
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", message=".*'set_vital' is deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`tensorboardX` has been removed as a dependency.*")


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not any(noise in record.getMessage() for noise in _NOISE)
