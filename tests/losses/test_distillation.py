from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.distillation import decoupled_kl
from lightning_efficient.losses.distillation import (
    CrossEntropyObjective,
    DecoupledDistillation,
    FeatureDistillation,
    KnowledgeDistillation,
    ObjectiveTerms,
)
from lightning_efficient.nn.views import ModelViews

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "disk.npz")
CLOSE = {"rtol": 0, "atol": 1e-10}

OBJECTIVES: dict[str, Callable[[], nn.Module]] = {
    "cross_entropy": CrossEntropyObjective,
    "distillation": KnowledgeDistillation,
    "decoupled": DecoupledDistillation,
    "features": lambda: FeatureDistillation(student_dim=3, teacher_dim=5),
}


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def batch_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[ModelViews, ModelViews, Tensor]:
    torch.manual_seed(seed)
    student = ModelViews(torch.randn(4, 6).to(dtype).requires_grad_(), torch.randn(4, 3).to(dtype).requires_grad_())
    teacher = ModelViews(torch.randn(4, 6).to(dtype), torch.randn(4, 5).to(dtype))
    return student, teacher, torch.randint(0, 6, (4,))


def test_the_baselines_are_those_of_the_released_disk_code() -> None:
    student, teacher, target = ModelViews(array("in_s_logits")), ModelViews(array("in_t_logits")), array("in_y")
    terms = KnowledgeDistillation(temperature=1.0, weight=0.5, supervised_weight=0.5, label_smoothing=0.1)(
        student, teacher, target
    )
    torch.testing.assert_close(terms.supervised, 0.5 * array("im_ce_ls"), **CLOSE)
    torch.testing.assert_close(terms.distilled, 0.5 * array("im_kd"), **CLOSE)
    smoothed = CrossEntropyObjective(label_smoothing=0.1)(student, None, target)
    torch.testing.assert_close(smoothed.loss, array("im_ce_ls"), **CLOSE)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_the_sum_of_its_terms_and_gives_teachers_no_gradient(name: str) -> None:
    student, teacher, target = batch_of()
    teacher = ModelViews(teacher.logits.requires_grad_(), teacher.features.requires_grad_())
    terms = OBJECTIVES[name]()(student, teacher, target)
    torch.testing.assert_close(terms.loss, terms.supervised + terms.distilled)
    of_student, *of_teacher = torch.autograd.grad(terms.loss, (student.logits, *teacher[:2]), allow_unused=True)
    assert of_student.abs().sum() > 0
    assert of_teacher == [None, None]


def test_without_a_teacher_there_is_nothing_distilled() -> None:
    student, _, target = batch_of()
    terms = CrossEntropyObjective()(student, None, target)
    torch.testing.assert_close(terms.loss, F.cross_entropy(student.logits, target))
    assert terms == ObjectiveTerms(terms.loss, terms.loss, torch.zeros(()))


def test_distillation_is_that_of_torch() -> None:
    student, teacher, target = batch_of()
    terms = KnowledgeDistillation(temperature=2.0, weight=0.7, supervised_weight=0.3)(student, teacher, target)
    kl = F.kl_div((student.logits / 2).log_softmax(1), (teacher.logits / 2).softmax(1), reduction="batchmean")
    torch.testing.assert_close(terms.distilled, 0.7 * 4 * kl)
    torch.testing.assert_close(terms.supervised, 0.3 * F.cross_entropy(student.logits, target))


def test_decoupled_distillation_weighs_its_parts_and_can_be_raised_slowly() -> None:
    student, teacher, target = batch_of()
    objective = DecoupledDistillation(temperature=2.0, target_weight=0.5, other_weight=3.0)
    about_target, others = decoupled_kl(student.logits, teacher.logits, target, temperature=2.0)
    full = objective(student, teacher, target)
    torch.testing.assert_close(full.distilled, (0.5 * about_target + 3.0 * others).mean())
    objective.scale = 0.25
    part = objective(student, teacher, target)
    torch.testing.assert_close(part.distilled, full.distilled / 4)
    torch.testing.assert_close(part.supervised, full.supervised)


def test_features_are_compared_through_a_projector_that_learns() -> None:
    student, teacher, target = batch_of()
    for kind in ("mse", "cosine"):
        objective = FeatureDistillation(3, 5, weight=2.0, supervised_weight=0.5, kind=kind)
        terms = objective(student, teacher, target)
        projected = objective.projector(student.features)
        distance = F.mse_loss(projected, teacher.features)
        if kind == "cosine":
            distance = 1 - F.cosine_similarity(projected, teacher.features).mean()
        torch.testing.assert_close(terms.distilled, 2 * distance)
        gradients = torch.autograd.grad(terms.distilled, [student.features, *objective.parameters()])
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
        assert set(objective.state_dict()) == {"projector.weight", "projector.bias"}


@pytest.mark.parametrize("name", ["cross_entropy", "distillation", "features"])
def test_soft_targets_of_one_class_are_like_its_index(name: str) -> None:
    student, teacher, target = batch_of()
    objective = OBJECTIVES[name]()
    soft = F.one_hot(target, 6).float()
    torch.testing.assert_close(objective(student, teacher, soft).loss, objective(student, teacher, target).loss)
    torch.testing.assert_close(objective(student, teacher, target.int()).loss, objective(student, teacher, target).loss)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher, target = batch_of(dtype=dtype)
    objective = OBJECTIVES[name]()
    terms = objective(student, teacher, target)
    exact = objective.double()(
        *(ModelViews(one.logits.double(), one.features.double()) for one in (student, teacher)), target
    )
    for one, other in zip(terms, exact, strict=True):
        assert one.dtype is torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_autocast_touches_the_projector_only(name: str) -> None:
    student, teacher, target = batch_of()
    objective = OBJECTIVES[name]()
    plain = objective(student, teacher, target)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(student, teacher, target)
    tolerance = {"rtol": 2e-2, "atol": 1e-2} if name == "features" else {"rtol": 0, "atol": 0}
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropyObjective(label_smoothing=1.5), r"label_smoothing=1.5 is outside \[0, 1\)"),
        (lambda: KnowledgeDistillation(temperature=0), "temperature=0"),
        (lambda: KnowledgeDistillation(weight=-1), "weight=-1"),
        (lambda: KnowledgeDistillation(label_smoothing=-0.1), "label_smoothing=-0.1"),
        (lambda: DecoupledDistillation(target_weight=-1), "target_weight=-1"),
        (lambda: DecoupledDistillation(other_weight=float("nan")), "other_weight=nan"),
        (lambda: FeatureDistillation(0, 5), "student_dim=0"),
        (lambda: FeatureDistillation(3, 5, kind="mes"), "Did you mean 'mse'"),
    ],
)
def test_options_that_cannot_work_are_named(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_views_that_do_not_fit_are_named() -> None:
    student, teacher, target = batch_of()
    for name in ("distillation", "decoupled", "features"):
        with pytest.raises(ConfigurationError, match="needs a teacher and got none"):
            OBJECTIVES[name]()(student, None, target)
    for name in ("distillation", "decoupled"):
        with pytest.raises(ConfigurationError, match="the student has 6 classes and the teacher 4"):
            OBJECTIVES[name]()(student, ModelViews(teacher.logits[:, :4]), target)
    with pytest.raises(ConfigurationError, match="soft targets"):
        DecoupledDistillation()(student, teacher, teacher.logits.softmax(1))
    features = OBJECTIVES["features"]()
    with pytest.raises(ConfigurationError, match="needs the teacher's features and got none"):
        features(student, ModelViews(teacher.logits), target)
    with pytest.raises(ConfigurationError, match=r"the student's features have shape \(4, 5\).*student_dim=3"):
        features(ModelViews(student.logits, teacher.features), teacher, target)
