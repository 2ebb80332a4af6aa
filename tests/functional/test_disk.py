"""The terms of DiSK against the released code's values, closed forms, and the edges of number formats."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.disk import (
    help_cost,
    help_normalizer,
    mean_help_cost,
    scaffolded_nll,
    support_mask,
    teacher_mass,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "disk.npz")
CLOSE = {"rtol": 0, "atol": 1e-10}
T_S, T_T, TOP_K = 3.5, 4.0, 3


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def golden_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    student, guide = array("in_s_logits").requires_grad_(), array("in_gate").squeeze(1).requires_grad_()
    return student, array("in_t_logits"), array("in_y"), guide


def batch_of(seed: int, samples: int = 5, classes: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    student, teacher = (3 * torch.randn(samples, classes, dtype=torch.float64) for _ in range(2))
    guide = torch.rand(samples, dtype=torch.float64)
    return student.requires_grad_(), teacher, torch.randint(0, classes, (samples,)), guide.requires_grad_()


def nll(student: Tensor, teacher: Tensor, target: Tensor, guide: Tensor, fill: str = "minimum") -> Tensor:
    support = support_mask(teacher, target, TOP_K)
    mass = teacher_mass(teacher, support, temperature=T_T, fill=fill)
    return scaffolded_nll(student, mass, support, guide, temperature=T_S)


@pytest.mark.parametrize(("mode", "fill"), [("nll50", "minimum"), ("nll42", "zero")])
def test_the_scaffolded_likelihood_and_its_gradients_are_those_of_the_released_code(mode: str, fill: str) -> None:
    student, teacher, target, guide = golden_batch()
    value = 0.9 * T_S * T_T * nll(student, teacher, target, guide, fill).mean()
    torch.testing.assert_close(value, array(mode), **CLOSE)
    of_student, of_guide = torch.autograd.grad(value, (student, guide))
    torch.testing.assert_close(of_student, array(f"{mode}_grad_s"), **CLOSE)
    torch.testing.assert_close(of_guide, array(f"{mode}_grad_gate").squeeze(1), **CLOSE)
    assert torch.equal((guide < 0.5).double(), array(f"{mode}_weights"))


def test_the_released_budget_term_is_the_mean_cost_beyond_the_budget() -> None:
    student, teacher, target, guide = golden_batch()
    wrong = student.argmax(1) != target
    for penalty, label in (("pen24", teacher.argmax(1)), ("pen25", target)):
        cost = mean_help_cost(help_cost(student, guide, label, max_cost=5.0), wrong)
        torch.testing.assert_close(cost - array(f"{penalty}_delta"), array(f"{penalty}_reg"), **CLOSE)
    charged = array("pen24_lambda") * array("pen24_reg") + 0.9 * help_normalizer(guide, TOP_K).mean()
    torch.testing.assert_close(charged, array("pen24_loss"), **CLOSE)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_values_are_those_of_loops_over_samples_and_classes(seed: int) -> None:
    student, teacher, target, guide = batch_of(seed)
    for fill in ("minimum", "zero"):
        found = nll(student, teacher, target, guide, fill).tolist()
        for i, (z, t, y, g) in enumerate(
            zip(student.tolist(), teacher.tolist(), target.tolist(), guide.tolist(), strict=True)
        ):
            support = {*sorted(range(len(t)), key=lambda c: -t[c])[:TOP_K], y}
            raised = [
                math.exp(t[c] / T_T if c in support else (min(t) if fill == "minimum" else 0)) for c in range(len(t))
            ]
            probs = [math.exp(one / T_S) for one in z]
            expected = sum(-raised[c] / sum(raised) * math.log(probs[c] / sum(probs) + g) for c in support)
            assert found[i] == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_gradients_have_the_closed_form_and_help_scales_the_pull_of_a_class(seed: int) -> None:
    student, teacher, target, guide = batch_of(seed)
    support = support_mask(teacher, target, TOP_K)
    mass = teacher_mass(teacher, support, temperature=T_T)
    of_student, of_guide = torch.autograd.grad(
        (T_S * T_T * nll(student, teacher, target, guide)).sum(), (student, guide)
    )
    s, g = (student / T_S).softmax(1), guide.unsqueeze(1)
    pull = mass * s / (s + g)
    torch.testing.assert_close(of_student, T_T * (s * pull.sum(1, keepdim=True) - pull))
    torch.testing.assert_close(of_guide, -T_S * T_T * (mass / (s + g)).sum(1))


def test_a_helped_sample_weighs_as_much_as_its_probability_among_probability_and_help() -> None:
    student, _, target, guide = batch_of(3)
    label = F.one_hot(target, student.shape[1])

    def gradient(help_given: Tensor) -> Tensor:
        value = scaffolded_nll(student, label.double(), label.bool(), help_given, temperature=1.0).sum()
        return torch.autograd.grad(value, student)[0]

    probability = student.softmax(1).gather(1, target.unsqueeze(1))
    weight = probability / (probability + guide.unsqueeze(1))
    torch.testing.assert_close(gradient(guide.detach()), weight * gradient(torch.zeros_like(guide)))


def test_the_derivatives_agree_with_differences() -> None:
    student, teacher, target, guide = batch_of(1)
    torch.autograd.gradcheck(lambda z, g: nll(z, teacher, target, g), (student, guide))
    torch.autograd.gradgradcheck(lambda z, g: nll(z, teacher, target, g), (student, guide))
    torch.autograd.gradcheck(lambda z, g: help_cost(z, g, target, max_cost=5.0), (student, guide))
    torch.autograd.gradcheck(lambda g: help_normalizer(g, 4), (guide,))


def test_without_help_it_is_the_cross_entropy_with_the_teacher() -> None:
    student, teacher, target, _ = batch_of(2)
    every = support_mask(teacher, target, teacher.shape[1])
    assert every.all()
    mass = teacher_mass(teacher, every, temperature=T_T)
    torch.testing.assert_close(mass, (teacher / T_T).softmax(1))
    value = scaffolded_nll(student, mass, every, torch.zeros(5, dtype=torch.float64), temperature=T_S)
    torch.testing.assert_close(value, F.cross_entropy(student / T_S, mass, reduction="none"))


def test_full_help_bounds_the_loss_between_minus_log_2_and_0() -> None:
    student, teacher, target, guide = batch_of(4)
    value = nll(100 * student, teacher, target, torch.ones_like(guide))
    mass = teacher_mass(teacher, support_mask(teacher, target, TOP_K), temperature=T_T).sum(1)
    assert (value <= 0).all()
    assert (value >= -math.log(2) * mass).all()


@given(st.integers(0, 10_000), st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_each_sample_is_by_itself(seed: int, order: list[int]) -> None:
    student, teacher, target, guide = batch_of(seed)
    whole = nll(student, teacher, target, guide)
    assert torch.equal(nll(student[order], teacher[order], target[order], guide[order]), whole[order])
    cost = help_cost(student, guide, target, max_cost=2.0)
    assert torch.equal(help_cost(student[order], guide[order], target[order], max_cost=2.0), cost[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    student, teacher, target, guide = (one.detach() for one in batch_of(5))
    half = [one.to(dtype) for one in (student, teacher, guide)]
    single, double = ([one.to(kind) for one in half] for kind in (torch.float32, torch.float64))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for found, exact in zip(
            (
                nll(half[0], half[1], target, half[2]),
                help_cost(half[0], half[2], target, max_cost=5.0),
                help_normalizer(half[2], 3),
                nll(single[0], single[1], target, single[2]),
            ),
            (
                nll(double[0], double[1], target, double[2]),
                help_cost(double[0], double[2], target, max_cost=5.0),
                help_normalizer(double[2], 3),
                nll(double[0], double[1], target, double[2]),
            ),
            strict=True,
        ):
            assert found.dtype is torch.float32
            assert exact.dtype is torch.float64
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("help_given", [0.0, 1e-45, 1e-37, 1e-30, 0.5, 1.0])
def test_extreme_logits_and_help_give_finite_values_and_gradients(dtype: torch.dtype, help_given: float) -> None:
    rows = [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]]
    student = torch.tensor(rows, dtype=dtype, requires_grad=True)
    teacher, target = torch.tensor(rows[::-1], dtype=dtype), torch.tensor([1, 0, 2, 0])
    guide = torch.full((4,), help_given, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    support = support_mask(teacher, target, 2)
    for fill in ("minimum", "zero"):
        mass = teacher_mass(teacher, support, temperature=4.0, fill=fill)
        value = scaffolded_nll(student, mass, support, guide, temperature=3.5)
        value = value + help_cost(student, guide, target, max_cost=5.0) + help_normalizer(guide, 2)
        scale = 65536 if dtype is torch.float32 else 1  # as mixed precision scales a loss
        assert value.isfinite().all()
        for gradient in torch.autograd.grad(14 * scale * value.sum(), (student, guide)):
            assert gradient.isfinite().all()


def test_a_probability_that_rounds_to_zero_still_counts_beside_tiny_help() -> None:
    student, guide = torch.tensor([[0.0, 60.0]]), torch.tensor([1e-25])
    first = torch.tensor([[True, False]])
    value = scaffolded_nll(student, first.float(), first, guide, temperature=1.0)
    assert value.item() == pytest.approx(-math.log(math.exp(-60) + 1e-25), rel=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_the_support_is_the_best_classes_and_the_label(seed: int, top_k: int) -> None:
    _, teacher, target, _ = batch_of(seed)
    for row, label, found in zip(teacher.tolist(), target.tolist(), support_mask(teacher, target, top_k), strict=True):
        best = sorted(range(7), key=lambda c: -row[c])[:top_k]
        assert set(found.nonzero().squeeze(1).tolist()) == {*best, label}


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_mass_lies_on_the_support_and_sums_to_one_at_most(seed: int) -> None:
    _, teacher, target, _ = batch_of(seed)
    support = support_mask(teacher, target, TOP_K)
    for fill in ("minimum", "zero"):
        mass = teacher_mass(teacher, support, temperature=T_T, fill=fill)
        assert torch.equal(mass > 0, support)
        assert (mass.sum(1) <= 1 + 1e-12).all()
        kept = torch.where(support, teacher / T_T, -torch.inf).softmax(1)
        torch.testing.assert_close(mass / mass.sum(1, keepdim=True), kept)


def test_the_minimum_is_not_divided_by_the_temperature() -> None:
    support = torch.tensor([[True, True, False]])
    mass = teacher_mass(torch.tensor([[2.0, 0.0, -2.0]]), support, temperature=2.0)
    expected = torch.tensor([[1.0, 0.0, -2.0]]).softmax(1) * support
    torch.testing.assert_close(mass, expected)


def test_a_loss_beyond_the_largest_cost_is_cut_and_pushes_no_student() -> None:
    student, guide = torch.tensor([[0.0, 9.0], [0.0, 1.0]], requires_grad=True), torch.tensor([0.5, 0.25])
    cost = help_cost(student, guide, torch.tensor([0, 0]), max_cost=5.0)
    torch.testing.assert_close(cost, torch.tensor([2.5, 0.25 * math.log(1 + math.e)]))
    (gradient,) = torch.autograd.grad(cost.sum(), student)
    assert torch.equal(gradient[0], torch.zeros(2))
    assert gradient[1, 1] > 0
    unlimited = help_cost(student, guide, torch.tensor([0, 0]), max_cost=math.inf)
    assert unlimited[0].item() == pytest.approx(0.5 * math.log(1 + math.exp(9)))


def test_a_batch_without_mistakes_divides_by_one() -> None:
    cost = torch.tensor([1.0, 2.0])
    assert mean_help_cost(cost, torch.tensor([False, False])).item() == 3.0
    assert mean_help_cost(cost, torch.tensor([True, True])).item() == mean_help_cost(cost).item() == 1.5


def test_options_that_cannot_work_are_named() -> None:
    student, teacher, target, guide = batch_of(0)
    support = support_mask(teacher, target, 2)
    for top_k in (0, 8):
        with pytest.raises(ConfigurationError, match=f"top_k={top_k} must be a whole number from 1 to 7"):
            support_mask(teacher, target, top_k)
    with pytest.raises(ConfigurationError, match="soft targets"):
        support_mask(teacher, teacher.softmax(1), 2)
    with pytest.raises(ConfigurationError, match="Did you mean 'minimum'"):
        teacher_mass(teacher, support, temperature=1.0, fill="minimun")
    with pytest.raises(ConfigurationError, match="teacher_temperature=0"):
        teacher_mass(teacher, support, temperature=0)
    mass = teacher_mass(teacher, support, temperature=1.0)
    with pytest.raises(ConfigurationError, match=r"guide has dtype torch.float64 and shape \(5, 1\).* \(5,\)"):
        scaffolded_nll(student, mass, support, guide.unsqueeze(1), temperature=1.0)
    with pytest.raises(ConfigurationError, match="student_temperature=-1"):
        scaffolded_nll(student, mass, support, guide, temperature=-1)
    with pytest.raises(ConfigurationError, match="max_cost=0 must be above 0"):
        help_cost(student, guide, target, max_cost=0)
