"""The objective of one-sided prediction against golden values, and how its duals are moved, kept and restored."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.one_sided import one_sided_costs
from lightning_efficient.losses.one_sided import OneSidedLoss
from lightning_efficient.nn.selective_heads import SelectiveOutputs

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "one_sided.npz")
CASES = ["a", "b", "c_absent_class", "e_alpha1"]
CLOSE = {"rtol": 1e-10, "atol": 1e-13}
DUALS = {"lambdas": "multipliers", "epsilons": "allowances"}


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[f"osp_{key}"]))


def golden_objective(case: str, dual: Any) -> OneSidedLoss:
    """The objective of a golden case, with the constants of the release, in float64."""
    multipliers = array(f"{case}__lambdas")
    objective = OneSidedLoss(
        len(multipliers),
        price=array(f"{case}__mu").item(),
        dual=dual,
        auxiliary_weight=1 - array(f"{case}__alpha").item(),
        constants="released",
    ).double()
    objective.load_state_dict({"multipliers": multipliers, "allowances": array(f"{case}__epsilons")})
    return objective


def add_duals(optimizer: torch.optim.Optimizer, objective: OneSidedLoss) -> None:
    """Give an optimiser the parameters of an objective, as a module does."""
    for group in objective.parameter_groups():
        scale = group.pop("lr_scale", 1.0)
        optimizer.add_param_group({"lr": scale * optimizer.defaults["lr"], **group})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dual", "golden"), [("release", ""), ("minimax", "paper_")])
def test_loss_and_gradients_are_golden(case: str, dual: str, golden: str) -> None:
    objective = golden_objective(case, dual)
    outputs = SelectiveOutputs(
        array(f"{case}__logits").requires_grad_(), auxiliary_logits=array(f"{case}__aux_logits").requires_grad_()
    )
    loss = objective(outputs, array(f"{case}__targets"))["loss"]
    torch.testing.assert_close(loss, array(f"{case}__{golden}loss"), **CLOSE)
    loss.backward()
    torch.testing.assert_close(outputs.logits.grad, array(f"{case}__{golden}grad_logits"), **CLOSE)
    for name, own in DUALS.items():
        gradient = getattr(objective, own).grad
        torch.testing.assert_close(gradient, array(f"{case}__{golden}grad_{name}"), **CLOSE)
    if case == "e_alpha1":
        assert outputs.auxiliary_logits is not None
        assert outputs.auxiliary_logits.grad is None
    else:
        torch.testing.assert_close(outputs.auxiliary_logits.grad, array(f"{case}__grad_aux"), **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_a_price_of_one_gives_the_loss_that_the_release_logs_in_evaluation(case: str) -> None:
    objective = golden_objective(case, "release")
    objective.price = 1.0
    outputs = SelectiveOutputs(array(f"{case}__logits"), auxiliary_logits=array(f"{case}__aux_logits"))
    loss = objective(outputs, array(f"{case}__targets"))["loss"]
    torch.testing.assert_close(loss.detach(), array(f"{case}__loss_eval_mu1"), **CLOSE)


def test_twenty_steps_follow_the_two_optimisers_of_the_release() -> None:
    start = {key: array(f"traj__init__{key}") for key in ("lambdas", "epsilons")}
    layers = {name: nn.Linear(6, 4).double() for name in ("model.lin", "aux_clf")}
    for name, layer in layers.items():
        layer.load_state_dict({key: array(f"traj__init__{name}.{key}") for key in ("weight", "bias")})
    objective = OneSidedLoss(4, price=array("traj__mu").item(), dual="release", auxiliary_weight=0.1).double()
    objective.load_state_dict({own: start[name] for name, own in DUALS.items()})
    # the release lets the duals decay, which parameter_groups() does not
    of_allowances, of_multipliers = objective.parameter_groups()
    assert of_multipliers["maximize"] is True
    groups = [
        {"params": [parameter for layer in layers.values() for parameter in layer.parameters()]},
        {"params": of_allowances["params"]},
        {"params": of_multipliers["params"], "maximize": True, "lr": 1e-4},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=5e-4)
    rows = []
    for _ in range(20):
        outputs = SelectiveOutputs(
            layers["model.lin"](array("traj__X")), auxiliary_logits=layers["aux_clf"](array("traj__X"))
        )
        loss = objective(outputs, array("traj__T"))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.project()
        rows.append([loss.item(), *objective.multipliers.tolist(), *objective.allowances.tolist()])
    np.testing.assert_allclose(rows, GOLDEN["osp_traj__loss_lambda_eps"], rtol=1e-9)
    for name, layer in layers.items():
        for key, value in layer.state_dict().items():
            torch.testing.assert_close(value, array(f"traj__final__{name}.{key}"), rtol=1e-9, atol=1e-12)
    for name, own in DUALS.items():
        torch.testing.assert_close(objective.state_dict()[own], array(f"traj__final__{name}"), rtol=1e-9, atol=0)


def gradient_of_logits(objective: OneSidedLoss) -> Tensor:
    logits = array("a__logits").requires_grad_()
    loss = objective(SelectiveOutputs(logits), array("a__targets"))["loss"]
    return torch.autograd.grad(loss, logits)[0]


def test_the_networks_gradient_follows_the_multipliers_and_in_the_release_nothing_at_all() -> None:
    gradients = {
        dual: [
            gradient_of_logits(OneSidedLoss(4, price, dual, auxiliary_weight=0.0, constants="exact"))
            for price in (0.7, 3.0)
        ]
        for dual in ("minimax", "fixed", "release")
    }
    assert torch.equal(*gradients["release"])
    for dual in ("minimax", "fixed"):
        one, other = gradients[dual]
        assert (one - other).abs().max() > 0.01


def test_with_every_multiplier_at_the_price_the_minimax_trains_the_network_as_fixed_does() -> None:
    minimax = OneSidedLoss(4, 2.0, "minimax", auxiliary_weight=0.0, initial_multiplier=2.0)
    fixed = OneSidedLoss(4, 2.0, "fixed", auxiliary_weight=0.0)
    torch.testing.assert_close(gradient_of_logits(minimax), gradient_of_logits(fixed))


def test_fixed_is_misses_plus_the_price_of_false_positives() -> None:
    costs = one_sided_costs(array("a__logits"), array("a__targets"))
    outputs = SelectiveOutputs(array("a__logits"), auxiliary_logits=array("a__aux_logits"))
    objective = OneSidedLoss(4, 2.0, "fixed", auxiliary_weight=0.25)
    terms = objective(outputs, array("a__targets"))
    auxiliary = F.cross_entropy(array("a__aux_logits"), array("a__targets"))
    expected = 0.75 * (costs.miss.sum() + 2 * costs.false_positive.sum()) + 0.25 * auxiliary
    torch.testing.assert_close(terms["loss"], expected)
    assert set(terms) == {"loss", "miss_cost", "false_positive_cost"}
    torch.testing.assert_close(terms["miss_cost"], costs.miss.mean())
    torch.testing.assert_close(terms["false_positive_cost"], costs.false_positive.mean())
    assert objective.parameter_groups() == []
    assert not objective.state_dict()
    objective.project()


def test_logged_scalars_are_copies_without_a_graph() -> None:
    objective = OneSidedLoss(4, 2.0, auxiliary_weight=0.0)
    terms = objective(SelectiveOutputs(torch.randn(5, 4, requires_grad=True)), torch.tensor([0, 1, 2, 3, 0]))
    loss = terms.pop("loss")
    assert loss.requires_grad
    assert set(terms) == {"miss_cost", "false_positive_cost", "multiplier", "allowance"}
    assert not any(term.requires_grad or term.ndim for term in terms.values())
    with torch.no_grad():
        objective.multipliers.zero_()
    assert terms["multiplier"] == 1.5
    assert terms["allowance"] == 0.5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"price": 2.0}, 1.5),
        ({"price": 0.2}, 0.0),
        ({"price": 0.25, "dual": "release"}, -0.25),
        ({"price": 2.0, "initial_multiplier": 0.75}, 0.75),
    ],
)
def test_where_the_multipliers_begin(options: dict[str, Any], expected: float) -> None:
    objective = OneSidedLoss(3, **options)
    assert objective.multipliers.tolist() == [expected] * 3
    assert objective.allowances.tolist() == [0.5] * 3


def test_the_auxiliary_head_is_needed_only_where_it_has_a_weight() -> None:
    assert OneSidedLoss(3).needs == {"auxiliary"}
    assert OneSidedLoss(3, auxiliary_weight=0.0).needs == frozenset()
    with pytest.raises(ConfigurationError, match="OneSidedLoss needs auxiliary_logits"):
        OneSidedLoss(3)(SelectiveOutputs(torch.zeros(2, 3)), torch.tensor([0, 1]))


def test_a_step_ascends_on_the_multipliers_descends_on_the_allowances_and_decays_neither() -> None:
    objective = OneSidedLoss(3, price=2.0, auxiliary_weight=0.0, dual_rate=0.1)
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=0.5, weight_decay=10.0)
    add_duals(optimizer, objective)
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [3.0, 0.0, 0.0]])
    target = torch.tensor([0, 1, 2])
    costs = one_sided_costs(logits, target)
    objective(SelectiveOutputs(logits + weight), target)["loss"].backward()
    optimizer.step()
    torch.testing.assert_close(objective.multipliers.detach(), 1.5 + 0.05 * (costs.false_positive - 0.5))
    torch.testing.assert_close(objective.allowances.detach(), torch.full((3,), 0.5 - 0.5 * (2 - 1.5)))


def test_a_projection_clips_at_zero_and_the_release_has_none() -> None:
    for dual, expected in (("minimax", [0.0, 0.0, 1.0]), ("release", [-2.0, -0.5, 1.0])):
        objective = OneSidedLoss(3, dual=dual)
        with torch.no_grad():
            for own in (objective.multipliers, objective.allowances):
                own.copy_(torch.tensor([-2.0, -0.5, 1.0]))
        objective.project()
        assert objective.multipliers.tolist() == objective.allowances.tolist() == expected


class Toy:
    """Three overlapping classes of different sizes, a linear classifier, full batches, plain gradient descent."""

    def __init__(self, dual: Any, price: float, decay: float = 1.0, ascent: float = 1.0, descent: float = 5e-4) -> None:
        generator = torch.Generator().manual_seed(0)
        self.target = torch.arange(3).repeat_interleave(torch.tensor([10, 20, 30]))
        self.inputs = F.one_hot(self.target) + 0.5 * torch.randn(60, 3, generator=generator)
        self.network = nn.Linear(3, 3, bias=False)
        nn.init.zeros_(self.network.weight)
        self.objective = OneSidedLoss(3, price, dual, auxiliary_weight=0.0, initial_allowance=0.3)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.2, weight_decay=decay)
        for group in self.objective.parameter_groups():
            is_multiplier = group.pop("lr_scale", None) is not None
            self.optimizer.add_param_group({"lr": ascent if is_multiplier else descent, **group})

    def train(self, steps: int) -> dict[str, Tensor]:
        terms = {}
        for _ in range(steps):
            terms = self.objective(SelectiveOutputs(self.network(self.inputs)), self.target)
            self.optimizer.zero_grad()
            terms["loss"].backward()
            self.optimizer.step()
            self.objective.project()
        return terms

    def state(self) -> dict[str, Any]:
        parts = {"network": self.network, "objective": self.objective, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])


@pytest.mark.parametrize("price", [0.5, 2.0])
def test_the_saddle_has_every_multiplier_at_the_price_and_is_the_optimum_of_fixed(price: float) -> None:
    # the weight decay makes the costs respond to the multipliers, which is what damps the two duals' rotation
    minimax, fixed = Toy("minimax", price), Toy("fixed", price)
    minimax.train(1500)
    fixed.train(300)
    costs = one_sided_costs(minimax.network(minimax.inputs), minimax.target)
    torch.testing.assert_close(minimax.objective.multipliers.detach(), torch.full((3,), price), rtol=0, atol=1e-3)
    torch.testing.assert_close(minimax.objective.allowances, costs.false_positive, rtol=0, atol=1e-4)
    torch.testing.assert_close(minimax.network.weight, fixed.network.weight, rtol=0, atol=1e-4)


def test_a_higher_price_trains_fewer_false_positives_and_not_in_the_release() -> None:
    costs = {
        dual: [Toy(dual, price).train(100)["false_positive_cost"].item() for price in (0.5, 4.0)]
        for dual in ("fixed", "release")
    }
    assert costs["fixed"][0] > 1.1 * costs["fixed"][1]
    assert costs["release"][0] == costs["release"][1]


@pytest.mark.parametrize("dual", ["minimax", "release"])
def test_a_resumed_run_goes_on_bit_for_bit(dual: str) -> None:
    straight, first, second = (Toy(dual, 2.0, ascent=0.1) for _ in range(3))
    straight.train(10)
    first.train(4)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second.load(torch.load(file, weights_only=True))
    second.train(6)
    for name in ("network", "objective"):
        for one, other in zip(straight.state()[name].values(), second.state()[name].values(), strict=True):
            assert torch.equal(one, other)
    assert set(second.objective.state_dict()) == {"multipliers", "allowances"}


@pytest.mark.parametrize("dual", ["minimax", "fixed", "release"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_loss_of_float32(dual: str, dtype: torch.dtype) -> None:
    objective = OneSidedLoss(4, 1.67, dual)
    rounded = [array(f"a__{name}").to(dtype) for name in ("logits", "aux_logits")]
    target = array("a__targets")
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(SelectiveOutputs(rounded[0], auxiliary_logits=rounded[1]), target)
    expected = objective(SelectiveOutputs(rounded[0].float(), auxiliary_logits=rounded[1].float()), target)
    for name, term in found.items():
        assert term.dtype is torch.float32
        assert torch.equal(term, expected[name])


def test_duals_of_a_model_that_is_cast_to_half_precision_keep_float32_and_their_values() -> None:
    objective = OneSidedLoss(3, price=1.67)
    before = copy.deepcopy(objective.state_dict())
    model = nn.Sequential(objective, nn.Linear(2, 2)).to(torch.bfloat16)
    assert model[1].weight.dtype is torch.bfloat16
    for name, value in objective.state_dict().items():
        assert value.dtype is torch.float32
        assert torch.equal(value, before[name])
    assert objective.half().multipliers.dtype is torch.float32
    assert objective.double().multipliers.dtype is torch.float64
    assert objective.to("meta").multipliers.device.type == "meta"


@pytest.mark.parametrize("dual", ["minimax", "fixed", "release"])
def test_a_network_that_is_surely_wrong_gives_a_finite_loss_and_gradient(dual: str) -> None:
    logits = torch.tensor([[500.0, 0.0, -500.0], [0.0, 0.0, 90.0]], requires_grad=True)
    loss = OneSidedLoss(3, 2.0, dual, auxiliary_weight=0.0)(SelectiveOutputs(logits), torch.tensor([2, 0]))["loss"]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("batch", [1, 5])
def test_a_batch_of_one_class_trains(batch: int) -> None:
    logits = torch.randn(batch, 3, requires_grad=True)
    objective = OneSidedLoss(3, auxiliary_weight=0.0)
    loss = objective(SelectiveOutputs(logits), torch.ones(batch, dtype=torch.long))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.abs().sum() > 0


def test_its_printed_form_tells_price_and_dual() -> None:
    assert repr(OneSidedLoss(3, 1.5, "fixed")) == "OneSidedLoss(3, price=1.5, dual='fixed')"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes=1 must be a whole number of 2 or more"),
        ({"num_classes": 2.5}, "num_classes=2.5"),
        ({"price": 0.0}, "price=0.0 must be a finite number above 0"),
        ({"dual": "released"}, "Did you mean 'release'"),
        ({"auxiliary_weight": 1.0}, r"auxiliary_weight=1.0 is outside \[0, 1\)"),
        ({"auxiliary_weight": -0.1}, "auxiliary_weight=-0.1"),
        ({"initial_multiplier": -0.1}, "initial_multiplier=-0.1 must be a finite number, 0 or more"),
        ({"initial_multiplier": math.nan}, "initial_multiplier=nan"),
        ({"initial_multiplier": math.inf, "dual": "release"}, "initial_multiplier=inf must be a finite number"),
        ({"initial_multiplier": 1.0, "dual": "fixed"}, "initial_multiplier=1.0 has no effect with dual='fixed'"),
        ({"initial_allowance": -1.0}, "initial_allowance=-1.0"),
        ({"constants": "release"}, "Did you mean 'released'"),
        ({"dual_rate": 0.0}, "dual_rate=0.0"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        OneSidedLoss(**{"num_classes": 3, **options})


def test_another_number_of_classes_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"logits have shape \(2, 4\), and the objective is for 3 classes"):
        OneSidedLoss(3)(SelectiveOutputs(torch.zeros(2, 4)), torch.tensor([0, 1]))
