"""The table of objectives for abstaining classifiers, and the two that have no file of tests of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.losses._selective_objective import SelectiveObjective
from lightning_efficient.losses.gamblers import GamblersLoss
from lightning_efficient.losses.one_sided import OneSidedLoss
from lightning_efficient.losses.selective_cross_entropy import SelectiveCrossEntropy
from lightning_efficient.losses.selective_net import SelectiveNetLoss
from lightning_efficient.losses.selective_objectives import (
    SelectiveObjectiveName,
    build_selective_objective,
    check_selective_options,
)
from lightning_efficient.losses.self_adaptive import SelfAdaptiveLoss
from lightning_efficient.nn.selective_heads import SelectiveHeads, SelectiveOutputs

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "abstention.npz")
NAMES = get_args(SelectiveObjectiveName)
SCORE_NEEDS = {"msp": set(), "selector": {"selection"}, "abstain_logit": {"abstain"}}


@pytest.mark.parametrize(
    ("objective", "options", "kind"),
    [
        ("ce", {"label_smoothing": 0.2}, SelectiveCrossEntropy),
        ("selectivenet", {"coverage": 0.7, "penalty": 16.0, "form": "released"}, SelectiveNetLoss),
        ("gamblers", {"payoff": 3.5}, GamblersLoss),
        ("sat", {"momentum": 0.99, "num_samples": 30}, SelfAdaptiveLoss),
        ("osp", {"price": 0.49}, OneSidedLoss),
    ],
)
def test_options_reach_the_objective_of_that_name(objective: str, options: dict[str, Any], kind: type) -> None:
    built = build_selective_objective(objective, options, num_classes=4)
    assert type(built) is kind
    assert {name: getattr(built, name) for name in options} == options


@pytest.mark.parametrize("objective", NAMES)
def test_every_objective_trains_its_own_heads_and_the_network(objective: str) -> None:
    torch.manual_seed(0)
    built = build_selective_objective(objective, {}, num_classes=4)
    assert isinstance(built, SelectiveObjective)
    assert SCORE_NEEDS[built.default_score] <= built.needs
    network, heads = torch.nn.Linear(5, 4), SelectiveHeads(5, 4, built.needs)
    features, target = torch.randn(8, 5), torch.arange(8) % 4
    terms = built(heads(network(features), features), target, torch.arange(8))
    terms["loss"].backward()
    assert all(value.ndim == 0 and value.isfinite() for value in terms.values())
    for parameter in (*network.parameters(), *heads.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert all(parameter.grad.any() for parameter in network.parameters() if parameter.grad is not None)
    built.project()
    assert all("params" in group for group in built.parameter_groups())


@pytest.mark.parametrize(
    ("objective", "options", "share"),
    [
        ("ce", {}, 0),
        ("selectivenet", {}, 0),
        ("gamblers", {"payoff": 2.2}, 1 / 3),
        ("gamblers", {"payoff": 6.1}, 0),
        ("sat", {}, 1 / 2),
        ("osp", {}, 0),
    ],
)
def test_the_warm_up_is_as_released(objective: str, options: dict[str, Any], share: float) -> None:
    assert build_selective_objective(objective, options, num_classes=10).warmup_share() == share


def test_one_objective_wants_the_index_of_each_sample() -> None:
    assert [name for name in NAMES if build_selective_objective(name, {}, 4).needs_index] == ["sat"]


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("gambler", {}, r"model.objective='gambler' is not one of .*Did you mean 'gamblers'"),
        (
            "gamblers",
            {"payof": 2},
            r"model.objective_kwargs: 'gamblers' has no option 'payof'; .*Did you mean 'payoff'",
        ),
        ("gamblers", {"payoff": 5}, r"payoff is 5, but there are 4 classes; set payoff above 1 and to 4 or less"),
        ("gamblers", {"payoff": 1}, r"payoff=1 must be above 1"),
        ("ce", {"payoff": 2.2}, r"'ce' has no option 'payoff'; it has label_smoothing"),
        ("ce", {"label_smoothing": 1.0}, r"label_smoothing=1.0 is outside \[0, 1\)"),
        ("osp", {"num_classes": 3}, r"'osp' has no option 'num_classes'; it has price"),
        ("sat", {"index": 3}, r"'sat' has no option 'index'; it has momentum, num_samples"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(objective: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        build_selective_objective(objective, options, num_classes=4)
    assert "\n" not in str(error.value)


def test_options_are_checked_before_anything_is_built() -> None:
    for objective in NAMES:
        check_selective_options(objective, {})
    with pytest.raises(ConfigurationError, match=r"no option 'coverge'.*Did you mean 'coverage'"):
        check_selective_options("selectivenet", {"coverge": 0.8})


@pytest.mark.parametrize("payoff", [1.5, 2.2, 3.9])
def test_the_gamblers_objective_has_the_released_value_and_gradient(payoff: float) -> None:
    logits = torch.from_numpy(GOLDEN["bl__logits_k1"]).requires_grad_()
    outputs = SelectiveOutputs(logits[:, :-1], abstain_logit=logits[:, -1])
    terms = GamblersLoss(payoff)(outputs, torch.from_numpy(GOLDEN["bl__targets"]))
    assert terms["loss"].item() == pytest.approx(float(GOLDEN[f"bl__dg_o{payoff}_loss"]), rel=1e-10)
    (gradient,) = torch.autograd.grad(terms["loss"], logits)
    torch.testing.assert_close(gradient, torch.from_numpy(GOLDEN[f"bl__dg_o{payoff}_grad"]), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(terms["abstention"], logits.detach().softmax(1)[:, -1].mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_torch_in_float32(smoothing: float) -> None:
    logits, target = 3 * torch.randn(6, 4).half(), torch.arange(6) % 4
    loss = SelectiveCrossEntropy(smoothing)(SelectiveOutputs(logits), target)["loss"]
    assert torch.equal(loss, F.cross_entropy(logits.float(), target, label_smoothing=smoothing))


@pytest.mark.parametrize("objective", NAMES)
def test_soft_targets_are_refused(objective: str) -> None:
    heads = SelectiveOutputs(torch.zeros(2, 4), torch.zeros(2), torch.zeros(2), torch.zeros(2, 4))
    with pytest.raises(ConfigurationError, match="soft targets"):
        build_selective_objective(objective, {}, 4)(heads, torch.full((2, 4), 0.25), torch.arange(2))


def test_the_gamblers_objective_says_that_its_head_is_missing() -> None:
    with pytest.raises(
        ConfigurationError, match=r"GamblersLoss needs abstain_logit.*SelectiveHeads with needs=abstain"
    ):
        GamblersLoss()(SelectiveOutputs(torch.zeros(1, 3)), torch.tensor([0]))


def test_a_base_class_leaves_the_loss_to_others() -> None:
    base = SelectiveObjective()
    assert base.warmup_share() == 0
    assert base.parameter_groups() == []
    with pytest.raises(NotImplementedError):
        base(SelectiveOutputs(torch.zeros(1, 2)), torch.tensor([0]))
