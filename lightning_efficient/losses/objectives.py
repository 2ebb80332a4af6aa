"""Distillation objectives by name, built for a student and a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.losses._options import check_option_names
from lightning_efficient.losses.disk import DiSKLoss
from lightning_efficient.losses.distillation import (
    CrossEntropyObjective,
    DecoupledDistillation,
    FeatureDistillation,
    KnowledgeDistillation,
)
from lightning_efficient.losses.guided import GuidedDistillation
from lightning_efficient.nn.guides import ConstantGuide, Guide, build_guide, guide_needs
from lightning_efficient.nn.views import ViewTap

Objective = Literal["ce", "kd", "dkd", "feature", "disk"]

_LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "ce": CrossEntropyObjective,
    "kd": KnowledgeDistillation,
    "dkd": DecoupledDistillation,
    "feature": FeatureDistillation,
    "disk": DiSKLoss,
}
_SIZES = ("student_dim", "teacher_dim")


def views_needed(objective: Objective, guide: float | str | Guide) -> frozenset[str]:
    """Return what an objective looks at beside the logits of the student.

    Any of ``teacher``, ``teacher_features``, ``teacher_map``, ``student_features``, ``student_map``.

    Raises:
        ConfigurationError: an unknown objective or guide.

    Example:
        >>> sorted(views_needed("feature", "constant"))
        ['student_features', 'teacher', 'teacher_features']
    """
    check_choice("model.objective", objective, get_args(Objective))
    if objective == "ce":
        return frozenset()
    if objective == "feature":
        return frozenset({"teacher", "teacher_features", "student_features"})
    if objective != "disk":
        return frozenset({"teacher"})
    if isinstance(guide, int | float):
        check_fraction("model.guide", guide, zero=True)
        return frozenset({"teacher"})
    return frozenset({"teacher"}) | (guide.needs if isinstance(guide, Guide) else guide_needs(guide))


def check_options(objective: Objective, options: Mapping[str, Any]) -> None:
    """Raise for an option that the objective does not have, before anything is built."""
    check_option_names(objective, options, _LOSSES[objective], _SIZES)


def build_objective(
    objective: Objective,
    options: Mapping[str, Any],
    student: ViewTap,
    teacher: ViewTap | None,
    num_classes: int,
    guide: float | str | Guide = "teacher_features",
    guide_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build an objective that is called with the views of student and teacher and the target.

    Args:
        objective: Which one.
        options: Its keyword arguments.
        student: Says how large the student's views are.
        teacher: Says how large the teacher's views are; not needed for ``ce``.
        num_classes: Number of classes.
        guide: For ``disk``: what the guide looks at, a constant in [0, 1], or a guide.
        guide_options: Keyword arguments of the guide.

    Raises:
        ConfigurationError: an option that does not exist or has a value that cannot work.
    """
    check_options(objective, options)
    if objective == "ce":
        return CrossEntropyObjective(**options)
    if teacher is None:
        raise ConfigurationError(f"model.objective {objective!r} needs a teacher; give model.teacher")
    if objective == "feature":
        sizes = {"student_dim": student.feature_dim, "teacher_dim": teacher.feature_dim}
        return FeatureDistillation(**sizes, **options)  # type: ignore[arg-type]
    if objective != "disk":
        return _LOSSES[objective](**options)
    loss = DiSKLoss(**options)
    if loss.support == "topk" and loss.top_k > num_classes:
        raise ConfigurationError(
            f"model.objective_kwargs: top_k is {loss.top_k}, but there are {num_classes} classes; set top_k to "
            f"{num_classes} or less"
        )
    if isinstance(guide, int | float):
        return GuidedDistillation(ConstantGuide(float(guide)), loss)
    built = (
        guide
        if isinstance(guide, Guide)
        else build_guide(guide, teacher, student, num_classes, **(guide_options or {}))
    )
    return GuidedDistillation(built, loss)
