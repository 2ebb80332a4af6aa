"""Penn Treebank: newspaper sentences as running text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_efficient.datamodules._token_streams import Tokenize, TokenStreamDataModule
from lightning_efficient.datamodules._vocabulary import characters_of, words_of


@dataclass(kw_only=True, eq=False, repr=False)
class PennTreebank(TokenStreamDataModule):
    """Penn Treebank as language models use it, by words or by characters, from files of your own.

    Its licence does not let others hand it on. By words, ``ptb.{train,valid,test}.txt`` are read, and every line ends
    by ``<eos>``. By characters, ``ptb.char.{train,valid,test}.txt`` are read if they are there: characters with
    blanks between them, and ``_`` for a blank; otherwise the characters of the files of words.

    Args:
        root: Folder of the files, plain or with ``.xz`` after their names.

    Raises:
        DataNotFoundError: a file is not there.
        ConfigurationError: an option has a value that cannot work, or a file is damaged.

    Reference:
        Mikolov et al. Recurrent Neural Network Based Language Model. Interspeech 2010.
    """

    root: str = field(default="data/ptb", kw_only=False)
    window: int = 300

    def layouts(self) -> Sequence[tuple[str, Tokenize]]:
        """Words, or characters of either kind of file."""
        if self.level == "word":
            return [("ptb.{}.txt", words_of)]
        return [("ptb.char.{}.txt", words_of), ("ptb.{}.txt", characters_of)]
