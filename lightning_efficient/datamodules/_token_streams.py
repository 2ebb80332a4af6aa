"""What the data modules of running text share: files, vocabulary, and loaders of windows in order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.datamodules._files import damaged, plain_or_xz, read_bytes
from lightning_efficient.datamodules._resumable import ResumableDataModule, Split
from lightning_efficient.datamodules._token_windows import InOrderSampler, TokenWindows
from lightning_efficient.datamodules._vocabulary import UNKNOWN, Vocabulary
from lightning_efficient.errors import ConfigurationError, DataNotFoundError

Tokenize = Callable[[str], list[str]]

_WORD_IN_NAMES: dict[Split, str] = {"train": "train", "val": "valid", "test": "test"}


@dataclass(kw_only=True, eq=False, repr=False)
class TokenStreamDataModule(ResumableDataModule):
    """Base of the data modules of running text; batches are ``(tokens, next tokens)``, both ``(N, T)``, int64.

    The text is cut into ``batch_size`` contiguous columns per process, read side by side and in order: row n of a
    batch goes on where row n of the batch before ended, so that a recurrent state can be carried along. Two processes
    with N columns each see what one process with 2N columns sees. The last tokens of a text, fewer than there are
    columns, are left out; with one column (``eval_batch_size: 1``) nothing is. Training is not shuffled and resumes
    exactly. Texts are kept in memory; nothing is written.

    Args:
        root: Folder of the text files, plain or with ``.xz`` after their names.
        batch_size: Columns per process in training.
        eval_batch_size: Columns per process in evaluation; ``batch_size`` when not given.
        window: Time steps T of a batch.
        min_window: The last window of an epoch is shorter as a rule. Training leaves it out where it has fewer steps
            than this, for methods that need that many; evaluation never does.
        level: ``word`` or ``character``.

    Raises:
        ConfigurationError: an option has a value that cannot work.
    """

    contents: ClassVar[str] = "tokens"

    root: str = field(kw_only=False)
    batch_size: int = 20
    window: int = 100
    min_window: int = 1
    level: Literal["word", "character"] = "word"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "window", "min_window")
        if self.min_window > self.window:
            raise ConfigurationError(f"min_window is {self.min_window}; it must be at most window, {self.window}")
        if self.level not in ("word", "character"):
            raise ConfigurationError(f"level is '{self.level}'; choose 'word' or 'character'")
        self._vocabulary: Vocabulary | None = None

    @abstractmethod
    def layouts(self) -> Sequence[tuple[str, Tokenize]]:
        """Return file names with ``{}`` for the part, and how to read them; the first that is there is read."""

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens of the training text, which is read for it."""
        return len(self.vocabulary)

    @property
    def vocabulary(self) -> Vocabulary:
        """Names and numbers of the tokens of the training text, which is read for it."""
        if self._vocabulary is None:
            path, tokens = self._read("train")
            # A character of another part may be new, and a text of characters has no sign for that.
            self._vocabulary = Vocabulary(tokens, [UNKNOWN] if self.level == "character" else [])
            self.datasets["train"] = self._vocabulary.encode(tokens, path)
        return self._vocabulary

    @property
    def input_shape(self) -> tuple[int]:
        """``(T,)``, of token numbers."""
        return (self.window,)

    def prepare_data(self) -> None:
        """Say that files are missing before anything is built on them."""
        for split in _WORD_IN_NAMES:
            self._find(split)

    def setup(self, stage: str | None = None) -> None:
        """Read what the stage needs, and the training text for its vocabulary; called on every process."""
        vocabulary = self.vocabulary
        needed: list[Split] = ["val"] if stage in (None, "fit", "validate") else []
        needed += ["test"] if stage in (None, "test", "predict") else []
        for split in needed:
            if split not in self.datasets:
                path, tokens = self._read(split)
                self.datasets[split] = vocabulary.encode(tokens, path)

    def train_dataloader(self) -> StatefulDataLoader:
        """Return a loader in order, whose state is part of the checkpoint."""
        windows = self._windows(self._dataset("train"), self.batch_size, self.min_window)
        return self._stateful_loader(windows, None, InOrderSampler(len(windows)), seed=0)

    def _evaluation_loader(self, split: Split) -> DataLoader:
        windows = self._windows(self._dataset(split), self.eval_batch_size or self.batch_size, min_window=1)
        return DataLoader(
            windows,
            batch_size=None,
            sampler=InOrderSampler(len(windows)),
            generator=torch.Generator(),
            **self._loader_options(),
        )

    def _windows(self, tokens: Tensor, columns: int, min_window: int) -> TokenWindows:
        return TokenWindows(tokens, columns, self.window, min_window, *self._replicas())

    def _find(self, split: Split) -> tuple[Path, Tokenize]:
        layouts = self.layouts()
        there = [each for each in layouts if plain_or_xz(Path(self.root) / each[0].format("train"))]
        pattern, tokenize = (there or layouts)[0]
        name = pattern.format(_WORD_IN_NAMES[split])
        path = plain_or_xz(Path(self.root) / name)
        if path is None:
            names = ", ".join(pattern.format(word) for word in _WORD_IN_NAMES.values())
            raise DataNotFoundError(
                f"'{name}' is not in '{self.root}': point --data.root at a folder that holds {names}, plain or .xz"
            )
        return path, tokenize

    def _read(self, split: Split) -> tuple[Path, list[str]]:
        path, tokenize = self._find(split)
        try:
            text = read_bytes(path).decode("utf8")
        except UnicodeDecodeError as error:
            raise damaged(path, error) from error
        return path, tokenize(text)
