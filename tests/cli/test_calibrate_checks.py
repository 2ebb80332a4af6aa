"""What calibration and the verbs after it refuse, note, and leave as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_efficient.cli.arguments import expand
from lightning_efficient.cli.calibration import chose_checkpoint
from lightning_efficient.inference.threshold_file import ThresholdFile

Command = Callable[..., Any]

TINY = """
model:
  class_path: SelectiveClassifier
  init_args:
    backbone: cifar_resnet10_xxxs
    num_classes: 10
    in_chans: 1
    score: energy
    optimizer: {class_path: torch.optim.SGD}
data:
  class_path: Digits
  init_args: {batch_size: 4, image_size: 16, in_chans: 1}
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 2
  limit_test_batches: 2
  limit_predict_batches: 2
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: checkpoints, monitor: val/loss, filename: best, save_last: link}
"""
BEST, LAST = Path("checkpoints/best.ckpt"), Path("checkpoints/last.ckpt")
FILE = Path("checkpoints/best.threshold.json")
COVERAGE = ("--coverage", "0.5")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The notes of verbs; what other tests did to the loggers would decide whether they can be read there."""
    written: list[str] = []
    for module in ("trainer", "efficient_cli", "arguments"):
        monkeypatch.setattr(f"lightning_efficient.cli.{module}.rank_zero_info", written.append)
    return written


def error(result: Any) -> str:
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert (result.status, len(lines)) == (2, 1), result.err
    return lines[0]


# ---- the score and the precision


def test_a_threshold_of_one_score_is_not_applied_to_another(command: Command, run: Path) -> None:
    assert command("calibrate", "--ckpt_path", BEST, *COVERAGE).status == 0
    file = ThresholdFile.read(FILE)
    assert (file.score, file.module_score, file.precision) == ("confidence", "energy", "32-true")
    result = command("predict", "--ckpt_path", BEST, "--model.score", "msp")
    message = "is of the score 'energy', and SelectiveClassifier has 'msp'; set its score to what was calibrated, or"
    assert message in error(result)
    assert not list(run.glob("predictions*"))
    result = command("predict", "--ckpt_path", BEST)
    assert result.out.splitlines()[-1].startswith("answered ")


@pytest.mark.parametrize(("precision", "told"), [("32-true", False), ("bf16-mixed", True)])
def test_another_precision_is_noted(command: Command, run: Path, notes: list[str], precision: str, told: bool) -> None:
    assert command("calibrate", "--ckpt_path", BEST, *COVERAGE).status == 0
    assert command("predict", "--ckpt_path", BEST, "--trainer.precision", precision).status == 0
    about = [note for note in notes if "precision" in note]
    assert ["with precision 32-true, and this run has bf16-mixed" in note for note in about] == [True] * told


# ---- the config of the run


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_later_verb_leaves_the_config_of_the_fit(command: Command, run: Path, verb: str) -> None:
    before = Path("config.yaml").read_bytes()
    assert command(verb, "--ckpt_path", BEST, "--data.batch_size", "3").status == 0
    assert Path("config.yaml").read_bytes() == before
    written = yaml.safe_load(Path(f"config_{verb}.yaml").read_text())
    assert written["data"]["init_args"]["batch_size"] == 3


def test_a_verb_that_finds_no_config_writes_one(command: Command, run: Path) -> None:
    Path("config.yaml").unlink()
    assert command("test", "--config", "tiny.yaml", "--ckpt_path", BEST).status == 0
    assert Path("config.yaml").is_file()


def test_the_config_that_a_verb_takes_is_told(run: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expand(["test", "--ckpt_path", str(BEST)], lambda name: False)
    monkeypatch.chdir(run / "checkpoints")
    expand(["test", "--ckpt_path", "best.ckpt"], lambda name: False)
    expand(["test", "--ckpt_path", "best.ckpt", "--config", "../tiny.yaml"], lambda name: False)
    assert notes == ["config: config.yaml", f"config: {run / 'config.yaml'}"]


@pytest.mark.parametrize("first", [["--ckpt_path", "lost.ckpt"], ["--ckpt_path=lost.ckpt"]])
def test_the_last_of_two_checkpoints_counts(run: Path, notes: list[str], first: list[str]) -> None:
    assert expand(["test", *first, "--ckpt_path", str(BEST)], lambda name: False)[1] == "--config"
    assert "--config" not in expand(["test", "--ckpt_path", str(BEST), *first], lambda name: False)
    assert notes == ["config: config.yaml"]


# ---- links


def test_a_link_has_the_threshold_and_the_config_of_what_it_leads_to(command: Command, run: Path) -> None:
    assert LAST.is_symlink()
    assert command("calibrate", "--ckpt_path", BEST, *COVERAGE).status == 0
    (run / "a" / "b" / "c").mkdir(parents=True)
    link = run / "a" / "b" / "c" / "mine.ckpt"
    link.symlink_to(BEST.absolute())
    for checkpoint in (LAST, link):
        result = command("predict", "--ckpt_path", checkpoint)
        assert result.status == 0, result.err
        assert result.out.splitlines()[-1].startswith("answered "), checkpoint


def test_a_link_to_a_checkpoint_that_was_chosen_was_chosen(run: Path) -> None:
    assert chose_checkpoint(BEST)
    assert chose_checkpoint(LAST)
    Path("copy.ckpt").write_bytes(BEST.read_bytes())
    assert not chose_checkpoint(Path("copy.ckpt"))


def test_each_of_the_best_was_chosen(run: Path) -> None:
    checkpoint = torch.load(BEST, weights_only=True)
    [state] = [state for state in checkpoint["callbacks"].values() if "best_model_path" in state]
    state["best_model_path"] = "x/epoch=7.ckpt"
    state["best_k_models"] = {"x/epoch=7.ckpt": torch.tensor(0.1), "x/epoch=3.ckpt": torch.tensor(0.2)}
    for name, expected in (("epoch=3", True), ("epoch=7", True), ("epoch=5", False)):
        torch.save(checkpoint, f"{name}.ckpt")
        assert chose_checkpoint(Path(f"{name}.ckpt")) is expected


# ---- what was calibrated on


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(("limit", "told"), [("2", True), ("0.5", True), ("1.0", False), ("10000", False)])
def test_a_limit_that_leaves_samples_out_is_noted(
    command: Command, run: Path, notes: list[str], split: str, limit: str, told: bool
) -> None:
    options = ("--data.batch_size", "4", f"--trainer.limit_{split}_batches", limit)
    assert command("calibrate", "--ckpt_path", BEST, *COVERAGE, "--split", split, *options).status == 0
    about = [note for note in notes if "limit" in note]
    used = ThresholdFile.read(FILE).calibrated.samples // 4
    assert [note.partition(" of the ")[0] for note in about] == (
        [f"trainer.limit_{split}_batches: calibrated on {used}"] if told else []
    )


# ---- files


def test_no_threshold_is_left_where_its_copy_cannot_be_written(command: Command, run: Path) -> None:
    result = command("calibrate", "--ckpt_path", BEST, *COVERAGE, "--json_file", "/proc/none/x.json")
    assert "json_file: /proc/none/x.json cannot be written" in error(result)
    assert not FILE.exists()


def test_a_rehearsal_writes_no_copy_either(command: Command, run: Path) -> None:
    words = ("--json_file", "x.json", "--trainer.fast_dev_run", "true")
    assert command("calibrate", "--ckpt_path", BEST, *COVERAGE, *words).status == 0
    assert not Path("x.json").exists()


class Sure(LightningModule):
    """A module that returns logits to calibrate on, and predictions with another confidence and no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"logits": nn.functional.one_hot(batch[1], 10).float(), "target": batch[1]}

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"prediction": torch.zeros(len(batch[0])), "confidence": batch[0].mean((1, 2, 3))}


def test_a_threshold_of_msp_without_logits_to_compare_is_told(command: Command, run: Path) -> None:
    words = ("--model", f"{__name__}.Sure", "--data", "Digits", "--trainer.accelerator", "cpu")
    few = ("--trainer.limit_test_batches", "1", "--trainer.limit_predict_batches", "1", "--trainer.logger", "false")
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "pytorch-lightning_version": "2.6.0"}, "sure.ckpt")
    assert command("calibrate", *words, *few, "--ckpt_path", "sure.ckpt", *COVERAGE, "--split", "test").status == 0
    result = command("predict", *words, *few, "--ckpt_path", "sure.ckpt")
    assert result.status == 0, result.err
    assert "is not used: it is one of the maximum softmax probability" in result.out.splitlines()[-1]


# ---- several processes


@pytest.mark.parametrize(
    ("other", "lines"),
    [
        ((Path("predictions_rank1.csv"), None, (3, 5), Counter()), ["predictions_rank1.csv", "answered {} of 13: "]),
        ((None, None, (0, 0), Counter()), ["answered {} of 8: "]),
        (
            (Path("predictions_rank1.pt"), "is not used: why", (0, 0), Counter()),
            ["predictions_rank1.pt", "is not used: why"],
        ),
    ],
)
def test_the_first_process_tells_of_all(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, other: Any, lines: list[str]
) -> None:
    assert command("calibrate", "--ckpt_path", BEST, *COVERAGE).status == 0
    own: list[Any] = []

    def gather(trainer: Any, value: Any) -> list[Any]:
        own.append(value)
        return [value, other]

    monkeypatch.setattr("lightning_efficient.cli.efficient_cli.gather_objects", gather)
    printed = command("predict", "--ckpt_path", BEST).out.splitlines()
    [(file, problem, (accepted, total), sources)] = own
    assert not sources
    assert (file.name, problem, total) == ("predictions.csv", None, 8)
    assert printed[0] == str(file)
    expected = [line.format(accepted + other[2][0]) for line in lines]
    assert [line[: len(start)] for line, start in zip(printed[1:], expected, strict=True)] == expected
