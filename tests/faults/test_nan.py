"""A NaN on the command line: one line, exit status 1, and a checkpoint to go back to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lightning_efficient.cli.main import main

TINY = ["fit", "--config", "quickstart", "--config", str(Path(__file__).with_name("tiny.yaml"))]
LAST = Path("runs/quickstart/version_0/checkpoints/last.ckpt")


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
