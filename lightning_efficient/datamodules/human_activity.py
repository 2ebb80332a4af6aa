"""What a person does, from the smartphone at the waist."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_efficient.datamodules._keyed_draws import STREAMS, add_normal
from lightning_efficient.datamodules._resumable import Split
from lightning_efficient.datamodules._splits import cut_by_group
from lightning_efficient.datamodules._uci_har import ACTIVITIES, CHANNELS, STEPS, Windows, find_source, read_windows
from lightning_efficient.datamodules.sequences import LabelledSequences, SequenceDataModule
from lightning_efficient.errors import ConfigurationError

SECOND_GROUP = ("standing", "walking", "walking_downstairs")
"""With two classes, these activities are class 1."""


@dataclass(kw_only=True, eq=False, repr=False)
class HumanActivity(SequenceDataModule):
    """UCI HAR: windows of 128 steps of nine smartphone signals; 7,352 to train and validate, 2,947 to test.

    The official split is by subject, and so is ours: some of the 21 training subjects validate, and test subjects
    never do. All values are standardised by one mean and one standard deviation, those of the training part over all
    channels, since the channels share their units.

    Args:
        root: Folder of the unpacked public archive (``UCI HAR Dataset/train/Inertial Signals/...``), or an ``.npz`` or
            ``.npz.xz`` file of its streams, or the folder of such a file.
        classes: 6 activities, or 2 groups: sitting, laying and walking upstairs against standing, walking and walking
            downstairs. This grouping is ours; check it before you compare with published figures for two classes.
        val_subjects: How many of the training subjects validate, chosen by ``split_seed``, or which ones.
        noise_std: Standard deviation of noise added to all parts after standardising; the same in every epoch.
        noise_seed: Seed of the noise.

    Raises:
        DataNotFoundError: the recordings are not there, from ``setup``.
        ConfigurationError: an option has a value that cannot work, or a file is damaged.

    Example:
        >>> data = HumanActivity("data/har", classes=2)
        >>> data.num_classes, data.input_shape
        (2, (128, 9))

    Reference:
        Anguita et al. Human Activity Recognition on Smartphones Using a Multiclass Hardware-Friendly Support Vector
        Machine. IWAAL 2012.
    """

    root: str = field(default="data/har", kw_only=False)
    classes: int = 6
    val_subjects: int | list[int] = 4
    noise_std: float = 0.0
    noise_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes not in (2, 6):
            raise ConfigurationError(f"classes is {self.classes}; choose 6 activities or 2 groups of them")
        if isinstance(self.val_subjects, int):
            self._check_at_least(1, "val_subjects")
        self._check_at_least(0, "noise_std")

    @property
    def num_classes(self) -> int:
        """Six or two."""
        return self.classes

    @property
    def class_names(self) -> list[str]:
        """The activities, joined by ``+`` where two classes group them."""
        if self.classes == len(ACTIVITIES):
            return list(ACTIVITIES)
        groups = _group_of_activity()
        return ["+".join(np.array(ACTIVITIES)[groups == group]) for group in (0, 1)]

    @property
    def input_shape(self) -> tuple[int, int]:
        """``(128, 9)``."""
        return STEPS, len(CHANNELS)

    def prepare_data(self) -> None:
        """Say that the recordings are missing before anything is built on them."""
        find_source(Path(self.root))

    def read(self) -> dict[Split, LabelledSequences]:
        """Read the recordings, hold out subjects, and standardise."""
        windows = read_windows(find_source(Path(self.root)))
        train, test = windows["train"], windows["test"]
        kept, held_out = cut_by_group(train.subject, self.val_subjects, self.split_seed, "val_subjects")
        chosen = train.values[kept]
        mean, std = float(chosen.mean(dtype=np.float64)), float(chosen.std(dtype=np.float64))

        def part(split: Split, windows: Windows) -> LabelledSequences:
            target = _group_of_activity()[windows.activity] if self.classes == 2 else windows.activity
            prepare = StandardisedWithNoise(mean, std, self.noise_std, self.noise_seed, STREAMS[split])
            return LabelledSequences(torch.from_numpy(windows.values), torch.from_numpy(target), prepare)

        return {
            "train": part("train", train).subset(kept),
            "val": part("val", train).subset(held_out),
            "test": part("test", test),
        }


@dataclass(frozen=True, eq=False)
class StandardisedWithNoise:
    """Windows to mean 0 and deviation 1, and noise that belongs to each window."""

    mean: float
    std: float
    noise_std: float
    seed: int
    stream: int

    def __call__(self, samples: Tensor, index: Tensor) -> Tensor:
        """Return inputs of shape ``(N, 128, 9)``."""
        values = (samples - self.mean) / self.std
        return add_normal(values, self.noise_std, self.seed, self.stream, index.tolist()) if self.noise_std else values


def _group_of_activity() -> np.ndarray:
    return np.array([int(name in SECOND_GROUP) for name in ACTIVITIES], dtype=np.int64)
