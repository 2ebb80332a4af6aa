"""Random numbers that belong to a sample: the same ones whenever, wherever and beside whatever it is drawn."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

STREAMS = {"train": 0, "val": 1, "test": 2}
"""Numbers of the independent streams that the parts of a data set draw from."""


def keyed_generator(seed: int, stream: int, key: int) -> np.random.Generator:
    """Return the generator of one sample.

    Philox is a counter under a key: another key is another sequence, and ``stream`` starts the counter in a range
    that no other stream reaches, so that no two samples share numbers.

    Args:
        seed: Any integer; taken modulo 2^64.
        stream: 0 or more, such as one number per part of a data set.
        key: Of the sample; taken modulo 2^64.
    """
    return np.random.Generator(np.random.Philox(counter=[0, 0, 0, stream], key=[seed % 2**64, key % 2**64]))


def uniform(seed: int, stream: int, keys: Iterable[int], count: int) -> Tensor:
    """Draw ``count`` numbers from U[0, 1) for each key.

    Returns:
        Shape ``(len(keys), count)``, float32.

    Example:
        >>> both, second = uniform(0, 1, [4, 5], 3), uniform(0, 1, [5], 3)
        >>> torch.equal(both[1:], second)
        True
    """
    keys = list(keys)
    drawn = np.empty((len(keys), count), dtype=np.float32)
    for row, key in zip(drawn, keys, strict=True):
        keyed_generator(seed, stream, key).random(out=row, dtype=np.float32)
    return torch.from_numpy(drawn)


def add_normal(values: Tensor, std: float, seed: int, stream: int, keys: Iterable[int]) -> Tensor:
    """Add noise from N(0, std²) in place to a float32 CPU tensor of shape ``(N, ...)``, with one key per row."""
    for row, key in zip(values, keys, strict=True):
        noise = keyed_generator(seed, stream, key).standard_normal(tuple(row.shape), dtype=np.float32)
        row.add_(torch.from_numpy(noise), alpha=std)
    return values
