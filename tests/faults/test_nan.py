"""A NaN on the command line: one line, exit status 1, and a checkpoint to go back to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from killed import CASES, options_of
from lightning.pytorch.plugins import MixedPrecision
from nan_faults import BreakGradient
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.callbacks import FiniteLoss
from lightning_efficient.cli.main import main

Fit = Callable[..., Any]
TINY = ["fit", "--config", "quickstart", "--config", str(Path(__file__).with_name("tiny.yaml"))]
LAST = Path("runs/quickstart/version_0/checkpoints/last.ckpt")
STEPS = 15
NOT_YET = ("threshold", "threshold_path")
"""Buffers of modules that route: NaN says that nothing was calibrated yet."""

FINITE_DATA = ("language",)
"""Whose batches are whole numbers."""
IN_DATA = ("channels_pruned", "quantized", "distilled", "scaffolded", "selective_osp", "hybrid", "cascade", "in_parts")
IN_GRADIENTS = ("weights_pruned", "distilled", "selective_sat", "experts", "early_exit", "in_parts", "language")
IN_VALIDATION = {"averaged": 2, "selective_gamblers": 2, "cascade": 2, "quantized": 0, "hybrid": 0, "chunked": 0}
"""Exit status: values without a rank end a run that measures selective risk."""


def studied(chosen: Any, every: Any) -> list[Any]:
    """Return all cases, of which ``make test`` runs the chosen ones."""
    return [case if case in chosen else pytest.param(case, marks=pytest.mark.study) for case in every]


def fault(name: str, **options: object) -> list[str]:
    values = [f"--trainer.callbacks.{key}={value}" for key, value in options.items()]
    return [f"--trainer.callbacks+=nan_faults.{name}", *values]


def error_of(finished: Any) -> str:
    assert "Traceback" not in finished.stderr
    [line] = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    return line


def finite_checkpoints(folder: Path) -> list[int]:
    """Assert that all weights and all that optimisers keep are numbers; return the steps of the checkpoints."""
    steps = []
    for path in folder.rglob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        weights = {name: value for name, value in saved["state_dict"].items() if name not in NOT_YET}
        moments = [
            value for one in saved["optimizer_states"] for each in one["state"].values() for value in each.values()
        ]
        for value in (*weights.values(), *moments):
            assert not isinstance(value, Tensor) or not value.is_floating_point() or value.isfinite().all(), path
        steps.append(saved["global_step"])
    return sorted(steps)


def test_a_broken_batch_ends_the_run_with_one_line_and_keeps_the_last_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-efficient"])
    assert main([*TINY, "--trainer.callbacks+=faults.BreakBatch", "--trainer.callbacks.step=7"]) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    [line] = [line for line in errors.splitlines() if line.startswith("error:")]
    assert "loss is nan at step 7 (epoch 1, batch 2); the batch itself holds NaN" in line
    assert line.endswith("steps/step=6.ckpt")
    for path, step in ((LAST, 5), (Path("steps/step=6.ckpt"), 6)):
        saved = torch.load(path, weights_only=True)
        assert saved["global_step"] == step
        assert all(value.isfinite().all() for value in saved["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("case", studied(IN_DATA, [case for case in CASES if case not in FINITE_DATA]))
def test_a_nan_in_the_data_ends_every_kind_of_run_before_it_reaches_a_checkpoint(
    case: str, fit: Fit, tmp_path: Path
) -> None:
    finished = fit(*options_of(case, tmp_path), *fault("BreakData", step=3))
    assert finished.status == 1
    line = error_of(finished)
    assert "(epoch 0, batch 3)" in line
    assert "holds NaN or infinite values" in line or "teacher (ResNet) gives NaN or infinite logits" in line
    assert line.endswith("steps/step=2.ckpt")
    assert finite_checkpoints(tmp_path) == [2]


@pytest.mark.slow
@pytest.mark.parametrize("case", studied(IN_GRADIENTS, CASES))
def test_a_nan_in_a_gradient_of_a_finite_loss_never_reaches_a_checkpoint(case: str, fit: Fit, tmp_path: Path) -> None:
    finished = fit(*options_of(case, tmp_path), *fault("BreakGradient", step=3))
    assert finished.status == 1
    line = error_of(finished)
    assert "the weights hold NaN or infinite values" in line
    assert line.endswith("steps/step=2.ckpt")
    assert finite_checkpoints(tmp_path) == [2]


@pytest.mark.slow
@pytest.mark.parametrize("case", studied(IN_VALIDATION, CASES))
def test_a_nan_in_validation_costs_no_checkpoint(case: str, fit: Fit, tmp_path: Path) -> None:
    finished = fit(*options_of(case, tmp_path), *fault("BreakValidation", epoch=1))
    assert finished.status == IN_VALIDATION.get(case, finished.status)
    if finished.status:
        assert finished.status == 2
        line = error_of(finished)
        assert "not finite" in line
        assert "(epoch 1, batch 4)" in line
        assert "last good checkpoint: " in line
    else:
        assert STEPS in finite_checkpoints(tmp_path)
    assert min(finite_checkpoints(tmp_path)) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_target_that_is_no_number_is_told_as_the_batch_that_holds_it(value: str, fit: Fit, tmp_path: Path) -> None:
    finished = fit(*options_of("chunked", tmp_path), *fault("BreakData", step=3, value=f".{value}", target=True))
    assert finished.status == 1
    line = error_of(finished)
    assert f"the training loss is {value} in part " in line
    assert "the batch itself holds NaN or infinite values" in line
    assert finite_checkpoints(tmp_path) == [2]


@pytest.mark.slow
def test_a_nan_in_a_teachers_stored_outputs_is_not_learned_from(fit: Fit, tmp_path: Path) -> None:
    words = (*options_of("distilled", tmp_path), "--trainer.max_epochs=1")
    assert fit(*words).status == 0
    [file] = tmp_path.glob("cache/**/logits.npy")
    stored = np.lib.format.open_memmap(file, mode="r+")
    assert np.isfinite(stored).all()
    stored[:40] = np.nan
    stored.flush()
    assert fit(*words).status == 0
    one, other = (torch.load(path, weights_only=True) for path in sorted(tmp_path.rglob("last.ckpt")))
    assert one["global_step"] == other["global_step"] == STEPS // 3
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


class Net(L.LightningModule):
    """A layer that keeps its weights before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.before: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.before.append(self.net.weight.detach().clone())
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Overflow(BreakGradient):
    """Before the gradients are divided by the scale, where a half-precision overflow happens."""

    on_before_optimizer_step = L.Callback.on_before_optimizer_step

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_before_optimizer_step(trainer, pl_module, None)


@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
def test_a_gradient_that_overflows_under_a_scaler_costs_its_step_alone(value: float) -> None:
    module, scaler = Net(), torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        callbacks=[FiniteLoss(), Overflow(2, value)],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(10, 4)), batch_size=2))
    assert torch.equal(module.before[3], module.before[2])
    assert not torch.equal(module.before[2], module.before[1])
    assert not torch.equal(module.before[4], module.before[3])
    assert scaler.get_scale() == 2.0
    assert module.net.weight.isfinite().all()
