"""Distillation with a guide for a LightningModule that knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_efficient._trainer import average_anew, callbacks_of, current_phase, drop_gradients, take_part
from lightning_efficient.callbacks._borrowed_step import (
    BorrowedMethods,
    check_can_borrow,
    evaluating,
    keep_out_of_state,
)
from lightning_efficient.callbacks._guide_optimizer import with_guide_group
from lightning_efficient.callbacks._moment import returned
from lightning_efficient.callbacks.chunked_backprop import ChunkedBackprop
from lightning_efficient.callbacks.guide_schedule import GuideSchedule, Interval
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.phases import Alternation
from lightning_efficient.functional.primal_dual import PrimalDual
from lightning_efficient.functional.schedules import Schedule
from lightning_efficient.losses.guided import GuidedDistillation
from lightning_efficient.losses.objectives import build_objective, check_options, views_needed
from lightning_efficient.nn.guides import Guide, MapChoice
from lightning_efficient.nn.networks import as_network
from lightning_efficient.nn.teacher import Teacher
from lightning_efficient.nn.views import ModelViews, ViewTap
from lightning_efficient.rng import rng_untouched
from lightning_efficient.typing import Batch, Predictions


class DiSK(GuideSchedule):
    """Distil a teacher into a LightningModule that was written without it, in automatic optimisation.

    ``training_step`` has to return ``{"loss", "logits", "target"}``, the logits with their graph. Its loss keeps its
    place as the supervised term, times ``supervised_weight``; the scaffolded term is added. In the guide's phase the
    module runs in eval mode without gradients. Logs, schedules and warns as ``GuideSchedule`` does.

    The module's checkpoints stay its own, without teacher and guide: the guide is kept in this callback's state. The
    guide's parameters join the module's optimiser. Works with gradient clipping, mixed precision, accumulated
    gradients and DDP; not with strategies that shard the parameters.

    Args:
        teacher: Name of a timm model, or a module with its weights.
        guide: What the guide looks at: ``teacher_features``, ``teacher_map``, ``student_map``, ``both_maps`` or
            ``teacher_logits``; a constant in [0, 1] in its place; or a guide of one's own.
        teacher_checkpoint: File with the teacher's weights: a checkpoint of Lightning, or a state dict.
        teacher_pretrained: Whether the teacher has timm's weights.
        teacher_kwargs: Further arguments of ``timm.create_model``, such as ``{num_classes: 10, in_chans: 1}``.
        guide_kwargs: Options of the guide, and ``map_index``, ``teacher_map_module``, ``student_map_module``.
        guide_lr: Learning rate of the guide; by default that of the module's first group.
        loss_kwargs: Options of ``DiSKLoss``, such as ``{top_k: 5}``.
        network: Dotted name of the part of the module that classifies; by default the module itself.
        inputs: From a batch to what the teacher sees; by default the batch's first item.
        predictions: ``(module, batch, step_output) -> (logits, target)``, for steps that return something else; the
            logits need their graph.
        phases: Train student and guide in turns; by default both in each step.
        multiplier: See ``GuideSchedule``, as for the options that follow; by default as ``loss_kwargs`` has it.
        budget: See ``GuideSchedule``.
        temperature: See ``GuideSchedule``.
        interval: See ``GuideSchedule``.
        name: First part of the logged names.

    Raises:
        ConfigurationError: an option outside its range, a teacher without weights or with other classes, or a module
            that this cannot work with.

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """

    def __init__(
        self,
        teacher: str | nn.Module,
        guide: float | str | Guide = "teacher_features",
        teacher_checkpoint: str | None = None,
        teacher_pretrained: bool = False,
        teacher_kwargs: dict[str, Any] | None = None,
        guide_kwargs: dict[str, Any] | None = None,
        guide_lr: float | None = None,
        loss_kwargs: dict[str, Any] | None = None,
        network: str = "",
        inputs: Callable[[Any], Any] | None = None,
        predictions: Predictions | None = None,
        phases: Alternation | None = None,
        multiplier: float | Schedule | PrimalDual | None = None,
        budget: float | Schedule | None = None,
        temperature: float | Schedule | None = None,
        interval: Interval = "epoch",
        name: str = "guide",
    ) -> None:
        super().__init__(multiplier, budget, temperature, phases, interval, name)
        if isinstance(teacher, str) and teacher_checkpoint is None and not teacher_pretrained:
            raise ConfigurationError(
                f"DiSK: teacher {teacher} has no trained weights; give teacher_checkpoint, or set teacher_pretrained"
            )
        if guide_lr is not None and guide_lr <= 0:
            raise ConfigurationError(f"DiSK: guide_lr is {guide_lr}; it must be above 0")
        self.needs = views_needed("disk", guide)
        check_options("disk", loss_kwargs or {})
        self.options: dict[str, Any] = {
            "teacher": teacher,
            "checkpoint": teacher_checkpoint,
            "pretrained": teacher_pretrained,
            "teacher_kwargs": teacher_kwargs or {},
            "guide": guide,
            "guide_kwargs": guide_kwargs or {},
            "loss_kwargs": loss_kwargs or {},
        }
        self.guide_lr = guide_lr
        self.network = network
        self.inputs = inputs
        self.predictions = predictions
        self._teacher: Teacher | None = None
        self._guided: GuidedDistillation | None = None
        self._tap: ViewTap | None = None
        self._borrowed: BorrowedMethods | None = None
        self._hooks: list[Any] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Build teacher and guide, and put the guide into the module, before optimiser and devices are settled."""
        if stage != "fit":
            return
        _check_others(trainer)
        super().setup(trainer, pl_module, stage)
        self._clean_up(pl_module)
        check_can_borrow(trainer, pl_module, self.network, "DiSK")
        with rng_untouched():  # what is built here must change neither the order of the data nor dropout
            self._build(pl_module)
        pl_module.add_module(self._attribute, self._guided)
        self._hooks = keep_out_of_state(pl_module, self._attribute)  # it is in the state of this callback
        average_anew(trainer, pl_module)
        self._borrowed = BorrowedMethods(pl_module)
        self._borrowed.replace("training_step", lambda inner: self._step(trainer, pl_module, inner))
        self._borrowed.replace(
            "configure_optimizers",
            lambda inner: lambda: with_guide_group(inner, pl_module, self._attribute, self.guide_lr),
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the teacher where the module is."""
        super().on_fit_start(trainer, pl_module)
        assert self._teacher is not None
        self._teacher.to(pl_module.device, cast(torch.dtype, pl_module.dtype))
        if self._tap is not None:
            self._tap.attach()

    def guided(self, module: LightningModule) -> GuidedDistillation:
        """Return the guide and its loss."""
        assert self._guided is not None
        return self._guided

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Settle whose step this is, and its numbers."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        guided = self.guided(pl_module)
        guided.phase = current_phase(trainer, self.phases, guided.learns)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Leave the weights and the momentum of the network alone whose turn it is not."""
        drop_gradients(self._resting(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """Return the guide's weights beside the schedule's state."""
        weights = {} if self._guided is None else dict(self._guided.state_dict())
        return {**super().state_dict(), "weights": weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the guide of a checkpoint."""
        super().load_state_dict(state_dict)
        if self._guided is not None and state_dict["weights"]:
            self._guided.load_state_dict(state_dict["weights"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module back as it was."""
        super().on_exception(trainer, pl_module, exception)
        self._clean_up(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module back as it was."""
        if stage == "fit":
            self._clean_up(pl_module)

    @property
    def _attribute(self) -> str:
        return f"{self.name}_of_disk"

    def _build(self, module: LightningModule) -> None:
        options = self.options
        maps = MapChoice.of(options["guide_kwargs"])
        student = ViewTap(
            module.get_submodule(self.network),
            feature_map="student_map" in self.needs,
            map_index=maps.map_index,
            map_module=maps.student_map_module,
        )
        teacher_options = dict(options["teacher_kwargs"])
        classes = teacher_options.pop("num_classes", getattr(module, "num_classes", student.num_classes))
        network = as_network(
            options["teacher"],
            "teacher",
            num_classes=classes,
            in_chans=teacher_options.pop("in_chans", getattr(module, "in_chans", 3)),
            pretrained=options["pretrained"],
            options=teacher_options,
            checkpoint=options["checkpoint"],
        )
        self._teacher = Teacher(
            network,
            features="teacher_features" in self.needs,
            feature_map="teacher_map" in self.needs,
            map_index=maps.map_index,
            map_module=maps.teacher_map_module,
        )
        guided = build_objective(
            "disk",
            options["loss_kwargs"],
            student,
            self._teacher.tap,
            num_classes=self._teacher.num_classes or classes,
            guide=options["guide"],
            guide_options=maps.rest,
        )
        assert isinstance(guided, GuidedDistillation)
        self._guided = guided
        self._tap = student if "student_map" in self.needs else None

    def _step(
        self, trainer: Trainer, module: LightningModule, inner: Callable[..., Any]
    ) -> Callable[..., dict[str, Any]]:
        def training_step(batch: Batch, *args: Any, **kwargs: Any) -> dict[str, Any]:
            guided, teacher = self._guided, self._teacher
            assert guided is not None
            assert teacher is not None
            shown = teacher(batch[0] if self.inputs is None else self.inputs(batch))
            if module.device.type == "cpu" or trainer.global_step % 50 == 0:
                teacher.check_finite(shown, f"step {trainer.global_step}")
            watches = guided.phase == "guide"
            with (
                torch.set_grad_enabled(torch.is_grad_enabled() and not watches),
                evaluating(module, but=guided) if watches else nullcontext(),
            ):
                outputs = inner(batch, *args, **kwargs)
                own, logits, target = self._read(module, batch, outputs)
            student = ModelViews(logits) if self._tap is None else self._tap.take(logits)
            terms = guided(student, shown, target, own)
            loss = take_part(trainer, terms.loss, self._resting(module))
            more = {"teacher_logits": shown.logits, "help_cost": terms.help_cost, "residual": terms.residual}
            known = dict(outputs) if isinstance(outputs, Mapping) else {}
            known |= {"loss": loss, "logits": logits.detach(), "target": target, "guide": terms.guide}
            return {**known, **more, "phase": guided.phase}

        return training_step

    def _read(self, module: LightningModule, batch: Batch, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        loss = cast(Tensor, outputs.get("loss") if isinstance(outputs, Mapping) else outputs)
        if self.predictions is not None:
            logits, target = self.predictions(module, batch, outputs)
        elif isinstance(outputs, Mapping) and {"loss", "logits", "target"} <= outputs.keys():
            logits, target = outputs["logits"], outputs["target"]
        else:
            raise ConfigurationError(
                f"DiSK: training_step of {type(module).__name__} returns {returned(outputs)}; return {{'loss', "
                "'logits', 'target'}, or pass predictions=(a function of module, batch and step output that returns "
                "logits and target)"
            )
        if torch.is_grad_enabled() and self.guided(module).phase != "guide" and not logits.requires_grad:
            raise ConfigurationError(
                f"DiSK: the logits of {type(module).__name__} come without their graph, so that the teacher cannot "
                "teach it; leave out detach() where training_step returns them"
            )
        return loss, logits, target

    def _resting(self, module: LightningModule) -> list[nn.Parameter]:
        guided = self.guided(module)
        if guided.phase == "joint":
            return []
        beside = list(guided.parameters())
        if guided.phase == "student":
            return beside
        mine = set(beside)
        return [parameter for parameter in module.parameters() if parameter not in mine]

    def _clean_up(self, module: LightningModule) -> None:
        if self._borrowed is not None:
            self._borrowed.give_back()
            for hook in self._hooks:
                hook.remove()
            module._modules.pop(self._attribute, None)
            self._borrowed, self._hooks = None, []
        if self._tap is not None:
            self._tap.detach()


def _check_others(trainer: Trainer) -> None:
    if len(callbacks_of(trainer, DiSK)) > 1:
        raise ConfigurationError("two DiSK callbacks would each take the other's loss for the module's own; use one")
    if cut := callbacks_of(trainer, ChunkedBackprop):
        raise ConfigurationError(
            f"DiSK compares the logits of whole sequences with those of a teacher, and {type(cut[0]).__name__} cuts "
            "sequences into parts, which the teacher would see without their past; leave one of the two out"
        )
