"""The multiplier against the released code's traces, its projection, and the gradient of its penalty."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.primal_dual import PrimalDual, dual_group, project_

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "disk.npz")
BATCHES = (slice(0, 4), slice(4, 8))
RATE, BUDGET, LARGEST_COST = 2.0, 0.5, 5.0

residuals = st.floats(-10, 10)
positive = st.floats(0.01, 10)


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def violation(student_logits: Tensor, guide_logits: Tensor) -> Tensor:
    """Return the mean over the two batches of how far help times the student's loss exceeds the budget."""
    of_batches = []
    for batch in BATCHES:
        teacher, target = array("in_t_logits")[batch], array("in_y")[batch]
        logits, guide = student_logits[batch], torch.sigmoid(guide_logits[batch])
        cost = F.cross_entropy(logits, teacher.argmax(1), reduction="none").clamp(max=LARGEST_COST)
        wrong = (logits.argmax(1) != target).sum()
        of_batches.append(F.relu((guide * cost).sum() / wrong - BUDGET))
    return torch.stack(of_batches).mean()


@pytest.mark.parametrize(("trace", "move"), [("plain", PrimalDual.step), ("plainwarm", PrimalDual.relax)])
def test_traces_are_those_of_the_released_code(trace: str, move: Callable[[PrimalDual, float], float]) -> None:
    dual = PrimalDual(rate=RATE, initial=5.0, minimum=1.0)
    student, guide = array("in_s_logits"), array("in_gate_logits")[:, 0]
    shifts = array("dual_gate_logit_shift")
    found = [5.0, *(move(dual, float(violation(student, guide + shift))) for shift in shifts)]
    np.testing.assert_allclose(found, GOLDEN[f"dual_{trace}_lambda_trace"], rtol=0, atol=1e-10)
    assert dual.updates == 8


@pytest.mark.parametrize("variant", ["alias", "copy"])
def test_traces_with_a_correction_are_those_of_the_released_code(variant: str) -> None:
    dual = PrimalDual(rate=RATE, initial=5.0)
    student, guide = array("in_s_logits"), array("in_gate_logits")[:, 0]
    before = (student, guide)
    found = [dual.multiplier]
    for index in range(6):
        now = (student.clone().requires_grad_(), guide.clone().requires_grad_())
        residual = violation(*now)
        grads = torch.autograd.grad(residual, now)
        # the released code compares live views with themselves, which makes the correction zero
        old = before if variant == "copy" else now
        correction = sum(float((g * (n - o).detach()).sum()) for g, n, o in zip(grads, now, old, strict=True))
        found.append(dual.step(residual.item(), correction))
        before = (student, guide)
        student, guide = 0.97 * student, guide + (0.3 if index % 2 == 0 else -0.3)
    np.testing.assert_allclose(found, GOLDEN[f"dual_corr_{variant}_lambda_trace"], rtol=0, atol=1e-10)


@given(moves=st.lists(st.tuples(st.booleans(), residuals), max_size=20), rate=positive)
def test_the_multiplier_stays_between_its_bounds(moves: list[tuple[bool, float]], rate: float) -> None:
    dual = PrimalDual(rate=rate, initial=1.0, minimum=0.5, maximum=2.0)
    for ascends, residual in moves:
        before = dual.multiplier
        after = (dual.step if ascends else dual.relax)(residual)
        assert after == dual.multiplier
        assert 0.5 <= after <= 2
        assert not ascends or (after - before) * residual >= 0
    assert dual.updates == len(moves)


@pytest.mark.parametrize("residual", [math.inf, -math.inf, math.nan])
def test_a_residual_that_is_not_finite_moves_nothing(residual: float) -> None:
    dual = PrimalDual(initial=1.0)
    assert dual.step(residual) == dual.relax(residual) == dual.step(0.0, correction=residual) == 1
    assert dual.updates == 0


@given(multiplier=st.floats(0, 10), residual=residuals)
def test_the_plain_penalty_is_the_product(multiplier: float, residual: float) -> None:
    value = torch.tensor(residual, dtype=torch.float64, requires_grad=True)
    penalty = PrimalDual(initial=multiplier).penalty(value)
    penalty.backward()
    assert penalty.item() == pytest.approx(multiplier * residual)
    assert value.grad.item() == multiplier


@given(multiplier=st.floats(0, 10), residual=residuals, weight=positive)
def test_the_augmented_penalty_is_that_of_the_textbook(multiplier: float, residual: float, weight: float) -> None:
    value = torch.tensor(residual, dtype=torch.float64, requires_grad=True)
    penalty = PrimalDual(initial=multiplier, augmentation=weight).penalty(value)
    penalty.backward()
    pushed = max(0.0, multiplier + weight * residual)
    assert penalty.item() == pytest.approx((pushed**2 - multiplier**2) / (2 * weight), rel=1e-6, abs=1e-6)
    assert value.grad.item() == pytest.approx(pushed, abs=1e-9)


def test_the_gradient_reaches_what_the_residual_depends_on() -> None:
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    for dual in (PrimalDual(initial=0.7), PrimalDual(initial=0.7, augmentation=0.3)):
        assert torch.autograd.gradcheck(lambda w, dual=dual: dual.penalty(w.square().sum() - 3), weight)


def test_a_small_augmentation_keeps_its_digits() -> None:
    residual = torch.tensor(0.25)
    assert PrimalDual(initial=50.0, augmentation=1e-6).penalty(residual).item() == pytest.approx(12.5, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    penalty = PrimalDual(initial=300.0).penalty(torch.tensor(300.0, dtype=dtype))
    assert penalty.dtype is torch.float32
    assert penalty.item() == pytest.approx(90_000, rel=1e-2)


@pytest.mark.parametrize("augmentation", [0.0, 1.0])
def test_descent_and_ascent_meet_at_the_constrained_optimum(augmentation: float) -> None:
    # minimise (x - 3)² subject to x <= 1: x = 1, and the multiplier is the slope there, 4
    x = torch.tensor(0.0, requires_grad=True)
    dual = PrimalDual(rate=0.1, augmentation=augmentation)
    for _ in range(800):
        loss = (x - 3).square() + dual.penalty(x - 1)
        (grad,) = torch.autograd.grad(loss, x)
        x = (x - 0.05 * grad).detach().requires_grad_()
        dual.step(x.item() - 1)
    assert x.item() == pytest.approx(1, abs=1e-4)
    assert dual.multiplier == pytest.approx(4, abs=1e-3)


def test_a_state_of_plain_numbers_continues_where_it_was_left() -> None:
    first, second = PrimalDual(rate=0.3), PrimalDual(rate=0.3)
    first.step(0.1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert first.step(0.7) == second.step(0.7)
    assert first.state_dict() == second.state_dict() == {"multiplier": first.multiplier, "updates": 2}


def test_a_reset_returns_to_the_beginning() -> None:
    dual = PrimalDual(initial=0.5)
    dual.step(1.0)
    dual.reset()
    assert dual.state_dict() == {"multiplier": 0.5, "updates": 0}


def test_it_tells_when_it_can_rise_no_further() -> None:
    dual = PrimalDual(rate=1.0, maximum=1.5)
    told = []
    for _ in range(2):
        dual.step(1.0)
        told.append(dual.at_maximum)
    assert told == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate=0.0 must be a finite number above 0"),
        ({"minimum": -1.0}, "minimum=-1.0 must be a finite number, 0 or more"),
        ({"minimum": 2.0, "maximum": 1.0}, "maximum=1.0 must be at least minimum=2.0"),
        ({"initial": 3.0, "maximum": 1.0}, "initial=3.0 must be finite, and between"),
        ({"initial": math.inf}, "initial=inf must be finite"),
        ({"augmentation": -0.1}, "augmentation=-0.1"),
        ({"relaxation": 1.5}, "relaxation=1.5 is outside"),
        ({"maximum": math.nan}, "maximum=nan must be at least"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PrimalDual(**options)


@given(values=st.lists(residuals, min_size=1, max_size=8), least=st.floats(-2, 0), span=st.floats(0, 3))
def test_a_projection_of_tensors_is_that_of_the_multiplier(values: list[float], least: float, span: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    assert project_(tensor, least, least + span) is tensor
    assert tensor.tolist() == [min(max(value, least), least + span) for value in values]


def test_a_projection_changes_a_parameter_in_place_and_records_no_gradient() -> None:
    parameter = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
    project_(parameter)
    assert parameter.tolist() == [0, 2]
    assert parameter.is_leaf


def test_bounds_of_a_projection_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="maximum=-1 must be at least minimum=0"):
        project_(torch.zeros(1), maximum=-1)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_one_optimiser_descends_on_the_network_and_ascends_on_the_duals(optimizer: type[torch.optim.Optimizer]) -> None:
    weight, dual, allowance = (torch.nn.Parameter(torch.ones(1)) for _ in range(3))
    groups = [
        {"params": [weight]},
        dual_group([dual], ascend=True, lr=0.02),
        dual_group([allowance], ascend=False, lr=0.02),
    ]
    stepper = optimizer(groups, lr=0.01, weight_decay=0.1)
    (weight + dual + allowance).sum().backward()
    stepper.step()
    assert weight < 1
    assert dual > 1
    assert allowance < 1


def test_duals_do_not_decay() -> None:
    duals = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [dual_group(iter([one]), ascend=ascend) for one, ascend in zip(duals, (True, False), strict=True)]
    stepper = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    for dual in duals:
        dual.grad = torch.zeros(2)
    stepper.step()
    assert all(torch.equal(dual, torch.ones(2)) for dual in duals)


@pytest.mark.parametrize("option", ["weight_decay", "maximize"])
def test_what_makes_a_group_of_duals_cannot_be_set(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}=1 cannot be set here"):
        dual_group([], ascend=True, **{option: 1})
