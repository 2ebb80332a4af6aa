"""Which training samples the base and the global model learn from, and which the router does."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError

RouterData: TypeAlias = Literal["held_out", "out_of_fold", "all"]


class RouterSamples:
    """Split the training samples, so that the router sees how the networks do on samples they did not learn.

    The split follows from ``seed`` and the number of samples alone.

    Args:
        kind: ``held_out``: a share of the samples is the router's alone; ``out_of_fold``: each sample is the router's,
            with the outputs of copies that did not learn it; ``all``: each sample is everybody's.
        data: A data module with ``sample_keys`` and ``train_size``, where ``kind`` is not ``all``.
        share: The router's share of the samples, for ``held_out``.
        folds: Number of copies, for ``out_of_fold``.
        seed: Of the split.

    Raises:
        ConfigurationError: the data module gives its samples no keys.
    """

    def __init__(self, kind: RouterData, data: Any, *, share: float, folds: int, seed: int) -> None:
        self.kind, self.folds = kind, folds
        self._place: Tensor | None = None
        self._first = 0
        if kind == "all":
            return
        if not hasattr(data, "sample_keys") or not hasattr(data, "train_size"):
            name = "no data module" if data is None else type(data).__name__
            raise ConfigurationError(
                f"model.router_data {kind} needs samples with keys, and {name} gives none; use a data module of this "
                "package, or give trained networks and set model.router_data to all"
            )
        size = data.train_size
        self._place = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        self._first = max(round(share * size), 1)

    @property
    def splits(self) -> bool:
        """Whether some samples are not everybody's, so that batches need keys."""
        return self.kind != "all"

    def networks(self, keys: Tensor) -> Tensor | None:
        """Return which rows of a batch the networks learn from, bool ``(N,)``; ``None`` for all."""
        return ~self._held_out(keys) if self.kind == "held_out" else None

    def router(self, keys: Tensor) -> Tensor | None:
        """Return which rows of a batch the router learns from, bool ``(N,)``; ``None`` for all."""
        return self._held_out(keys) if self.kind == "held_out" else None

    def fold(self, keys: Tensor) -> Tensor:
        """Return which copy did not learn each row of a batch, int64 ``(N,)``."""
        return self._places(keys) % self.folds

    def _held_out(self, keys: Tensor) -> Tensor:
        return self._places(keys) < self._first

    def _places(self, keys: Tensor) -> Tensor:
        assert self._place is not None
        # a key of our data modules names the augmented sample, stream * rows + index
        return self._place[keys.cpu() % len(self._place)].to(keys.device)
