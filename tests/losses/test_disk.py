"""The objective of DiSK against the totals of the released code, and who learns in which phase."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.losses.disk import DiSKLoss, DiSKTerms

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "disk.npz")
CLOSE = {"rtol": 0, "atol": 1e-10}


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


RELEASED: dict[str, Any] = {
    "top_k": 3,
    "multiplier": array("pen24_lambda").item(),
    "budget": array("pen24_delta").item(),
}
IMAGENET: dict[str, Any] = {
    "top_k": 4,
    "student_temperature": 1.0,
    "teacher_temperature": 1.0,
    "supervised_weight": 0.5,
    "scaffold_weight": 0.5,
    "label_smoothing": 0.1,
    "multiplier": array("im_sched_lambda")[7].item(),
    "budget": 0.2,
    "max_cost": 2.0,
    "normalizer": False,
}


class Batch:
    """The inputs of the golden file, with leaves that collect gradients."""

    def __init__(self) -> None:
        self.student = array("in_s_logits").requires_grad_()
        self.teacher, self.target = array("in_t_logits"), array("in_y")
        self.guide_logits = array("in_gate_logits").requires_grad_()
        self.guide = self.guide_logits.sigmoid().squeeze(1)

    def terms(self, objective: DiSKLoss, phase: str = "joint", **more: Any) -> DiSKTerms:
        return objective(self.student, self.teacher, self.target, self.guide, phase, **more)

    def gradients(self, loss: Tensor) -> tuple[Tensor | None, Tensor | None]:
        of_student, of_guide = torch.autograd.grad(
            loss, (self.student, self.guide_logits), allow_unused=True, retain_graph=True
        )
        return of_student, of_guide


@pytest.mark.parametrize(
    ("penalty", "options"), [("pen24", {}), ("pen25", {"cost_target": "label", "normalizer": False})]
)
def test_the_price_of_help_is_that_of_the_released_code(penalty: str, options: dict[str, Any]) -> None:
    batch = Batch()
    terms = batch.terms(DiSKLoss(**RELEASED, **options))
    price = terms.loss - terms.supervised - terms.scaffolded
    torch.testing.assert_close(terms.residual, array(f"{penalty}_reg"), **CLOSE)
    torch.testing.assert_close(price, array(f"{penalty}_loss"), **CLOSE)
    of_student, of_guide = torch.autograd.grad(price, (batch.student, batch.guide))
    torch.testing.assert_close(of_student, array(f"{penalty}_grad_s"), **CLOSE)
    torch.testing.assert_close(of_guide, array(f"{penalty}_grad_gate").squeeze(1), **CLOSE)


@pytest.mark.parametrize(
    ("phase", "golden", "options"),
    [
        ("student", "student", {}),
        ("guide", "gating", {}),
        ("joint", "joint", {}),
        ("student", "student_keepbudget", {"budget_in_student_phase": True}),
    ],
)
def test_each_phase_is_that_of_the_released_code(phase: str, golden: str, options: dict[str, Any]) -> None:
    batch = Batch()
    terms = batch.terms(DiSKLoss(**RELEASED, **options), phase)
    torch.testing.assert_close(terms.loss, array(f"{golden}_total"), **CLOSE)
    torch.testing.assert_close(terms.supervised, array("student_aux"), **CLOSE)
    torch.testing.assert_close(terms.scaffolded, array("student_nll"), **CLOSE)
    penalty = {"student": "student_penalty", "gating": "gating_penalty"}.get(golden, "pen24_loss")
    torch.testing.assert_close(terms.loss - terms.supervised - terms.scaffolded, array(penalty), **CLOSE)
    of_student, of_guide = batch.gradients(terms.loss)
    if phase == "guide":
        assert of_student is None
    else:
        torch.testing.assert_close(of_student, array(f"{golden}_grad_s"), **CLOSE)
    if phase == "student":
        assert of_guide is None
    else:
        torch.testing.assert_close(of_guide, array(f"{golden}_grad_gate_logits"), **CLOSE)


def test_the_earlier_fill_is_that_of_the_released_code() -> None:
    terms = Batch().terms(DiSKLoss(**RELEASED, fill="zero"))
    torch.testing.assert_close(terms.scaffolded, array("nll42"), **CLOSE)


def test_the_form_for_imagenet_is_that_of_the_released_code() -> None:
    batch = Batch()
    terms = batch.terms(DiSKLoss(**IMAGENET))
    torch.testing.assert_close(terms.loss, array("im_total"), **CLOSE)
    torch.testing.assert_close(terms.supervised, 0.5 * array("im_ce_ls"), **CLOSE)
    torch.testing.assert_close(terms.scaffolded, 0.5 * array("im_disk"), **CLOSE)
    torch.testing.assert_close(terms.loss - terms.supervised - terms.scaffolded, array("im_penalty"), **CLOSE)
    of_student, of_guide = torch.autograd.grad(terms.loss, (batch.student, batch.guide))
    torch.testing.assert_close(of_student, array("im_total_grad_s"), **CLOSE)
    torch.testing.assert_close(of_guide, array("im_total_grad_gate").squeeze(1), **CLOSE)


@pytest.mark.parametrize("phase", ["student", "guide", "joint"])
def test_a_batch_without_mistakes_is_finite_where_the_released_code_is_not(phase: str) -> None:
    assert array("allcorrect_gating_total").isinf()
    batch = Batch()
    batch.target = batch.student.argmax(1)
    terms = batch.terms(DiSKLoss(**RELEASED, cost_target="label"), phase)
    own_loss = F.cross_entropy(batch.student, batch.target, reduction="none").clamp(max=5)
    torch.testing.assert_close(terms.help_cost, (batch.guide * own_loss).sum())
    assert all(term.isfinite() for term in terms)
    for gradient in batch.gradients(terms.loss):
        assert gradient is None or gradient.isfinite().all()


def test_the_loss_is_the_sum_of_its_terms() -> None:
    objective = DiSKLoss(top_k=3, multiplier=2.0, budget=0.3)
    terms = Batch().terms(objective)
    total = terms.supervised + terms.scaffolded + terms.normalizer + 2.0 * terms.residual
    torch.testing.assert_close(terms.loss, total)
    torch.testing.assert_close(terms.residual, terms.help_cost - 0.3)


def test_the_phase_of_the_student_watches_the_price_of_help_and_does_not_pay_it() -> None:
    batch = Batch()
    student, joint = (batch.terms(DiSKLoss(**RELEASED), phase) for phase in ("student", "joint"))
    torch.testing.assert_close(student.loss, student.supervised + student.scaffolded, rtol=0, atol=0)
    for name in ("normalizer", "help_cost", "residual"):
        assert torch.equal(getattr(student, name), getattr(joint, name))
        assert not getattr(student, name).requires_grad


def test_a_skipped_budget_is_not_multiplied_by_zero() -> None:
    batch = Batch()
    objective = DiSKLoss(**RELEASED)
    objective.multiplier = math.inf
    assert batch.terms(objective, "student").loss.isfinite()


def test_an_unspent_budget_costs_nothing_unless_signed() -> None:
    batch = Batch()
    options = {"top_k": 3, "budget": 100.0, "multiplier": 2.0, "normalizer": False}
    plain, signed = (batch.terms(DiSKLoss(**options, signed=signed)) for signed in (False, True))
    assert plain.residual < 0
    assert torch.equal(plain.loss, plain.supervised + plain.scaffolded)
    torch.testing.assert_close(signed.loss - plain.loss, 2.0 * plain.residual)


def test_attributes_that_a_schedule_sets_take_effect() -> None:
    objective = DiSKLoss(top_k=3)
    objective.multiplier, objective.budget, objective.signed = 3.0, 0.25, True
    objective.student_temperature, objective.teacher_temperature = 2.0, 1.5
    made = DiSKLoss(top_k=3, multiplier=3.0, budget=0.25, signed=True, student_temperature=2.0, teacher_temperature=1.5)
    assert Batch().terms(objective) == Batch().terms(made)
    assert not objective.state_dict()


def test_scales_of_the_guide_and_of_the_normaliser() -> None:
    batch = Batch()
    plain = batch.terms(DiSKLoss(top_k=3), "guide")
    scaled = batch.terms(DiSKLoss(top_k=3, scale_normalizer=True), "guide")
    torch.testing.assert_close(scaled.normalizer, 14 * plain.normalizer)
    one = DiSKLoss(top_k=3, guide_nll_scale="one", scale_normalizer=True)
    torch.testing.assert_close(batch.terms(one, "guide").scaffolded, plain.scaffolded / 14)
    torch.testing.assert_close(batch.terms(one, "guide").normalizer, plain.normalizer)
    for phase in ("student", "joint"):
        torch.testing.assert_close(batch.terms(one, phase).scaffolded, plain.scaffolded)


def test_support_of_all_classes_is_the_form_on_the_poster() -> None:
    batch = Batch()
    objective = DiSKLoss(
        support="all", cost_target="label", budget_norm="batch", max_cost=math.inf, scaffold_weight=1.0
    )
    terms = batch.terms(objective)
    s, t, g = (batch.student / 3.5).softmax(1), (batch.teacher / 4).softmax(1), batch.guide
    torch.testing.assert_close(terms.scaffolded, -14 * (t * (s + g.unsqueeze(1)).log()).sum(1).mean())
    torch.testing.assert_close(terms.normalizer, (1 + 12 * g).log().mean())
    own_loss = F.cross_entropy(batch.student, batch.target, reduction="none")
    torch.testing.assert_close(terms.help_cost, (g * own_loss).mean())


def test_somebodys_own_supervised_loss_takes_the_place_of_the_cross_entropy() -> None:
    batch = Batch()
    own = batch.student.square().mean()
    terms = batch.terms(DiSKLoss(**RELEASED), "student", supervised=own)
    torch.testing.assert_close(terms.supervised, 0.1 * own)
    torch.testing.assert_close(terms.loss, 0.1 * own + array("student_nll"))
    assert batch.gradients(batch.terms(DiSKLoss(**RELEASED), "guide", supervised=own).loss)[0] is None


def test_a_teacher_gets_no_gradient() -> None:
    batch = Batch()
    batch.teacher.requires_grad_()
    loss = batch.terms(DiSKLoss(**RELEASED)).loss
    assert torch.autograd.grad(loss, batch.teacher, allow_unused=True) == (None,)


@given(st.permutations(range(8)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_samples_does_not_matter(order: list[int]) -> None:
    batch, shuffled = Batch(), Batch()
    for name in ("student", "teacher", "target", "guide"):
        setattr(shuffled, name, getattr(batch, name)[order])
    for one, other in zip(batch.terms(DiSKLoss(**RELEASED)), shuffled.terms(DiSKLoss(**RELEASED)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("phase", ["student", "guide", "joint"])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, autocast: bool, phase: str) -> None:
    batch = Batch()
    student, teacher, guide = (one.detach().to(dtype) for one in (batch.student, batch.teacher, batch.guide))
    objective = DiSKLoss(**RELEASED)
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = objective(student, teacher, batch.target, guide, phase)
        exact = objective(student.double(), teacher.double(), batch.target, guide.double(), phase)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype is torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)
    if phase != "guide":
        of_found, of_exact = (torch.autograd.grad(terms.loss, student)[0] for terms in (found, exact))
        torch.testing.assert_close(of_found, of_exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("help_given", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extreme_logits_and_saturated_help_stay_finite(help_given: float, dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    guide = torch.full((2,), help_given, requires_grad=True)
    terms = DiSKLoss(top_k=2)(student, student.detach().flip(1), torch.tensor([1, 0]), guide)
    assert all(term.isfinite() for term in terms)
    for gradient in torch.autograd.grad(terms.loss, (student, guide)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k=0 must be a whole number of 1 or more"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"student_temperature": 0.0}, "student_temperature=0.0"),
        ({"teacher_temperature": math.nan}, "teacher_temperature=nan"),
        ({"supervised_weight": -0.1}, "supervised_weight=-0.1"),
        ({"scaffold_weight": math.inf}, "scaffold_weight=inf"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 is outside \[0, 1\)"),
        ({"multiplier": -1.0}, "multiplier=-1.0"),
        ({"budget": -0.5}, "budget=-0.5 .* can never be met"),
        ({"max_cost": 0.0}, "max_cost=0.0"),
        ({"support": "top_k"}, "Did you mean 'topk'"),
        ({"fill": "min"}, "Did you mean 'minimum'"),
        ({"cost_target": "labels"}, "Did you mean 'label'"),
        ({"budget_norm": "batches"}, "Did you mean 'batch'"),
        ({"guide_nll_scale": "temp"}, "Did you mean 'temperature'"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DiSKLoss(**options)


def test_inputs_that_do_not_fit_are_named() -> None:
    batch, objective = Batch(), DiSKLoss(top_k=3)
    inputs = [batch.student, batch.teacher, batch.target, batch.guide]
    for position, wrong, message in (
        (1, batch.teacher[:, :10], "the student has 12 classes and the teacher 10"),
        (2, batch.teacher.softmax(1), "soft targets, as mixup and CutMix make them"),
        (2, batch.target[:4], r"integers of shape \(8,\)"),
        (3, batch.guide.unsqueeze(1), r"shape \(8, 1\); give the help of each sample, floats of shape \(8,\)"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            objective(*inputs[:position], wrong, *inputs[position + 1 :])
    with pytest.raises(ConfigurationError, match="Did you mean 'student'"):
        objective(*inputs, "students")
    with pytest.raises(ConfigurationError, match="top_k=13 must be a whole number from 1 to 12"):
        DiSKLoss(top_k=13)(*inputs)
