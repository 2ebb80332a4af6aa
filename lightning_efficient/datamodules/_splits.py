"""Reproducible choices of the samples that are held out: some of every class, or all of some groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_efficient.errors import ConfigurationError

Positions = NDArray[np.int64]


def stratified_split(labels: Positions, held_out: int, seed: int) -> tuple[Positions, Positions]:
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


def cut_by_class(labels: Positions, fraction: float, seed: int, contents: str) -> tuple[Positions, Positions]:
    """Hold out a fraction of the samples, with each class in proportion.

    Args:
        labels: Class of each sample, shape ``(N,)``.
        fraction: How much to hold out.
        seed: Of the choice.
        contents: What a message calls the samples.

    Returns:
        Kept and held-out positions, both sorted, int64.

    Raises:
        ConfigurationError: either part would be empty.

    Example:
        >>> kept, held_out = cut_by_class(np.array([0, 0, 1, 1]), 0.5, seed=0, contents="images")
        >>> len(kept), len(held_out)
        (2, 2)
    """
    size = round(fraction * len(labels))
    if not 0 < size < len(labels):
        raise ConfigurationError(
            f"val_fraction {fraction} of {len(labels)} training {contents} holds out {size}; "
            f"change it so that both parts keep at least one {contents.removesuffix('s')}"
        )
    return stratified_split(labels, size, seed)


def cut_by_group(
    groups: NDArray[Any], held_out: int | Sequence[Any], seed: int, option: str
) -> tuple[Positions, Positions]:
    """Hold out all samples of some groups, such as the recordings of some persons.

    Args:
        groups: Group of each sample, shape ``(N,)``, of any type that sorts.
        held_out: Which groups to hold out, or how many.
        seed: Of the choice, where only their number is given.
        option: What a message calls ``held_out``.

    Returns:
        Kept and held-out positions, both sorted, int64.

    Raises:
        ConfigurationError: either part would be empty, or a group is not there.

    Example:
        >>> cut_by_group(np.array([7, 7, 8, 9]), [7], seed=0, option="val_subjects")
        (array([2, 3]), array([0, 1]))
    """
    names = np.unique(groups)
    if isinstance(held_out, int):
        count, chosen = held_out, np.random.default_rng(seed).permutation(names)[: max(held_out, 0)]
    else:
        count, chosen = len(set(held_out)), np.asarray(held_out, dtype=names.dtype)
        if missing := sorted(set(held_out) - set(names.tolist())):
            raise ConfigurationError(
                f"{option} names {missing[0]}, which is not in the training part; choose from {names.tolist()}"
            )
    if not 0 < count < len(names):
        raise ConfigurationError(
            f"{option} holds out {count} of {len(names)} groups of the training part; both parts need at least one"
        )
    mask = np.isin(groups, chosen)
    return np.flatnonzero(~mask), np.flatnonzero(mask)
