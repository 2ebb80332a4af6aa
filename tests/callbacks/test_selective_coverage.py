from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient import functional as LF
from lightning_efficient.callbacks import SelectiveCoverage, from_forward
from lightning_efficient.errors import ConfigurationError

SAMPLES, CLASSES = 60, 4


def loader(seed: int = 0) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(SAMPLES, 5, generator=generator)
    return DataLoader(TensorDataset(images, images[:, :CLASSES].argmax(1)), batch_size=16)


class Stranger(LightningModule):
    """A module that knows nothing of us: its steps return the loss alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Linear(5, CLASSES)
        nn.init.eye_(self.net.weight).data += 0.6 * torch.randn(CLASSES, 5)  # often right, not always

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.training_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Friend(Stranger):
    """The same module with step outputs as the contract says."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        logits = self(batch[0])
        return {"loss": nn.functional.cross_entropy(logits, batch[1]), "logits": logits, "target": batch[1]}


def trainer(root: Path, *callbacks: Any, **options: Any) -> Trainer:
    options = {"max_epochs": 2, "logger": CSVLogger(root, name="run"), "enable_checkpointing": False} | options
    return Trainer(
        accelerator="cpu",
        default_root_dir=root,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def expected(module: LightningModule, data: DataLoader[Any], score: LF.Score = "msp") -> LF.RiskCoverage:
    images, labels = data.dataset.tensors
    with torch.no_grad():
        logits = module(images)
    return LF.risk_coverage_summary(LF.confidence(logits, score), (logits.argmax(1) != labels).float())


def test_what_is_logged_is_the_metric_of_all_samples(tmp_path: Path) -> None:
    module, data = Friend(), loader()
    run = trainer(tmp_path, SelectiveCoverage(risks=[0.05, 0.1], coverages=[0.5, 1.0]))
    run.fit(module, loader(1), data)
    summary, logged = expected(module, data), run.callback_metrics
    assert logged["selective/val_aurc"] == pytest.approx(float(LF.aurc(summary)), rel=1e-6)
    assert logged["selective/val_augrc"] == pytest.approx(float(LF.augrc(summary)), rel=1e-6)
    for risk in (0.05, 0.1):
        coverage, threshold = LF.coverage_at_risk(summary, risk=risk)
        assert 0 < float(coverage) < 1
        assert logged[f"selective/val_coverage_at_risk_{risk}"] == pytest.approx(float(coverage), rel=1e-6)
        assert logged[f"selective/val_threshold_at_risk_{risk}"] == pytest.approx(float(threshold), rel=1e-6)
    assert logged["selective/val_risk_at_coverage_1"] == pytest.approx(
        float(summary.total_loss / summary.total), rel=1e-6
    )


@pytest.mark.parametrize("score", ["margin", "entropy", "energy", "max_logit", lambda logits: -logits.std(1)])
def test_the_score_decides_the_ranking(tmp_path: Path, score: Any) -> None:
    module, data = Friend(), loader()
    run = trainer(tmp_path, SelectiveCoverage(score=score))
    run.validate(module, data, verbose=False)
    assert run.callback_metrics["selective/val_aurc"] == pytest.approx(
        float(LF.aurc(expected(module, data, score))), rel=1e-6
    )


def test_a_module_that_knows_nothing_of_us_works_with_a_function_of_the_batch(tmp_path: Path) -> None:
    module, data = Stranger(), loader()
    run = trainer(tmp_path, SelectiveCoverage(predictions=from_forward))
    run.validate(module, data, verbose=False)
    assert run.callback_metrics["selective/val_aurc"] == pytest.approx(float(LF.aurc(expected(module, data))), rel=1e-6)


def test_without_that_function_the_error_says_what_to_return_or_pass(tmp_path: Path) -> None:
    message = r"step of Stranger returns Tensor; return \{'logits', 'target'\}, or pass predictions="
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, SelectiveCoverage()).validate(Stranger(), loader(), verbose=False)


def test_an_unreachable_risk_has_coverage_zero_and_no_threshold(tmp_path: Path) -> None:
    class AlwaysWrong(Friend):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            logits = nn.functional.one_hot((batch[1] + 1) % CLASSES, CLASSES).float()
            return {"logits": logits, "target": batch[1]}

    run = trainer(tmp_path, SelectiveCoverage(risks=[0.1]))
    run.validate(AlwaysWrong(), loader(), verbose=False)
    assert run.callback_metrics["selective/val_coverage_at_risk_0.1"] == 0
    assert "selective/val_threshold_at_risk_0.1" not in run.callback_metrics
    assert run.callback_metrics["selective/val_aurc"] == 1


def test_generalized_risk_counts_errors_among_all_samples(tmp_path: Path) -> None:
    module, data = Friend(), loader()
    run = trainer(tmp_path, SelectiveCoverage(risks=[0.02], kind="generalized"))
    run.validate(module, data, verbose=False)
    coverage, _ = LF.coverage_at_risk(expected(module, data), risk=0.02, kind="generalized")
    assert run.callback_metrics["selective/val_coverage_at_risk_0.02"] == pytest.approx(float(coverage), rel=1e-6)


def test_binned_state_is_close_and_small(tmp_path: Path) -> None:
    module, data = Friend(), loader()
    run = trainer(tmp_path, SelectiveCoverage(bins=1000))
    run.validate(module, data, verbose=False)
    assert run.callback_metrics["selective/val_aurc"] == pytest.approx(float(LF.aurc(expected(module, data))), abs=5e-3)


def test_the_curve_is_written_each_epoch_and_drawn_at_the_end(tmp_path: Path) -> None:
    module, data = Friend(), loader()
    run = trainer(tmp_path, SelectiveCoverage())
    run.fit(module, loader(1), data)
    folder = tmp_path / "run" / "version_0"
    with (folder / "risk_coverage.csv").open() as file:
        header, *rows = csv.reader(file)
    points = LF.risk_coverage_curve(expected(module, data))
    assert header == ["coverage", "selective risk", "threshold"]
    assert [float(row[0]) for row in rows] == pytest.approx(points.coverage.tolist())
    assert [float(row[1]) for row in rows] == pytest.approx(points.selective_risk.tolist())
    assert (folder / "risk_coverage.png").read_bytes().startswith(b"\x89PNG")


def test_test_has_names_and_files_of_its_own(tmp_path: Path) -> None:
    class WithTest(Friend):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            return self.validation_step(batch, batch_idx)

    module, data = WithTest(), loader()
    run = trainer(tmp_path, SelectiveCoverage())
    run.test(module, data, verbose=False)
    assert run.callback_metrics["selective/test_aurc"] == pytest.approx(
        float(LF.aurc(expected(module, data))), rel=1e-6
    )
    files = {path.name for path in (tmp_path / "run" / "version_0").iterdir()}
    assert {"test_risk_coverage.png", "test_risk_coverage.csv"} <= files
    assert "risk_coverage.png" not in files


def test_several_loaders_are_kept_apart(tmp_path: Path) -> None:
    module, first, second = Friend(), loader(0), loader(5)
    run = trainer(tmp_path, SelectiveCoverage())
    run.validate(module, [first, second], verbose=False)
    for index, data in enumerate((first, second)):
        logged = run.callback_metrics[f"selective/val_aurc/dataloader_idx_{index}"]
        assert logged == pytest.approx(float(LF.aurc(expected(module, data))), rel=1e-6)


def test_two_callbacks_need_two_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="two SelectiveCoverage callbacks are named 'selective'"):
        trainer(tmp_path, SelectiveCoverage(), SelectiveCoverage(score="energy")).fit(Friend(), loader(), loader())
    run = trainer(tmp_path, SelectiveCoverage(), SelectiveCoverage(score="energy", name="energy"))
    run.fit(Friend(), loader(1), loader())
    assert {"selective/val_aurc", "energy/val_aurc"} <= set(run.callback_metrics)
    files = {path.name for path in (tmp_path / "run" / "version_0").iterdir()} | {
        path.name for path in (tmp_path / "run" / "version_1").iterdir()
    }
    assert {"risk_coverage.png", "energy_risk_coverage.png"} <= files


def test_its_values_can_be_monitored(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="selective/val_aurc", mode="min")
    trainer(tmp_path, SelectiveCoverage(), checkpoint, enable_checkpointing=True).fit(Friend(), loader(1), loader())
    assert checkpoint.best_model_score is not None
    assert 0 < float(checkpoint.best_model_score) < 1


def test_the_picture_is_drawn_when_the_user_stops_the_run(tmp_path: Path) -> None:
    class Stopped(Friend):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        trainer(tmp_path, SelectiveCoverage()).fit(Stopped(), loader(1), loader())
    assert (tmp_path / "run" / "version_0" / "risk_coverage.png").is_file()


def test_the_sanity_check_leaves_no_trace(tmp_path: Path) -> None:
    with_check, without = (
        trainer(tmp_path, SelectiveCoverage(), num_sanity_val_steps=steps, max_epochs=1) for steps in (2, 0)
    )
    for run in (with_check, without):
        run.fit(Friend(), loader(1), loader())
    assert with_check.callback_metrics["selective/val_aurc"] == without.callback_metrics["selective/val_aurc"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"risks": [1.5]}, r"risks holds 1.5; values must be in \[0, 1\]"),
        ({"coverages": [0.0]}, r"coverages holds 0.0; values must be in \(0, 1\]"),
        ({"coverages": [math.nan]}, r"coverages holds nan"),
        ({"score": "mps"}, "Did you mean 'msp'"),
        ({"bins": 0}, "bins"),
        ({"kind": "selectiv"}, "Did you mean 'selective'"),
    ],
)
def test_impossible_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SelectiveCoverage(**options)
