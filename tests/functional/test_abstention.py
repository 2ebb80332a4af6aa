"""Losses and score of a classifier with one more output, against the authors' values and closed forms."""

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
from lightning_efficient.functional.abstention import (
    abstention_log_probabilities,
    answer_score,
    gamblers_loss,
    self_adaptive_loss,
    updated_belief,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "abstention.npz")
CLOSE = {"rtol": 1e-10, "atol": 1e-14}
TARGET = torch.from_numpy(GOLDEN["bl__targets"])


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def split(logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits[:, :-1], logits[:, -1]


def batch_of(seed: int, samples: int = 6, classes: int = 4, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    """Logits of the classes and of no answer in one tensor, and targets."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, classes + 1, dtype=torch.float64, generator=generator)
    return logits, torch.randint(0, classes, (samples,), generator=generator)


@pytest.mark.parametrize("payoff", [1.5, 2.2, 3.9])
def test_the_gamblers_loss_and_its_gradient_are_those_of_the_released_code(payoff: float) -> None:
    logits = array("bl__logits_k1").requires_grad_()
    loss = gamblers_loss(*split(logits), TARGET, payoff).mean()
    torch.testing.assert_close(loss, array(f"bl__dg_o{payoff}_loss"), **CLOSE)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], array(f"bl__dg_o{payoff}_grad"), **CLOSE)


def test_three_visits_of_self_adaptive_training_are_those_of_the_released_code() -> None:
    index, belief = array("bl__sat_index"), torch.ones(10, dtype=torch.float64)
    for step in range(3):
        logits = array(f"bl__sat_step{step}_logits").requires_grad_()
        belief[index] = updated_belief(belief[index], logits[:, :-1], TARGET, momentum=0.9)
        loss = self_adaptive_loss(*split(logits), TARGET, belief[index]).mean()
        torch.testing.assert_close(loss, array(f"bl__sat_step{step}_loss"), **CLOSE)
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], array(f"bl__sat_step{step}_grad"), **CLOSE)
        torch.testing.assert_close(belief[index], array(f"bl__sat_step{step}_hist")[index, TARGET], **CLOSE)


seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_the_gamblers_loss_rises_with_the_payoff_and_stays_below_the_cross_entropy(seed: int) -> None:
    logits, target = batch_of(seed, classes=1000)
    whole = F.cross_entropy(logits, target, reduction="none")
    losses = [gamblers_loss(*split(logits), target, payoff) for payoff in (1.01, 2.0, 30.0, 1000.0)]
    for lower, upper in zip(losses, [*losses[1:], whole], strict=True):
        assert (lower <= upper + 1e-12).all()
    kept = abstention_log_probabilities(*split(logits))[:, -1].exp()
    torch.testing.assert_close(-(-whole).exp().add(kept / 1000).log(), losses[-1], rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(1.01, 4.0))
def test_without_abstention_the_gamblers_loss_is_the_cross_entropy(seed: int, payoff: float) -> None:
    logits, target = batch_of(seed)
    never = torch.full((len(logits),), -1000.0, dtype=torch.float64)
    expected = F.cross_entropy(logits[:, :-1], target, reduction="none")
    torch.testing.assert_close(gamblers_loss(logits[:, :-1], never, target, payoff), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_a_label_that_is_believed_asks_for_the_cross_entropy_over_all_outputs(seed: int) -> None:
    logits, target = batch_of(seed)
    ones = torch.ones(len(logits), dtype=torch.float64)
    believed = self_adaptive_loss(*split(logits), target, ones)
    torch.testing.assert_close(believed, F.cross_entropy(logits, target, reduction="none"), rtol=1e-12, atol=1e-12)
    no_answer = torch.full_like(target, logits.shape[1] - 1)
    doubted = self_adaptive_loss(*split(logits), target, 0 * ones)
    torch.testing.assert_close(doubted, F.cross_entropy(logits, no_answer, reduction="none"), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_a_belief_moves_between_itself_and_the_probability_of_the_label(seed: int, belief: float, m: float) -> None:
    logits, target = batch_of(seed)
    before = torch.full((len(logits),), belief, dtype=torch.float64)
    given_ = logits[:, :-1].softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    after = updated_belief(before, logits[:, :-1], target, m)
    assert (after >= torch.minimum(before, given_) - 1e-12).all()
    assert (after <= torch.maximum(before, given_) + 1e-12).all()
    torch.testing.assert_close(updated_belief(before, logits[:, :-1], target, 1.0), before)
    torch.testing.assert_close(updated_belief(before, logits[:, :-1], target, 0.0), given_)


def test_a_belief_has_no_gradient() -> None:
    logits, target = batch_of(0)
    belief = torch.ones(len(logits), dtype=torch.float64, requires_grad=True)
    assert not updated_belief(belief, logits.requires_grad_()[:, :-1], target, 0.5).requires_grad


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from([1.0, 30.0, 1000.0]), st.sampled_from([torch.float32, torch.float64]))
def test_the_score_is_minus_the_probability_of_no_answer(seed: int, scale: float, dtype: torch.dtype) -> None:
    logits = batch_of(seed, scale=scale)[0].to(dtype)
    score = answer_score(*split(logits))
    assert ((score >= -1) & (score <= 0)).all()
    torch.testing.assert_close(score, -logits.softmax(1)[:, -1])


def test_sure_answers_do_not_tie() -> None:
    abstain_logit = torch.linspace(-80, -20, 1000)
    score = answer_score(torch.zeros(1000, 3), abstain_logit)
    assert len(score.unique()) == 1000
    assert (score.diff() < 0).all()
    assert len((1 - abstention_log_probabilities(torch.zeros(1000, 3), abstain_logit)[:, -1].exp()).unique()) < 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_float32_values_of_the_rounded_logits(dtype: torch.dtype) -> None:
    logits, target = batch_of(5)
    rounded, belief = logits.to(dtype), torch.linspace(0, 1, len(logits))

    def all_of(values: Tensor) -> tuple[Tensor, ...]:
        outputs = split(values)
        return (
            answer_score(*outputs),
            gamblers_loss(*outputs, target, 2.2),
            self_adaptive_loss(*outputs, target, belief),
            updated_belief(belief, outputs[0], target, 0.9),
        )

    for low, full in zip(all_of(rounded), all_of(rounded.float()), strict=True):
        assert low.dtype == torch.float32
        assert torch.equal(low, full)


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_extreme_logits_leave_losses_and_gradients_finite(scale: float) -> None:
    logits, target = batch_of(1, scale=1.0)
    logits = (scale * logits).float().requires_grad_()
    belief = torch.full((len(logits),), 0.5)
    losses = gamblers_loss(*split(logits), target, 2.2) + self_adaptive_loss(*split(logits), target, belief)
    assert losses.isfinite().all()
    assert torch.autograd.grad(losses.mean(), logits)[0].isfinite().all()


def test_the_released_form_differs_by_the_logarithm_of_the_payoff() -> None:
    logits, target = batch_of(2)
    q = logits.softmax(1)
    right = q.gather(1, target.unsqueeze(1)).squeeze(1)
    loss = gamblers_loss(*split(logits), target, 3.0)
    torch.testing.assert_close(loss - math.log(3.0), -(3.0 * right + q[:, -1]).log(), rtol=1e-10, atol=1e-10)


LOGITS, NO_ANSWER, LABELS, ONES = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.long), torch.ones(3)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (gamblers_loss, (LOGITS, NO_ANSWER, LABELS, 1.0), r"payoff=1.0 must be above 1 and at most 4"),
        (gamblers_loss, (LOGITS, NO_ANSWER, LABELS, 4.5), r"payoff=4.5 must be above 1 and at most 4"),
        (gamblers_loss, (LOGITS, NO_ANSWER, LABELS, math.nan), r"payoff=nan must be above 1"),
        (gamblers_loss, (LOGITS, NO_ANSWER, ONES, 2.0), r"soft targets"),
        (answer_score, (LOGITS, LOGITS), r"abstain_logit has shape \(3, 4\); give one value per sample, shape \(3,\)"),
        (answer_score, (NO_ANSWER, NO_ANSWER), r"logits has shape \(3,\); give class scores"),
        (self_adaptive_loss, (LOGITS, NO_ANSWER, LABELS, ONES[:2]), r"belief has shape \(2,\)"),
        (updated_belief, (ONES, LOGITS, LABELS, 1.5), r"momentum=1.5 is outside \[0, 1\]"),
        (updated_belief, (ONES[:1], LOGITS, LABELS, 0.5), r"belief has shape \(1,\)"),
    ],
)
def test_what_cannot_work_is_said(function, arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
