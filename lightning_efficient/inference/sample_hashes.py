"""Fingerprints of samples, which tell whether two sets share any."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError


def hash_samples(inputs: Tensor) -> Tensor:
    """Return a 64-bit hash of the bytes of every sample.

    Equal bytes have equal hashes; shape, dtype and device play no part. So samples are recognised where they were
    transformed the same way and not after a random augmentation. Two different samples share a hash by chance about
    once in 1.8e19 pairs.

    Args:
        inputs: Shape ``(N, ...)``, any dtype, on any device.

    Returns:
        int64, shape ``(N,)``, on the CPU.

    Raises:
        ConfigurationError: a tensor without a dimension for the samples.

    Example:
        >>> first, second, again = hash_samples(torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]])).tolist()
        >>> first == again, first == second
        (True, False)
    """
    if inputs.ndim == 0:
        raise ConfigurationError("inputs is a single number; give a tensor whose first dimension counts the samples.")
    if inputs.numel() == 0:
        return torch.tensor([_hash(b"")] * len(inputs), dtype=torch.int64)
    # as bytes before they become an array, which has no bfloat16
    rows = inputs.detach().cpu().contiguous().reshape(len(inputs), -1).view(torch.uint8).numpy()
    return torch.tensor([_hash(row.data) for row in rows], dtype=torch.int64)


def overlap(calibration_hashes: Tensor, training_hashes: Tensor) -> int:
    """Count the calibration samples that were also trained on.

    Args:
        calibration_hashes: What :func:`hash_samples` returned, shape ``(N,)``.
        training_hashes: The same of other samples, shape ``(K,)``.

    Returns:
        How many of the ``N``, those that occur several times counted each time.

    Example:
        >>> overlap(torch.tensor([1, 2, 2, 3]), torch.tensor([2, 4]))
        2
    """
    return int(torch.isin(calibration_hashes.cpu(), training_hashes.cpu()).sum())


def _hash(content: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
