"""Calibrated thresholds of a hybrid or cascade in a file beside the checkpoint they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

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
from lightning_efficient.inference.routing_thresholds import CalibratedRouting
from lightning_efficient.inference.threshold_file import Split, hash_checkpoint

SCHEMA = 1
"""Version of the format; a file of a newer one is refused."""

_ENDING, _KIND = ".routing.json", "routing"


@dataclass(frozen=True)
class RoutingFile:
    """What a calibration writes down, as JSON: the thresholds, what they were measured on, and whose weights they fit.

    Attributes:
        calibrated: The thresholds and their promise.
        split: Which split they were calibrated on: ``val`` or ``test``.
        data_sha256: Of that split as the models saw it: inputs, targets and what was measured on them.
        weights_sha256: Of the checkpoint's weights, those of all models and of the router, see ``hash_checkpoint``.
        module_score: The router by name; ``None`` where it has none.
        precision: Of the Trainer, such as ``32-true``; ``None`` where it is not known.
        version: Of this package.
    """

    calibrated: CalibratedRouting
    split: Split
    data_sha256: str
    weights_sha256: str
    module_score: str | None = None
    precision: str | None = None
    version: str = __version__

    @staticmethod
    def beside(ckpt_path: str | Path) -> Path:
        """Return where the file of a checkpoint is: ``best.routing.json`` beside ``best.ckpt``.

        Example:
            >>> RoutingFile.beside("runs/x/checkpoints/best.ckpt").as_posix()
            'runs/x/checkpoints/best.routing.json'
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
    def read(cls, path: str | Path) -> RoutingFile:
        """Read a file that ``write`` has written, and check every entry.

        Raises:
            ConfigurationError: no such file, a damaged one, or one of a newer version of this package.
        """
        path = Path(path)
        content = read_mapping(path, _KIND, SCHEMA)
        check_entries(path, _KIND, content, _ENTRIES)
        try:
            calibrated = CalibratedRouting.from_dict(content["calibrated"])
        except ConfigurationError as error:
            raise ConfigurationError(f"the routing file {path} is damaged: {error}") from error
        rest = {name: content[name] for name in _ENTRIES if name not in ("schema", "calibrated")}
        return cls(calibrated, **rest)

    def check_weights(self, ckpt_path: str | Path, path: str | Path) -> None:
        """Raise unless a checkpoint holds the weights that were calibrated; a change of any model voids the promise.

        Args:
            ckpt_path: The checkpoint.
            path: This file, for the message.

        Raises:
            ConfigurationError: other weights, or no checkpoint.
        """
        if hash_checkpoint(ckpt_path) != self.weights_sha256:
            raise ConfigurationError(
                f"the routing file {path} belongs to other weights than {ckpt_path} holds; calibrate again, or remove "
                "the file"
            )

    def check_router(self, module: object, path: str | Path) -> None:
        """Raise where a module routes by another score than was calibrated; two scores may share all weights.

        Args:
            module: With an attribute ``router_name``; without one there is nothing to compare.
            path: This file, for the message.

        Raises:
            ConfigurationError: its router is another one.
        """
        given = getattr(module, "router_name", None)
        if None not in (given, self.module_score) and given != self.module_score:
            raise ConfigurationError(
                f"the routing file {path} is of the router {self.module_score!r}, and {type(module).__name__} has "
                f"{given!r}; set it to what was calibrated, or calibrate again"
            )


_ENTRIES = {
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
