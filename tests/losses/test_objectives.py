from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.losses.distillation import (
    CrossEntropyObjective,
    DecoupledDistillation,
    FeatureDistillation,
    KnowledgeDistillation,
)
from lightning_efficient.losses.guided import GuidedDistillation
from lightning_efficient.losses.objectives import build_objective, check_options, views_needed
from lightning_efficient.nn.guides import ConstantGuide, FeaturesGuide, LogitsGuide
from lightning_efficient.nn.views import ViewTap


def taps() -> tuple[ViewTap, ViewTap]:
    return ViewTap(nn.Linear(3, 4), features=True), ViewTap(nn.Linear(7, 4), features=True)


def build(objective: Any, options: dict[str, Any] | None = None, **more: Any) -> nn.Module:
    student, teacher = taps()
    return build_objective(objective, options or {}, student, teacher, 4, **more)


@pytest.mark.parametrize(
    ("objective", "guide", "needed"),
    [
        ("ce", "teacher_map", set()),
        ("kd", "teacher_map", {"teacher"}),
        ("dkd", 0.1, {"teacher"}),
        ("feature", "teacher_map", {"teacher", "teacher_features", "student_features"}),
        ("disk", 0.1, {"teacher"}),
        ("disk", 1, {"teacher"}),
        ("disk", "teacher_logits", {"teacher"}),
        ("disk", "teacher_features", {"teacher", "teacher_features"}),
        ("disk", "both_maps", {"teacher", "teacher_map", "student_map"}),
        ("disk", FeaturesGuide(7), {"teacher", "teacher_features"}),
    ],
)
def test_an_objective_says_what_it_looks_at(objective: Any, guide: Any, needed: set[str]) -> None:
    assert views_needed(objective, guide) == needed


@pytest.mark.parametrize(
    ("objective", "options", "kind"),
    [
        ("ce", {"label_smoothing": 0.2}, CrossEntropyObjective),
        ("kd", {"temperature": 2.0, "weight": 0.5}, KnowledgeDistillation),
        ("dkd", {"other_weight": 2.0}, DecoupledDistillation),
        ("feature", {"kind": "cosine"}, FeatureDistillation),
    ],
)
def test_options_reach_the_objective_of_that_name(objective: Any, options: dict[str, Any], kind: type) -> None:
    module = build(objective, options)
    assert type(module) is kind
    assert {name: getattr(module, name) for name in options} == options


def test_the_projector_goes_from_the_students_features_to_the_teachers() -> None:
    projector = build("feature").projector
    assert (projector.in_features, projector.out_features) == (3, 7)


def test_disk_gets_its_guide_by_name_by_value_or_as_it_is() -> None:
    named = build("disk", {"top_k": 2, "budget": 0.3}, guide="teacher_features", guide_options={"hidden": [5]})
    assert isinstance(named, GuidedDistillation)
    assert [tuple(p.shape) for p in named.guide.parameters() if p.ndim == 2] == [(5, 7), (1, 5)]
    assert (named.loss.top_k, named.loss.budget) == (2, 0.3)
    constant = build("disk", {"top_k": 2}, guide=1).guide
    assert isinstance(constant, ConstantGuide)
    assert constant.value == 1.0
    own = LogitsGuide(4)
    assert build("disk", {"top_k": 2}, guide=own).guide is own


@pytest.mark.parametrize(
    ("objective", "options", "more", "message"),
    [
        ("disk", {"top_k": 5}, {}, r"top_k is 5, but there are 4 classes; set top_k to 4 or less"),
        ("disk", {"top_k": 2, "budget": -0.1}, {}, r"budget=-0.1"),
        ("disk", {"top_k": 2, "budgett": 1}, {}, r"no option 'budgett'.*Did you mean 'budget'"),
        ("disk", {"top_k": 2}, {"guide": 1.5}, r"value=1.5"),
        ("disk", {"top_k": 2}, {"guide_options": {"widht": 3}}, r"no option 'widht'; it has"),
        ("kd", {"temprature": 1}, {}, r"'kd' has no option 'temprature'.*Did you mean 'temperature'"),
        ("feature", {"student_dim": 3}, {}, r"'feature' has no option 'student_dim'; it has weight"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(
    objective: Any, options: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        build(objective, options, **more)
    assert "\n" not in str(error.value)


def test_all_classes_as_support_need_no_top_k_below_their_number() -> None:
    assert build("disk", {"top_k": 10, "support": "all"}, guide=0.1).loss.support == "all"


def test_misspelt_names_get_a_suggestion() -> None:
    with pytest.raises(ConfigurationError, match=r"model.objective.*'featur'.*Did you mean 'feature'"):
        views_needed("featur", 0.1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"guide.*'teacher_map' or|Did you mean 'teacher_map'"):
        views_needed("disk", "teachermap")
    with pytest.raises(ConfigurationError, match="has no option"):
        check_options("ce", {"temperature": 1.0})


def test_no_teacher_is_needed_for_cross_entropy_only() -> None:
    student, _ = taps()
    assert isinstance(build_objective("ce", {}, student, None, 4), CrossEntropyObjective)
    with pytest.raises(ConfigurationError, match=r"model.objective 'kd' needs a teacher; give model.teacher"):
        build_objective("kd", {}, student, None, 4)


def test_the_order_of_random_numbers_is_that_of_the_guide_alone() -> None:
    torch.manual_seed(3)
    built = build("disk", {"top_k": 2}, guide="teacher_logits")
    torch.manual_seed(3)
    taps()
    alone = LogitsGuide(4)
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), alone.parameters(), strict=True))
