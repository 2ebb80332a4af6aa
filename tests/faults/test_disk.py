"""A run folder that cannot hold a run is told before training; a file that fails later costs only itself."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_efficient.cli.main import main

TINY = ["fit", "--config", "quickstart", "--config", str(Path(__file__).with_name("tiny.yaml"))]


@pytest.fixture(autouse=True)
def _own_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep ``sys.argv``, which the command sets."""
    monkeypatch.setattr(sys, "argv", ["lightning-efficient"])


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*args: object) -> None:
        raise AssertionError("training has begun")

    monkeypatch.setattr("lightning_efficient.modules.ImageClassifier.training_step", train)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger", "false"])
def test_a_run_folder_below_a_file_is_refused(logger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    where = ["--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}/file/runs"]
    if logger != "false":
        where = [f"--trainer.logger=lightning.pytorch.loggers.{logger}", f"--trainer.logger.save_dir={tmp_path}/file"]
    assert main([*TINY, *where]) == 2
    message = one_line(capsys)
    assert str(tmp_path / "file") in message
    assert "save_dir" in message


@pytest.mark.usefixtures("no_training")
def test_a_full_disk_is_told_with_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=10**9, used=10**9, free=1_000_000))
    assert main(TINY) == 2
    assert "has 1 MB free, and two checkpoints of this model can take 2 MB" in one_line(capsys)


def test_a_picture_or_table_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for name in ("risk_coverage.csv", "risk_coverage.png", "profile.csv", "profile.json"):
        (folder / name).mkdir(parents=True)
    arguments = [
        "--trainer.logger=false",
        f"--trainer.default_root_dir={folder}",
        "--trainer.max_epochs=1",
        "--trainer.callbacks+=SelectiveCoverage",
        "--trainer.callbacks+=LatencyProfiler",
        "--trainer.callbacks.min_run_time_s=0.01",
    ]
    with pytest.warns(UserWarning, match="could not be written") as warned:
        assert main([*TINY, *arguments]) == 0
    messages = [str(one.message) for one in warned]
    for name in ("risk_coverage.csv", "risk_coverage.png", "profile.csv", "profile.json"):
        assert any(name in message for message in messages), name
    assert (tmp_path / "steps" / "step=4.ckpt").exists()
