"""A text cut into columns that are read side by side, a window at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_efficient.datamodules.samplers import UnpaddedDistributedSampler
from lightning_efficient.errors import ConfigurationError


class TokenWindows(Dataset[tuple[Tensor, Tensor]]):
    """Batches ``(tokens, next tokens)`` of a text, in order, so that a state can be carried from one to the next.

    The text is cut into contiguous columns of equal length; item i is window i of every column of this process. The
    target of the last token of a column is the first token of the next, so only the last tokens of the text, fewer
    than there are columns, have no place.

    Args:
        tokens: The text, shape ``(M,)``, any integer dtype.
        columns: Columns of this process: the rows of a batch.
        window: Time steps of a batch.
        min_window: Time steps that a shorter last window must have to be kept, at least 1.
        replicas: Number of processes; each reads columns of its own.
        rank: Number of this process.

    Raises:
        ConfigurationError: the text is too short.

    Example:
        >>> import torch
        >>> windows = TokenWindows(torch.arange(10), columns=2, window=3)
        >>> windows[0][0].tolist(), windows[1][0].tolist(), windows[1][1].tolist()
        ([[0, 1, 2], [4, 5, 6]], [[3], [7]], [[4], [8]])
    """

    def __init__(
        self, tokens: Tensor, columns: int, window: int, min_window: int = 1, replicas: int = 1, rank: int = 0
    ) -> None:
        length = (len(tokens) - 1) // (columns * replicas)
        full, rest = divmod(max(length, 0), window)
        self.window = window
        self.count = full + (rest >= min_window)
        if not self.count:
            raise ConfigurationError(
                f"{len(tokens)} tokens in {columns * replicas} columns are {max(length, 0)} steps each, but a window "
                f"has at least {min_window}; lower the batch size, or take a longer text"
            )
        first, size = rank * columns * length, columns * length
        self.inputs = tokens[first : first + size].view(columns, length)
        self.targets = tokens[first + 1 : first + size + 1].view(columns, length)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        part = slice(index * self.window, (index + 1) * self.window)
        return self.inputs[:, part].long(), self.targets[:, part].long()


class InOrderSampler(UnpaddedDistributedSampler):
    """Draw everything in order, on every process, and resume exactly.

    Lightning replaces a sequential training sampler on several processes by one that shuffles and deals out, unless
    it is a ``DistributedSampler``; so this is one, of a single process. Processes differ in their columns instead.

    Args:
        size: Number of windows.

    Example:
        >>> list(InOrderSampler(3))
        [0, 1, 2]
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)

    def __iter__(self) -> Iterator[int]:
        return _Position(self.total_size)


class _Position(Iterator[int]):
    """One pass over a ``InOrderSampler``, with the state that ``StatefulDataLoader`` saves and restores."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.position = 0

    def __next__(self) -> int:
        if self.position == self.size:
            raise StopIteration
        self.position += 1
        return self.position - 1

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A pass that was complete is followed by a new one.
        self.position = 0 if state["position"] >= self.size else state["position"]
