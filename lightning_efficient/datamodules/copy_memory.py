"""The copying task: repeat ten symbols after a long pause."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lightning_efficient.datamodules._generated import Generate, GeneratedDataModule

SYMBOLS = 10
"""How many symbols are to be remembered."""

ALPHABET = 8
"""How many different ones there are: 1 to 8, beside 0, the blank."""

DELIMITER = ALPHABET + 1


@dataclass(kw_only=True, eq=False, repr=False)
class CopyMemory(GeneratedDataModule):
    """Repeat ten random symbols after ``length`` steps of silence; batches are ``(inputs, target)``.

    A sequence has ``T = length + 20`` steps: ten symbols from 1 to 8, blanks (0), the delimiter 9 eleven steps before
    the end, and blanks. The target has blanks, and the ten symbols in the last ten steps. Inputs are one-hot of shape
    ``(N, T, 10)``, float32; targets have shape ``(N, T)``, int64.

    Args:
        length: Steps between the last symbol and the first one to repeat, the delimiter among them.

    Example:
        >>> data = CopyMemory(length=3, batch_size=4)
        >>> data.setup("fit")
        >>> inputs, target = next(iter(data.train_dataloader()))
        >>> inputs.shape, torch.equal(inputs.argmax(-1)[:, :10], target[:, -10:])
        (torch.Size([4, 23, 10]), True)

    Reference:
        Arjovsky, Shah, Bengio. Unitary Evolution Recurrent Neural Networks. ICML 2016.
    """

    length: int = field(default=100, kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "length")

    @property
    def num_classes(self) -> int:
        """Nine: the blank and eight symbols; the delimiter is never a target."""
        return ALPHABET + 1

    @property
    def input_shape(self) -> tuple[int, int]:
        """``(length + 20, 10)``."""
        return self.length + 2 * SYMBOLS, DELIMITER + 1

    @property
    def baseline_loss(self) -> float:
        """Cross-entropy per step, in nats, without memory: blanks, then a guess among eight, 10 ln 8 / (length + 20).

        Example:
            >>> round(CopyMemory(length=100).baseline_loss, 4)
            0.1733
        """
        return SYMBOLS * math.log(ALPHABET) / self.input_shape[0]

    def recipe(self) -> tuple[int, Generate]:
        """Ten numbers, one per symbol."""
        return SYMBOLS, partial(paused_symbols, steps=self.input_shape[0])


def paused_symbols(draws: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Turn the numbers of each row into symbols that come twice, at the start of the input and the end of the target.

    Args:
        draws: Shape ``(N, 10)``, float32, in [0, 1).
        steps: Time steps of the whole sequence.

    Returns:
        Inputs ``(N, steps, 10)``, float32, and targets ``(N, steps)``, int64.
    """
    symbols = (draws * ALPHABET).long() + 1
    tokens = torch.zeros(len(draws), steps, dtype=torch.int64)
    tokens[:, :SYMBOLS] = symbols
    tokens[:, -SYMBOLS - 1] = DELIMITER
    target = torch.zeros_like(tokens)
    target[:, -SYMBOLS:] = symbols
    return torch.zeros(len(draws), steps, DELIMITER + 1).scatter_(2, tokens[..., None], 1.0), target
