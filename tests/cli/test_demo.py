from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_efficient.cli.demo import run_demo

FEW = [
    *("--model.backbone", "test_byobnet", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
    *(
        "--trainer.limit_train_batches",
        "2",
        "--trainer.limit_val_batches",
        "2",
        "--trainer.enable_progress_bar",
        "false",
    ),
]


def test_the_demo_ends_with_one_table_and_the_run_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["demo"])
    assert run_demo(FEW) == 0
    out = capsys.readouterr().out
    assert "quickstart · Digits · test_byobnet" in out
    headers = (
        "accuracy",
        "AURC",
        "coverage at",
        "1 % risk",
        "confidence ≥",
        "params",
        "MACs",
        "latency, ms",
        "p50 / p95",
    )
    assert [header for header in headers if header not in out] == []
    folder = Path("runs/quickstart/version_0")
    assert f" {folder}\n" in out
    for name in ("config.yaml", "metrics.csv", "risk_coverage.png", "checkpoints/best.ckpt"):
        assert f"   {name}\n" in out
        assert (folder / name).is_file()


def test_a_wrong_option_of_the_demo_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo"])
    assert run_demo(["--trainer.max_epoch", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown option --trainer.max_epoch. Did you mean")
