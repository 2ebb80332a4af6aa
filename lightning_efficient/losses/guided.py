"""A guide and the loss that trains it together with a student, in phases."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_efficient.functional.phases import Phase
from lightning_efficient.losses.disk import DiSKLoss
from lightning_efficient.nn.guides import Guide
from lightning_efficient.nn.views import ModelViews


class GuidedTerms(NamedTuple):
    """Scalars of a step of guided distillation, and the help of each sample, ``(N,)``; the last three are detached."""

    loss: Tensor
    supervised: Tensor
    distilled: Tensor
    help_cost: Tensor
    residual: Tensor
    guide: Tensor


class GuidedDistillation(nn.Module):
    """Scaffold a student: the guide says how much help each sample gets, the loss what that help is worth.

    ``phase`` says whom the next steps train: ``student`` (the guide is in eval mode and gets no gradient), ``guide``
    (the caller runs the student in eval mode without gradients), or ``joint``.

    Args:
        guide: The network that helps; used in training only.
        loss: The scaffolded loss with its budget.

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """

    def __init__(self, guide: Guide, loss: DiSKLoss) -> None:
        super().__init__()
        self.guide = guide
        self.loss = loss
        self.phase: Phase = "joint"

    @property
    def learns(self) -> bool:
        """Whether the guide has parameters; a constant one has none and needs no phase of its own."""
        return any(parameter.requires_grad for parameter in self.guide.parameters())

    def forward(
        self, student: ModelViews, teacher: ModelViews, target: Tensor, supervised: Tensor | None = None
    ) -> GuidedTerms:
        """Return the loss of the phase and what there is to watch.

        Args:
            student: What the student shows of a batch.
            teacher: What the teacher shows of it, without gradients.
            target: Classes, int64 ``(N,)``.
            supervised: A scalar loss of one's own in place of the cross-entropy with the target.
        """
        trains = self.phase != "student"
        if self.guide.training != trains:
            self.guide.train(trains)
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            guide = self.guide(teacher, student)
        terms = self.loss(student.logits, teacher.logits, target, guide, self.phase, supervised)
        watched = (each.detach() for each in (terms.help_cost, terms.residual, guide))
        return GuidedTerms(terms.loss, terms.supervised, terms.scaffolded, *watched)
