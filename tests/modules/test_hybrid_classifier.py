"""HybridClassifier: what it reports, how it predicts, how inputs are fitted, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrid_settings import BATCH, CLASSES, FEATURES, STAGES, TRAIN, Watch, bits, data, hybrid, same, trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.routing import (
    accuracy_at_coverage,
    gap_to_oracle,
    hybrid_area,
    hybrid_curve,
    oracle_curve,
    query_score,
)
from lightning_efficient.inference.calibration_file import hash_checkpoint
from lightning_efficient.inference.routed import RoutedPredictor
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.routing_thresholds import CalibratedRouting, calibrate_routing
from lightning_efficient.modules._hybrid_evaluation import COVERAGES
from lightning_efficient.modules.hybrid_classifier import HybridClassifier
from lightning_efficient.nn.routers import ScoreRouter

SMALL, LARGE = "cifar_resnet10_xxxs", "cifar_resnet10_xxs"


def images(**options: Any) -> Digits:
    return Digits(**{"image_size": 16, "in_chans": 1, "batch_size": 32, "train_samples": 64, **options})


def pair(**options: Any) -> HybridClassifier:
    """A pair of networks by name, for images."""
    torch.manual_seed(0)
    defaults = {"num_classes": 10, "in_chans": 1, "stages": STAGES, "latency_batch_size": 0, "outputs_folder": None}
    return HybridClassifier(**{"base": SMALL, "global_model": LARGE, **defaults, **options})


def calibrated(watch: Watch, coverage: float = 0.5) -> CalibratedRouting:
    return calibrate_routing(
        *(watch.all(name) for name in ("query_score", "stage_predictions", "target")), coverage=coverage
    )


# what it reports


def test_steps_return_what_a_calibration_needs() -> None:
    module, watch = hybrid(), Watch()
    trainer(watch).validate(module, datamodule=data(), verbose=False)
    samples = data()
    samples.setup("validate")
    inputs, target = samples.datasets["val"].inputs, samples.datasets["val"].target
    module.eval()
    with torch.no_grad():
        base, best = module.base(inputs), module.global_model(inputs)
        score = module.router(*module.base_outputs(inputs))
    torch.testing.assert_close(watch.all("logits"), base)
    torch.testing.assert_close(watch.all("query_score"), score)
    assert torch.equal(watch.all("confidence"), -watch.all("query_score"))
    assert torch.equal(watch.all("stage_predictions"), torch.stack([base.argmax(1), best.argmax(1)], 1))
    assert torch.equal(watch.all("target"), target)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_logged_values_are_those_of_the_curves(stage: str) -> None:
    module, watch = hybrid(target_coverage=0.6), Watch()
    engine = trainer(watch)
    engine.fit(module, datamodule=data())
    watch.evaluated = []
    run = engine.validate if stage == "val" else engine.test
    [logged] = run(module, datamodule=data(), verbose=False)
    score, predictions, target = (watch.all(name) for name in ("query_score", "stage_predictions", "target"))
    base, best = (predictions == target.unsqueeze(1)).unbind(1)
    curve, oracle = hybrid_curve(score, base, best), oracle_curve(base, best)
    kept = score <= module.threshold
    expected = {
        "loss": nn.functional.cross_entropy(watch.all("logits"), target),
        "accuracy": accuracy_at_coverage(curve, 0.6),
        "base_accuracy": base.double().mean(),
        "global_accuracy": best.double().mean(),
        "hybrid_area": hybrid_area(curve),
        "msp_area": hybrid_area(hybrid_curve(query_score(watch.all("logits"), "msp"), base, best)),
        "gap_to_oracle": gap_to_oracle(curve, oracle),
        "coverage": kept.double().mean(),
        "routed_accuracy": torch.where(kept, base, best).double().mean(),
    }
    assert {name: float(value) for name, value in logged.items()} == pytest.approx(
        {f"{stage}/{name}": float(value) for name, value in expected.items()}, abs=1e-6
    )


def test_before_any_threshold_only_the_curve_is_reported() -> None:
    [logged] = trainer().validate(hybrid(), datamodule=data(), verbose=False)
    assert "val/hybrid_area" in logged
    assert "val/routed_accuracy" not in logged


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_test_writes_costs_at_each_coverage_and_a_picture(tmp_path: Path) -> None:
    module = hybrid(latency_batch_size=8)
    trainer(logger=CSVLogger(tmp_path, name="x")).test(module, datamodule=data(), verbose=False)
    folder = tmp_path / "x/version_0"
    rows = table(folder / "coverage.csv")
    assert [float(row["coverage"]) for row in rows] == list(COVERAGES)
    own = FEATURES * 4 + 4 * CLASSES
    router = 0
    # the router's are counted with the base: what is above the base alone is the same in each row
    everything = {float(row["coverage"]): float(row["macs"]) for row in rows}
    router = everything[1.0] - own
    assert router > 0
    best = FEATURES * 16 + 16 * CLASSES
    assert everything[0.5] == pytest.approx(own + router + 0.5 * best)
    assert {row["batch_size"] for row in rows} == {"8"}
    assert all(float(row["latency_ms_p50_batch"]) > 0 for row in rows)
    accuracies = [[float(row[f"{name}accuracy"]) for row in rows] for name in ("", "oracle_")]
    assert all(best >= reached - 1e-9 for reached, best in zip(*accuracies, strict=True))
    assert [float(row["threshold"]) for row in rows] == sorted((float(row["threshold"]) for row in rows), reverse=True)
    assert (folder / "accuracy_coverage.png").stat().st_size > 1000
    curve = table(folder / "test_accuracy_coverage.csv")
    assert (float(curve[0]["coverage"]), float(curve[-1]["coverage"])) == (0.0, 1.0)


def test_without_latencies_of_a_batch_the_table_has_those_of_one(tmp_path: Path) -> None:
    trainer(logger=CSVLogger(tmp_path, name="x")).test(hybrid(), datamodule=data(), verbose=False)
    rows = table(tmp_path / "x/version_0/coverage.csv")
    assert {row["latency_ms_p50_batch"] for row in rows} == {""}
    assert all(float(row["latency_ms_mean_b1"]) > 0 for row in rows)


def test_a_rehearsed_test_leaves_no_files(tmp_path: Path) -> None:
    trainer(fast_dev_run=True).test(hybrid(latency_batch_size=4), datamodule=data(), verbose=False)
    assert list(tmp_path.iterdir()) == []


# prediction


@pytest.mark.parametrize("coverage", [1.0, 0.5])
def test_predict_asks_about_hard_inputs_alone_and_says_who_answered(coverage: float) -> None:
    module, watch = hybrid(), Watch()
    engine = trainer(watch)
    engine.fit(module, datamodule=data())
    watch.evaluated = []
    engine.test(module, datamodule=data(), verbose=False)
    module.use_routing(calibrated(watch, coverage))
    assert module.routing is not None
    asked: list[int] = []
    module.global_model.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    said = engine.predict(module, datamodule=data())
    assert said is not None
    joined = {name: torch.cat([each[name] for each in said]) for name in ("prediction", "confidence", "query_score")}
    hard = watch.all("query_score") > module.routing.thresholds[0]
    answer = watch.all("stage_predictions").gather(1, hard.long().unsqueeze(1)).squeeze(1)
    assert torch.equal(joined["prediction"], answer)
    torch.testing.assert_close(joined["query_score"], watch.all("query_score"))
    source = [name for each in said for name in each["source"]]
    assert source == ["global" if each else "base" for each in hard]
    assert sum(asked) == int(hard.sum())
    assert int(hard.sum()) == round((1 - coverage) * len(hard))
    sure = watch.all("logits").softmax(1).amax(1)
    torch.testing.assert_close(joined["confidence"][~hard], sure[~hard])


def test_without_a_calibrated_threshold_that_of_training_is_used() -> None:
    module = hybrid()
    engine = trainer()
    engine.fit(module, datamodule=data())
    predictor = module.routed()
    assert predictor.threshold == pytest.approx(float(module.threshold))
    assert predictor.calibrated is None
    assert module.routed(threshold=float("inf"), budget=0).threshold == float("inf")


def test_without_any_threshold_prediction_says_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=r"HybridClassifier has no threshold: train its router, calibrate"):
        trainer().predict(hybrid(), datamodule=data())


def test_a_predictor_from_a_checkpoint_refuses_a_base_that_changed_after_calibration(tmp_path: Path) -> None:
    module, watch = hybrid(), Watch()
    engine = trainer(watch)
    engine.fit(module, datamodule=data())
    engine.save_checkpoint(tmp_path / "best.ckpt")
    found = calibrated(watch)
    file = RoutingFile(found, "val", "0" * 64, hash_checkpoint(tmp_path / "best.ckpt"), "gain", "32-true")
    file.write(tmp_path / "best.routing.json")
    predictor = RoutedPredictor.from_checkpoint(hybrid(), tmp_path / "best.ckpt")
    inputs = torch.randn(5, FEATURES)
    assert predictor.calibrated == found
    assert torch.equal(predictor(inputs).query_score, module.eval().router(*module.base_outputs(inputs)).detach())
    with torch.no_grad():
        predictor.base_owner.base[0].weight += 1.0  # type: ignore[union-attr, index, operator]
    with pytest.raises(ConfigurationError, match="changed"):
        predictor(inputs)
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=False)
    checkpoint["state_dict"]["base.0.weight"] += 1.0
    torch.save(checkpoint, tmp_path / "best.ckpt")
    with pytest.raises(ConfigurationError, match="belongs to other weights than"):
        RoutedPredictor.from_checkpoint(hybrid(), tmp_path / "best.ckpt")


def test_a_checkpoint_holds_all_that_prediction_needs(tmp_path: Path) -> None:
    module = pair()
    engine = trainer(limit_val_batches=1)
    engine.fit(module, datamodule=images())
    engine.save_checkpoint(tmp_path / "one.ckpt")
    loaded = HybridClassifier.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    assert same(bits(module), bits(loaded))
    one, other = (each.routed()(torch.ones(4, 1, 16, 16)) for each in (module, loaded))
    assert torch.equal(one.query_score, other.query_score)


def test_what_is_deployed_says_what_the_module_says() -> None:
    module = hybrid().eval()
    inputs = torch.randn(5, FEATURES)
    logits, score = module.edge_graph()(inputs)
    assert torch.equal(logits, module(inputs))
    assert torch.equal(score, module.router(*module.base_outputs(inputs)))
    assert torch.equal(module.global_graph()(inputs), module.global_logits(inputs))


# inputs and first weights


def test_each_network_sees_images_of_its_own_size() -> None:
    module = pair(base_image_size=8, global_image_size=24)
    sizes: list[tuple[int, ...]] = []
    for each in (module.base, module.global_model):
        each.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[-2:])))
    trainer(max_epochs=3, limit_train_batches=1, limit_val_batches=1).fit(module, datamodule=images())
    assert set(sizes) == {(8, 8), (24, 24)}


def test_a_network_with_weights_sees_images_normalised_as_it_knows_them(tmp_path: Path) -> None:
    torch.save(pair().global_model.state_dict(), tmp_path / "weights.pt")
    module = pair(global_checkpoint=str(tmp_path / "weights.pt"), stages=[{"base": 1}, {"router": 1}])
    samples = images()
    samples.mean, samples.std = (0.25,), (0.5,)
    engine = trainer(max_epochs=2, limit_val_batches=1)
    engine.fit(module, datamodule=samples)
    wanted = module.data_config
    pixels = torch.rand(2, 1, 16, 16)
    expected = (pixels - wanted["mean"][0]) / wanted["std"][0]
    torch.testing.assert_close(module.global_fit((pixels - 0.25) / 0.5), expected)
    assert torch.equal(module.base_fit(pixels), pixels)  # it learns from the data as they are
    engine.save_checkpoint(tmp_path / "one.ckpt")
    (tmp_path / "weights.pt").unlink()
    loaded = HybridClassifier.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    torch.testing.assert_close(loaded.global_fit((pixels - 0.25) / 0.5), expected)
    trainer().test(loaded, datamodule=samples, verbose=False, ckpt_path=tmp_path / "one.ckpt", weights_only=False)
    torch.testing.assert_close(loaded.global_fit((pixels - 0.25) / 0.5), expected)


def test_weights_of_a_file_are_the_first_ones_and_a_second_fit_keeps_the_trained_ones(tmp_path: Path) -> None:
    torch.manual_seed(7)
    given = {name: pair().base for name in ("base", "global")}
    for name, each in given.items():
        torch.save(each.state_dict(), tmp_path / f"{name}.pt")
    module = pair(
        global_model=SMALL,
        base_checkpoint=str(tmp_path / "base.pt"),
        global_checkpoint=str(tmp_path / "global.pt"),
        stages=None,
    )
    for _ in range(2):
        trainer(max_epochs=1, limit_val_batches=1).fit(module, datamodule=images())
        assert same(bits(given["base"]), bits(module.base))
        assert same(bits(given["global"]), bits(module.global_model))
    with torch.no_grad():
        module.base.conv1.weight += 1.0  # type: ignore[union-attr, operator]
    changed = bits(module.base)
    trainer(max_epochs=1, limit_val_batches=1).fit(module, datamodule=images())
    assert same(changed, bits(module.base))


def test_inputs_need_not_be_images_and_networks_any_modules() -> None:
    module = hybrid(base=nn.Linear(FEATURES, CLASSES))
    trainer().fit(module, datamodule=data())
    assert bool(module.threshold.isfinite())
    assert module.router.needs_features
    assert not hybrid(router_features=False).router.needs_features


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": []}, r"model\.stages is empty; give at least one of base, global, router, joint"),
        ({"stages": [{"bas": 1}]}, r"model\.stages\[0\] has the unknown stage 'bas'\. Did you mean 'base'\?"),
        ({"stages": [{"base": 1, "global": 1}]}, r"model\.stages\[0\] is .*; it must be one name with its epochs"),
        ({"stages": [{"base": 1}, {"router": 0}]}, r"model\.stages\[1\] has 0 epochs for router; it must be 1 or more"),
        ({"router": "gian"}, r"router.*'gian'.*'gain'"),
        ({"router": nn.Linear(4, 1)}, r"router is a Linear; give a name or a lightning_efficient\.nn\.routers\.Router"),
        ({"router_kwargs": {"hiden": 3}}, r"router='gain' has no option 'hiden'.*Did you mean 'hidden'\?"),
        ({"router": "msp", "router_kwargs": {"hidden": 3}}, r"router='msp' has no option 'hidden'"),
        ({"router": ScoreRouter("msp"), "router_kwargs": {"score": "gini"}}, "do not go with a router that is already"),
        ({"router_data": "heldout"}, r"model\.router_data.*'heldout'.*held_out"),
        ({"router_share": 1.0}, r"model\.router_share is 1\.0; it must be between 0 and 1"),
        ({"folds": 1}, r"model\.folds is 1; it must be 2 or more"),
        ({"target_coverage": 1.5}, r"model\.target_coverage"),
        ({"latency_batch_size": -1}, r"model\.latency_batch_size is -1; it must be 0 or more"),
        ({"joint_kwargs": {"gide": 1}}, r"model\.joint_kwargs has no option 'gide'; it has"),
        ({"base_image_size": 0}, r"image_size=0 must be a number of pixels"),
        ({"num_classes": 7}, r"model\.num_classes is 7, but the base has 4 classes"),
        ({"base": nn.ReLU()}, r"model\.num_classes is not given, and the base has no layer that tells it"),
        ({"base_kwargs": {"drop_rate": 0.1}}, r"model\.base is a Sequential; base_pretrained and base_kwargs go with"),
        ({"global_pretrained": True}, r"model\.global_model is a Sequential; global_pretrained and global_kwargs go"),
        ({"global_model": "cifar_resnet11"}, r"unknown timm model 'cifar_resnet11'.*Did you mean"),
        (
            {"global_model": nn.Linear(FEATURES, 5)},
            r"model\.global_model has 5 classes and the base 4; both must have the same classes in the same order",
        ),
    ],
)
def test_an_impossible_option_is_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        hybrid(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "run", "message"),
    [
        ({}, {"max_epochs": 2}, r"trainer\.max_epochs is 2, and model\.stages take 3 \(base 1, global 1, router 1\)"),
        ({"router_optimizer": {"lrs": 1.0}}, {}, r"model\.router_optimizer: SGD has no option 'lrs'; it has lr, "),
        (
            {"router": "msp", "stages": [{"joint": 1}], "router_data": "all"},
            {},
            "model.stages has a joint stage, and the router 'msp' has nothing to learn",
        ),
    ],
)
def test_a_run_that_cannot_work_is_told_before_or_at_its_first_step(
    options: dict[str, Any], run: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        trainer(**run).fit(hybrid(**options), datamodule=data())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stages", "option", "name"),
    [
        (None, "base", SMALL),
        ([{"base": 1}, {"router": 1}], "global_model", LARGE),
        ([{"joint": 1}], "global_model", LARGE),
    ],
)
def test_a_network_without_trained_weights_and_without_a_stage_is_told(stages: Any, option: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.{option} {name} has no trained weights; give model\."):
        trainer().fit(pair(stages=stages), datamodule=images())


@pytest.mark.parametrize("router_data", ["held_out", "out_of_fold"])
def test_samples_without_keys_cannot_be_split(router_data: str) -> None:
    plain = DataLoader(TensorDataset(torch.randn(TRAIN, FEATURES), torch.zeros(TRAIN).long()), batch_size=BATCH)
    message = rf"model\.router_data {router_data} needs samples with keys, and no data module gives none"
    with pytest.raises(ConfigurationError, match=message):
        trainer().fit(hybrid(router_data=router_data), plain)


def test_samples_without_keys_are_everybodys() -> None:
    plain = DataLoader(TensorDataset(torch.randn(TRAIN, FEATURES), torch.arange(TRAIN) % CLASSES), batch_size=BATCH)
    module = hybrid(router_data="all", outputs_folder="outputs")
    trainer(limit_val_batches=0).fit(module, plain)
    assert bool(module.threshold.isfinite())
    assert not Path("outputs").exists()


def test_labels_and_channels_of_other_data_are_told() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.num_classes is 4, but GaussianModes has 5 classes"):
        trainer().fit(hybrid(), datamodule=data(classes=5))
    with pytest.raises(ConfigurationError, match=r"model\.in_chans is 3, but the images have 1 channels"):
        trainer().fit(pair(in_chans=3), datamodule=images())
