"""What frozen networks say of each training sample, computed once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_efficient.inference.output_store import OutputStore


class StoredOutputs:
    """Look up outputs by the keys of samples, and compute only those that are new.

    Args:
        folder: Where the outputs are; its name must tell all that they depend on.
        rows: Number of samples.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows = folder, rows
        self.store: OutputStore | None = None

    def __call__(
        self, keys: Tensor, device: torch.device, compute: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the outputs of a batch on a device.

        Args:
            keys: Shape ``(N,)``, int64.
            device: Where they shall be.
            compute: Gives the outputs of the whole batch, tensors ``(N, ...)`` by name.
        """
        if (stored := self._stored(keys, device)) is not None:
            return stored
        outputs = dict(compute())
        if self.store is None:
            columns = {name: tuple(value.shape[1:]) for name, value in outputs.items()}
            self.store = OutputStore(self.folder, columns, self.rows)
            if (stored := self._stored(keys, device)) is not None:
                return stored
        self.store.put(keys, outputs)
        return outputs

    def __deepcopy__(self, memo: object) -> StoredOutputs:
        return self

    def _stored(self, keys: Tensor, device: torch.device) -> dict[str, Tensor] | None:
        found = None if self.store is None else self.store.get(keys)
        return None if found is None else {name: value.to(device) for name, value in found.items()}
