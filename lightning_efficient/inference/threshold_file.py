"""A calibrated threshold in a file beside the checkpoint it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_efficient._version import __version__
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference._calibrated import (
    beside,
    check_entries,
    is_hash,
    is_name,
    place_of,
    read_mapping,
    write_whole,
)
from lightning_efficient.inference.thresholds import CalibratedThreshold
from lightning_efficient.nn.checkpoints import hash_weights, read_checkpoint, unpacked

SCHEMA = 1
"""Version of the format; a file of a newer one is refused."""

ScoreSource: TypeAlias = Literal["confidence", "msp"]
"""Whose confidence the threshold is of: the module's own, or the maximum softmax probability of its logits."""

FUNCTION = "function "
"""How the name of a score begins that is a function."""

Split: TypeAlias = Literal["val", "test"]

_ENDING, _KIND = ".threshold.json", "threshold"


@dataclass(frozen=True)
class ThresholdFile:
    """What a calibration writes down, as JSON: the threshold, what it was measured on, and whose weights it is for.

    Attributes:
        calibrated: The threshold and its promise.
        score: ``confidence``, what the module itself returns, or ``msp`` of its logits.
        split: Which split it was calibrated on: ``val`` or ``test``.
        data_sha256: Of that split as the model saw it: inputs and targets after transforms, and errors.
        weights_sha256: Of the checkpoint's weights, see ``hash_checkpoint``.
        module_score: What the module itself returns as confidence, by the name in its attribute ``score``, see
            ``score_name``; ``None`` where it has no such attribute.
        precision: Of the Trainer, such as ``32-true``; ``None`` where it is not known.
        version: Of this package.
    """

    calibrated: CalibratedThreshold
    score: ScoreSource
    split: Split
    data_sha256: str
    weights_sha256: str
    module_score: str | None = None
    precision: str | None = None
    version: str = __version__

    @staticmethod
    def beside(ckpt_path: str | Path) -> Path:
        """Return where the file of a checkpoint is: ``best.threshold.json`` beside ``best.ckpt``.

        Example:
            >>> ThresholdFile.beside("runs/x/checkpoints/best.ckpt").as_posix()
            'runs/x/checkpoints/best.threshold.json'
        """
        return beside(ckpt_path, _ENDING)

    @classmethod
    def find(cls, ckpt_path: str | Path) -> Path:
        """Return where the file of a checkpoint lies: beside it, or else beside the file that a link leads to.

        Where there is none, it is the place beside the checkpoint.
        """
        return place_of(ckpt_path, _ENDING)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that strict JSON can hold."""
        return {
            "schema": SCHEMA,
            "version": self.version,
            "calibrated": self.calibrated.to_dict(),
            "score": self.score,
            "split": self.split,
            "data_sha256": self.data_sha256,
            "weights_sha256": self.weights_sha256,
            "module_score": self.module_score,
            "precision": self.precision,
        }

    def write(self, path: str | Path) -> None:
        """Write the file whole or not at all: to a file beside it first, which then takes its name.

        Args:
            path: File; folders are made.

        Raises:
            ConfigurationError: it cannot be written.
        """
        write_whole(path, self.to_dict(), _KIND)

    @classmethod
    def read(cls, path: str | Path) -> ThresholdFile:
        """Read a file that ``write`` has written, and check every entry.

        Raises:
            ConfigurationError: no such file, a damaged one, or one of a newer version of this package.
        """
        path = Path(path)
        content = read_mapping(path, _KIND, SCHEMA)
        check_entries(path, _KIND, content, _ENTRIES)
        try:
            calibrated = CalibratedThreshold.from_dict(content["calibrated"])
        except ConfigurationError as error:
            raise ConfigurationError(f"the threshold file {path} is damaged: {error}") from error
        rest = {name: content[name] for name in _ENTRIES if name not in ("schema", "calibrated")}
        return cls(calibrated, **rest)

    def check_weights(self, ckpt_path: str | Path, path: str | Path) -> None:
        """Raise unless a checkpoint holds the weights that were calibrated.

        Args:
            ckpt_path: The checkpoint.
            path: This file, for the message.

        Raises:
            ConfigurationError: other weights, or no checkpoint.
        """
        if hash_checkpoint(ckpt_path) != self.weights_sha256:
            raise ConfigurationError(
                f"the threshold file {path} belongs to other weights than {ckpt_path} holds; calibrate again, or "
                "remove the file"
            )

    def check_score(self, module: object, path: str | Path) -> None:
        """Raise where a module's own confidence is another one than was calibrated.

        A threshold of ``msp`` is compared with that of the logits, whatever the module returns. Functions are compared
        by name only, and where the file names no score there is nothing to compare.

        Args:
            module: The module, or a network.
            path: This file, for the message.

        Raises:
            ConfigurationError: its ``score`` is another one, or it has none.
        """
        given = score_name(module)
        if self.score == "confidence" and self.module_score is not None and given != self.module_score:
            has = "none" if given is None else repr(given)
            raise ConfigurationError(
                f"the threshold file {path} is of the score {self.module_score!r}, and {type(module).__name__} has "
                f"{has}; set its score to what was calibrated, or calibrate again"
            )


def hash_checkpoint(ckpt_path: str | Path) -> str:
    """Return the SHA-256 of a checkpoint's weights: names, shapes, dtypes and bytes, and nothing else of the file.

    Raises:
        ConfigurationError: no such file, a damaged one, or one without weights.
    """
    path = Path(ckpt_path)
    stored = read_checkpoint(path, "ckpt_path")
    state = unpacked(stored)
    has_weights = any(isinstance(leaf, Tensor) for leaf in tree_leaves(state))
    if not isinstance(stored, Mapping) or (state and not has_weights):
        raise ConfigurationError(f"ckpt_path: {str(path)!r} is no checkpoint, or it is damaged")
    digest = hashlib.sha256()
    hash_weights(digest, state)
    return digest.hexdigest()


def score_name(module: object) -> str | None:
    """Return the ``score`` of a module: a word, or ``function`` and the name of one; ``None`` where it has none.

    Example:
        >>> from types import SimpleNamespace
        >>> score_name(SimpleNamespace(score="energy")), score_name(SimpleNamespace(score=max)), score_name(object())
        ('energy', 'function max', None)
    """
    score = getattr(module, "score", None)
    if callable(score):
        return f"{FUNCTION}{getattr(score, '__qualname__', type(score).__qualname__)}"
    return score if isinstance(score, str) else None


_ENTRIES = {
    "schema": lambda value: value == SCHEMA and not isinstance(value, bool),
    "version": lambda value: isinstance(value, str),
    "calibrated": lambda value: isinstance(value, Mapping),
    "score": lambda value: value in get_args(ScoreSource),
    "split": lambda value: value in get_args(Split),
    "data_sha256": is_hash,
    "weights_sha256": is_hash,
    "module_score": is_name,
    "precision": is_name,
}
"""What each entry of the file must be."""
