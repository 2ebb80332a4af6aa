"""Objectives that a student can learn with, all called alike: what it shows, what its teacher shows, and the target."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_positive
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.distillation import (
    decoupled_kl,
    distillation_kl,
    feature_distance,
)
from lightning_efficient.losses._options import check_below_one, check_weight
from lightning_efficient.nn.views import ModelViews


class ObjectiveTerms(NamedTuple):
    """The loss and its two terms, scalars in nats, weighted as they enter the loss."""

    loss: Tensor
    supervised: Tensor
    distilled: Tensor
    """0 where there is no teacher."""


class CrossEntropyObjective(nn.Module):
    """Cross-entropy with the target; the teacher is ignored.

    Args:
        label_smoothing: In ``[0, 1)``.

    Raises:
        ConfigurationError: ``label_smoothing`` is outside its range.

    Example:
        >>> import torch
        >>> CrossEntropyObjective()(ModelViews(torch.zeros(1, 2)), None, torch.tensor([1])).loss
        tensor(0.6931)
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_below_one("label_smoothing", label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, student: ModelViews, teacher: ModelViews | None, target: Tensor) -> ObjectiveTerms:
        """Return the loss; ``target`` has class indices ``(N,)`` or probabilities ``(N, C)``."""
        supervised = _cross_entropy(student, target, self.label_smoothing)
        return ObjectiveTerms(supervised, supervised, supervised.new_zeros(()))


class KnowledgeDistillation(nn.Module):
    """Cross-entropy with the target, and divergence from the teacher's softened probabilities.

    Args:
        temperature: Of both networks, above 0.
        weight: Weight of ``T² KL(teacher ‖ student)``.
        supervised_weight: Weight of the cross-entropy.
        label_smoothing: Of the cross-entropy, in ``[0, 1)``.

    Raises:
        ConfigurationError: an option outside its range.

    Example:
        >>> import torch
        >>> student, teacher = ModelViews(torch.zeros(1, 2)), ModelViews(torch.tensor([[4.0, 0.0]]))
        >>> KnowledgeDistillation()(student, teacher, torch.tensor([0])).loss
        tensor(1.6669)

    Reference:
        Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. 2015.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        weight: float = 0.9,
        supervised_weight: float = 0.1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_weight("weight", weight)
        check_weight("supervised_weight", supervised_weight)
        check_below_one("label_smoothing", label_smoothing)
        self.temperature, self.weight = temperature, weight
        self.supervised_weight, self.label_smoothing = supervised_weight, label_smoothing

    def forward(self, student: ModelViews, teacher: ModelViews | None, target: Tensor) -> ObjectiveTerms:
        """Return the loss; ``target`` has class indices ``(N,)`` or probabilities ``(N, C)``.

        Raises:
            ConfigurationError: there is no teacher, or it has other classes.
        """
        teacher_logits = _present(teacher, "KnowledgeDistillation").logits.detach()
        distance = distillation_kl(student.logits, teacher_logits, student_temperature=self.temperature)
        supervised = self.supervised_weight * _cross_entropy(student, target, self.label_smoothing)
        distilled = self.weight * distance.mean()
        return ObjectiveTerms(supervised + distilled, supervised, distilled)


class DecoupledDistillation(nn.Module):
    """Cross-entropy with the label, and the two parts of the divergence from the teacher with weights of their own.

    Attributes:
        scale: Factor of both parts, 1 at first. The released code raises it from 0 to 1 over the first 20 epochs,
            which a caller does by setting it.

    Args:
        temperature: Of both networks, above 0.
        target_weight: ``α``, weight of the part about the label's class.
        other_weight: ``β``, weight of the part among the other classes.
        supervised_weight: Weight of the cross-entropy.

    Raises:
        ConfigurationError: an option outside its range.

    Example:
        >>> import torch
        >>> student, teacher = ModelViews(torch.zeros(1, 3)), ModelViews(torch.tensor([[0.0, 4.0, 0.0]]))
        >>> DecoupledDistillation()(student, teacher, torch.tensor([0])).loss
        tensor(15.8731)

    Reference:
        Zhao, Cui, Song, Qiu, Liang. Decoupled Knowledge Distillation. CVPR 2022.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        target_weight: float = 1.0,
        other_weight: float = 8.0,
        supervised_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_weight("target_weight", target_weight)
        check_weight("other_weight", other_weight)
        check_weight("supervised_weight", supervised_weight)
        self.temperature, self.target_weight, self.other_weight = temperature, target_weight, other_weight
        self.supervised_weight = supervised_weight
        self.scale = 1.0

    def forward(self, student: ModelViews, teacher: ModelViews | None, target: Tensor) -> ObjectiveTerms:
        """Return the loss; ``target`` has class indices ``(N,)``.

        Raises:
            ConfigurationError: there is no teacher, it has other classes, or ``target`` is soft.
        """
        teacher_logits = _present(teacher, "DecoupledDistillation").logits.detach()
        about_target, others = decoupled_kl(student.logits, teacher_logits, target, temperature=self.temperature)
        supervised = self.supervised_weight * _cross_entropy(student, target, 0.0)
        distilled = self.scale * (self.target_weight * about_target + self.other_weight * others).mean()
        return ObjectiveTerms(supervised + distilled, supervised, distilled)


class FeatureDistillation(nn.Module):
    """Cross-entropy with the target, and distance of the student's features, through a projector, from the teacher's.

    The linear projector is trained with the student: its parameters belong into the optimiser.

    Args:
        student_dim: Number of the student's features.
        teacher_dim: Number of the teacher's features.
        weight: Weight of the distance.
        supervised_weight: Weight of the cross-entropy.
        kind: ``mse`` or ``cosine``; see :func:`~lightning_efficient.functional.distillation.feature_distance`.

    Raises:
        ConfigurationError: an option outside its range.

    Example:
        >>> import torch
        >>> objective = FeatureDistillation(student_dim=2, teacher_dim=3)
        >>> _ = nn.init.zeros_(objective.projector.weight), nn.init.zeros_(objective.projector.bias)
        >>> student = ModelViews(torch.zeros(1, 2), features=torch.ones(1, 2))
        >>> teacher = ModelViews(torch.zeros(1, 2), features=torch.ones(1, 3))
        >>> objective(student, teacher, torch.tensor([0])).distilled.item()
        1.0

    Reference:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio. FitNets: Hints for Thin Deep Nets. ICLR 2015.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        weight: float = 1.0,
        supervised_weight: float = 1.0,
        kind: Literal["mse", "cosine"] = "mse",
    ) -> None:
        super().__init__()
        check_positive("student_dim", student_dim)
        check_positive("teacher_dim", teacher_dim)
        check_weight("weight", weight)
        check_weight("supervised_weight", supervised_weight)
        check_choice("kind", kind, ("mse", "cosine"))
        self.weight, self.supervised_weight, self.kind = weight, supervised_weight, kind
        self.projector = nn.Linear(student_dim, teacher_dim)

    def forward(self, student: ModelViews, teacher: ModelViews | None, target: Tensor) -> ObjectiveTerms:
        """Return the loss; ``target`` has class indices ``(N,)`` or probabilities ``(N, C)``.

        Raises:
            ConfigurationError: there is no teacher, or either network shows no features or another number of them.
        """
        wanted = _features(_present(teacher, "FeatureDistillation"), "teacher", self.projector.out_features).detach()
        features = _features(student, "student", self.projector.in_features)
        projected = self.projector(features.to(self.projector.weight.dtype))
        supervised = self.supervised_weight * _cross_entropy(student, target, 0.0)
        distilled = self.weight * feature_distance(projected, wanted, kind=self.kind).mean()
        return ObjectiveTerms(supervised + distilled, supervised, distilled)


def _cross_entropy(student: ModelViews, target: Tensor, label_smoothing: float) -> Tensor:
    target = at_least_float32(target) if target.is_floating_point() else target.long()
    return F.cross_entropy(at_least_float32(student.logits), target, label_smoothing=label_smoothing)


def _present(teacher: ModelViews | None, objective: str) -> ModelViews:
    if teacher is None:
        raise ConfigurationError(f"{objective} needs a teacher and got none; CrossEntropyObjective works without one.")
    return teacher


def _features(views: ModelViews, whose: str, dim: int) -> Tensor:
    if views.features is None:
        raise ConfigurationError(f"FeatureDistillation needs the {whose}'s features and got none; tap its features.")
    if views.features.shape[1:] != (dim,):
        raise ConfigurationError(
            f"the {whose}'s features have shape {tuple(views.features.shape)}; FeatureDistillation was made with "
            f"{whose}_dim={dim}."
        )
    return views.features
