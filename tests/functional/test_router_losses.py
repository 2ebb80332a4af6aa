"""What routers learn from, and the weights of the alternation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.router_losses import (
    alternation_weights,
    gain_loss,
    proxy_loss,
    query_rate_penalty,
)

BASE, LARGE = torch.tensor([True, False, False, True]), torch.tensor([True, True, False, False])
LOGITS = torch.tensor([0.5, -1.0, 2.0, 0.0])


def cross_entropy(logit: Tensor, label: Tensor) -> Tensor:
    probability = logit.double().sigmoid()
    return -torch.where(label, probability, 1 - probability).log()


def test_the_gain_loss_is_two_cross_entropies() -> None:
    wanted = (cross_entropy(LOGITS, BASE) + cross_entropy(-LOGITS, LARGE)).mean()
    assert gain_loss(LOGITS, -LOGITS, BASE, LARGE).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_several_global_models_add_a_cross_entropy_each() -> None:
    both, right = torch.stack([-LOGITS, LOGITS], 1), torch.stack([LARGE, BASE], 1)
    wanted = (cross_entropy(LOGITS, BASE) * 2 + cross_entropy(-LOGITS, LARGE)).mean()
    assert gain_loss(LOGITS, both, BASE, right).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_gain_loss_is_least_at_the_share_of_right_answers() -> None:
    torch.manual_seed(0)
    base, large = torch.rand(400) < 0.25, torch.rand(400) < 0.75
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = gain_loss(logits[0].expand(400), logits[1].expand(400), base, large)
        loss.backward()
        return loss

    optimizer.step(closure)
    shares = torch.stack([base.float().mean(), large.float().mean()])
    torch.testing.assert_close(logits.detach().sigmoid(), shares, rtol=0, atol=1e-3)


def test_a_probability_is_a_soft_label() -> None:
    soft = torch.full((4,), 0.5)
    wanted = (cross_entropy(LOGITS, BASE) + (cross_entropy(LOGITS, BASE) + cross_entropy(LOGITS, ~BASE)) / 2).mean()
    assert gain_loss(LOGITS, LOGITS, BASE, soft).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_proxy_loss_asks_for_base_wrong_and_global_right_alone() -> None:
    label = torch.tensor([False, True, False, False])
    assert proxy_loss(LOGITS, BASE, LARGE).item() == pytest.approx(cross_entropy(LOGITS, label).mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    "loss", [lambda w: gain_loss(LOGITS, LOGITS, BASE, LARGE, w), lambda w: proxy_loss(LOGITS, BASE, LARGE, w)]
)
def test_weights_choose_samples_and_their_scale_does_not_matter(loss) -> None:
    torch.testing.assert_close(loss(torch.full((4,), 7.0)), loss(None))
    one = [loss(torch.eye(4)[place]) for place in range(4)]
    torch.testing.assert_close(torch.stack(one).mean(), loss(None))
    assert loss(torch.zeros(4)).item() == 0


def test_large_logits_and_half_precision_give_finite_losses_and_gradients() -> None:
    logits = torch.tensor([3e4, -3e4, 3e4, -3e4], dtype=torch.bfloat16, requires_grad=True)
    loss = gain_loss(logits, logits, BASE, LARGE)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_no_samples_cost_nothing() -> None:
    none, nobody = torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.bool)
    for loss in (gain_loss(none, none, nobody, nobody), proxy_loss(none, nobody, nobody)):
        assert loss.item() == 0
    assert query_rate_penalty(none, 0.5).item() == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1), st.floats(0, 10))
@settings(max_examples=100, deadline=None)
def test_only_asking_too_much_is_penalised(probabilities: list[float], coverage: float, weight: float) -> None:
    values = torch.tensor(probabilities, dtype=torch.float64)
    excess = sum(probabilities) / len(probabilities) - (1 - coverage)
    wanted = weight * max(excess, 0.0)
    assert query_rate_penalty(values, coverage, weight).item() == pytest.approx(wanted, abs=1e-12)


def test_the_penalty_pulls_probabilities_of_asking_down() -> None:
    probability = torch.tensor([0.9, 0.6], requires_grad=True)
    query_rate_penalty(probability, target_coverage=0.7, weight=3.0).backward()
    assert probability.grad.tolist() == [1.5, 1.5]


def test_the_alternation_weighs_what_each_model_gets_twice() -> None:
    base, large = alternation_weights(torch.tensor([True, False, False]))
    assert base.tolist() == [1, 2, 2]
    assert large.tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: gain_loss(LOGITS, LOGITS[:3], BASE, LARGE[:3]),
            r"base_logit has shape \(4,\) and global_logit \(3,\)",
        ),
        (lambda: gain_loss(LOGITS, LOGITS[:3], BASE, LARGE), r"global_logit has shape \(3,\) and its labels \(4,\)"),
        (lambda: gain_loss(LOGITS[:, None], LOGITS, BASE[:, None], LARGE), r"give \(N,\) for the base"),
        (lambda: gain_loss(LOGITS, LOGITS, BASE, LARGE, torch.ones(3)), r"weight has shape \(3,\)"),
        (lambda: proxy_loss(LOGITS, BASE, LARGE[:2]), r"global_correct \(2,\)"),
        (lambda: proxy_loss(LOGITS[:, None], BASE[:, None], LARGE[:, None]), r"one per sample, shape \(N,\)"),
        (lambda: query_rate_penalty(LOGITS, 70), r"target_coverage=70 is outside \[0, 1\]"),
        (lambda: query_rate_penalty(LOGITS, 0.7, -1.0), r"weight=-1.0 must be a finite number, 0 or more"),
        (lambda: query_rate_penalty(LOGITS, 0.7, math.inf), r"weight=inf must be a finite number"),
        (lambda: query_rate_penalty(LOGITS[:, None], 0.7), r"query_probability has shape \(4, 1\)"),
        (lambda: alternation_weights(LOGITS), r"queried has dtype torch.float32"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(call, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
