"""WikiText: good articles of Wikipedia as running text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_efficient.datamodules._token_streams import Tokenize, TokenStreamDataModule
from lightning_efficient.datamodules._vocabulary import characters_of, words_of


@dataclass(kw_only=True, eq=False, repr=False)
class WikiText(TokenStreamDataModule):
    """WikiText-2 or WikiText-103, by words or by characters, from ``wiki.{train,valid,test}.tokens``.

    By words, every line ends by ``<eos>``: WikiText-2 has 2,088,628 training, 217,646 validation and 245,569 test
    tokens, and 33,278 words. By characters, these files are read as they are, ``<unk>`` and line ends included.

    Args:
        root: Folder of the three files, plain or with ``.xz`` after their names.

    Raises:
        DataNotFoundError: a file is not there.
        ConfigurationError: an option has a value that cannot work, or a file is damaged.

    Reference:
        Merity, Xiong, Bradbury, Socher. Pointer Sentinel Mixture Models. ICLR 2017.
    """

    root: str = field(default="data/wikitext-2", kw_only=False)

    def layouts(self) -> Sequence[tuple[str, Tokenize]]:
        """One set of files for both levels."""
        return [("wiki.{}.tokens", words_of if self.level == "word" else characters_of)]
