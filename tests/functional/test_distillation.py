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
from lightning_efficient.functional.distillation import decoupled_kl, distillation_kl, feature_distance

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "disk.npz")


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def pair_of(seed: int, classes: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    student, teacher = (3 * torch.randn(4, classes, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(0, classes, (4,))


def test_the_divergence_is_that_of_the_released_baseline() -> None:
    value = distillation_kl(array("in_s_logits"), array("in_t_logits"), student_temperature=1.0).mean()
    torch.testing.assert_close(value, array("im_kd"), rtol=0, atol=1e-10)


@given(st.integers(0, 10_000), st.floats(0.5, 10), st.floats(0.5, 10))
@settings(max_examples=20, deadline=None)
def test_the_divergence_is_that_of_a_loop_over_classes(seed: int, of_student: float, of_teacher: float) -> None:
    student, teacher, _ = pair_of(seed)
    found = distillation_kl(student, teacher, student_temperature=of_student, teacher_temperature=of_teacher)
    for value, z, t in zip(found.tolist(), student.tolist(), teacher.tolist(), strict=True):
        s, p = ([math.exp(one / T) for one in row] for row, T in ((z, of_student), (t, of_teacher)))
        s, p = [one / sum(s) for one in s], [one / sum(p) for one in p]
        kl = sum(b * math.log(b / a) for a, b in zip(s, p, strict=True))
        assert value == pytest.approx(of_student * of_teacher * kl, rel=1e-9, abs=1e-12)


def test_a_student_like_its_teacher_is_at_the_minimum() -> None:
    _, teacher, target = pair_of(0)
    student = (teacher + 5.0).requires_grad_()  # a shift changes no probability
    total = torch.stack((distillation_kl(student, teacher), *decoupled_kl(student, teacher, target)))
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(total.sum(), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_high_temperatures_match_centred_logits() -> None:
    student, teacher, _ = pair_of(1)
    found = distillation_kl(student, teacher, student_temperature=1e4)
    apart = (teacher - teacher.mean(1, keepdim=True)) - (student - student.mean(1, keepdim=True))
    torch.testing.assert_close(found, apart.square().mean(1) / 2, rtol=1e-3, atol=0)


@given(st.integers(0, 10_000), st.floats(0.5, 10), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_the_two_parts_make_up_the_whole_divergence(seed: int, temperature: float, classes: int) -> None:
    student, teacher, target = pair_of(seed, classes)
    about_target, others = decoupled_kl(student, teacher, target, temperature=temperature)
    sure = (teacher / temperature).softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    whole = distillation_kl(student, teacher, student_temperature=temperature)
    torch.testing.assert_close(about_target + (1 - sure) * others, whole)


def test_the_part_among_other_classes_ignores_the_target_class() -> None:
    student, teacher, target = pair_of(2)
    _, others = decoupled_kl(student, teacher, target)
    hit = F.one_hot(target, 6)
    _, same = decoupled_kl(student + 3 * hit, teacher - 2 * hit, target)
    torch.testing.assert_close(same, others)
    rest = [student[i][hit[i] == 0] for i in range(4)], [teacher[i][hit[i] == 0] for i in range(4)]
    torch.testing.assert_close(others, distillation_kl(*(torch.stack(one) for one in rest)))


def test_a_teacher_that_is_sure_beyond_rounding_still_teaches_the_other_classes() -> None:
    teacher = torch.tensor([[200.0, 2.0, 0.0]])
    about_target, others = decoupled_kl(torch.zeros(1, 3), teacher, torch.tensor([0]), temperature=1.0)
    p = torch.tensor([2.0, 0.0]).softmax(0)
    torch.testing.assert_close(others, (p * (p * 2).log()).sum().unsqueeze(0))
    torch.testing.assert_close(about_target, torch.tensor([math.log(3)]))


def test_two_classes_have_nothing_among_the_others() -> None:
    student, teacher, target = pair_of(3, classes=2)
    assert torch.equal(decoupled_kl(student, teacher, target)[1], torch.zeros(4, dtype=torch.float64))


def test_feature_distances_are_those_of_torch() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    torch.testing.assert_close(feature_distance(student, teacher).mean(), F.mse_loss(student, teacher))
    cosine = feature_distance(student, teacher, kind="cosine")
    a, b = student.flatten(1), teacher.flatten(1)
    torch.testing.assert_close(cosine, 1 - (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1))
    torch.testing.assert_close(feature_distance(7 * student, teacher, kind="cosine"), cosine)


def test_the_derivatives_agree_with_differences() -> None:
    student, teacher, target = pair_of(4)
    torch.autograd.gradcheck(lambda z: distillation_kl(z, teacher, teacher_temperature=2.0), (student,))
    torch.autograd.gradcheck(lambda z: decoupled_kl(z, teacher, target), (student,))
    for kind in ("mse", "cosine"):
        torch.autograd.gradcheck(lambda z, kind=kind: feature_distance(z, teacher, kind=kind), (student,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    student, teacher, target = pair_of(5)
    half = student.detach().to(dtype), teacher.to(dtype)
    exact = half[0].double(), half[1].double()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        pairs = [
            (distillation_kl(*half), distillation_kl(*exact)),
            *zip(decoupled_kl(*half, target), decoupled_kl(*exact, target), strict=True),
            (feature_distance(*half), feature_distance(*exact)),
            (feature_distance(*half, kind="cosine"), feature_distance(*exact, kind="cosine")),
        ]
    for found, expected in pairs:
        assert found.dtype is torch.float32
        assert expected.dtype is torch.float64
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_values_give_finite_values_and_gradients(dtype: torch.dtype) -> None:
    rows = [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]]
    student, teacher = torch.tensor(rows, dtype=dtype, requires_grad=True), torch.tensor(rows[::-1], dtype=dtype)
    target = torch.tensor([0, 0, 1])
    values = (
        distillation_kl(student, teacher),
        *decoupled_kl(student, teacher, target),
        feature_distance(student, teacher),
        feature_distance(student, teacher, kind="cosine"),
    )
    for value in values:
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), student, retain_graph=True)
        assert gradient.isfinite().all()


def test_inputs_that_do_not_fit_are_named() -> None:
    student, teacher, target = pair_of(0)
    with pytest.raises(ConfigurationError, match="the student has 6 classes and the teacher 5"):
        distillation_kl(student, teacher[:, :5])
    with pytest.raises(ConfigurationError, match=r"\(4, 6\) and teacher_logits \(3, 6\)"):
        decoupled_kl(student, teacher[:3], target)
    with pytest.raises(ConfigurationError, match="student_temperature=0"):
        distillation_kl(student, teacher, student_temperature=0)
    with pytest.raises(ConfigurationError, match="teacher_temperature=-2"):
        distillation_kl(student, teacher, teacher_temperature=-2)
    with pytest.raises(ConfigurationError, match="temperature=inf"):
        decoupled_kl(student, teacher, target, temperature=math.inf)
    with pytest.raises(ConfigurationError, match="soft targets"):
        decoupled_kl(student, teacher, teacher.softmax(1))
    with pytest.raises(ConfigurationError, match=r"integers of shape \(4,\)"):
        decoupled_kl(student, teacher, target.unsqueeze(1))
    with pytest.raises(ConfigurationError, match="2 or more classes"):
        decoupled_kl(student[:, :1], teacher[:, :1], torch.zeros(4, dtype=torch.long))
    with pytest.raises(ConfigurationError, match="linear projector"):
        feature_distance(student, teacher[:, :3])
    with pytest.raises(ConfigurationError, match="Did you mean 'cosine'"):
        feature_distance(student, teacher, kind="cosin")
