"""What a calibration leaves beside the checkpoint it belongs to: thresholds, and whose weights and data they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeAlias, TypeVar, get_args

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
from lightning_efficient.nn.checkpoints import hash_weights, read_checkpoint, unpacked

SCHEMA = 1
"""Version of the format; a file of a newer one is refused."""

Split: TypeAlias = Literal["val", "test"]


class Calibrated(Protocol):
    """Thresholds with their promise, which plain values can hold."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that strict JSON can hold."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make it of what ``to_dict`` gave."""


C = TypeVar("C", bound=Calibrated)


@dataclass(frozen=True)
class CalibrationFile(Generic[C]):
    """The common part of ``ThresholdFile`` and ``RoutingFile``, as JSON.

    Attributes:
        calibrated: The thresholds and their promise.
        split: Which split they were calibrated on: ``val`` or ``test``.
        data_sha256: Of that split as the model saw it: inputs and targets after transforms, and what was measured.
        weights_sha256: Of the checkpoint's weights, see ``hash_checkpoint``.
        module_score: The score or router of the module by name; ``None`` where it has none.
        precision: Of the Trainer, such as ``32-true``; ``None`` where it is not known.
        version: Of this package.
    """

    calibrated: C
    split: Split
    data_sha256: str
    weights_sha256: str
    module_score: str | None = None
    precision: str | None = None
    version: str = __version__

    kind: ClassVar[str]
    """What messages call the file; it ends in ``.<kind>.json``."""
    calibrated_class: ClassVar[type[Calibrated]]
    more_entries: ClassVar[Mapping[str, Callable[[Any], bool]]] = {}
    """What entries beyond the common ones must be."""

    @classmethod
    def beside(cls, ckpt_path: str | Path) -> Path:
        """Return where the file of a checkpoint is: ``best.threshold.json`` beside ``best.ckpt``."""
        return beside(ckpt_path, f".{cls.kind}.json")

    @classmethod
    def find(cls, ckpt_path: str | Path) -> Path:
        """Return where the file of a checkpoint lies: beside it, or else beside the file that a link leads to.

        Where there is none, it is the place beside the checkpoint.
        """
        return place_of(ckpt_path, f".{cls.kind}.json")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that strict JSON can hold."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"schema": SCHEMA, **values, "calibrated": self.calibrated.to_dict()}

    def write(self, path: str | Path) -> None:
        """Write the file whole or not at all: to a file beside it first, which then takes its name.

        Args:
            path: File; folders are made.

        Raises:
            ConfigurationError: it cannot be written.
        """
        write_whole(path, self.to_dict(), self.kind)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file that ``write`` has written, and check every entry.

        Raises:
            ConfigurationError: no such file, a damaged one, or one of a newer version of this package.
        """
        path = Path(path)
        content = read_mapping(path, cls.kind, SCHEMA)
        check_entries(path, cls.kind, content, {**_ENTRIES, **cls.more_entries})
        try:
            calibrated = cls.calibrated_class.from_dict(content["calibrated"])
        except ConfigurationError as error:
            raise ConfigurationError(f"the {cls.kind} file {path} is damaged: {error}") from error
        return cls(**{**{each.name: content[each.name] for each in fields(cls)}, "calibrated": calibrated})

    def check_weights(self, ckpt_path: str | Path, path: str | Path) -> None:
        """Raise unless a checkpoint holds the weights that were calibrated; any change voids the promise.

        Args:
            ckpt_path: The checkpoint.
            path: This file, for the message.

        Raises:
            ConfigurationError: other weights, or no checkpoint.
        """
        if hash_checkpoint(ckpt_path) != self.weights_sha256:
            raise ConfigurationError(
                f"the {self.kind} file {path} belongs to other weights than {ckpt_path} holds; calibrate again, or "
                "remove the file"
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


_ENTRIES: Mapping[str, Callable[[Any], bool]] = {
    "schema": lambda value: value == SCHEMA and not isinstance(value, bool),
    "version": lambda value: isinstance(value, str),
    "calibrated": lambda value: isinstance(value, Mapping),
    "split": lambda value: value in get_args(Split),
    "data_sha256": is_hash,
    "weights_sha256": is_hash,
    "module_score": is_name,
    "precision": is_name,
}
"""What each entry of the file must be."""
