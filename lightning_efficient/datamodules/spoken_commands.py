"""Spoken words as log-mel features, by speaker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_efficient.datamodules._files import damaged, find_npz, read_npz
from lightning_efficient.datamodules._resumable import Split
from lightning_efficient.datamodules._splits import cut_by_group
from lightning_efficient.datamodules.sequences import LabelledSequences, SequenceDataModule
from lightning_efficient.errors import ConfigurationError, DataNotFoundError

KEYS = ("x", "y", "speaker", "is_test", "classes")
"""Arrays that are read from the file."""


@dataclass(kw_only=True, eq=False, repr=False)
class SpokenCommands(SequenceDataModule):
    """Clips of one second in twelve classes: ten words, silence, and other words.

    The data are one ``.npz`` or ``.npz.xz`` file of features with the arrays ``x`` (N, T, F), ``y`` (N,), ``speaker``
    (N,), ``is_test`` (N,) and ``classes``. ``is_test`` says which clips are tested; some speakers of the others
    validate. Clips without a speaker, such as silence, are held out by content, so that no clip trains and validates.
    Each band is standardised by mean and standard deviation of the training part, so that ``x`` may be stored in any
    unit, such as 8 bits.

    Args:
        root: The file, or a folder that holds it and no other.
        val_fraction: Part of the training speakers (and of the clips without one) to validate with.

    Raises:
        DataNotFoundError: there is no such file, from ``setup``.
        ConfigurationError: the file is damaged.

    Reference:
        Warden. Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition. arXiv:1804.03209, 2018.
    """

    root: str = field(default="data/speech_commands", kw_only=False)
    val_fraction: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.val_fraction < 1:
            raise ConfigurationError(f"val_fraction is {self.val_fraction}; it must lie in (0, 1)")
        self._loaded: dict[str, NDArray[Any]] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes in the file."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the file."""
        return [str(name) for name in self._arrays()["classes"]]

    @property
    def input_shape(self) -> tuple[int, int]:
        """Frames and bands of a clip in the file."""
        _, frames, bands = self._arrays()["x"].shape
        return frames, bands

    def prepare_data(self) -> None:
        """Say that the file is missing before anything is built on it."""
        self._path()

    def read(self) -> dict[Split, LabelledSequences]:
        """Hold out speakers, and standardise."""
        arrays = self._arrays()
        kept, held_out = self._held_out(arrays)
        raw = torch.from_numpy(arrays["x"])
        train = raw[torch.from_numpy(kept)].double()
        std, mean = torch.std_mean(train, dim=(0, 1), correction=0)
        bands = StandardisedBands(mean.float(), std.clamp_min(torch.finfo(torch.float32).eps).float())
        everything = LabelledSequences(raw, torch.from_numpy(arrays["y"].astype(np.int64)), bands)
        test = np.flatnonzero(arrays["is_test"])
        return {
            "train": everything.subset(kept),
            "val": everything.subset(held_out),
            "test": everything.subset(test),
        }

    def _path(self) -> Path:
        path = find_npz(Path(self.root))
        if path is None:
            raise DataNotFoundError(
                f"there are no spoken commands in '{self.root}': point --data.root at an .npz or .npz.xz file that "
                f"holds the arrays {', '.join(KEYS)}, or at its folder"
            )
        return path

    def _arrays(self) -> dict[str, NDArray[Any]]:
        if self._loaded is None:
            path = self._path()
            arrays = read_npz(path, KEYS)
            clips, count = arrays["x"], len(arrays["y"])
            if not count or clips.ndim != 3 or any(len(arrays[key]) != count for key in ("x", "speaker", "is_test")):
                raise damaged(path, "x must be (N, T, F), and y, speaker and is_test (N,)")
            if not 0 <= arrays["y"].min() <= arrays["y"].max() < len(arrays["classes"]):
                raise damaged(path, f"y must count the {len(arrays['classes'])} classes from 0")
            self._loaded = arrays
        return self._loaded

    def _held_out(self, arrays: dict[str, NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        train = np.flatnonzero(~arrays["is_test"].astype(bool))
        first_of: dict[bytes, int] = {}
        groups = []
        for clip in train.tolist():
            same = first_of.setdefault(arrays["x"][clip].tobytes(), clip)
            groups.append(str(arrays["speaker"][clip]) or f"clip {same:09}")
        count = round(self.val_fraction * len(set(groups)))
        kept, held_out = cut_by_group(np.array(groups), count, self.split_seed, "val_fraction")
        return train[kept], train[held_out]


@dataclass(frozen=True, eq=False)
class StandardisedBands:
    """Stored features ``(N, T, F)`` to float32 features with mean 0 and deviation 1 per band."""

    mean: Tensor
    std: Tensor

    def __call__(self, samples: Tensor, index: Tensor) -> Tensor:
        """Return inputs of shape ``(N, T, F)``."""
        return (samples.float() - self.mean) / self.std
