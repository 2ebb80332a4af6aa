"""A small student that learns from a large teacher."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_efficient._files import write_tensors
from lightning_efficient._lightning_compat import hyperparameters_are_given
from lightning_efficient._trainer import average_anew, current_phase, drop_gradients, refuse_shards, take_part
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.phases import Alternation, Phase
from lightning_efficient.losses.guided import GuidedDistillation, GuidedTerms
from lightning_efficient.losses.objectives import Objective, build_objective, check_options, views_needed
from lightning_efficient.modules._cached_teacher import CachedTeacher
from lightning_efficient.modules._classifier import Classifier, number_of_classes
from lightning_efficient.modules._optimizer_options import check_group_options
from lightning_efficient.modules._teacher_recipe import TeacherRecipe
from lightning_efficient.nn.backbones import data_config
from lightning_efficient.nn.checkpoints import load_weights
from lightning_efficient.nn.guides import Guide, MapChoice
from lightning_efficient.nn.networks import as_network
from lightning_efficient.nn.teacher import Teacher
from lightning_efficient.nn.views import ModelViews, ViewTap
from lightning_efficient.rng import rng_untouched


class Distiller(Classifier):
    """Train a small student with the help of a large teacher; what is exported is the student alone.

    Steps take ``(inputs, labels)`` and return ``{"loss", "logits", "target"}``, in training with ``teacher_logits``
    and, for ``disk``, with ``guide`` (the help of each sample), ``help_cost``, ``residual`` and ``phase``. Validation
    and test log the student's loss, accuracy, calibration error and area under the risk-coverage curve.

    The teacher is in eval mode, gets no gradient, is not part of checkpoints, and is built for training only. Costs a
    forward pass of the teacher for each batch, unless ``teacher_cache`` has it, and in the guide's phase one of the
    student without gradients.

    Args:
        student: Name of a timm model (or of a ``cifar_resnet``), or a module.
        teacher: Likewise; not needed for ``ce``.
        num_classes: Number of classes; by default what the student has.
        in_chans: Channels of the images; ``null`` for inputs that are no images.
        objective: ``ce`` (no teacher), ``kd`` (Hinton et al. 2015), ``dkd`` (Zhao et al. 2022), ``feature`` (Romero et
            al. 2015, on the classifier's input), or ``disk`` (Kag et al. 2023).
        objective_kwargs: Options of the objective, such as ``{temperature: 4}``; see ``lightning_efficient.losses``.
        guide: For ``disk``, what the guide looks at: ``teacher_features``, ``teacher_map``, ``student_map``,
            ``both_maps``, ``teacher_logits``; a constant in [0, 1] in its place; or a guide of one's own.
        guide_kwargs: Options of the guide, and ``map_index``, ``teacher_map_module``, ``student_map_module``: which
            feature map it sees.
        guide_optimizer: What the optimiser's options are for the guide, such as ``{lr: 0.02, weight_decay: 0}``.
        phases: Train student and guide in turns; by default both in each step.
        student_kwargs: Further arguments of ``timm.create_model`` for the student.
        teacher_kwargs: Likewise for the teacher.
        student_pretrained: Whether the student starts from timm's weights.
        teacher_pretrained: Whether the teacher has timm's weights.
        student_checkpoint: File with weights that the student starts from.
        teacher_checkpoint: File with the teacher's weights: a checkpoint of Lightning, or a state dict.
        teacher_epochs: Without weights: how long to train the teacher first, with AdamW at 0.003 and a cosine.
        teacher_folder: Where teachers that were trained so are kept, for the next run.
        teacher_image_size: Height and width to which images are resized for the teacher.
        teacher_cache: Folder for the teacher's outputs, by sample.
        optimizer: From parameters to an optimiser; AdamW as torch has it when not given.
        lr_scheduler: From an optimiser to a learning rate scheduler.
        lr_interval: Whether the scheduler counts epochs or steps.

    Raises:
        ConfigurationError: an unknown name, or a value that cannot work.

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """

    def __init__(
        self,
        student: str | nn.Module,
        teacher: str | nn.Module | None = None,
        num_classes: int | None = None,
        in_chans: int | None = 3,
        objective: Objective = "disk",
        objective_kwargs: dict[str, Any] | None = None,
        guide: float | str | Guide = "teacher_features",
        guide_kwargs: dict[str, Any] | None = None,
        guide_optimizer: dict[str, Any] | None = None,
        phases: Alternation | None = None,
        student_kwargs: dict[str, Any] | None = None,
        teacher_kwargs: dict[str, Any] | None = None,
        student_pretrained: bool = False,
        teacher_pretrained: bool = False,
        student_checkpoint: str | None = None,
        teacher_checkpoint: str | None = None,
        teacher_epochs: int = 0,
        teacher_folder: str = "runs/teachers",
        teacher_image_size: int | None = None,
        teacher_cache: str | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        needs = views_needed(objective, guide)
        check_options(objective, objective_kwargs or {})
        if teacher_epochs < 0:
            raise ConfigurationError(f"model.teacher_epochs is {teacher_epochs}; it must be 0 or more")
        # given as Python objects they could not be loaded from a checkpoint; from a config they are plain values
        objects = {"student": student, "teacher": teacher, "guide": guide}
        modules = [name for name, value in objects.items() if isinstance(value, nn.Module)]
        ignored = () if hyperparameters_are_given() else ("optimizer", "lr_scheduler", "phases", *modules)
        self.save_hyperparameters(ignore=ignored)
        self.student = as_network(
            student,
            "student",
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=student_pretrained,
            options=student_kwargs,
        )
        self.in_chans = in_chans
        self.data_config = data_config(self.student, in_chans or 3) if isinstance(student, str) else {}
        maps = MapChoice.of(guide_kwargs)
        self._student_tap = ViewTap(
            self.student,
            features="student_features" in needs,
            feature_map="student_map" in needs,
            map_index=maps.map_index,
            map_module=maps.student_map_module,
        )
        self.num_classes = number_of_classes(num_classes, self._student_tap.num_classes, "student")
        self.objective: nn.Module | None = None
        self._build_objective = partial(
            build_objective,
            objective,
            objective_kwargs or {},
            num_classes=self.num_classes,
            guide=guide,
            guide_options=maps.rest,
        )
        self._recipe = TeacherRecipe(
            given=teacher,
            options=teacher_kwargs or {},
            pretrained=teacher_pretrained,
            checkpoint=teacher_checkpoint,
            epochs=teacher_epochs,
            folder=teacher_folder,
            image_size=teacher_image_size,
            needs=needs,
            maps=maps,
        )
        self.phases = phases
        # no default in the signature: a config that names another class would inherit AdamW's weight decay
        self.optimizer: OptimizerCallable = torch.optim.AdamW if optimizer is None else optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self._guide_optimizer = guide_optimizer or {}
        self._student_checkpoint = student_checkpoint
        self._cache_folder = teacher_cache
        self._teacher: Teacher | None = None
        self._cache: CachedTeacher | None = None
        self.add_metrics()

    def setup(self, stage: str) -> None:
        """Build for training what it needs beside the student: teacher, guide, cache."""
        super().setup(stage)
        if stage != "fit":
            return
        refuse_shards(self.trainer, "Distiller")
        if self._student_checkpoint is not None and self.trainer.ckpt_path is None:
            load_weights(self.student, self._student_checkpoint, option="model.student_checkpoint")
        self._student_checkpoint = None  # a second fit goes on where the first one ended
        with rng_untouched():  # what is built here must change neither the order of the data nor dropout
            if self._recipe.needs and self._teacher is None:
                self._teacher = self._recipe.build(self.trainer, self.num_classes, self.in_chans, self.data_config)
            if self.objective is None:
                tap = None if self._teacher is None else self._teacher.tap
                self.objective = self._build_objective(student=self._student_tap, teacher=tap)
        average_anew(self.trainer, self)
        if self._cache_folder is not None and self._teacher is not None:
            data = getattr(self.trainer, "datamodule", None)
            self._cache = CachedTeacher(self._teacher, self._cache_folder, data, str(self.trainer.precision))

    def on_fit_start(self) -> None:
        """Put the teacher where the student is."""
        if self._teacher is not None:
            self._teacher.to(self.device, cast(torch.dtype, self.dtype))

    def configure_optimizers(self) -> Any:
        """Build one optimiser with a group for the student, and one for what learns beside it."""
        groups: list[dict[str, Any]] = [{"params": list(self.student.parameters()), "name": "student"}]
        if self.objective is not None and (beside := list(self.objective.parameters())):
            groups.append({"params": beside, "name": "beside", **self._guide_optimizer})
        optimizer = self.optimizer(groups)
        check_group_options(optimizer, self._guide_optimizer, "model.guide_optimizer")
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval}}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the student's class scores ``(N, num_classes)``."""
        return self.student(inputs)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Settle whose step this is."""
        if isinstance(self.objective, GuidedDistillation):
            self.objective.phase = current_phase(self.trainer, self.phases, self.objective.learns)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return ``{"loss", "logits", "target"}`` of a batch, and what the teacher and the guide had to say."""
        assert self.objective is not None
        inputs, target, *keys = batch
        self.check(inputs, target)
        phase: Phase = getattr(self.objective, "phase", "joint")
        teacher = self._ask_teacher(inputs, keys, batch_idx)
        with torch.set_grad_enabled(phase != "guide" and torch.is_grad_enabled()):
            if self.student.training != (phase != "guide"):
                self.student.train(phase != "guide")
            student = self._student_tap(inputs)
        terms = self.objective(student, teacher, target)
        self._log_terms(terms, phase, len(inputs))
        loss = take_part(self.trainer, terms.loss, self._resting(phase))
        outputs = {"loss": loss, "logits": student.logits, "target": target}
        if teacher is not None:
            outputs["teacher_logits"] = teacher.logits
        if isinstance(terms, GuidedTerms):
            outputs |= {"guide": terms.guide, "help_cost": terms.help_cost, "residual": terms.residual, "phase": phase}
        return outputs

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave the weights and the momentum of the network alone whose turn it is not."""
        drop_gradients(self._resting(getattr(self.objective, "phase", "joint")))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the student alone, where there is no training to go on with."""
        if self.objective is None:
            self._student_checkpoint = None
            weights = checkpoint["state_dict"]
            for name in [name for name in weights if name.startswith("objective.")]:
                del weights[name]

    def export_student(self, path: str) -> None:
        """Write the student's weights, which ``timm.create_model(name, checkpoint_path=path)`` can load."""
        write_tensors({name: value.cpu() for name, value in self.student.state_dict().items()}, Path(path))

    def _ask_teacher(self, inputs: Tensor, keys: list[Tensor], batch_idx: int) -> ModelViews | None:
        if self._teacher is None:
            return None
        views = self._cache(inputs, keys[0]) if self._cache is not None and keys else self._teacher(inputs)
        # reading a value waits for the device, so elsewhere only some batches are looked at
        if inputs.device.type == "cpu" or batch_idx % 50 == 0:
            self._teacher.check_finite(views, f"batch {batch_idx} of epoch {self.current_epoch}")
        return views

    def _log_terms(self, terms: Any, phase: Phase, size: int) -> None:
        name = "train/guide_loss" if phase == "guide" else "train/loss"
        self.log(name, terms.loss, prog_bar=True, batch_size=size)
        if phase != "guide":
            self.log_dict({"train/supervised": terms.supervised, "train/distilled": terms.distilled}, batch_size=size)

    def _resting(self, phase: Phase) -> Iterable[nn.Parameter]:
        if phase == "joint" or self.objective is None:
            return ()
        return self.student.parameters() if phase == "guide" else self.objective.parameters()
