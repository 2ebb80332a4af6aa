"""Silence what a reader of our output can do nothing about."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Hide advertisements and deprecations inside Lightning and torch; our own messages and users' stay."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # a toolkit without a GPU
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", message=".*'set_vital' is deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "💡 Tip" not in record.getMessage()
