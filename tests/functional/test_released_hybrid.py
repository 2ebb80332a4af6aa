"""Losses and sweeps of the released code for hybrid models, against what that code printed.

The released code keeps counts, labels and some constants in float32 also where logits are float64. Terms in which they
take part agree to 1e-7, all others to 1e-10.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.released_hybrid import (
    joint_head_loss,
    keep_label,
    released_base_loss,
    released_entropy_sweep,
    released_gate_loss,
    released_gate_sweep,
    released_global_loss,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "hybrid.npz")
EXACT, FLOAT32 = 1e-10, 1e-7
LABELS = {"strategy1": "base_correct", "strategy2": "proxy"}


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def close(value: Tensor, key: str, atol: float) -> None:
    torch.testing.assert_close(value, array(key).to(value.dtype).reshape(value.shape), rtol=0, atol=atol)


def outcomes() -> tuple[Tensor, Tensor]:
    target = array("in/y")
    return array("in/s_logits").argmax(1) == target, array("in/t_logits").argmax(1) == target


TERMS = {
    "loss": ("total", FLOAT32),
    "ce": ("classification", EXACT),
    "osp": ("one_sided", FLOAT32),
    "disk": ("scaffold", EXACT),
    "disk_budget": ("help_budget", FLOAT32),
    "router_clf": ("router", FLOAT32),
    "router_cov": ("coverage", EXACT),
}


@pytest.mark.parametrize("term", TERMS)
def test_terms_of_the_joint_loss_and_their_gradients_are_those_of_the_released_code(term: str) -> None:
    inputs = {name: array(f"in/{name}").requires_grad_() for name in ("s_logits", "disk_gate", "hybrid_logit")}
    base, guide, keep = inputs.values()
    loss = joint_head_loss(base, array("in/t_logits"), -keep.squeeze(1), array("in/y"), guide.squeeze(1), released=True)
    name, atol = TERMS[term]
    value = getattr(loss, name)
    close(value, f"head/{term}", atol)
    gradients = torch.autograd.grad(value, tuple(inputs.values()), allow_unused=True, materialize_grads=True)
    for which, gradient in zip(inputs, gradients, strict=True):
        close(gradient, f"head/d_{term}/d_{which}", atol)


def test_the_released_joint_loss_weighs_no_sample_and_ours_does() -> None:
    given = array("in/s_logits"), array("in/t_logits"), -array("in/hybrid_logit").squeeze(1), array("in/y")
    close(joint_head_loss(*given, released=True).classification, "head/ce_as_mean_times_mean", EXACT)
    close(joint_head_loss(*given).classification, "head/ce_if_per_sample", EXACT)


@pytest.mark.parametrize("strategy", LABELS)
def test_the_first_generations_gate_loss_is_the_released_one(strategy: str) -> None:
    gate = array("in/gate2").requires_grad_()
    divisor, max_query_rate, _ = array("era/args").tolist()
    loss = released_gate_loss(
        gate, *outcomes(), label=LABELS[strategy], max_query_rate=max_query_rate, query_divisor=divisor
    )
    close(loss, f"era93be62a/{strategy}/gating/loss", FLOAT32)
    close(torch.autograd.grad(loss, gate)[0], f"era93be62a/{strategy}/gating/grad", FLOAT32)


@pytest.mark.parametrize("strategy", LABELS)
def test_the_models_steps_of_the_first_generation_are_the_released_ones(strategy: str) -> None:
    base, large = array("in/s_logits").requires_grad_(), array("in/t_logits").requires_grad_()
    target, gate = array("in/y"), array("in/gate2")
    for name, logits, loss in (
        ("student", base, released_base_loss(base, target, gate)),
        ("teacher", large, released_global_loss(large, target, gate)),
    ):
        close(loss, f"era93be62a/{strategy}/{name}/loss", EXACT)
        close(torch.autograd.grad(loss, logits)[0], f"era93be62a/{strategy}/{name}/grad", EXACT)


def test_the_second_generations_losses_are_the_printed_ones() -> None:
    divisor, max_query_rate, max_keep_rate = array("era/args").tolist()
    options = {"max_query_rate": max_query_rate, "max_keep_rate": max_keep_rate, "query_divisor": divisor}
    gate = array("in/gate2")
    for label, printed in (("base_correct", 3.579383), ("proxy", 3.887878)):
        loss = released_gate_loss(gate, *outcomes(), generation="second", label=label, **options)
        assert loss.item() == pytest.approx(printed, abs=5e-7)
    assert released_base_loss(array("in/s_logits"), array("in/y"), gate, "second").item() == pytest.approx(
        23.660282, abs=5e-7
    )


@pytest.mark.parametrize("strategy", LABELS)
def test_what_the_gate_keeps_is_what_the_released_code_reported(strategy: str) -> None:
    base, large = outcomes()
    kept = array("in/gate2").argmax(1) == 1
    reported = {
        "coverage": kept,
        "acc_at_cov": base[kept],
        "t_acc_at_cov": large[~kept],
        "gate_acc": kept == keep_label(base, large, LABELS[strategy]),
    }
    for name, values in reported.items():
        close(values.float().mean(), f"era93be62a/{strategy}/gating/{name}", FLOAT32)


def test_the_proxy_label_is_the_oracle_of_the_last_generation() -> None:
    assert keep_label(*outcomes()).long().tolist() == array("head/oracle").tolist()


def sweep_outcomes() -> tuple[Tensor, Tensor]:
    target = array("eval/in_y")
    return array("eval/in_s_pred") == target, array("eval/in_t_pred") == target


def test_the_sweep_over_thresholds_of_the_gate_is_the_released_one() -> None:
    found = torch.tensor(released_gate_sweep(array("eval/in_gate"), *sweep_outcomes()), dtype=torch.float64)
    rows = array("eval/gate_rows__target_thr_cov_cov%_acc%_baseacc%_globalacc%_flop")
    torch.testing.assert_close(found[:, :2], rows[:, :2], rtol=0, atol=1e-14)
    # shares were printed from float32
    torch.testing.assert_close(found[:, 2], rows[:, 2], rtol=0, atol=3e-8)
    torch.testing.assert_close(100 * found[:, 3:], rows[:, 4:7], rtol=1e-7, atol=0)
    macs = 1e7 + (1 - found[:, 2]) * 1e8
    torch.testing.assert_close(macs, rows[:, 7], rtol=1e-7, atol=0)


def test_the_sweep_over_thresholds_of_the_entropy_is_the_released_one() -> None:
    found = torch.tensor(released_entropy_sweep(array("eval/in_entropy"), *sweep_outcomes()), dtype=torch.float64)
    rows = array("eval/entropy_rows__target_thr_cov")
    torch.testing.assert_close(found[:, :2], rows[:, :2], rtol=0, atol=1e-14)
    torch.testing.assert_close(found[:, 2], rows[:, 2], rtol=0, atol=3e-8)


def test_a_sweep_whose_grid_meets_no_target_says_so() -> None:
    right = torch.ones(5, dtype=torch.bool)
    with pytest.raises(ConfigurationError, match=r"entropy has no threshold .* from 0.1 to 0.99; use query_thresh"):
        released_entropy_sweep(torch.zeros(5), right, right)


def test_missing_labels_cost_finite_weights() -> None:
    gate = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    right = torch.ones(4, dtype=torch.bool)
    for base in (right, ~right):
        loss = released_gate_loss(gate, base, right)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, gate)[0].isfinite().all()


@pytest.mark.parametrize(("gate", "excess"), [([5.0, 0.0], 1 - 0.45), ([0.0, 5.0], 1 - 0.65)])
def test_the_rate_is_what_the_second_generation_pays_for(gate: list[float], excess: float) -> None:
    gates, right = torch.tensor([gate] * 3), torch.tensor([gate[1] > 0] * 3)
    loss = released_gate_loss(gates, right, ~right, generation="second")
    probability = 1 / (1 + math.exp(-5))
    focal = 0.5 * 3 * (1 + float(right[0])) * (1 - probability) ** 2 * -math.log(probability)
    assert loss.item() == pytest.approx(focal + 100 * 0.1 * excess, rel=1e-5)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Base right on the first two samples alone, global model on all."""
    target = torch.tensor([0, 1, 2, 0])
    large = 3 * F.one_hot(target, 3).float()
    base = 2 * F.one_hot(torch.tensor([0, 1, 0, 1]), 3).float()
    return base, large, torch.zeros(4), target


def test_the_joint_loss_counts_what_the_base_keeps_twice() -> None:
    base, large, query, target = batch()
    losses = F.cross_entropy(base, target, reduction="none")
    loss = joint_head_loss(base, large, query, target, label_smoothing=0.0)
    assert loss.classification.item() == pytest.approx(((2 * losses[:2].sum() + losses[2:].sum()) / 4).item())


def test_asking_about_more_than_wanted_costs_and_keeping_does_not() -> None:
    base, large, query, target = batch()
    asks, keeps = (joint_head_loss(base, large, query + sign * 20, target, target_coverage=0.7) for sign in (1, -1))
    assert asks.coverage.item() == pytest.approx(0.7, abs=1e-6)
    assert keeps.coverage.item() == 0
    released = joint_head_loss(base, large, query - 20, target, target_coverage=0.7, released=True)
    assert released.coverage.item() == pytest.approx(19.3, abs=1e-4)


def test_without_a_mistake_of_the_base_help_costs_finitely_unless_released() -> None:
    base, large, query, target = batch()
    guide = torch.full((2,), 0.5)
    given = base[:2], large[:2], query[:2], target[:2], guide
    assert joint_head_loss(*given).total.isfinite()
    assert joint_head_loss(*given, released=True).help_budget.item() == math.inf


def test_without_a_guide_no_help_is_paid_for_and_factors_of_zero_leave_the_classification() -> None:
    base, large, query, target = batch()
    off = {f"{name}_weight": 0.0 for name in ("one_sided", "scaffold", "router", "coverage")}
    loss = joint_head_loss(base, large, query, target, **off)
    assert loss.help_budget.item() == 0
    assert loss.total.item() == loss.classification.item()


def test_no_gradient_flows_into_the_global_model() -> None:
    base, large, query, target = batch()
    large.requires_grad_()
    joint_head_loss(base.requires_grad_(), large, query, target).total.backward()
    assert large.grad is None
    assert base.grad.abs().sum() > 0


GATE, RIGHT = torch.zeros(3, 2), torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: keep_label(RIGHT, RIGHT, "prox"), r"label='prox' is not one of .*Did you mean 'proxy'"),
        (lambda: released_gate_loss(GATE, RIGHT, RIGHT, generation="third"), r"generation='third' is not one of"),
        (lambda: released_gate_loss(GATE[:, :1], RIGHT, RIGHT), r"gate has shape \(3, 1\)"),
        (lambda: released_gate_loss(GATE, RIGHT, RIGHT, max_query_rate=45), r"max_query_rate=45 is outside"),
        (lambda: released_gate_loss(GATE, RIGHT, RIGHT, query_divisor=0), r"query_divisor=0 must be a finite"),
        (lambda: released_global_loss(GATE, RIGHT.long(), GATE[:2]), r"gate has shape \(2, 2\)"),
        (lambda: released_gate_sweep(torch.zeros(2), RIGHT, RIGHT), r"keep_probability has shape \(2,\) for 3 samples"),
        (lambda: joint_head_loss(*batch()[:2], torch.zeros(4, 1), batch()[3]), r"query_logit have shapes"),
        (lambda: joint_head_loss(*batch(), label_smoothing=1.0), r"label_smoothing=1.0 must be"),
        (lambda: joint_head_loss(*batch(), top_k=0), r"top_k=0 must be an integer of at least 1"),
        (lambda: joint_head_loss(*batch(), router_weight=-1.0), r"router_weight=-1.0 must be a finite number"),
        (lambda: joint_head_loss(*batch(), released="no"), r"released='no' must be True or False"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(call, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
