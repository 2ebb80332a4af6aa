"""A hybrid whose small model is a network of experts: keep, ask a second expert, or ask the large model."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cascade_settings import CLASSES, FEATURES, Watch, loader, network
from module_settings import bits, trainer
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.routing_thresholds import calibrate_routing
from lightning_efficient.modules.experts_classifier import ActionTotals, ExpertsClassifier
from lightning_efficient.nn.experts import ExpertsNetwork, ExpertsRouter

STAGES = [{"base": 1}, {"global": 1}, {"router": 1}]


def experts(seed: int = 0) -> ExpertsNetwork:
    torch.manual_seed(seed)
    made = [nn.Sequential(nn.Linear(8, 5), nn.ReLU()) for _ in range(3)]
    stem = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU())
    return ExpertsNetwork(CLASSES, stem=stem, stem_channels=8, experts=made, feature_dim=5, gate_cells=1)


def classifier(**options: Any) -> ExpertsClassifier:
    base = options.pop("base", None) or experts()
    defaults: dict[str, Any] = {
        "in_chans": None,
        "stages": STAGES,
        "router_data": "all",
        "outputs_folder": None,
        "latency_batch_size": 0,
        "optimizer": partial(torch.optim.SGD, lr=0.1),
    }
    return ExpertsClassifier(base, network(width=16), **{**defaults, **options})


class Decided(ExpertsRouter):
    """Say of the first inputs that the base is right, of the next the second expert, of the rest the global model."""

    def __init__(self, base: int, second: int) -> None:
        super().__init__(CLASSES, 5)
        self.ends = (base, base + second)

    def correct_logits(self, logits: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        places = torch.arange(len(logits))
        who = (places >= self.ends[0]).long() + (places >= self.ends[1]).long()
        return 8 * nn.functional.one_hot(who, 3).float() - 4


def decided(base: int, second: int, **options: Any) -> ExpertsClassifier:
    module = classifier(**options)
    module.router = Decided(base, second)
    return module.eval()


def test_stages_train_experts_then_the_global_model_then_the_router() -> None:
    module = classifier()
    before = bits(module)
    trainer(max_epochs=3, limit_val_batches=0).fit(module, loader())
    changed = {name.split(".")[0] for name, value in bits(module).items() if not torch.equal(value, before[name])}
    assert {"base", "global_model", "router"} <= changed
    assert module.threshold.isfinite()


@pytest.mark.parametrize("weight", [0.0, 50.0])
def test_the_load_balance_is_part_of_the_loss_of_the_base_alone(weight: float) -> None:
    module = classifier(balance_weight=weight, stages=STAGES[:2])
    watched = trainer(max_epochs=2, limit_train_batches=1, limit_val_batches=0)
    watched.fit(module, loader())
    logged = watched.callback_metrics
    said = {name: float(logged[name]) for name in ("train/base_loss", "train/global_loss")}
    assert ("train/load_balance" in logged) is (weight > 0)
    if weight:
        balance = float(logged["train/load_balance"])
        assert 1 <= balance + 1e-3 <= 3
        assert said["train/base_loss"] > weight * balance
    else:
        assert said["train/base_loss"] < 5
    assert said["train/global_loss"] < 5


def test_a_heavy_load_balance_keeps_every_expert_at_work() -> None:
    def used(weight: float) -> float:
        base = experts()
        base.gate.bias.data = torch.tensor([4.0, 0.0, 0.0])
        module = classifier(base=base, balance_weight=weight, stages=[{"base": 10}])
        trainer(max_epochs=10, limit_val_batches=0).fit(module, loader(8))
        inputs = loader(8).dataset.tensors[0]
        return float(module.eval().expert_outputs(inputs).gate_probabilities.mean(0).max().detach())

    assert used(5.0) < 0.6 < used(0.0)


def test_the_router_learns_whether_each_of_the_three_is_right() -> None:
    module = classifier(stages=[{"router": 1}])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss = module.router.loss

    def watched(logits: Any, features: Any, base: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        seen.append((base, others))
        return loss(logits, features, base, others)

    module.router.loss = watched
    trainer(limit_train_batches=1, limit_val_batches=0).fit(module, loader())
    [(base, others)] = seen
    inputs, target = next(iter(loader()))
    outputs = module.eval().expert_outputs(inputs)
    wanted = [outputs.logits, module.experts.second(outputs)[0], module.global_logits(inputs)]
    assert torch.equal(base, wanted[0].argmax(1) == target)
    assert torch.equal(others, torch.stack([each.argmax(1) == target for each in wanted[1:]], 1))


def test_validation_reports_what_each_price_buys() -> None:
    module = decided(4, 5, report_prices=[0.0, 100.0])
    watched = trainer()
    watch = Watch()
    watched.callbacks.append(watch)
    [said] = watched.validate(module, loader(1), verbose=False)
    inputs, target = next(iter(loader(1)))
    with torch.no_grad():
        outputs = module.expert_outputs(inputs)
        right = torch.cat(
            [
                (outputs.logits.argmax(1) == target)[:4],
                (module.experts.second(outputs)[0].argmax(1) == target)[4:9],
                (module.global_logits(inputs).argmax(1) == target)[9:],
            ]
        )
    assert said["val/price_0_accuracy"] == pytest.approx(float(right.float().mean()))
    assert said["val/price_0_second_share"] == pytest.approx(5 / 16)
    assert said["val/price_0_global_share"] == pytest.approx(7 / 16)
    keep, second, asked = module.action_macs(inputs)
    # an expert is 8 -> 5, the classifier 5 -> 4; the large network 6 -> 16 -> 16 -> 16 -> 4
    assert (second - keep, asked - keep) == (8 * 5 + 5 * 4, 6 * 16 + 2 * 16 * 16 + 16 * 4)
    assert said["val/price_0_macs"] == pytest.approx((4 * keep + 5 * second + 7 * asked) / 16)
    # nothing is worth that much
    assert said["val/price_100_macs"] == pytest.approx(keep)
    assert said["val/price_100_accuracy"] == pytest.approx(said["val/base_accuracy"])


def test_given_prices_decide_instead_of_macs() -> None:
    inputs, _ = next(iter(loader(1)))
    module = decided(0, 0, prices=[0.0, 0.0, 1.0])
    # the router trusts the global model by .96 over the others
    outputs = module.expert_outputs(inputs)
    assert set(module.choose(outputs, inputs, price=0.9).tolist()) == {2}
    assert set(module.choose(outputs, inputs, price=1.0).tolist()) == {0}
    assert module.action_prices(inputs) == [0.0, 0.0, 1.0]


def test_prices_are_in_units_of_the_global_model() -> None:
    inputs, _ = next(iter(loader(1)))
    prices = classifier().action_prices(inputs)
    assert prices[2] - prices[0] == pytest.approx(1.0)
    assert 0 < prices[0] < prices[1] < prices[2]


def test_prediction_runs_the_second_expert_and_the_global_model_on_their_rows_alone() -> None:
    module = decided(4, 5, price=0.0)
    inputs, _ = next(iter(loader(1)))
    with torch.no_grad():
        outputs = module.expert_outputs(inputs)
        second, asked = module.experts.second(outputs)[0], module.global_logits(inputs)
    rows: list[int] = []
    module.action_macs(inputs)  # counted by a forward without values, once
    module.global_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    said = trainer().predict(module, loader(1))[0]
    wanted = torch.cat([outputs.logits[:4], second[4:9], asked[9:]])
    assert said["source"] == ["base"] * 4 + ["second"] * 5 + ["global"] * 7
    assert torch.equal(said["prediction"], wanted.argmax(1))
    torch.testing.assert_close(said["confidence"], wanted.softmax(1).amax(1))
    assert rows == [7]


def test_with_nothing_to_ask_the_global_model_is_never_called() -> None:
    module = decided(16, 0)
    inputs, _ = next(iter(loader(1)))
    module.action_macs(inputs)  # counted by a forward without values, once
    module.global_model.register_forward_pre_hook(lambda *_: pytest.fail("it was called"))
    said = trainer().predict(module, loader(1))[0]
    assert set(said["source"]) == {"base"}


def test_a_calibrated_threshold_is_about_two_models_and_routes_between_them() -> None:
    module = decided(4, 5)
    watch = Watch()
    tested = trainer()
    tested.callbacks.append(watch)
    tested.validate(module, loader(1), verbose=False)
    inputs, target = next(iter(loader(1)))
    said = module.validation_step((inputs, target), 0) if not watch.outputs else watch.outputs[0]
    assert said["stage_predictions"].shape == (16, 2)
    module.use_routing(
        calibrate_routing(said["query_score"], said["stage_predictions"], said["target"], coverage=9 / 16)
    )
    sources = trainer().predict(module, loader(1))[0]["source"]
    assert sources == ["base"] * 9 + ["global"] * 7


def test_totals_of_two_batches_are_those_of_one() -> None:
    actions = torch.tensor([[0, 1, 2, 2], [0, 0, 0, 0]])
    correct = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]).bool()
    whole, parts = ActionTotals(2), ActionTotals(2)
    whole.update(actions, correct)
    for half in (slice(0, 1), slice(1, 4)):
        parts.update(actions[:, half], correct[half])
    for shares, accuracy in (whole.compute(), parts.compute()):
        assert shares.tolist() == [[0.25, 0.25, 0.5], [1.0, 0.0, 0.0]]
        assert accuracy.tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base": network()}, "model.base is a Sequential; give a lightning_efficient.nn.experts.ExpertsNetwork"),
        ({"price": -0.1}, r"model.price is \[-0.1\]; finite numbers of 0 or more are allowed"),
        ({"report_prices": [0.1, float("nan")]}, "model.report_prices is"),
        ({"balance_weight": float("inf")}, "model.balance_weight is"),
        ({"prices": [0.0, 1.0]}, r"model.prices is \[0.0, 1.0\]; give a number of 0 or more for each of base, second"),
        ({"router_data": "out_of_fold"}, "out_of_fold and the stage joint are not there for experts"),
        ({"stages": [{"joint": 1}]}, "out_of_fold and the stage joint are not there for experts"),
    ],
)
def test_options_that_cannot_work_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        classifier(**options)
