"""The objective of DiSK: a student's scaffolded loss, and the price of the help that its guide gives."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_positive
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.disk import (
    check_help,
    check_max_cost,
    help_cost,
    help_normalizer,
    mean_help_cost,
    scaffolded_nll,
    support_mask,
    teacher_mass,
)
from lightning_efficient.functional.distillation import check_class_indices, check_same_classes
from lightning_efficient.functional.phases import Phase
from lightning_efficient.losses._options import check_below_one, check_weight


class DiSKTerms(NamedTuple):
    """The loss and its terms, scalars in nats; the first four are weighted as they enter the loss."""

    loss: Tensor
    supervised: Tensor
    scaffolded: Tensor
    normalizer: Tensor
    """In the student's phase a value to watch that the loss does not have; 0 where the option is off."""
    help_cost: Tensor
    residual: Tensor
    """Cost of help minus budget: above 0 where too much is given."""


class DiSKLoss(nn.Module):
    """Distillation in which a guide may help on samples that are too hard, within a budget.

    ``supervised_weight · CE + scaffold_weight · (T_s T_t · scaffolded NLL + normaliser) + multiplier · V``, where ``V``
    is what the cost of help exceeds the budget by. The student's phase leaves out the normaliser and ``V``; the
    guide's phase has all terms and no gradient for the student; the joint phase has all terms and gradients for both.
    The defaults are those of the released code for CIFAR-100, without its schedules: ``multiplier``, ``budget``,
    ``student_temperature``, ``teacher_temperature`` and ``signed`` are plain attributes to set between steps. Costs a
    few operations on ``(N, C)`` tensors; counts of wrong samples are those of the process's own batch.

    Args:
        top_k: ``K``, how many of the teacher's best classes are compared, beside the label.
        student_temperature: ``T_s``, above 0.
        teacher_temperature: ``T_t``, above 0.
        supervised_weight: Weight of the cross-entropy with the label.
        scaffold_weight: Weight of the scaffolded term and of the normaliser.
        label_smoothing: Of the cross-entropy, in ``[0, 1)``.
        multiplier: ``λ``, price of exceeding the budget, 0 or more.
        budget: ``δ``, allowed cost of help, nats, 0 or more.
        max_cost: Largest loss of the student that counts in the cost of help, nats; ``inf`` for none.
        support: ``topk`` as released, or ``all`` classes, as the paper's poster draws it.
        fill: What stands for the teacher's logits outside the support; see
            :func:`~lightning_efficient.functional.disk.teacher_mass`.
        cost_target: Class whose loss the cost of help takes: the ``teacher``'s choice as released, or the ``label``.
        budget_norm: Divide the cost by how many samples the student gets ``wrong`` as released, or by the ``batch``.
        normalizer: Whether ``log(1 + K g)`` is charged; the released code for ImageNet does not.
        scale_normalizer: Whether the normaliser gets the factor that the scaffolded term has, usually ``T_s T_t``.
        guide_nll_scale: Factor of the scaffolded term in the guide's phase: ``T_s T_t`` with ``temperature`` as
            released, or ``one``, which keeps guides of small problems from saturating at full help.
        signed: Whether help below the budget earns a reward, so that a multiplier can also be found by dual descent;
            else only exceeding it counts.
        budget_in_student_phase: Whether the student's phase keeps the normaliser and ``V``, which then pushes the
            student to need less help.

    Raises:
        ConfigurationError: an option outside its range.

    Example:
        >>> objective = DiSKLoss(top_k=1, student_temperature=1.0, teacher_temperature=1.0)
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, -4.0]])
        >>> terms = objective(student, teacher, torch.tensor([0]), torch.tensor([0.5]), phase="student")
        >>> terms.loss, terms.help_cost
        (tensor(0.0693), tensor(0.3466))

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023, and its released code.
    """

    def __init__(
        self,
        *,
        top_k: int = 10,
        student_temperature: float = 3.5,
        teacher_temperature: float = 4.0,
        supervised_weight: float = 0.1,
        scaffold_weight: float = 0.9,
        label_smoothing: float = 0.0,
        multiplier: float = 1.0,
        budget: float = 0.5,
        max_cost: float = 5.0,
        support: Literal["topk", "all"] = "topk",
        fill: Literal["minimum", "zero"] = "minimum",
        cost_target: Literal["teacher", "label"] = "teacher",
        budget_norm: Literal["wrong", "batch"] = "wrong",
        normalizer: bool = True,
        scale_normalizer: bool = False,
        guide_nll_scale: Literal["temperature", "one"] = "temperature",
        signed: bool = False,
        budget_in_student_phase: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(top_k, int) or top_k < 1:
            raise ConfigurationError(f"top_k={top_k!r} must be a whole number of 1 or more.")
        check_positive("student_temperature", student_temperature)
        check_positive("teacher_temperature", teacher_temperature)
        check_weight("supervised_weight", supervised_weight)
        check_weight("scaffold_weight", scaffold_weight)
        check_below_one("label_smoothing", label_smoothing)
        check_weight("multiplier", multiplier)
        if not 0 <= budget < float("inf"):
            raise ConfigurationError(
                f"budget={budget!r} must be a finite number, 0 or more; help costs 0 at least, so that a negative "
                "budget can never be met."
            )
        check_max_cost(max_cost)
        check_choice("support", support, ("topk", "all"))
        check_choice("fill", fill, ("minimum", "zero"))
        check_choice("cost_target", cost_target, ("teacher", "label"))
        check_choice("budget_norm", budget_norm, ("wrong", "batch"))
        check_choice("guide_nll_scale", guide_nll_scale, ("temperature", "one"))
        self.top_k = top_k
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.supervised_weight, self.scaffold_weight = supervised_weight, scaffold_weight
        self.label_smoothing = label_smoothing
        self.multiplier, self.budget, self.max_cost = multiplier, budget, max_cost
        self.support, self.fill, self.cost_target, self.budget_norm = support, fill, cost_target, budget_norm
        self.normalizer, self.scale_normalizer, self.guide_nll_scale = normalizer, scale_normalizer, guide_nll_scale
        self.signed, self.budget_in_student_phase = signed, budget_in_student_phase

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        guide: Tensor,
        phase: Phase = "joint",
        supervised: Tensor | None = None,
    ) -> DiSKTerms:
        """Return the loss of a batch and its terms.

        Args:
            student_logits: Class scores, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
            teacher_logits: Class scores, shape ``(N, C)``; they get no gradient.
            target: Classes, integers of shape ``(N,)``.
            guide: Help, shape ``(N,)``, in ``[0, 1]``.
            phase: Who learns: ``student``, ``guide`` or both, ``joint``. The other gets no gradient.
            supervised: A scalar loss to use in place of the cross-entropy with the label.

        Raises:
            ConfigurationError: student and teacher have different classes, a shape does not fit, ``target`` is soft,
                there are fewer classes than ``top_k``, or ``phase`` is another word.
        """
        check_choice("phase", phase, get_args(Phase))
        check_same_classes(student_logits, teacher_logits)
        check_class_indices(student_logits, target)
        check_help(student_logits, guide)
        student, teacher, target = at_least_float32(student_logits), teacher_logits.detach(), target.long()
        if phase == "guide":
            student = student.detach()
            supervised = None if supervised is None else supervised.detach()
        if phase == "student":
            guide = guide.detach()

        if supervised is None:
            supervised = F.cross_entropy(student, target, label_smoothing=self.label_smoothing)
        supervised = self.supervised_weight * supervised
        scale = self.student_temperature * self.teacher_temperature
        if phase == "guide" and self.guide_nll_scale == "one":
            scale = 1.0
        scaffolded = self.scaffold_weight * scale * self._scaffolded(student, teacher, target, guide).mean()
        loss = supervised + scaffolded

        charged = phase != "student" or self.budget_in_student_phase
        with torch.set_grad_enabled(charged and torch.is_grad_enabled()):
            normalizer = scaffolded.new_zeros(())
            if self.normalizer:
                helped = self.top_k if self.support == "topk" else student.shape[1]
                weight = self.scaffold_weight * (scale if self.scale_normalizer else 1.0)
                normalizer = weight * help_normalizer(guide, helped).mean()
            cost = self._help_cost(student, teacher, target, guide)
            residual = cost - self.budget
        if charged:
            loss = loss + normalizer + self.multiplier * (residual if self.signed else residual.relu())
        return DiSKTerms(loss, supervised, scaffolded, normalizer, cost, residual)

    def _scaffolded(self, student: Tensor, teacher: Tensor, target: Tensor, guide: Tensor) -> Tensor:
        if self.support == "topk":
            support = support_mask(teacher, target, self.top_k)
        else:
            support = torch.ones_like(teacher, dtype=torch.bool)
        mass = teacher_mass(teacher, support, temperature=self.teacher_temperature, fill=self.fill)
        return scaffolded_nll(student, mass, support, guide, temperature=self.student_temperature)

    def _help_cost(self, student: Tensor, teacher: Tensor, target: Tensor, guide: Tensor) -> Tensor:
        label = teacher.argmax(1) if self.cost_target == "teacher" else target
        cost = help_cost(student, guide, label, max_cost=self.max_cost)
        return mean_help_cost(cost, student.argmax(1) != target if self.budget_norm == "wrong" else None)
