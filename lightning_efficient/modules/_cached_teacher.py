"""A teacher whose outputs are kept on disk, so that each sample is shown to it once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules._stored_outputs import StoredOutputs
from lightning_efficient.nn.teacher import Teacher
from lightning_efficient.nn.views import ModelViews


class CachedTeacher:
    """Look up what a teacher shows of a batch by the keys of its samples; ask it only for what is new.

    Args:
        teacher: The teacher.
        folder: Where outputs are kept, below a name that is a hash of the teacher, of the training images and of how
            they are transformed, and of the precision.
        data: A data module with ``sample_keys``, ``train_fingerprint`` and ``train_size``.
        precision: Of the Trainer, such as ``bf16-mixed``.

    Raises:
        ConfigurationError: the data module gives its samples no keys, as random augmentation without a seed cannot.
    """

    def __init__(self, teacher: Teacher, folder: str, data: Any, precision: str) -> None:
        if not hasattr(data, "sample_keys"):
            raise ConfigurationError(
                f"model.teacher_cache needs samples with keys, and {type(data).__name__} gives none; use a data module "
                "of this package, whose augmentation is seeded by the sample, or leave teacher_cache out"
            )
        data.sample_keys = True
        digest = hashlib.sha256(f"{teacher.fingerprint()} {data.train_fingerprint()} {precision}".encode())
        self.teacher = teacher
        self.folder = Path(folder) / digest.hexdigest()[:16]
        self._stored = StoredOutputs(self.folder, data.train_size)
        if data.augments_training:
            rank_zero_info(
                "Distiller: augmented images differ from epoch to epoch, so teacher_cache helps other runs with this "
                "seed only; set augment to false to save the teacher within a run"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedTeacher:
        return self

    def __call__(self, inputs: Tensor, keys: Tensor) -> ModelViews:
        """Return what the teacher shows, on the device of ``inputs``."""
        outputs = self._stored(keys, inputs.device, lambda: _outputs(self.teacher(inputs)))
        return ModelViews(**outputs)


def _outputs(views: ModelViews) -> dict[str, Tensor]:
    return {name: value for name, value in views._asdict().items() if value is not None}
