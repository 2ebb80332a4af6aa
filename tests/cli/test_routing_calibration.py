"""From a trained hybrid to a threshold with a promise, to predictions by source, and to an export that routes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from lightning_efficient.cli.calibration import Request
from lightning_efficient.cli.routing_calibration import RoutingSamples, calibrated_routing, check_routing, routing_page
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.drop_control import needed_samples_for_drop
from lightning_efficient.inference.calibration_file import hash_checkpoint
from lightning_efficient.inference.exported import load_export
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.sample_hashes import hash_samples
from lightning_efficient.modules.hybrid_classifier import HybridClassifier

Command = Callable[..., Any]

TINY = """
seed_everything: 0
model:
  class_path: HybridClassifier
  init_args:
    base: cifar_resnet10_xxxs
    global_model: cifar_resnet10_xxs
    num_classes: 10
    in_chans: 1
    stages: [{base: 1}, {global: 1}, {router: 1}]
    latency_batch_size: 4
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.05}}
data:
  class_path: Digits
  init_args: {image_size: 8, in_chans: 1, batch_size: 32, train_samples: 64}
trainer:
  accelerator: cpu
  max_epochs: 3
  limit_val_batches: 4
  limit_test_batches: 4
  limit_predict_batches: 2
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger:
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {save_dir: runs, name: tiny}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {filename: best, save_last: true}
"""
VERSION = Path("runs/tiny/version_0")
BEST = VERSION / "checkpoints/best.ckpt"
FILE = VERSION / "checkpoints/best.routing.json"


def predictions(version: int) -> list[dict[str, str]]:
    with Path(f"runs/tiny/version_{version}/predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def samples(stage: str) -> Tensor:
    """The first two batches of a split, as the command prepares them."""
    config = HybridClassifier.load_from_checkpoint(BEST, weights_only=False).data_config
    data = Digits(image_size=8, in_chans=1, batch_size=32, mean=list(config["mean"]), std=list(config["std"]))
    data.prepare_data()
    data.setup(stage)
    batches = iter(data.val_dataloader() if stage == "validate" else data.predict_dataloader())
    return torch.cat([next(batches)[0] for _ in range(2)])


# ---- the verb


def test_a_hybrid_is_calibrated_with_the_config_of_its_run(command: Command, run: Path) -> None:
    result = command("calibrate", "--ckpt_path", BEST, "--max_drop", "0.2", "--confidence", "0.8", "--split", "test")
    assert result.status == 0, result.err
    file = RoutingFile.read(FILE)
    found = file.calibrated
    assert (found.rule, found.max_drop, found.samples, file.split) == ("betting", 0.2, 128, "test")
    assert (file.module_score, file.precision, file.weights_sha256) == ("gain", "32-true", hash_checkpoint(BEST))
    assert result.out.splitlines()[-1] == str(FILE)
    assert found.promise in " ".join(result.out.split())


def test_a_coverage_is_met_without_a_promise(command: Command, run: Path) -> None:
    assert command("calibrate", "--ckpt_path", BEST, "--coverage", "0.5").status == 0
    found = RoutingFile.read(FILE).calibrated
    assert (found.rule, found.coverage) == ("coverage", 0.5)


@pytest.mark.parametrize("rule", ["binomial", "difference", "conformal", "empirical", "published"])
def test_every_rule_takes_the_options_it_needs(command: Command, run: Path, rule: str) -> None:
    level = () if rule in ("conformal", "empirical", "published") else ("--confidence", "0.5")
    result = command("calibrate", "--ckpt_path", BEST, "--max_drop", "0.3", "--rule", rule, *level)
    assert result.status == 0, result.err
    assert RoutingFile.read(FILE).calibrated.rule == rule


def test_a_rehearsal_writes_nothing(command: Command, run: Path) -> None:
    words = ("calibrate", "--ckpt_path", BEST, "--coverage", "0.5", "--trainer.fast_dev_run", "true")
    result = command(*words)
    assert result.status == 0, result.err
    assert not FILE.exists()


def test_json_is_all_that_a_dash_prints(command: Command, run: Path) -> None:
    result = command("calibrate", "--ckpt_path", BEST, "--coverage", "0.5", "--json_file", "-")
    assert json.loads(result.out) == RoutingFile.read(FILE).to_dict()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max_drop", "0.01", "--confidence", "0.9"), "needs at least"),
        (
            ("--risk", "0.1"),
            "--risk is of models that may not answer, and HybridClassifier always does; give --max_drop",
        ),
        (("--coverage", "0.5", "--kind", "selective"), "--kind is of models that may not answer"),
        (("--max_drop", "0.1", "--coverage", "0.5"), "calibrate needs one of --risk, --coverage and --max_drop; got"),
        (("--max_drop", "0"), "--max_drop is 0"),
        (("--max_drop", "0.1", "--rule", "sgr"), "--rule sgr does not bound a drop; with --max_drop it must be one of"),
        (("--max_drop", "0.1", "--rule", "betting"), "--rule betting needs --confidence, such as 0.9"),
        (("--coverage", "0.5", "--trainer.limit_val_batches", "0"), "--split val has no samples"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line_and_writes_nothing(
    command: Command, run: Path, words: tuple[str, ...], message: str
) -> None:
    command("calibrate", "--ckpt_path", BEST, *words).assert_refused(message)
    assert not FILE.exists()


def test_too_few_samples_are_told_with_the_number_that_is_enough(command: Command, run: Path) -> None:
    result = command("calibrate", "--ckpt_path", BEST, "--max_drop", "0.01", "--confidence", "0.9")
    number = needed_samples_for_drop("betting", 0.01, 0.1)
    result.assert_refused(f"{number} samples")
    result.assert_refused("128")


def test_samples_that_were_learned_from_are_refused(command: Command, run: Path) -> None:
    checkpoint = torch.load(BEST, weights_only=False)
    images = samples("validate")
    [kept] = checkpoint["hybrid_classifier"]["per_rank"]
    assert len(kept["training_samples"]) == 64
    kept["training_samples"] = torch.cat([kept["training_samples"], hash_samples(images[:3])])
    torch.save(checkpoint, BEST)
    result = command("calibrate", "--ckpt_path", BEST, "--coverage", "0.5")
    result.assert_refused(
        "3 of the 128 calibration samples have trained the model, so that no promise holds; calibrate on"
    )
    assert not FILE.exists()


# ---- predictions


def test_predict_routes_by_the_calibrated_threshold(command: Command, run: Path) -> None:
    assert command("calibrate", "--ckpt_path", BEST, "--coverage", "0.6", "--split", "test").status == 0
    result = command("predict", "--ckpt_path", BEST)
    assert result.status == 0, result.err
    rows, found = predictions(1), RoutingFile.read(FILE).calibrated
    assert list(rows[0]) == ["sample", "prediction", "confidence", "source", "query_score"]
    assert len(rows) == 64
    expected = ["global" if float(row["query_score"]) > found.thresholds[0] else "base" for row in rows]
    assert [row["source"] for row in rows] == expected
    assert set(expected) == {"base", "global"}
    counts = [(expected.count(name), name) for name in ("base", "global")]
    told = ", ".join(f"{name} {count}" for count, name in sorted(counts, reverse=True))
    assert result.out.splitlines()[-1] == f"answered by {told}: {found.promise}"


def test_predict_without_calibration_promises_nothing(command: Command, run: Path) -> None:
    result = command("predict", "--ckpt_path", BEST)
    assert result.status == 0, result.err
    assert result.out.splitlines()[-1].endswith(": no thresholds were calibrated, so nothing is promised")


def test_predict_refuses_a_base_that_changed_after_calibration(command: Command, run: Path) -> None:
    assert command("calibrate", "--ckpt_path", BEST, "--coverage", "0.6").status == 0
    checkpoint = torch.load(BEST, weights_only=False)
    name = next(name for name in checkpoint["state_dict"] if name.startswith("base."))
    checkpoint["state_dict"][name] += 1
    torch.save(checkpoint, BEST)
    command("predict", "--ckpt_path", BEST).assert_refused("belongs to other weights than")
    command("export", "--ckpt_path", BEST).assert_refused("belongs to other weights than")


def test_predict_refuses_another_router_than_was_calibrated(command: Command, run: Path) -> None:
    assert command("calibrate", "--ckpt_path", BEST, "--coverage", "0.6").status == 0
    content = json.loads(FILE.read_text())
    FILE.write_text(json.dumps({**content, "module_score": "proxy"}))
    command("predict", "--ckpt_path", BEST).assert_refused("is of the router 'proxy', and HybridClassifier has 'gain'")


# ---- export and the other verbs


def test_an_export_answers_as_predict_does(command: Command, run: Path) -> None:
    assert command("calibrate", "--ckpt_path", BEST, "--coverage", "0.6", "--split", "test").status == 0
    assert command("predict", "--ckpt_path", BEST).status == 0
    result = command("export", "--ckpt_path", BEST, "--formats", "[torch]")
    assert result.status == 0, result.err
    folder = BEST.with_suffix(".export")
    assert result.out.splitlines()[-1] == str(folder)
    predictor = load_export(folder).routed()
    assert predictor.calibrated == RoutingFile.read(FILE).calibrated
    answer = predictor(samples("predict"))
    rows = predictions(1)
    assert answer.prediction.tolist() == [int(row["prediction"]) for row in rows]
    assert answer.query_score.tolist() == pytest.approx([float(row["query_score"]) for row in rows], abs=1e-4)


def test_test_and_validate_need_no_more_than_a_checkpoint(command: Command, run: Path) -> None:
    for verb, metric in (("test", "test/hybrid_area"), ("validate", "val/hybrid_area")):
        result = command(verb, "--ckpt_path", BEST)
        assert result.status == 0, result.err
        assert metric in result.out


def test_a_run_too_short_for_its_stages_is_one_line(command: Command, run: Path) -> None:
    result = command("fit", "--config", "tiny.yaml", "--trainer.max_epochs", "2")
    result.assert_refused(
        "trainer.max_epochs is 2, and model.stages take 3 (base 1, global 1, router 1); set it to 3, or"
    )


# ---- in Python


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_drop": 0.1},
            r"--max_drop is of models that ask a larger one, and Plain does not; take HybridClassifier",
        ),
        ({"coverage": 0.5}, None),
        ({"risk": 0.1}, None),
    ],
)
def test_a_module_that_does_not_route_has_no_drop(options: dict[str, Any], message: str | None) -> None:
    class Plain:
        pass

    if message is None:
        assert check_routing(Request(**options), Plain(), 1) is False
        return
    with pytest.raises(ConfigurationError, match=message):
        check_routing(Request(**options), Plain(), 1)


def test_several_processes_are_refused() -> None:
    module = SimpleNamespace(threshold_path=None)
    with pytest.raises(ConfigurationError, match=r"is calibrated in one process; set trainer\.devices to 1"):
        check_routing(Request(max_drop=0.1), module, 2)
    assert check_routing(Request(max_drop=0.1), module, 1)


def gathered(trained_on: Tensor | None = None, samples: int = 200) -> tuple[Any, Any]:
    """What a pass over samples leaves of which the base knows three of four and the larger model all."""
    inputs = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(samples, dtype=torch.int64)
    score = torch.linspace(-1, 1, samples)
    predictions = torch.stack([(score > 0.5).long(), target], 1)
    routing = RoutingSamples()
    for part in (slice(0, 50), slice(50, None)):
        outputs = {"query_score": score[part], "stage_predictions": predictions[part], "target": target[part]}
        routing.add(outputs, (inputs[part], target[part]))
    gathering = SimpleNamespace(routing=routing, data_sha256="0" * 64, precision="32-true")
    path = torch.linspace(-1, 1, 101).unsqueeze(1)
    hashes = None if trained_on is None else hash_samples(inputs)[trained_on]
    return gathering, SimpleNamespace(threshold_path=path, router_name="gain", training_samples=hashes)


def test_the_threshold_is_the_largest_of_the_path_that_keeps_the_drop(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1)}}, tmp_path / "x.ckpt")
    gathering, model = gathered()
    file = calibrated_routing(Request(max_drop=0.1, rule="empirical"), gathering, model, tmp_path / "x.ckpt", "val")
    found = file.calibrated
    assert found.thresholds[0] in [pytest.approx(float(each)) for each in model.threshold_path]
    assert found.drop <= 0.1
    assert found.coverage == pytest.approx(0.85, abs=0.01)
    model.threshold_path = torch.full((101, 1), torch.nan)  # a router that never learned: the samples make the path
    again = calibrated_routing(Request(max_drop=0.1, rule="empirical"), gathering, model, tmp_path / "x.ckpt", "val")
    assert again.calibrated.drop <= 0.1
    console = Console(width=80, record=True, quiet=False, file=(tmp_path / "page.txt").open("w"))
    console.print(routing_page(file, tmp_path / "x.ckpt"))
    text = console.export_text()
    assert "x.ckpt · val split · rule empirical" in text
    assert found.promise in " ".join(text.split())


def test_samples_that_trained_the_model_void_the_promise(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1)}}, tmp_path / "x.ckpt")
    gathering, model = gathered(torch.tensor([3, 60]))
    with pytest.raises(ConfigurationError, match="2 of the 200 calibration samples have trained the model"):
        calibrated_routing(Request(coverage=0.5), gathering, model, tmp_path / "x.ckpt", "val")


def test_steps_that_tell_nothing_of_routing_leave_nothing() -> None:
    routing = RoutingSamples()
    for outputs in (None, torch.zeros(2), {"logits": torch.zeros(2, 3), "target": torch.zeros(2)}):
        routing.add(outputs, None)
    assert not routing
