"""Costs and Lagrangian of one-sided prediction: golden values, definitions, and where probabilities saturate."""

from __future__ import annotations

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
from lightning_efficient.functional.one_sided import (
    OneSidedCosts,
    one_sided_costs,
    one_sided_lagrangian,
    one_sided_released,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "one_sided.npz")
CASES = ["a", "b", "c_absent_class", "e_alpha1"]
CLOSE = {"rtol": 1e-10, "atol": 1e-13}

logit_rows = st.lists(
    st.lists(st.floats(-8, 8), min_size=4, max_size=4),
    min_size=1,
    max_size=6,
)


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[f"osp_{key}"]))


def by_definition(logits: Tensor, target: Tensor) -> OneSidedCosts:
    """Loop over classes, with probabilities."""
    probs, miss, false_positive = logits.softmax(1), [], []
    for k in range(logits.shape[1]):
        inside = target == k
        miss.append(-probs[inside, k].log().sum() / max(int(inside.sum()), 1))
        false_positive.append(-(1 - probs[~inside, k]).log().sum() / max(int((~inside).sum()), 1))
    return OneSidedCosts(torch.stack(miss), torch.stack(false_positive))


@pytest.mark.parametrize("case", CASES)
def test_costs_with_the_constants_of_the_release_are_golden(case: str) -> None:
    costs = one_sided_costs(array(f"{case}__logits"), array(f"{case}__targets"), "released")
    torch.testing.assert_close(costs.miss, array(f"{case}__paper_Lk"), **CLOSE)
    torch.testing.assert_close(costs.false_positive, array(f"{case}__paper_Ck"), **CLOSE)


def poster_inputs(case: str) -> tuple[Tensor, ...]:
    return tuple(array(f"{case}__{name}").requires_grad_() for name in ("logits", "lambdas", "epsilons"))


@pytest.mark.parametrize("case", CASES)
def test_the_lagrangian_is_that_of_the_poster_with_its_gradients(case: str) -> None:
    logits, multipliers, allowances = poster_inputs(case)
    costs = one_sided_costs(logits, array(f"{case}__targets"), "released")
    loss = one_sided_lagrangian(costs, multipliers, allowances, array(f"{case}__mu").item())
    # the golden value has the cross-entropy of the auxiliary classifier as well
    share = array(f"{case}__alpha")
    auxiliary = F.cross_entropy(array(f"{case}__aux_logits"), array(f"{case}__targets"))
    loss = share * loss + (1 - share) * auxiliary
    torch.testing.assert_close(loss, array(f"{case}__paper_loss"), **CLOSE)
    gradients = torch.autograd.grad(loss, (logits, multipliers, allowances))
    for name, gradient in zip(("logits", "lambdas", "epsilons"), gradients, strict=True):
        torch.testing.assert_close(gradient, array(f"{case}__paper_grad_{name}"), **CLOSE)


def test_the_gradient_of_the_logits_follows_the_multipliers_but_not_in_the_form_of_the_release() -> None:
    gradients: dict[str, list[Tensor]] = {"lagrangian": [], "released": []}
    for multiplier, price in ((0.2, 0.7), (3.0, 3.5)):
        for name, form in (("lagrangian", one_sided_lagrangian), ("released", one_sided_released)):
            logits = array("a__logits").requires_grad_()
            costs = one_sided_costs(logits, array("a__targets"))
            loss = form(costs, torch.full((4,), multiplier), torch.full((4,), 0.5), price)
            gradients[name] += torch.autograd.grad(loss, logits)
    assert torch.equal(*gradients["released"])
    one, other = gradients["lagrangian"]
    assert (one - other).abs().max() > 0.01


def test_the_gradient_of_an_allowance_is_price_minus_multiplier_and_that_of_a_multiplier_the_excess() -> None:
    logits, multipliers, allowances = poster_inputs("a")
    costs = one_sided_costs(logits, array("a__targets"))
    loss = one_sided_lagrangian(costs, multipliers, allowances, 1.67)
    of_multipliers, of_allowances = torch.autograd.grad(loss, (multipliers, allowances))
    torch.testing.assert_close(of_multipliers, costs.false_positive - allowances)
    torch.testing.assert_close(of_allowances, 1.67 - multipliers)


def test_a_multiplier_of_zero_can_rise_in_the_lagrangian_and_is_stuck_in_the_form_of_the_release() -> None:
    costs = one_sided_costs(array("a__logits"), array("a__targets"))
    allowances = torch.full((4,), 0.01, dtype=torch.float64)
    gradients = []
    for form in (one_sided_lagrangian, one_sided_released):
        multipliers = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        gradients += torch.autograd.grad(form(costs, multipliers, allowances, 0.4), multipliers)
    assert (gradients[0] > 0).all()
    assert not gradients[1].any()


@given(logit_rows, st.data())
@settings(deadline=None)
def test_costs_and_gradients_are_those_of_the_definition(rows: list[list[float]], data: Any) -> None:
    target = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))))
    logits = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 0.3, 2.0, 0.7], dtype=torch.float64)
    found, expected = one_sided_costs(logits, target), by_definition(logits, target)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
        of_one, of_other = (
            torch.autograd.grad((weights * costs).sum(), logits, retain_graph=True)[0] for costs in (one, other)
        )
        torch.testing.assert_close(of_one, of_other, rtol=1e-6, atol=1e-10)


def test_gradients_are_right_where_two_classes_tie() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: one_sided_costs(z, torch.tensor([2, 0])), logits)


def test_a_probability_of_one_within_rounding_has_an_exact_cost_and_a_finite_gradient() -> None:
    logits = torch.tensor([[60.0, 0.0, 1.0], [0.0, 200.0, -200.0]], requires_grad=True)
    assert (logits.softmax(1).amax(1) == 1).all()
    costs = one_sided_costs(logits, torch.tensor([1, 2]))
    exact = one_sided_costs(logits.detach().double(), torch.tensor([1, 2]))
    for one, other in zip(costs, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=0)
    # class 0 is wrongly sure: the excess over the best other logit, less the mass of both others
    excess = 60 - np.logaddexp(0, 1)
    assert costs.false_positive[0].item() == pytest.approx(excess / 2, rel=1e-6)
    (gradient,) = torch.autograd.grad(costs.miss.sum() + costs.false_positive.sum(), logits)
    assert gradient.isfinite().all()
    # 1/2 from its false positive and 1 from the miss of class 1
    assert gradient[0, 0].item() == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("constants", ["exact", "released"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_gives_the_answer_of_float32(constants: Any, dtype: torch.dtype, autocast: bool) -> None:
    rounded = (4 * array("a__logits")).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = one_sided_costs(rounded, array("a__targets"), constants)
    expected = one_sided_costs(rounded.float(), array("a__targets"), constants)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is torch.float32
        assert torch.equal(one, other)


def test_half_precision_that_saturates_stays_finite() -> None:
    logits = torch.tensor([[6e4, -6e4, 0.0], [-6e4, 6e4, 0.0]], dtype=torch.float16, requires_grad=True)
    costs = one_sided_costs(logits, torch.tensor([1, 2]))
    (gradient,) = torch.autograd.grad(costs.miss.sum() + costs.false_positive.sum(), logits)
    assert costs.miss.isfinite().all()
    assert costs.false_positive.isfinite().all()
    assert gradient.isfinite().all()


def test_an_absent_class_misses_nothing() -> None:
    logits = array("c_absent_class__logits")
    target = array("c_absent_class__targets")
    absent = [k for k in range(logits.shape[1]) if k not in target]
    costs = one_sided_costs(logits, target)
    assert len(absent) > 0
    assert (costs.miss[absent] == 0).all()
    assert (costs.false_positive[absent] > 0).all()


def test_a_batch_of_one_class_has_no_false_positives_of_it() -> None:
    costs = one_sided_costs(torch.randn(5, 3), torch.full((5,), 1))
    assert costs.false_positive[1] == 0
    assert costs.miss.tolist()[::2] == [0, 0]
    assert costs.miss[1] > 0
    assert (costs.false_positive[[0, 2]] > 0).all()


def test_a_class_that_is_ruled_out_costs_nothing_elsewhere() -> None:
    logits = torch.tensor([[0.5, 1.0, -torch.inf]], requires_grad=True)
    costs = one_sided_costs(logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(costs.miss.sum() + costs.false_positive.sum(), logits)
    assert costs.false_positive[2] == 0
    assert gradient.isfinite().all()


def test_an_empty_batch_costs_nothing() -> None:
    costs = one_sided_costs(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert not costs.miss.any()
    assert not costs.false_positive.any()


@pytest.mark.parametrize(
    ("logits", "target", "constants", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), "exact", r"logits have shape \(3,\)"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), "exact", "K >= 2 classes"),
        (torch.zeros(3, 2), torch.zeros(3, 2), "exact", "soft targets"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), "exact", r"integers of shape \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), "release", "Did you mean 'released'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(logits: Tensor, target: Tensor, constants: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        one_sided_costs(logits, target, constants)


def test_a_label_that_no_class_has_is_not_counted_silently() -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        one_sided_costs(torch.zeros(1, 3), torch.tensor([3]))
