"""A disk that fills up while a file is written costs that file: what was good before is still good."""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_faults import room_for
from hostile import DOORS, Door
from torch import nn

from lightning_efficient._checkpoint_io import WholeCheckpointIO
from lightning_efficient.cli.main import main
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.export import export_graphs
from lightning_efficient.inference.exported import load_export
from lightning_efficient.inference.output_store import OutputStore

TINY = ["fit", "--config", "quickstart", "--config", str(Path(__file__).with_name("tiny.yaml"))]
WRITTEN = ("pruned.pt", "quantized .pt2", "threshold", "routing")
"""Files that a function of ours writes, by the door through which they are read."""


@pytest.fixture(autouse=True)
def _own_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep ``sys.argv``, which the command sets."""
    monkeypatch.setattr(sys, "argv", ["lightning-efficient"])


@pytest.fixture
def fit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """``fit(*words) -> (status, errors)``, after which files may be of any size again."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # pytest's own file has no room for a handler's lines either

    def run(*words: str) -> tuple[int, str]:
        with room_for(2**40):
            status = main([*TINY, *words])
        return status, capsys.readouterr().err

    return run


def steps(file: Path) -> int:
    return torch.load(file, weights_only=True)["global_step"]


def full_at(step: int, most: int) -> tuple[str, ...]:
    return (
        "--trainer.callbacks+=disk_faults.FullDisk",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.most={most}",
    )


@pytest.mark.parametrize(
    ("step", "most", "good"),
    [
        pytest.param(7, 300_000, {"steps/step=4.ckpt": 4, "steps/step=6.ckpt": 6, "last": 5}, id="numbered"),
        pytest.param(9, 20_000, {"steps/step=8.ckpt": 8, "best": 5, "last": 5}, id="at the end of an epoch"),
        pytest.param(2, 20_000, {"steps/step=2.ckpt": 2}, id="in the first epoch"),
    ],
)
def test_a_full_disk_ends_the_run_with_one_line_and_the_last_good_checkpoint_goes_on(
    step: int, most: int, good: dict[str, int], fit: Callable[..., tuple[int, str]]
) -> None:
    status, errors = fit(*full_at(step, most), "--trainer.limit_val_batches=1")
    assert status == 1
    assert "Traceback" not in errors
    [line] = [line for line in errors.splitlines() if line.startswith("error:")]
    assert "the disk has no room" in line
    checkpoints = Path("runs/quickstart/version_0/checkpoints")
    for name, taken in good.items():
        assert steps(checkpoints / f"{name}.ckpt" if "/" not in name else Path(name)) == taken
    assert not list(Path().rglob(".*partial"))
    newest = line.rpartition("last good checkpoint: ")[2]
    assert steps(Path(newest)) == max(good.values())
    status, errors = fit("--ckpt_path", newest, "--trainer.limit_val_batches=1")
    assert status == 0, errors
    assert steps(Path("runs/quickstart/version_1/checkpoints/last.ckpt")) == 15


def test_a_log_that_cannot_grow_ends_the_run_with_one_line_too(fit: Callable[..., tuple[int, str]]) -> None:
    status, errors = fit(*full_at(6, 10))
    assert (status, "Traceback" in errors) == (1, False)
    [line] = [line for line in errors.splitlines() if line.startswith("error:")]
    assert line.endswith("last good checkpoint: " + str(Path("steps/step=6.ckpt").absolute()))


@pytest.mark.parametrize("most", [0, 1, 5000])
def test_a_checkpoint_is_written_whole_or_the_old_one_stays(most: int, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"global_step": 1, "state_dict": {"w": torch.ones(5000)}}, file)
    with room_for(most), pytest.raises(OSError, match="File too large") as caught:
        WholeCheckpointIO().save_checkpoint({"global_step": 2, "state_dict": {"w": torch.ones(5000)}}, file)
    assert caught.value.errno == errno.EFBIG
    assert steps(file) == 1
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("most", [0, 100])
@pytest.mark.parametrize("door", [door for door in DOORS if door.name in WRITTEN], ids=lambda door: door.name)
def test_a_file_is_written_whole_or_the_old_one_stays(door: Door, most: int, tmp_path: Path) -> None:
    file = door.make(tmp_path / "files")
    before = file.read_bytes()
    with room_for(most), pytest.raises(ConfigurationError, match=r"cannot be written \(File too large\)") as caught:
        door.make(tmp_path / "files")
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before
    assert [each for each in file.parent.iterdir() if each.is_file()] == [file]
    door.read(file)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_an_export_is_written_whole_or_the_old_one_stays(kind: Any, tmp_path: Path) -> None:
    def export(bias: float) -> None:
        network = nn.Linear(4, 3)
        nn.init.constant_(network.bias, bias)
        export_graphs({"model": network}, torch.zeros(2, 4), tmp_path / "export", formats=(kind,), batch_sizes=(2,))

    export(1.0)
    before = {file.name: file.read_bytes() for file in (tmp_path / "export").iterdir()}
    with room_for(200), pytest.raises(ConfigurationError) as caught:
        export(2.0)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in (tmp_path / "export").iterdir()} == before
    answer = load_export(tmp_path / "export", kind).parts["model"](torch.zeros(1, 4))
    assert torch.equal(answer, torch.ones(1, 3))
    assert [each.name for each in tmp_path.iterdir()] == ["export"]


def test_stored_outputs_cost_a_warning_and_those_that_are_there_stay(tmp_path: Path) -> None:
    store = OutputStore(tmp_path / "store", {"logits": (4,)}, rows=100)
    store.put(torch.arange(10), {"logits": torch.ones(10, 4)})
    with room_for(400), pytest.warns(UserWarning, match="File too large"):
        store.put(torch.arange(50, 60), {"logits": torch.ones(10, 4)})
    assert store.get(torch.arange(50, 60)) is None
    for again in (store, OutputStore(tmp_path / "store", {"logits": (4,)}, rows=100)):
        assert torch.equal(again.get(torch.arange(10))["logits"], torch.ones(10, 4))


def test_a_table_or_report_that_does_not_fit_costs_a_warning(
    fit: Callable[..., tuple[int, str]], recwarn: pytest.WarningsRecorder
) -> None:
    words = ("--trainer.callbacks+=SelectiveCoverage", "--trainer.callbacks+=GradualPruning")
    options = {"sparsity": 0.5, "structure": "channels", "measure": "false", "end": 0.4, "rounds": 1}
    pruning = [f"--trainer.callbacks.{name}={value}" for name, value in options.items()]
    quiet = ("--trainer.max_epochs=1", "--trainer.enable_checkpointing=false", "--trainer.logger=false")
    only = ("--trainer.callbacks=FiniteLoss",)
    status, errors = fit(*quiet, *only, *words, *pruning, *full_at(4, 15))
    assert (status, "Traceback" in errors) == (0, False)
    messages = [str(one.message) for one in recwarn]
    for name in ("risk_coverage", "GradualPruning"):
        assert any(name in message and "could not be written" in message for message in messages), messages
    assert not list(Path().rglob("pruned.pt"))
    for file in Path().rglob("*.json"):
        json.loads(file.read_text())
