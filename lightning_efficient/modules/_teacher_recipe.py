"""How a teacher is made for training: from its name, its weights, and what has to be seen of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules._teacher_training import trained_teacher
from lightning_efficient.nn.backbones import data_config
from lightning_efficient.nn.guides import MapChoice
from lightning_efficient.nn.networks import as_network
from lightning_efficient.nn.teacher import Teacher

Renormalize = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class TeacherRecipe:
    """What the options say of a teacher."""

    given: str | nn.Module | None
    options: Mapping[str, Any]
    pretrained: bool
    checkpoint: str | None
    epochs: int
    folder: str
    image_size: int | None
    needs: frozenset[str]
    maps: MapChoice

    def build(
        self, trainer: pl.Trainer, num_classes: int, in_chans: int | None, student_config: Mapping[str, Any]
    ) -> Teacher:
        """Make the teacher, train it if it has no weights and that is asked for, and freeze it.

        Raises:
            ConfigurationError: there is none, it has no weights, other classes than the student, or cannot be made.
        """
        if self.given is None:
            raise ConfigurationError("model.teacher is not given; give one, or set model.objective to ce")
        network = as_network(
            self.given,
            "teacher",
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=self.pretrained,
            options=self.options,
            checkpoint=self.checkpoint,
        )
        has_weights = self.pretrained or self.checkpoint is not None
        if not has_weights and self.epochs:
            network = trained_teacher(network, trainer, self.epochs, self.folder)
        elif not has_weights and isinstance(self.given, str):
            raise ConfigurationError(
                f"model.teacher {self.given} has no trained weights; give model.teacher_checkpoint, set "
                "model.teacher_pretrained to true, or train it first with model.teacher_epochs"
            )
        teacher = Teacher(
            network,
            features="teacher_features" in self.needs,
            feature_map="teacher_map" in self.needs,
            map_index=self.maps.map_index,
            map_module=self.maps.teacher_map_module,
            renormalize=self._renormalize(network, trainer, in_chans, student_config) if has_weights else None,
            image_size=self.image_size,
        )
        if teacher.num_classes not in (None, num_classes):
            raise ConfigurationError(
                f"model.teacher has {teacher.num_classes} classes and the student {num_classes}; they must agree: set "
                "model.num_classes, or take another teacher"
            )
        return teacher

    def __deepcopy__(self, memo: dict[int, Any]) -> TeacherRecipe:
        return self  # it may hold the teacher, which a moving average of the module shall not copy

    def _renormalize(
        self, network: nn.Module, trainer: pl.Trainer, in_chans: int | None, student_config: Mapping[str, Any]
    ) -> Renormalize | None:
        """Return from which mean and deviation to which, if the teacher expects other ones than the data have."""
        if not isinstance(self.given, str) or not student_config:
            return None
        wanted = data_config(network, in_chans or 3)
        data = getattr(trainer, "datamodule", None)
        has = {name: tuple(getattr(data, name, None) or student_config[name]) for name in ("mean", "std")}
        if all(has[name] == tuple(wanted[name]) for name in has):
            return None
        return has["mean"], has["std"], tuple(wanted["mean"]), tuple(wanted["std"])
