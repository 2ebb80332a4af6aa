"""What calibration asks of its options, and what it gathers from one pass over a split."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import lightning_efficient.functional as LF
from lightning_efficient.callbacks import SelectiveCoverage, from_forward
from lightning_efficient.cli.calibration import Request, listen
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.thresholds import ThresholdRule
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.inference.thresholds import calibrate_threshold

Command = Callable[..., Any]

# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of --risk, --coverage and --max_drop; none is given"),
        ({"risk": 0.1, "coverage": 0.5}, "one of --risk, --coverage and --max_drop; got --risk 0.1 and --coverage 0.5"),
        ({"risk": 1}, "--risk is 1; it must be at least 0 and below 1"),
        ({"risk": -0.1}, "--risk is -0.1"),
        ({"risk": float("nan")}, "--risk is nan"),
        ({"coverage": 0}, "--coverage is 0; it must be above 0"),
        ({"risk": 0.1, "confidence": 95}, "--confidence is 95; it must be between 0 and 1, such as 0.95"),
        ({"risk": 0.1, "confidence": 1}, "--confidence is 1"),
        ({"coverage": 0.9, "confidence": 0.95}, "--confidence goes with --risk"),
        ({"risk": 0.1, "rule": "coverage"}, "--rule coverage needs --coverage"),
        ({"coverage": 0.9, "rule": "sgr"}, "--rule sgr needs --risk"),
        ({"risk": 0.1, "rule": "sgr"}, "--rule sgr needs --confidence"),
        ({"risk": 0.1, "rule": "rcps"}, "--rule rcps needs --confidence"),
        ({"risk": 0.1, "rule": "conformal", "confidence": 0.9}, "--rule conformal takes no --confidence"),
        ({"risk": 0.1, "rule": "empirical", "confidence": 0.9}, "--rule empirical takes no --confidence"),
        ({"risk": 0, "confidence": 0.9}, "--risk is 0, and no number of samples shows that by the rule sgr; give a"),
        ({"risk": 0, "confidence": 0.9, "kind": "generalized"}, "by the rule rcps"),
        ({"risk": 0, "confidence": 0.9, "rule": "fixed_sequence"}, "by the rule fixed_sequence"),
        ({"risk": 0, "rule": "conformal"}, "by the rule conformal"),
        ({"risk": 0.1, "rule": "conformal", "kind": "selective"}, "--rule conformal bounds the generalized risk"),
        ({"risk": 0.1, "rule": "sgr", "confidence": 0.9, "kind": "generalized"}, "--rule sgr bounds the selective"),
    ],
)
def test_options_that_cannot_be_met_are_told_before_the_model_runs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Request(**options)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"risk": 0.1}, "selective"),
        ({"risk": 0}, "selective"),
        ({"risk": 0.1, "kind": "generalized"}, "generalized"),
        ({"risk": 0.1, "confidence": 0.9, "rule": "rcps"}, "generalized"),
        ({"risk": 0.1, "rule": "conformal"}, "generalized"),
        ({"risk": 0.1, "confidence": 0.9, "rule": "sgr"}, "selective"),
        ({"risk": 0.1, "confidence": 0.9, "rule": "fixed_sequence"}, "selective"),
        ({"coverage": 0.5, "rule": "coverage"}, "selective"),
    ],
)
def test_a_rule_says_which_risk_it_bounds(options: dict[str, Any], kind: str) -> None:
    assert Request(**options).risk_kind == kind


def fits(check: Callable[..., object], *tensors: Tensor, **options: Any) -> bool:
    try:
        check(*tensors, **options)
    except ConfigurationError:
        return False
    return True


@pytest.mark.parametrize("rule", [None, *get_args(ThresholdRule)])
def test_both_checks_of_options_agree(rule: Any) -> None:
    samples = torch.linspace(0, 1, 50), torch.zeros(50)
    for kind, level, target in product(("selective", "generalized"), (None, 0.9), ("risk", "coverage")):
        options = {target: 0.5, "kind": kind, "rule": rule}
        early = fits(Request, **options, confidence=level)
        assert early == fits(calibrate_threshold, *samples, **options, confidence_level=level), (kind, level, target)


# ---- what is gathered


class Given(LightningModule):
    """Logits are the inputs."""

    def __init__(self, returns: bool = True) -> None:
        super().__init__()
        self.returns = returns

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": batch[0], "target": batch[1]} if self.returns else {"loss": torch.zeros(())}

    test_step = validation_step


def gathered(*samples: Any, split: str = "val", module: Any = None, **options: Any) -> Any:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, **options)
    gathering = listen(trainer, progress=True)
    loader = samples[0] if len(samples) == 1 else DataLoader(TensorDataset(*samples[:2]), batch_size=samples[2])
    (trainer.validate if split == "val" else trainer.test)(module or Given(), loader, verbose=False)
    return gathering


INPUTS, TARGET = torch.randn(11, 3, generator=torch.Generator().manual_seed(0)), torch.arange(11) % 3


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_sample_is_kept_in_order(split: str) -> None:
    confidence, loss = gathered(INPUTS, TARGET, 4, split=split).samples
    assert torch.equal(confidence, LF.msp(INPUTS))
    assert torch.equal(loss, (INPUTS.argmax(1) != TARGET).float())


def test_the_fingerprint_is_that_of_the_samples_and_not_of_the_batches() -> None:
    first = gathered(INPUTS, TARGET, 4).data_sha256
    assert len(first) == 64
    assert gathered(INPUTS, TARGET, 11).data_sha256 == first
    changed = INPUTS.clone()
    changed[3] += 1  # softmax, and so confidence and error, nearly stay
    other_target = torch.where(INPUTS.argmax(1) == TARGET, TARGET, (2 * TARGET + 2 * INPUTS.argmax(1)) % 3)
    assert ((INPUTS.argmax(1) != TARGET) == (INPUTS.argmax(1) != other_target)).all()
    others = [(changed, TARGET), (INPUTS, other_target), (INPUTS.flip(0), TARGET.flip(0)), (INPUTS[:8], TARGET[:8])]
    assert len({first, *(gathered(*other, 4).data_sha256 for other in others)}) == 5


class Convolutions(Given):
    """A small network, whose last bits depend on how many samples it sees at once."""

    def __init__(self, shaky: bool) -> None:
        super().__init__()
        self.shaky = shaky
        generator = torch.Generator().manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 4))
        for weight in self.layers.parameters():
            torch.nn.init.normal_(weight, std=0.3, generator=generator)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.layers(batch[0]).mean((2, 3))
        # what a machine may do by itself, made sure of
        return {"logits": logits * (1 + 1e-6 * len(logits) * self.shaky), "target": batch[1]}


@pytest.mark.parametrize("shaky", [False, True])
def test_the_fingerprint_does_not_hang_on_the_last_bits_of_a_network(shaky: bool) -> None:
    images = torch.randn(11, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = [gathered(images, TARGET, size, module=Convolutions(shaky)) for size in (1, 4, 11)]
    assert shaky <= (not torch.equal(found[0].samples[0], found[1].samples[0]))
    assert len({each.data_sha256 for each in found}) == 1


class Named(Dataset):
    """Samples with a name, and a number that each batch has once."""

    def __init__(self, names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> Any:
        return INPUTS[index], TARGET[index], self.names[index], {"path": f"{self.names[index]}.png"}


def named_batch(samples: list[Any]) -> Any:
    return [*default_collate(samples), "digits", 0.5, torch.tensor(2)]


def test_names_of_samples_count_and_what_comes_with_each_batch_does_not() -> None:
    def fingerprint(names: str, size: int) -> str:
        return gathered(DataLoader(Named(names), batch_size=size, collate_fn=named_batch)).data_sha256

    hashes = {fingerprint("abcdefghijk", size) for size in (1, 4, 11)}
    assert len(hashes) == 1
    assert fingerprint("abcdefghijj", 4) not in hashes
    assert fingerprint("abcdefghikj", 4) not in hashes


def test_a_callback_that_reads_other_steps_is_asked_here_too() -> None:
    callbacks = [SelectiveCoverage(predictions=from_forward)]
    confidence, _ = gathered(INPUTS, TARGET, 4, module=Given(returns=False), callbacks=callbacks).samples
    assert torch.equal(confidence, LF.msp(INPUTS))


def test_what_would_write_is_taken_out_of_the_trainer() -> None:
    trainer = Trainer(accelerator="cpu", callbacks=[SelectiveCoverage(), ModelCheckpoint()])
    bars = len([callback for callback in trainer.callbacks if "ProgressBar" in type(callback).__name__])
    gathering = listen(trainer, progress=True)
    assert trainer.loggers == []
    assert [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)] == []
    assert [callback for callback in trainer.callbacks if isinstance(callback, SelectiveCoverage)] == [gathering]
    assert (bars, trainer.progress_bar_callback is None) == (1, False)
    listen(trainer, progress=False)
    assert trainer.progress_bar_callback is None


# ---- modules of one's own


class Words(LightningModule):
    """A module with a step for calibration and predictions that are no mapping."""

    def __init__(self, sure: bool = True) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.sure = sure

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        images, target = batch
        logits = torch.nn.functional.one_hot(target, 10).float()
        return {"logits": logits, "target": target} | ({"confidence": images.mean((1, 2, 3))} if self.sure else {})

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": torch.zeros(())}

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return batch[0].mean((1, 2, 3))


class Wrong(Words):
    """A module that is always wrong, and surer of some samples than of others."""

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return super().test_step((batch[0], batch[1].add(1) % 10), batch_idx) | {"target": batch[1]}

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"prediction": torch.zeros(len(batch[0])), "confidence": batch[0].mean((1, 2, 3))}


def words_checkpoint(module: str = "Words") -> list[str]:
    state = {"state_dict": Words().state_dict(), "pytorch-lightning_version": "2.6.0"}
    torch.save(state, "words.ckpt")
    data = ["--data", "Digits", "--data.batch_size", "4", "--trainer.limit_test_batches", "2"]
    few = ["--trainer.limit_predict_batches", "1", "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu"]
    return ["--model", f"{__name__}.{module}", *data, *few, "--ckpt_path", "words.ckpt"]


@pytest.mark.parametrize("sure", [True, False])
def test_the_confidence_of_a_step_goes_before_that_of_its_logits(command: Command, sure: bool) -> None:
    words = (*words_checkpoint(), "--model.sure", str(sure).lower())
    assert command("calibrate", *words, "--coverage", "0.5", "--split", "test").status == 0
    file = ThresholdFile.read("words.threshold.json")
    data = Digits(batch_size=8)
    data.prepare_data()
    data.setup("test")
    brightness = next(iter(data.test_dataloader()))[0].mean((1, 2, 3))
    assert file.score == ("confidence" if sure else "msp")
    expected = float(brightness.sort().values[4]) if sure else float(LF.msp(torch.eye(10)[:1]))
    assert file.calibrated.threshold == pytest.approx(expected)
    assert file.calibrated.coverage == (0.5 if sure else 1)


def test_where_no_threshold_is_found_nothing_is_answered(command: Command) -> None:
    words = words_checkpoint("Wrong")
    result = command("calibrate", *words, "--risk", "0.1", "--split", "test")
    assert result.status == 0
    assert "never" in result.out
    promise = ThresholdFile.read("words.threshold.json").calibrated.promise
    assert promise.startswith("Nothing is answered: on these 8 calibration samples")
    lines = command("predict", *words).out.splitlines()
    assert lines[-1] == f"answered 0 of 4: {promise}"
    with Path(lines[-2]).open(newline="") as file:
        assert {row["reason"] for row in csv.DictReader(file)} == {"no threshold keeps the promise"}


def test_predictions_that_hold_no_confidence_are_written_and_told(command: Command) -> None:
    words = (*words_checkpoint(), "--trainer.logger", "false")
    assert command("calibrate", *words, "--coverage", "0.5", "--split", "test").status == 0
    lines = command("predict", *words).out.splitlines()
    assert Path(lines[-2]).name == "predictions.pt"
    assert lines[-1].startswith("the threshold beside the checkpoint is not used: predict_step returns no prediction")


def test_a_step_that_returns_no_logits_is_told_what_to_return(command: Command) -> None:
    result = command("calibrate", *words_checkpoint(), "--coverage", "0.5")
    assert result.status == 2
    assert "error: SelectiveCoverage: the step of Words returns" in result.err.splitlines()[-1]
