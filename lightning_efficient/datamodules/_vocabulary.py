"""From text to numbers: words or characters, numbered by how often they occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError

END = "<eos>"
"""Follows the last word of every line."""

UNKNOWN = "<unk>"


def words_of(text: str) -> list[str]:
    r"""Split at blanks, and end every line, empty ones too, by ``<eos>``.

    Example:
        >>> words_of("to be\n\nor\n")
        ['to', 'be', '<eos>', '<eos>', 'or', '<eos>']
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [word for line in lines for word in (*line.split(), END)]


def characters_of(text: str) -> list[str]:
    """Take every character, blanks and line ends too."""
    return list(text)


class Vocabulary:
    """Numbers for tokens: 0 for the most frequent one, and on; equally frequent ones in order of appearance.

    Args:
        tokens: Of the training text.
        reserved: Names that get a number even if they never occur.

    Example:
        >>> vocabulary = Vocabulary(["a", "b", "b", "<unk>"])
        >>> vocabulary.names, vocabulary.encode(["a", "z"], Path("other.txt")).tolist()
        (['b', 'a', '<unk>'], [1, 2])
    """

    def __init__(self, tokens: Iterable[str], reserved: Sequence[str] = ()) -> None:
        counts = Counter(tokens)
        for name in reserved:
            counts[name] += 0
        self.names = [name for name, _ in counts.most_common()]
        self.numbers = {name: number for number, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, tokens: Sequence[str], path: Path) -> Tensor:
        """Return the numbers of tokens, with those of ``<unk>`` for unknown ones.

        Args:
            tokens: Of any text.
            path: Where they are from, for the message.

        Returns:
            Shape ``(len(tokens),)``, int32: half the memory of int64.

        Raises:
            ConfigurationError: a token is unknown, and so is ``<unk>``.
        """
        unknown = self.numbers.get(UNKNOWN, -1)
        numbers = np.fromiter((self.numbers.get(token, unknown) for token in tokens), np.int32, len(tokens))
        if unknown < 0 and (numbers < 0).any():
            stranger = tokens[int((numbers < 0).argmax())]
            raise ConfigurationError(
                f"'{path}' has '{stranger}', which the training file has not, and there is no '{UNKNOWN}' to stand "
                f"for it; replace rare words of the training file by '{UNKNOWN}'"
            )
        return torch.from_numpy(numbers)
