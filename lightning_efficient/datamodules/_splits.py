"""Reproducible, stratified choices of samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_efficient.errors import ConfigurationError


def stratified_split(
    labels: NDArray[np.int64], held_out: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split positions into those kept and those held out, with each class in proportion.

    The choice depends on ``labels`` and ``seed`` alone, never on the global random state.

    Args:
        labels: Class of each sample, shape ``(N,)``.
        held_out: How many samples to hold out, in ``(0, N)``.
        seed: Any integer.

    Returns:
        Kept and held-out positions, both sorted, int64.

    Raises:
        ConfigurationError: either part would be empty.

    Example:
        >>> kept, held_out = stratified_split(np.array([0, 0, 0, 0, 1, 1]), held_out=3, seed=0)
        >>> len(kept), np.array([0, 0, 0, 0, 1, 1])[held_out].tolist()
        (3, [0, 0, 1])
    """
    if not 0 < held_out < len(labels):
        raise ConfigurationError(
            f"{held_out} of {len(labels)} samples cannot be held out: both parts need at least one sample"
        )
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    quota, remainder = np.divmod(counts * held_out, len(labels))
    # Largest remainders get the samples that rounding down left over, so the sum is exact.
    quota[np.argsort(-remainder, kind="stable")[: held_out - quota.sum()]] += 1
    chosen = [
        rng.permutation(np.flatnonzero(labels == name))[:count] for name, count in zip(classes, quota, strict=True)
    ]
    mask = np.zeros(len(labels), dtype=bool)
    mask[np.concatenate(chosen)] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)
