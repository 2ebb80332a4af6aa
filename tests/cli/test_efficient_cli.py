from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_efficient.cli.config_files import find, shipped

Command = Callable[..., Any]
Parse = Callable[..., Any]


def classes(entries: list[Any]) -> list[str]:
    return [entry.class_path.rpartition(".")[2] for entry in entries]


def model(config: Any) -> dict[str, Any]:
    return config.model.init_args.as_dict()


# ---- composition


def test_a_logger_fragment_is_added_to_that_of_the_experiment(parse: Parse) -> None:
    config = parse("--config", "quickstart", "--config", "logger/wandb")
    assert classes(config.trainer.logger) == ["CSVLogger", "SteadyWandbLogger"]
    assert config.trainer.logger[1].init_args.offline is True


def test_later_configs_change_only_what_they_name(parse: Parse) -> None:
    alone, together = parse("--config", "quickstart"), parse("--config", "quickstart", "-c", "trainer/ddp")
    assert (together.trainer.strategy, together.trainer.devices) == ("ddp", 2)
    assert (alone.trainer.strategy, alone.trainer.devices) == ("auto", 1)
    assert together.trainer.max_epochs == alone.trainer.max_epochs
    assert together.model == alone.model


def test_a_data_fragment_replaces_the_data(parse: Parse) -> None:
    config = parse("--config=quickstart", "--config=data/fashion_mnist", "--data.root", "elsewhere")
    assert classes([config.data]) == ["TorchvisionImages"]
    assert (config.data.init_args.name, config.data.init_args.root) == ("FashionMNIST", "elsewhere")


def test_callbacks_append_in_yaml_and_on_the_command_line(parse: Parse, tmp_path: Path) -> None:
    before = classes(parse("--config", "quickstart").trainer.callbacks)
    more = tmp_path / "more.yaml"
    more.write_text("trainer:\n  callbacks+:\n    - class_path: LearningRateMonitor\n")
    config = parse(
        *("--config", "quickstart", "--config", more),
        *("--trainer.callbacks+=LatencyProfiler", "--trainer.callbacks.threads=1"),
    )
    assert classes(config.trainer.callbacks) == [*before, "LearningRateMonitor", "LatencyProfiler"]
    assert config.trainer.callbacks[-1].init_args.threads == 1


def test_callbacks_without_a_plus_replace(parse: Parse, tmp_path: Path) -> None:
    only = tmp_path / "only.yaml"
    only.write_text("trainer:\n  callbacks:\n    - class_path: FiniteLoss\n")
    assert classes(parse("--config", "quickstart", "--config", only).trainer.callbacks) == ["FiniteLoss"]


@pytest.mark.parametrize("words", [["--timm", "test_resnet"], ["--model", "test_resnet"], ["--timm=test_resnet"]])
def test_a_timm_name_takes_the_place_of_the_backbone_only(parse: Parse, words: list[str]) -> None:
    ours, theirs = model(parse("--config", "quickstart", *words)), model(parse("--config", "quickstart"))
    assert ours == theirs | {"backbone": "test_resnet"}


@pytest.mark.parametrize("name", ["SelectiveCoverage", "LatencyProfiler", "FiniteLoss", "ExactResume"])
def test_our_callbacks_are_known_by_their_short_names(parse: Parse, name: str) -> None:
    config = parse("--timm", "test_resnet", f"--trainer.callbacks+={name}")
    assert config.trainer.callbacks[0].class_path.startswith("lightning_efficient.")


@pytest.mark.parametrize("words", [["Digits"], ["TorchvisionImages", "--data.name", "MNIST"]])
def test_our_data_modules_are_known_by_their_short_names(parse: Parse, words: list[str]) -> None:
    assert classes([parse("--timm", "test_resnet", "--data", *words).data]) == words[:1]


# ---- a run's config.yaml


def test_the_config_of_a_run_runs_the_same_again(command: Command, parse: Parse, tiny: Path) -> None:
    assert command("fit", "--config", tiny, "--model.label_smoothing", "0.1").status == 0
    written = Path("runs/tiny/version_0/config.yaml")
    first, second = parse("--config", tiny, "--model.label_smoothing", "0.1"), parse("--config", written)
    assert second.clone(with_meta=False).as_dict() | {"config": None} == first.as_dict() | {"config": None}


def test_a_second_run_into_the_same_folder_writes_its_own_config(command: Command, tiny: Path, tmp_path: Path) -> None:
    words = ("fit", "--config", tiny, "--trainer.logger", "false", "--trainer.enable_checkpointing", "false")
    assert command(*words).status == 0
    assert command(*words, "--trainer.max_epochs", "2").status == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["max_epochs"] == 2


# ---- a checkpoint's hyper-parameters


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as LightningCLI writes it, of a module with another smoothing, optimiser and learning rate."""
    from lightning_efficient.modules import ImageClassifier

    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}
    stored = {
        "_class_path": "lightning_efficient.modules.ImageClassifier",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "backbone": "test_byobnet",
        "num_classes": 10,
        "label_smoothing": 0.25,
        "optimizer": optimizer,
    }
    module = ImageClassifier("test_byobnet", num_classes=10, label_smoothing=0.25)
    torch.save(
        {"state_dict": module.state_dict(), "hyper_parameters": stored, "pytorch-lightning_version": "2.6.6"}, path
    )
    return path


def test_hyper_parameters_that_nobody_gave_come_from_the_checkpoint(parse: Parse, checkpoint: Path) -> None:
    config = parse("--data", "Digits", "--ckpt_path", checkpoint)
    assert model(config)["label_smoothing"] == 0.25
    assert model(config)["backbone"] == "test_byobnet"
    assert model(config)["optimizer"]["init_args"]["lr"] == 0.3


def test_options_win_over_the_checkpoint(parse: Parse, checkpoint: Path) -> None:
    config = parse(
        *(
            "--ckpt_path",
            checkpoint,
            "--model.label_smoothing",
            "0.5",
            "--model.optimizer.lr",
            "0.9",
            "--data",
            "Digits",
        )
    )
    assert (model(config)["label_smoothing"], model(config)["optimizer"]["init_args"]["lr"]) == (0.5, 0.9)
    assert model(config)["backbone"] == "test_byobnet"


def test_configs_win_over_the_checkpoint(parse: Parse, checkpoint: Path) -> None:
    config = parse("--config", "quickstart", f"--ckpt_path={checkpoint}")
    quickstart = yaml.safe_load(find("quickstart").read_text())["model"]["init_args"]
    assert model(config)["backbone"] == quickstart["backbone"]
    assert model(config)["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert model(config)["label_smoothing"] == 0.25  # the quickstart does not name it


def test_a_checkpoint_named_in_a_config_gives_its_hyper_parameters_too(
    parse: Parse, checkpoint: Path, tiny: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more.yaml"
    more.write_text(f"ckpt_path: {checkpoint}")
    assert model(parse("--config", tiny, "--config", more))["label_smoothing"] == 0.25


def test_another_model_takes_nothing_from_the_checkpoint(parse: Parse, checkpoint: Path) -> None:
    config = parse("--model", "lightning.pytorch.demos.boring_classes.BoringModel", "--ckpt_path", checkpoint)
    assert classes([config.model]) == ["BoringModel"]
    assert config.model.get("init_args") in (None, {}) or model(config) == {}


def test_a_test_needs_no_more_than_data_and_a_checkpoint(command: Command, checkpoint: Path) -> None:
    quiet = ("--trainer.accelerator", "cpu", "--trainer.limit_test_batches", "1", "--trainer.logger", "false")
    result = command("test", "--data", "Digits", "--ckpt_path", checkpoint, *quiet)
    assert result.status == 0
    assert "test/accuracy" in result.out


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict"])
def test_a_checkpoint_that_would_run_code_is_refused(command: Command, tiny: Path, tmp_path: Path, place: str) -> None:
    torch.save({place: {"x": RunsCode()}}, tmp_path / "evil.ckpt")
    result = command("fit", "--config", tiny, "--ckpt_path", "evil.ckpt")
    assert result.status == 2
    assert result.err == "error: ckpt_path: 'evil.ckpt' could run code when it is loaded, so it is refused\n"
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps({"a": 1})])
def test_a_file_that_is_no_checkpoint_is_refused(command: Command, tiny: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some.ckpt").write_bytes(content)
    result = command("test", "--config", tiny, "--ckpt_path", "some.ckpt")
    assert result.status == 2
    assert result.err == "error: ckpt_path: 'some.ckpt' is no checkpoint, or it is damaged\n"


def test_a_checkpoint_that_is_not_there_is_named(command: Command, tiny: Path) -> None:
    result = command("validate", "--config", tiny, "--ckpt_path", "lost.ckpt")
    assert (result.status, result.err) == (2, "error: ckpt_path: there is no checkpoint 'lost.ckpt'\n")


# ---- in a script of one's own


def test_a_script_may_build_without_running(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py"])
    from lightning_efficient.cli.efficient_cli import EfficientCLI

    cli = EfficientCLI(args=["--config", str(tiny), "--trainer.logger", "false"], run=False)
    assert type(cli.model).__name__ == "ImageClassifier"
    assert type(cli.datamodule).__name__ == "Digits"
    assert cli.trainer.max_epochs == 1


# ---- optimisers


@pytest.mark.parametrize(
    "words",
    [
        ("ImageClassifier", "--model.backbone", "test_resnet"),
        ("Distiller", "--model.student", "test_resnet", "--model.objective", "ce"),
    ],
)
def test_another_optimiser_does_not_inherit_the_weight_decay_of_the_default(
    parse: Parse, words: tuple[str, ...]
) -> None:
    config = parse("--model", *words, "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--data", "Digits")
    optimizer = model(config)["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert (optimizer["init_args"]["lr"], optimizer["init_args"]["weight_decay"]) == (0.1, 0)


# ---- checkpoints by word


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_best_is_that_of_the_newest_run(command: Command, tmp_path: Path) -> None:
    short = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1")
    for _ in range(2):
        assert command("fit", "--config", "quickstart", *short).status == 0
    bests = [tmp_path / f"runs/quickstart/version_{number}/checkpoints/best.ckpt" for number in (0, 1)]
    test = ("test", "--config", "quickstart", "--ckpt_path", "best", "--trainer.limit_test_batches", "1")
    bests[0].write_bytes(b"not what is asked for")
    os.utime(bests[0], (1, 1))
    assert command(*test).status == 0
    os.utime(bests[1], (0, 0))
    damaged = command(*test)
    assert damaged.status == 2
    assert damaged.err.splitlines()[-1] == (
        "error: ckpt_path: 'runs/quickstart/version_0/checkpoints/best.ckpt' is no checkpoint, or it is damaged"
    )


def test_last_is_the_last_epoch_and_best_the_first_of_the_best(command: Command, tmp_path: Path) -> None:
    standing = ("--model.optimizer.lr", "0", "--model.backbone", "test_vit", "--trainer.max_epochs", "3")
    short = ("--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1")
    assert command("fit", "--config", "quickstart", *standing, *short).status == 0
    folder = tmp_path / "runs/quickstart/version_0/checkpoints"
    epochs = {path.name: torch.load(path, weights_only=True)["epoch"] for path in folder.iterdir()}
    assert epochs == {"best.ckpt": 0, "last.ckpt": 2}


def test_no_shipped_config_asks_for_the_last_of_what_a_monitor_keeps() -> None:
    for name, config in shipped().items():
        trainer = yaml.safe_load(config.path.read_text(encoding="utf-8")).get("trainer", {})
        kept = [each["init_args"] for each in trainer.get("callbacks", []) if "ModelCheckpoint" in each["class_path"]]
        assert not any("monitor" in options and options.get("save_last") for options in kept), name


@pytest.mark.parametrize("word", ["best", "last"])
def test_a_word_for_a_checkpoint_that_nobody_wrote_is_one_line(command: Command, word: str) -> None:
    result = command("test", "--config", "quickstart", "--ckpt_path", word)
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith(f"error: ckpt_path is '{word}', but no run in 'runs/quickstart' has")


# ---- distillation

SHORT = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1")


@pytest.mark.parametrize("name", ["toy", "digits"])
def test_a_student_is_distilled_tested_and_needs_no_teacher_then(command: Command, name: str, tmp_path: Path) -> None:
    distil = ("fit", "--config", f"disk/{name}", *SHORT, "--trainer.check_val_every_n_epoch", "1")
    assert command(*distil, "--model.teacher_epochs", "1").status == 0
    run = tmp_path / f"runs/disk-{name}/version_0"
    assert {"config.yaml", "guide_histogram.csv", "guide_histogram.png"} <= {path.name for path in run.iterdir()}
    [teacher] = (tmp_path / "runs/teachers").iterdir()
    teacher.unlink()
    tested = command("test", "--config", f"disk/{name}", "--ckpt_path", "best", "--trainer.limit_test_batches", "1")
    assert tested.status == 0
    weights = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert {key.partition(".")[0] for key in weights} == {"student", "objective"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.objective kdd", "must be one of ce, kd, dkd, feature, disk. Did you mean 'kd'"),
        ("--model.guide teacher_feature", "Did you mean 'teacher_features'"),
        ("--model.objective_kwargs.top_k 11", "top_k is 11, but there are 10 classes"),
        ("--model.objective_kwargs {budget:-1}", "a negative budget can never be met"),
        ("--model.objective_kwargs {topk:3}", "has no option 'topk'"),
        ("--model.teacher_epochs 0", "has no trained weights; give model.teacher_checkpoint"),
        ("--model.teacher_checkpoint nowhere.ckpt", "nowhere.ckpt"),
        ("--model.teacher_checkpoint other.pt", "model.teacher_checkpoint"),
        ("--model.num_classes 5", "Digits has 10 classes"),
        ("--model.guide_optimizer {lrr:1}", "guide_optimizer"),
        ("--model.phases {student:0}", "phases.student is 0"),
    ],
)
def test_a_mistake_in_distillation_is_one_line(command: Command, tmp_path: Path, words: str, message: str) -> None:
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    option, _, value = words.partition(" ")
    value = value.replace(":", ": ")
    short = (*SHORT, "--model.teacher_epochs", "1") if "teacher_epochs" not in words else SHORT
    result = command("fit", "--config", "disk/digits", *short, option, value)
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith("error: ")
    assert message in result.err.splitlines()[-1]
