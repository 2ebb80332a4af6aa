"""EarlyExitClassifier: what learns, what is logged along the thresholds, checkpoints, prediction that leaves early."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from cascade_settings import BATCH, CLASSES, FEATURES, Watch, loader, network, samples, sgd
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from module_settings import bits, same, trainer
from torch.nn import functional as F
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.callbacks import ExactResume
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.cascade import cascade_choice, expected_cost
from lightning_efficient.functional.routing import QUERY_SCORES
from lightning_efficient.modules._cascade_counts import CascadeCounts, CascadeResult, shared_path
from lightning_efficient.modules.early_exit_classifier import EarlyExitClassifier

INF = float("inf")


def classifier(**options: Any) -> EarlyExitClassifier:
    torch.manual_seed(0)
    defaults = {"in_chans": None, "optimizer": sgd, "exits": ["0", "3"], "head": "linear", "latency_batch_size": 0}
    return EarlyExitClassifier(**{"backbone": network(), **defaults, **options})


# training


def test_the_loss_is_the_weighted_sum_over_the_exits() -> None:
    inputs, labels = samples().tensors
    module = classifier(exit_weights=[0.5, 0.0, 2.0]).eval()
    logits = module.network(inputs)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    loss = module.training_step((inputs, labels), 0)["loss"]
    want = 0.5 * F.cross_entropy(logits[:, 0], labels) + 2 * F.cross_entropy(logits[:, 2], labels)
    torch.testing.assert_close(loss, want)


def test_exits_learn_from_the_whole_network_and_do_not_move_it() -> None:
    inputs, labels = samples().tensors
    gradients = []
    for distill in (0.0, 3.0):
        module = classifier(exit_weights=[0.0, 0.0, 1.0], distill=distill).eval()
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        module.training_step((inputs, labels), 0)["loss"].backward()
        gradients.append(module)
    plain, pulled = gradients
    assert torch.equal(plain.network.backbone[7].weight.grad, pulled.network.backbone[7].weight.grad)
    assert not plain.network.heads[0].classifier.weight.grad.any()
    assert pulled.network.heads[0].classifier.weight.grad.any()


def test_joint_training_makes_every_stage_better() -> None:
    module, watch = classifier(), Watch()
    accuracies = []
    for epochs in (0, 10):
        if epochs:
            trainer(max_epochs=epochs).fit(module, loader())
        watch.outputs.clear()
        trainer(watch).validate(module, loader(), verbose=False)
        accuracies.append((watch.all("stage_predictions") == watch.all("target").unsqueeze(1)).float().mean(0))
    before, after = accuracies
    assert (after > before + 0.2).all()


def test_where_heads_learn_alone_the_backbone_stays_as_it_is() -> None:
    module = classifier(training="heads")
    before = bits(module.network.backbone)
    heads = bits(module.network.heads)
    engine = trainer(max_epochs=2)
    engine.fit(module, loader())
    assert same(before, bits(module.network.backbone))  # also the statistics of its normalisation
    assert not any(torch.equal(heads[name], value) for name, value in bits(module.network.heads).items())
    assert sum(len(group["params"]) for group in engine.optimizers[0].param_groups) == 4
    module.train()
    assert module.network.heads.training
    assert not any(each.training for each in module.network.backbone.modules())


# evaluation


def test_steps_return_what_a_calibration_needs() -> None:
    module, watch = classifier(), Watch()
    trainer(watch).validate(module, loader(), verbose=False)
    inputs, labels = samples().tensors
    with torch.no_grad():
        logits = module.eval().network(inputs)
    assert torch.equal(watch.all("stage_predictions"), logits.argmax(2))
    assert torch.equal(watch.all("target"), labels)
    torch.testing.assert_close(watch.all("query_score"), -logits[:, :2].softmax(2).amax(2))
    torch.testing.assert_close(watch.all("confidence"), logits[:, 2].softmax(1).amax(1))
    torch.testing.assert_close(watch.all("logits"), logits[:, 2])


def test_logged_values_are_those_of_the_samples() -> None:
    module, watch = classifier(), Watch()
    engine = trainer(watch)
    engine.validate(module, loader(), verbose=False)
    scores, target, said = (watch.all(name) for name in ("query_score", "target", "stage_predictions"))
    correct = said == target.unsqueeze(1)
    assert module.stage_costs == (80, 176, 272)  # 6·8 + 8·4, and so on: heads of exits count for later answers too
    costs, accuracies = [], []
    for point in module.threshold_path:
        choice = cascade_choice(scores, point)
        costs.append(expected_cost(choice, module.stage_costs))
        accuracies.append(float(correct.gather(1, choice.unsqueeze(1)).float().mean()))
    area = float(torch.trapezoid(torch.tensor(accuracies).flip(0), torch.tensor(costs).flip(0))) / (272 - 80)
    logged = engine.callback_metrics
    assert float(logged["val/cascade_area"]) == pytest.approx(area, abs=1e-5)
    assert float(logged["val/accuracy_stage1"]) == pytest.approx(float(correct[:, 0].float().mean()))
    assert float(logged["val/accuracy_stage2"]) == pytest.approx(float(correct[:, 1].float().mean()))
    assert float(logged["val/accuracy"]) == pytest.approx(float(correct[:, 2].float().mean()))


def test_a_test_writes_what_thresholds_cost_and_a_picture(tmp_path: Path) -> None:
    module = classifier(latency_batch_size=20)
    trainer(logger=CSVLogger(tmp_path, name="", version="")).test(module, loader(), verbose=False)
    rows = list(csv.DictReader((tmp_path / "costs.csv").open()))
    first, last = rows[0], rows[-1]
    assert float(first["threshold"]) == -INF
    assert [float(first[f"share_{name}"]) for name in ("0", "3", "full")] == [0, 0, 1]
    assert [float(last[f"share_{name}"]) for name in ("0", "3", "full")] == [1, 0, 0]
    assert (float(first["macs"]), float(last["macs"])) == (272, 80)
    assert all(float(row["latency_ms_mean_b1"]) > 0 and float(row["latency_ms_p50_batch"]) > 0 for row in rows)
    assert {row["batch_size"] for row in rows} == {"20"}  # two batches of test inputs
    stages = list(csv.DictReader((tmp_path / "stages.csv").open()))
    assert [row["stage"] for row in stages] == ["0", "3", "full", "full alone"]
    assert float(stages[3]["macs"]) == 272 - 2 * 8 * CLASSES
    assert len(list(csv.DictReader((tmp_path / "test_accuracy_macs.csv").open()))) == len(module.threshold_path)
    assert (tmp_path / "accuracy_macs.png").stat().st_size > 1000


def test_without_latencies_the_tables_have_macs_alone(tmp_path: Path) -> None:
    trainer(logger=CSVLogger(tmp_path, name="", version="")).test(classifier(), loader(), verbose=False)
    assert next(csv.reader((tmp_path / "stages.csv").open())) == ["stage", "accuracy", "macs"]


def test_a_rehearsal_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer(fast_dev_run=True).fit(classifier(), loader(), loader())
    trainer(fast_dev_run=True).test(classifier(), loader(), verbose=False)
    assert list(tmp_path.iterdir()) == []


# the path


@pytest.mark.parametrize("score", [*QUERY_SCORES, "function"])
def test_the_path_goes_from_the_whole_network_to_the_first_exit_and_never_back(score: str) -> None:
    path = shared_path(score, 10, 3)
    assert path.shape == (101, 2)
    assert path[0].tolist() == [-INF, -INF]
    assert path[-1].tolist() == [INF, INF]
    assert (path[1:] >= path[:-1]).all()
    assert torch.equal(path[:, 0], path[:, 1])
    assert path[1:-1].isfinite().all()


@pytest.mark.parametrize(("score", "ends"), [("msp", (-1, -0.1)), ("margin", (-1, 0)), ("entropy", (0, 2.302585))])
def test_the_path_of_a_bounded_score_spans_its_range(score: str, ends: tuple[float, float]) -> None:
    path = shared_path(score, 10, 2)[1:-1, 0]
    assert (float(path[0]), float(path[-1])) == pytest.approx(ends, abs=1e-5)


def test_counts_of_batches_are_those_of_all_samples() -> None:
    torch.manual_seed(0)
    scores, correct = -torch.rand(50, 2), torch.rand(50, 3) > 0.5
    scores[3, 0] = torch.nan
    path = shared_path("margin", 10, 3, points=11)
    counts = CascadeCounts(path)
    for part, right in zip(scores.split(16), correct.split(16), strict=True):
        counts.update(part, right)
    result = counts.compute()
    for number, point in enumerate(path):
        choice = cascade_choice(scores, point)
        assert result.shares[number].tolist() == pytest.approx((choice.bincount(minlength=3) / 50).tolist())
        assert float(result.accuracy[number]) == pytest.approx(
            float(correct.gather(1, choice.unsqueeze(1)).float().mean())
        )
    torch.testing.assert_close(result.stage_accuracy, correct.double().mean(0))


def test_the_area_is_the_mean_accuracy_over_the_costs() -> None:
    shares = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    result = CascadeResult(shares, torch.tensor([0.9, 0.9, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.9]))
    assert result.costs((1.0, 3.0)).tolist() == [3, 2, 1]
    assert result.area((1.0, 3.0)) == pytest.approx(0.8)
    assert result.area((1.0, 1.0)) == pytest.approx((0.9 + 0.9 + 0.5) / 3)


# prediction


def test_prediction_leaves_early_by_the_thresholds_set() -> None:
    inputs = samples().tensors[0]
    module = classifier(thresholds=[-0.35, -0.32]).eval()
    with torch.no_grad():
        every = module.network(inputs)
        said = module.predict_step([inputs, None], 0)
    choice = cascade_choice(-every[:, :2].softmax(2).amax(2), [-0.35, -0.32])
    assert said["source"] == [module.stage_names[stage] for stage in choice]
    assert len(choice.unique()) == 3
    rows = torch.arange(len(inputs))
    assert torch.equal(said["prediction"], every[rows, choice].argmax(1))
    torch.testing.assert_close(said["confidence"], every[rows, choice].softmax(1).amax(1))
    assert torch.equal(said["query_score"], -said["confidence"])


def test_without_thresholds_the_whole_network_answers() -> None:
    inputs = samples().tensors[0]
    module = classifier().eval()
    with torch.no_grad():
        said = module.predict_step(inputs, 0)
        assert torch.equal(said["logits"], module(inputs))
    assert said["source"] == ["full"] * len(inputs)
    with pytest.raises(ConfigurationError, match="EarlyExitClassifier has no thresholds: calibrate them"):
        module.route(inputs)


def test_calibrated_thresholds_go_before_those_set() -> None:
    class Calibrated:
        def __init__(self, count: int) -> None:
            self.thresholds = (INF,) * count

    module = classifier(thresholds=-INF).eval()
    inputs = samples().tensors[0]
    assert module.active_thresholds() == (-INF, -INF)
    module.use_routing(Calibrated(2))  # type: ignore[arg-type]
    assert set(module.predict_step(inputs, 0)["source"]) == {"0"}
    with pytest.raises(ConfigurationError, match="the routing has 1 thresholds, and EarlyExitClassifier has 3 stages"):
        module.use_routing(Calibrated(1))  # type: ignore[arg-type]


# checkpoints


def test_a_run_that_is_resumed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    def run(ckpt_path: Path | None) -> EarlyExitClassifier:
        seed_everything(0 if ckpt_path is None else 99, verbose=False)
        module = classifier(distill=0.5)
        save = ModelCheckpoint(
            tmp_path / str(ckpt_path is None), filename="{step}", every_n_train_steps=1, save_top_k=-1
        )
        engine = trainer(save, ExactResume(), max_epochs=3, enable_checkpointing=True)
        engine.fit(module, loader(cls=StatefulDataLoader, shuffle=True), ckpt_path=ckpt_path)
        return module

    assert same(bits(run(None)), bits(run(tmp_path / "True" / "step=6.ckpt")))


def test_a_checkpoint_holds_all_that_prediction_needs(tmp_path: Path) -> None:
    module = EarlyExitClassifier("cifar_resnet10_xxxs", 10, 1, [1, 2], thresholds=-0.3, score="margin")
    data = Digits(image_size=16, in_chans=1, batch_size=32, train_samples=64)
    engine = trainer(limit_val_batches=1)
    engine.fit(module, datamodule=data)
    engine.save_checkpoint(tmp_path / "one.ckpt")
    loaded = EarlyExitClassifier.load_from_checkpoint(tmp_path / "one.ckpt").eval()
    images = torch.randn(8, 1, 16, 16)
    for one, other in zip(module.eval().route(images), loaded.route(images), strict=True):
        assert torch.equal(one, other)
    assert loaded.stage_costs == module.stage_costs
    assert torch.equal(loaded.threshold_path, module.threshold_path)
    assert loaded.stage_names == ("layer1", "layer2", "full")


def test_a_trained_backbone_is_loaded_before_its_heads_learn_and_never_over_trained_ones(tmp_path: Path) -> None:
    other = network()
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    module = classifier(training="heads", backbone_checkpoint=str(tmp_path / "weights.pt"))
    trainer(max_steps=0).fit(module, loader())
    assert same(bits(other), bits(module.network.backbone))
    joint = classifier(backbone_checkpoint=str(tmp_path / "weights.pt"))
    trainer().fit(joint, loader())
    trained = bits(joint.network.backbone)
    trainer(max_steps=0).fit(joint, loader())  # a second fit
    assert same(trained, bits(joint.network.backbone))


# mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": ["9"]}, "exits: Sequential has no module '9'"),
        ({"exit_weights": [1.0, 1.0]}, r"model\.exit_weights is \[1\.0, 1\.0\]; give 3 numbers"),
        ({"exit_weights": [0.0, 0.0, 0.0]}, "not all 0"),
        ({"exit_weights": [1.0, -1.0, 1.0]}, "3 numbers of 0 or more"),
        ({"training": "head"}, r"model\.training='head' is not one of .*Did you mean 'heads'"),
        ({"score": "entropi"}, r"model\.score='entropi' is not one of .*Did you mean 'entropy'"),
        ({"distill": -1.0}, r"model\.distill is -1\.0; it must be 0 or more"),
        ({"thresholds": [0.0]}, r"model\.thresholds is \[0\.0\]; give 2 numbers"),
        ({"thresholds": [0.0, float("nan")]}, r"model\.thresholds is \[0\.0, nan\]"),
        ({"latency_batch_size": -1}, r"model\.latency_batch_size is -1"),
        ({"num_classes": 3}, "num_classes=3, but Sequential has 4 classes"),
        (
            {"training": "heads", "backbone": "cifar_resnet10_xxxs", "exits": 1, "in_chans": 1},
            "would be untrained; give model.backbone_checkpoint or model.pretrained",
        ),
    ],
)
def test_an_impossible_option_is_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        classifier(**options)
    assert "\n" not in str(caught.value)


def test_labels_of_other_data_are_told() -> None:
    inputs = torch.zeros(BATCH, FEATURES)
    with pytest.raises(ConfigurationError, match="labels must be 0 to 3"):
        classifier().training_step((inputs, torch.full((BATCH,), CLASSES)), 0)
