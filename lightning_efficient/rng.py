"""The state of every random number generator of a process, as values a checkpoint may hold."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch

RngState: TypeAlias = dict[str, Any]


def capture_rng(cuda: bool = True) -> RngState:
    """Return the state of Python's, NumPy's, torch's and every CUDA generator as tensors, numbers and lists."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda and torch.cuda.is_initialized() else [],
    }


def restore_rng(state: RngState) -> None:
    """Set every generator back to what :func:`capture_rng` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


@contextmanager
def rng_untouched(cuda: bool = True) -> Iterator[None]:
    """Leave every generator as it was, whatever the block draws, also when it raises.

    Args:
        cuda: Whether the block may draw on CUDA; reading those states waits for the devices.

    Example:
        >>> before = torch.get_rng_state()
        >>> with rng_untouched():
        ...     _ = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    state = capture_rng(cuda)
    try:
        yield
    finally:
        restore_rng(state)
