from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_efficient.functional import disk as core
from lightning_efficient.losses.disk import DiSKLoss
from lightning_efficient.losses.guided import GuidedDistillation
from lightning_efficient.nn.guides import ConstantGuide, LogitsGuide
from lightning_efficient.nn.views import ModelViews

CLASSES, SAMPLES, TOP = 5, 8, 2
OPTIONS: dict[str, Any] = {"top_k": TOP, "student_temperature": 1.5, "teacher_temperature": 2.0, "budget": 0.1}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = [2 * torch.randn(SAMPLES, CLASSES, generator=generator) for _ in range(2)]
    return logits[0].requires_grad_(), logits[1], torch.randint(CLASSES, (SAMPLES,), generator=generator)


def guided(**options: Any) -> GuidedDistillation:
    torch.manual_seed(1)
    return GuidedDistillation(LogitsGuide(CLASSES), DiSKLoss(**OPTIONS, **options))


def by_hand(student: Tensor, teacher: Tensor, target: Tensor, guide: Tensor) -> dict[str, Tensor]:
    support = core.support_mask(teacher, target, TOP)
    mass = core.teacher_mass(teacher, support, temperature=2.0)
    nll = core.scaffolded_nll(student, mass, support, guide, temperature=1.5).mean()
    costs = core.help_cost(student, guide, teacher.argmax(1), max_cost=5.0)
    cost = core.mean_help_cost(costs, student.argmax(1) != target)
    return {
        "supervised": 0.1 * nn.functional.cross_entropy(student, target),
        "distilled": 0.9 * 3.0 * nll,
        "normalizer": 0.9 * core.help_normalizer(guide, TOP).mean(),
        "help_cost": cost,
        "residual": cost - 0.1,
    }


@pytest.mark.parametrize("phase", ["student", "guide", "joint"])
def test_terms_are_those_of_the_functional_core(phase: Any) -> None:
    module, (student, teacher, target) = guided(), batch()
    module.phase = phase
    module.guide.train(phase != "student")
    guide = module.guide(ModelViews(teacher)).detach()
    terms = module(ModelViews(student), ModelViews(teacher), target)
    wanted = by_hand(student, teacher, target, guide)
    for name in ("supervised", "distilled", "help_cost", "residual"):
        torch.testing.assert_close(getattr(terms, name), wanted[name])
    total = wanted["supervised"] + wanted["distilled"]
    if phase != "student":
        total = total + wanted["normalizer"] + wanted["residual"].relu()
    torch.testing.assert_close(terms.loss, total)
    assert torch.equal(terms.guide, guide)
    assert not terms.guide.requires_grad


@pytest.mark.parametrize(
    ("phase", "moves_student", "moves_guide"),
    [("student", True, False), ("guide", False, True), ("joint", True, True)],
)
def test_a_phase_gives_gradients_to_those_whose_turn_it_is(phase: Any, moves_student: bool, moves_guide: bool) -> None:
    module, (student, teacher, target) = guided(), batch()
    before = {name: value.clone() for name, value in module.named_buffers()}
    module.phase = phase
    module(ModelViews(student), ModelViews(teacher), target).loss.backward()
    assert (student.grad is not None) == moves_student
    assert [p.grad is not None for p in module.parameters()] == [moves_guide] * len(list(module.parameters()))
    moved = any(not torch.equal(before[name], value) for name, value in module.named_buffers())
    assert moved == moves_guide  # running statistics of the guide
    assert module.guide.training == moves_guide


def test_a_loss_of_ones_own_takes_the_place_of_cross_entropy() -> None:
    module, (student, teacher, target) = guided(), batch()
    module.phase = "student"
    views = ModelViews(student), ModelViews(teacher), target
    own = student.square().mean()
    terms, plain = module(*views, own), module(*views)
    torch.testing.assert_close(terms.supervised, 0.1 * own)
    torch.testing.assert_close(terms.loss - plain.loss, terms.supervised - plain.supervised)


def test_a_constant_guide_learns_nothing_and_gives_its_value() -> None:
    student, teacher, target = batch()
    module = GuidedDistillation(ConstantGuide(0.25), DiSKLoss(**OPTIONS))
    assert not module.learns
    assert guided().learns
    module.phase = "student"
    terms = module(ModelViews(student), ModelViews(teacher), target)
    assert terms.guide.tolist() == [0.25] * SAMPLES
    torch.testing.assert_close(terms.distilled, by_hand(student, teacher, target, terms.guide)["distilled"])


def test_a_frozen_guide_does_not_learn() -> None:
    module = guided()
    module.guide.requires_grad_(False)
    assert not module.learns


def test_the_guide_is_part_of_the_state_and_the_phase_is_not() -> None:
    module = guided()
    assert set(module.state_dict()) == {f"guide.{name}" for name in module.guide.state_dict()}
