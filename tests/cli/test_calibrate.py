"""From a checkpoint to a threshold, and from a threshold to predictions that abstain."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import lightning_efficient.functional as LF
from lightning_efficient.cli.arguments import expand
from lightning_efficient.cli.calibration import chose_checkpoint
from lightning_efficient.datamodules import Digits
from lightning_efficient.inference.abstaining import AbstainingPredictor
from lightning_efficient.inference.calibration_file import hash_checkpoint
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.inference.thresholds import calibrate_threshold
from lightning_efficient.modules import ImageClassifier

Command = Callable[..., Any]

TINY = """
model:
  class_path: ImageClassifier
  init_args: {backbone: test_byobnet, num_classes: 10, optimizer: {class_path: torch.optim.SGD}}
data:
  class_path: Digits
  init_args: {batch_size: 4}
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 2
  limit_test_batches: 2
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger:
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {save_dir: runs, name: tiny}
  callbacks:
    - class_path: SelectiveCoverage
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/accuracy, mode: max, filename: best, save_last: true}
"""
VERSION = Path("runs/tiny/version_0")
BEST = VERSION / "checkpoints/best.ckpt"
FILE = VERSION / "checkpoints/best.threshold.json"


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples(split: str) -> tuple[Tensor, Tensor]:
    """Confidence and error of the first two batches of a split, computed without the command."""
    data = Digits(batch_size=4)
    data.prepare_data()
    data.setup("validate" if split == "val" else "test")
    module = ImageClassifier("test_byobnet", num_classes=10)
    module.load_state_dict(torch.load(BEST, weights_only=True)["state_dict"])
    batches = iter(data.val_dataloader() if split == "val" else data.test_dataloader())
    images, labels = (torch.cat(both) for both in zip(next(batches), next(batches), strict=True))
    with torch.no_grad():
        logits = module.eval()(images)
    return LF.msp(logits), (logits.argmax(1) != labels).float()


# ---- what calibrate does


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_checkpoint_is_calibrated_with_the_config_of_its_run(command: Command, run: Path, split: str) -> None:
    before = content(run)
    result = command("calibrate", "--ckpt_path", BEST, "--coverage", "0.5", "--split", split)
    assert result.status == 0, result.err
    after = content(run)
    assert set(after) - set(before) == {run / FILE}
    assert {path: after[path] for path in before} == before
    file, expected = ThresholdFile.read(FILE), calibrate_threshold(*samples(split), coverage=0.5)
    assert file.calibrated.threshold == pytest.approx(expected.threshold, rel=1e-5)
    assert (file.calibrated.samples, file.calibrated.coverage) == (8, 0.5)
    assert file.calibrated.risk == pytest.approx(expected.risk)
    assert (file.score, file.split, file.weights_sha256) == ("msp", split, hash_checkpoint(BEST))


def test_the_page_has_the_threshold_its_promise_and_the_file(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = command("calibrate", "--ckpt_path", BEST, "--coverage", "0.5")
    found = ThresholdFile.read(FILE).calibrated
    assert f"{found.threshold:.6g}" in result.out
    assert found.promise in " ".join(result.out.split())
    assert "best.ckpt · val split · rule coverage" in result.out
    assert result.out.splitlines()[-1] == str(FILE)
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize("words", [["--ckpt", str(BEST)], [f"--ckpt={BEST}"]])
def test_the_checkpoint_has_another_spelling(command: Command, run: Path, words: list[str]) -> None:
    assert command("calibrate", *words, "--coverage", "1").status == 0
    assert ThresholdFile.read(FILE).calibrated.coverage == 1


def test_best_is_that_of_the_newest_run_of_a_config(command: Command, run: Path) -> None:
    result = command("calibrate", "--config", "tiny.yaml", "--ckpt_path", "best", "--coverage", "0.5")
    assert result.status == 0, result.err
    assert {path.name for path in Path("runs/tiny").iterdir()} == {"version_0"}
    assert FILE.is_file()


def test_the_config_of_a_run_may_be_given_too(command: Command, run: Path) -> None:
    words = ("--config", VERSION / "config.yaml", "--ckpt_path", BEST)
    assert command("calibrate", *words, "--coverage", "0.5").status == 0


def test_options_win_over_the_config_of_the_run(command: Command, run: Path) -> None:
    result = command("calibrate", "--ckpt_path", BEST, "--coverage", "1", "--trainer.limit_val_batches", "1")
    assert result.status == 0
    assert ThresholdFile.read(FILE).calibrated.samples == 4


def test_a_checkpoint_without_its_run_needs_data_alone(command: Command, run: Path) -> None:
    (run / "alone").mkdir()
    shutil.copyfile(BEST, "alone/x.ckpt")
    quiet = ("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1", "--data.batch_size", "4")
    result = command("calibrate", "--ckpt_path", "alone/x.ckpt", "--data", "Digits", *quiet, "--coverage", "1")
    assert result.status == 0, result.err
    assert {path.name for path in (run / "alone").iterdir()} == {"x.ckpt", "x.threshold.json"}
    assert not (run / "lightning_logs").exists()


def test_out_and_json_file_say_where(command: Command, run: Path) -> None:
    words = ("calibrate", "--ckpt_path", BEST, "--coverage", "0.5", "--out", "new/t.json")
    result = command(*words, "--json_file", "also.json")
    assert result.out.splitlines()[-2:] == ["also.json", "new/t.json"]
    assert json.loads((run / "also.json").read_text()) == ThresholdFile.read("new/t.json").to_dict()
    assert not FILE.exists()


def test_json_is_all_that_a_dash_prints(command: Command, run: Path) -> None:
    words = ("calibrate", "--ckpt_path", BEST, "--coverage", "0.5", "--json_file", "-")
    result = command(*words, "--trainer.enable_progress_bar", "true")
    assert json.loads(result.out) == ThresholdFile.read(FILE).to_dict()


def test_a_rehearsal_writes_nothing(command: Command, run: Path) -> None:
    before = content(run)
    result = command("calibrate", "--ckpt_path", BEST, "--coverage", "0.5", "--trainer.fast_dev_run", "true")
    assert result.status == 0, result.err
    assert content(run) == before


# ---- whether the promise can be believed


@pytest.mark.parametrize(
    ("name", "split", "told"), [("best", "val", True), ("best", "test", False), ("last", "val", False)]
)
def test_a_checkpoint_that_was_chosen_on_the_same_samples_is_told(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str, told: bool
) -> None:
    notes: list[str] = []
    # what tests before this one did to the loggers would decide whether they can be read there
    monkeypatch.setattr("lightning_efficient.cli.trainer.rank_zero_info", notes.append)
    result = command("calibrate", "--ckpt_path", BEST.with_stem(name), "--coverage", "0.5", "--split", split)
    assert result.status == 0
    notes = [note for note in notes if "was chosen on the validation split" in note]
    assert [note.startswith("best.ckpt") and "--split test" in note for note in notes] == [True] * told


def test_a_checkpoint_that_is_the_best_under_another_name_was_chosen_too(run: Path) -> None:
    checkpoint = torch.load(BEST, weights_only=True)
    other = BEST.with_name("epoch=0.ckpt")
    [state] = [state for state in checkpoint["callbacks"].values() if "best_model_path" in state]
    for path, monitor, expected in ((other, "val/loss", True), (other, "train/loss", False), ("x.ckpt", "val", False)):
        state |= {"best_model_path": str(path), "monitor": monitor}
        torch.save(checkpoint, other)
        assert chose_checkpoint(other) is expected
    torch.save({"state_dict": {}}, other)
    assert not chose_checkpoint(other)


def test_a_set_that_is_too_small_for_the_promise_is_one_line(command: Command, run: Path) -> None:
    result = command("calibrate", "--ckpt_path", BEST, "--risk", "0.01", "--confidence", "0.95")
    result.assert_refused("needs at least 528 samples by the rule 'sgr', even if none is wrong, and 8 were given")
    assert not FILE.exists()


def test_a_split_without_samples_is_one_line(command: Command, run: Path) -> None:
    words = ("calibrate", "--ckpt_path", BEST, "--coverage", "0.5", "--trainer.limit_val_batches", "0")
    command(*words).assert_refused("--split val has no samples; see --trainer.limit_val_batches, or take --split test")
    assert not FILE.exists()


# ---- predictions that abstain


def images(batches: int) -> Tensor:
    data = Digits(batch_size=4)
    data.prepare_data()
    data.setup("predict")
    loader = iter(data.predict_dataloader())
    loaded = [next(loader) for _ in range(batches)]
    return torch.cat([batch[0] if isinstance(batch, list | tuple) else batch for batch in loaded])


def predictions(version: int = 1) -> list[dict[str, str]]:
    with Path(f"runs/tiny/version_{version}/predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_predict_says_what_is_answered_and_why_not(command: Command, run: Path) -> None:
    assert command("calibrate", "--ckpt_path", BEST, "--coverage", "0.5", "--split", "test").status == 0
    result = command("predict", "--ckpt_path", BEST, "--trainer.limit_predict_batches", "4")
    assert result.status == 0, result.err
    rows, found = predictions(), ThresholdFile.read(FILE).calibrated
    assert list(rows[0]) == ["sample", "prediction", "confidence", "accepted", "reason"]
    expected = [str(float(row["confidence"]) >= found.threshold) for row in rows]
    assert [row["accepted"] for row in rows] == expected
    assert set(expected) == {"True", "False"}
    reasons = {"True": "confident", "False": "confidence below threshold"}
    assert [row["reason"] for row in rows] == [reasons[accepted] for accepted in expected]
    for network in (module := ImageClassifier("test_byobnet", num_classes=10), module.backbone):
        predictor = AbstainingPredictor.from_checkpoint(network, BEST)
        with torch.no_grad():
            assert predictor(images(4)).accepted.tolist() == [accepted == "True" for accepted in expected]
    line = f"answered {expected.count('True')} of 16: {found.promise}"
    assert result.out.splitlines()[-2:] == ["runs/tiny/version_1/predictions.csv", line]


def test_predict_without_a_threshold_answers_everything(command: Command, run: Path) -> None:
    result = command("predict", "--ckpt_path", BEST, "--trainer.limit_predict_batches", "1")
    assert result.out.splitlines()[-1] == "runs/tiny/version_1/predictions.csv"
    assert list(predictions()[0]) == ["sample", "prediction", "confidence"]


def test_a_threshold_of_other_weights_is_refused(command: Command, run: Path) -> None:
    assert command("calibrate", "--ckpt_path", BEST, "--coverage", "0.5").status == 0
    checkpoint = torch.load(BEST, weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name] += 1
    torch.save(checkpoint, BEST)
    message = f"the threshold file {FILE} belongs to other weights than {BEST} holds; calibrate again, or remove"
    command("predict", "--ckpt_path", BEST).assert_refused(message)
    assert not (run / "runs/tiny/version_1").exists()


def test_a_damaged_threshold_file_is_refused(command: Command, run: Path) -> None:
    FILE.write_text('{"schema": 1')
    command("predict", "--ckpt_path", BEST).assert_refused(f"the threshold file {FILE} is damaged")


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "calibrate needs one of --risk, --coverage and --max_drop; none is given"),
        ("--coverage 90", "--coverage is 90; it must be above 0 and at most 1, such as 0.9 for 90 %"),
        ("--risk 0.1 --rule sg", "rule is 'sg'; it must be one of coverage, empirical, sgr, "),
        ("--risk 0.1 --kind selectiv", "kind is 'selectiv'; it must be one of selective, generalized"),
        ("--risk 0.1 --split train", "split is 'train'; it must be one of val, test"),
        ("--risk ten", "risk is 'ten'; it must be float"),
        ("--risks 0.1", "unknown option --risks. Did you mean '--risk'"),
        ("--coverage 0.5 --out /proc/none/x.json", "the threshold file /proc/none/x.json cannot be written"),
        ("--coverage 0.5 --json_file /proc/none/x.json", "/proc/none/x.json cannot be written"),
    ],
)
def test_a_mistake_is_one_line(command: Command, run: Path, words: str, message: str) -> None:
    command("calibrate", "--ckpt_path", BEST, *words.split()).assert_refused(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing --ckpt_path: give a checkpoint, such as"),
        (["--data", "Digits"], "missing --ckpt_path: give a checkpoint, such as"),
        (["--ckpt_path"], "--ckpt_path needs a value"),
        (["--ckpt_path", "lost.ckpt"], "ckpt_path: there is no checkpoint 'lost.ckpt'"),
        (["--ckpt_path", "best"], "ckpt_path is 'best', that of the newest run of a config; give --config NAME"),
        (
            ["--ckpt_path", "a/b/x.ckpt"],
            "ckpt_path: no folder above 'a/b/x.ckpt' has a readable config.yaml of its run",
        ),
        (["--config", "tiny.yaml"], "missing --ckpt_path; give the file of a checkpoint"),
        (["--config", "tiny.yaml", "--ckpt_path", "best"], "no run in 'runs/tiny' has checkpoints/best.ckpt"),
    ],
)
def test_a_checkpoint_that_cannot_be_meant_is_one_line(
    command: Command, tiny: Path, words: list[str], message: str
) -> None:
    Path("a/b").mkdir(parents=True)
    torch.save({"state_dict": {}}, "a/b/x.ckpt")
    command("calibrate", *words, "--risk", "0.1").assert_refused(message)


# ---- the config of a run


@pytest.mark.parametrize("verb", ["validate", "test", "calibrate", "predict"])
def test_verbs_after_training_take_what_they_share_with_fit(run: Path, verb: str) -> None:
    words = expand([verb, f"--ckpt_path={BEST}", "--split", "val"], lambda name: False)
    assert [words[0], *words[3:]] == [verb, "--ckpt_path", str(BEST), "--split", "val"]
    given, written = yaml.safe_load(words[2]), yaml.safe_load((VERSION / "config.yaml").read_text())
    assert set(given) == {"seed_everything", "model", "data", "trainer"} < set(written)
    assert given == {name: written[name] for name in given}


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--ckpt_path", str(BEST)),
        ("profile", "--ckpt_path", str(BEST)),
        ("test", "--ckpt_path", str(BEST), "--config", "tiny.yaml"),
        ("test", "--ckpt_path", str(BEST), "--model", "ImageClassifier"),
        ("test", "--ckpt_path", "lost.ckpt"),
        ("test", "--ckpt_path", "best"),
        ("test",),
        ("calibrate", "--help"),
    ],
)
def test_nothing_is_added_where_a_model_is_named_or_no_checkpoint(run: Path, words: tuple[str, ...]) -> None:
    assert expand(words, lambda name: False) == list(words)


def test_test_and_validate_need_no_more_than_a_checkpoint(command: Command, run: Path) -> None:
    for verb, metric in (("test", "test/accuracy"), ("validate", "val/accuracy")):
        result = command(verb, "--ckpt_path", BEST)
        assert result.status == 0, result.err
        assert metric in result.out


@pytest.mark.parametrize("text", ["{", "[1]", "model: {}", "\x00", ""])
def test_a_config_that_is_of_no_run_is_passed_over(command: Command, run: Path, text: str) -> None:
    (VERSION / "config.yaml").write_text(text)
    message = f"no folder above '{BEST}' has a readable config.yaml of its run; give --config NAME"
    command("calibrate", "--ckpt_path", BEST, "--risk", "0.1").assert_refused(message)
    words = ["test", "--ckpt_path", str(BEST), "--data", "Digits"]
    assert expand(words, lambda name: False) == words
    shutil.copyfile("tiny.yaml", VERSION.parent / "config.yaml")
    assert expand(words, lambda name: False)[1] == "--config"
