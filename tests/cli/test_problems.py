from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_efficient.cli.config_files import find
from lightning_efficient.cli.problems import LONGEST, explain
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError

Command = Callable[..., Any]
Key = tuple[str | int, ...]
QUICKSTART: dict[str, Any] = yaml.safe_load(find("quickstart").read_text())


def one_line(result: Any, *parts: str) -> None:
    """Assert that a command failed with one line of error, and that the line says all of ``parts``."""
    assert result.status == 2
    assert "Traceback" not in result.out + result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert len(result.err) <= LONGEST + len("error: \n")
    for part in parts:
        assert part in result.err


# ---- on the command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # what is missing
        ("", "missing model: give --config NAME (see lightning-efficient configs ls), or --model"),
        ("--model ImageClassifier --data Digits", "missing --model.backbone, which ImageClassifier requires"),
        ("--timm test_resnet", "missing data: give --data NAME"),
        (
            "--config quickstart --trainer.logger CSVLogger",
            "missing --trainer.logger.save_dir, which CSVLogger requires",
        ),
        ("--config quickstart --data ImageFolderImages", "missing --data.root, which ImageFolderImages requires"),
        ("--config", "--config needs a value"),
        # names that do not exist
        ("--config quickstat", "Did you mean 'quickstart'?"),
        ("--config quickstart --config logger/wandbb", "Did you mean 'logger/wandb'?"),
        (
            "--config quickstart --trainer.max_epoch 3",
            "unknown option --trainer.max_epoch. Did you mean '--trainer.max_epochs'",
        ),
        (
            "--config quickstart --trainr.max_epochs 3",
            "unknown option --trainr.max_epochs. Did you mean '--trainer.max_epochs'",
        ),
        ("--config quickstart --model.bakbone x", "ImageClassifier has no option 'bakbone'. Did you mean 'backbone'"),
        ("--config quickstart --data.batchsize 3", "Digits has no option 'batchsize'. Did you mean 'batch_size'"),
        ("--config quickstart --model.optimizer.lrr 3", "AdamW has no option 'lrr'. Did you mean 'lr'?"),
        (
            "--config quickstart --model ImageClasifier",
            "unknown class 'ImageClasifier'. Did you mean 'ImageClassifier'",
        ),
        ("--config quickstart --model resnet18x", "unknown class 'resnet18x'. Did you mean 'resnet18'"),
        ("--config quickstart --model my.Net", "there is no module 'my'"),
        ("--config quickstart --data Digit", "unknown class 'Digit'. Did you mean 'Digits'?"),
        ("--config quickstart --trainer.logger CSVLoger", "unknown class 'CSVLoger'. Did you mean 'CSVLogger'"),
        ("--config quickstart --trainer.callbacks+=LatencyProfilr", "Did you mean 'LatencyProfiler'?"),
        ("--config quickstart --model.optimizer Adamm", "unknown class 'Adamm'. Did you mean 'Adam'"),
        (
            "--config quickstart --model.optimizer torch.optim.Adamm",
            "torch.optim has no class 'Adamm'. Did you mean 'Adam'",
        ),
        ("--config quickstart --model.lr_scheduler StepLr", "unknown class 'StepLr'. Did you mean 'StepLR'"),
        ("--timm resnet18x --data Digits", "unknown timm model 'resnet18x'. Did you mean 'resnet18'"),
        ("--config quickstart --data TorchvisionImages --data.name CIFAR", "there is no image set 'CIFAR'"),
        ("--config quickstart --trainer.accelerator cpux", "invalid accelerator name: `accelerator='cpux'`"),
        ("--config quickstart extra", "unknown option extra."),
        # abbreviations
        ("--config quickstart --trainer.max_e 3", "unknown option --trainer.max_e."),
        ("--conf quickstart", "unknown option --conf. Did you mean '--config'"),
        # values that cannot be
        ("--config quickstart --trainer.max_epochs three", "trainer.max_epochs is 'three'; it must be int or null"),
        ("--config quickstart --seed_everything x", "seed_everything is 'x'; it must be bool or int"),
        ("--config quickstart --model.optimizer.lr x", "model.optimizer.lr is 'x'; it must be float"),
        ("--config quickstart --model.loss crossentropy", "Did you mean 'cross_entropy'?"),
        ("--config quickstart --trainer.precision bf16-mix", "Did you mean 'bf16-mixed'"),
        ("--config quickstart --model.label_smoothing 2", "model.label_smoothing is 2.0; it must be in [0, 1)"),
        ("--config quickstart --model.ema_decay 3", "model.ema_decay is 3.0; it must be between 0 and 1"),
        ("--config quickstart --data.batch_size 0", "batch_size is 0; it must be at least 1"),
        ("--config quickstart --data.in_chans 2", "in_chans is 2; images have 1 (grey) or 3 (colour) channels"),
        (
            "--config quickstart --model.backbone_kwargs {depth: 3}",
            "model.backbone_kwargs: mobilenetv3_small_050 cannot",
        ),
        ("--config quickstart --model.num_classes 3", "model.num_classes is 3, but Digits has 10 classes; set model"),
        ("--config quickstart --timm resnet18 --model ImageClassifier", "--timm and --model both name the model"),
        # data that are not there
        ("--config quickstart --config data/cifar10 --data.root /lost", "fetch it with --data.download true"),
        ("--config quickstart --config data/fashion_mnist --data.root /lost", "FashionMNIST is not in '/lost'"),
        (
            "--config quickstart --config data/folder --data.root /lost",
            "point --data.root at a folder that holds train/",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(command: Command, words: str, message: str) -> None:
    # in one word, as a shell would hand it on between quotes
    arguments = words.replace("{depth: 3}", "{depth:-3}").split()
    one_line(command("fit", *(word.replace(":-", ": ") for word in arguments)), message)


def test_debug_shows_the_traceback_above_the_line(command: Command) -> None:
    result = command("fit", "--config", "quickstart", "--trainer.max_epochs", "three", "--debug")
    assert result.status == 2
    assert result.err.startswith("Traceback (most recent call last):")
    assert result.err.splitlines()[-1] == "error: trainer.max_epochs is 'three'; it must be int or null"


# ---- in a config


def keys(tree: Any, before: Key = ()) -> Iterator[Key]:
    """Yield every key of a config, those of its lists included."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(tree, dict):
            yield (*before, key)
        if isinstance(value, dict | list):
            yield from keys(value, (*before, key))


def changed(key: Key, name: str | None = None, value: Any = None) -> str:
    """Return the quickstart with one key renamed, or with one value replaced."""
    config = copy.deepcopy(QUICKSTART)
    parent: Any = config
    for step in key[:-1]:
        parent = parent[step]
    old = parent.pop(key[-1])
    parent[name or key[-1]] = old if name else value
    return yaml.safe_dump(config)


def misspelt(name: str) -> str:
    return name[:-2] + name[-1] if len(name) > 3 else f"{name}q"


def dotted(key: Key) -> str:
    return ".".join(map(str, key))


KEYS = list(keys(QUICKSTART))


@pytest.mark.parametrize("key", KEYS, ids=dotted)
def test_a_misspelt_key_is_named_with_the_right_one(command: Command, tmp_path: Path, key: Key) -> None:
    name = str(key[-1])
    (tmp_path / "bad.yaml").write_text(changed(key, name=misspelt(name)))
    result = command("fit", "--config", "bad.yaml")
    one_line(result, misspelt(name), "Did you mean")
    suggestions = result.err.partition("Did you mean")[2]
    assert f"'{name}" in suggestions or f".{name}'" in suggestions


@pytest.mark.parametrize("key", [key for key in KEYS if key[-1] != "devices"], ids=dotted)
def test_a_value_of_the_wrong_type_is_shown_with_its_key(command: Command, tmp_path: Path, key: Key) -> None:
    value: Any = QUICKSTART
    for step in key:
        value = value[step]
    (tmp_path / "bad.yaml").write_text(changed(key, value=[["bad"]] if isinstance(value, str) else "bad"))
    result = command("fit", "--config", "bad.yaml")
    names = [str(step) for step in key if step not in ("class_path", "init_args") and not isinstance(step, int)]
    one_line(result, ".".join(names))
    assert "must be" in result.err or "unknown class 'bad'" in result.err


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (("model",), "missing model"),
        (("model", "class_path"), "model: class_path is missing"),
        (("model", "init_args", "backbone"), "missing --model.backbone, which ImageClassifier requires"),
        (("model", "init_args", "lr_scheduler", "class_path"), "model.lr_scheduler: class_path is missing"),
        (("model", "init_args", "lr_scheduler", "init_args", "T_max"), "missing --model.lr_scheduler.T_max"),
        (("data", "class_path"), "data: class_path is missing"),
        (("data",), "missing data: give --data NAME"),
        (("trainer", "logger", 0, "class_path"), "it must be a class name, or class_path and init_args"),
        (("trainer", "logger", 0, "init_args"), "missing --trainer.logger.save_dir, which CSVLogger requires"),
        (("trainer", "callbacks", 0, "class_path"), "trainer.callbacks: class_path is missing"),
    ],
    ids=lambda value: dotted(value) if isinstance(value, tuple) else "",
)
def test_a_dropped_key_that_is_needed_is_named(command: Command, tmp_path: Path, key: Key, message: str) -> None:
    config = yaml.safe_load(changed(key))
    parent = config
    for step in key[:-1]:
        parent = parent[step]
    del parent[key[-1]]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    one_line(command("fit", "--config", "bad.yaml"), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: [", "a config is no valid YAML"),
        ("a: b: c", "a config is no valid YAML"),
        ("just words", "a config must be a mapping"),
        ("- a\n- b", "a config must be a mapping"),
        ("", "a config must be a mapping"),
    ],
)
def test_a_file_that_is_no_config_is_refused(command: Command, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    one_line(command("fit", "--config", "bad.yaml"), message)


# ---- found while running


class Mislabelled(Digits):
    """Ten classes that claim to be three."""

    num_classes = 3


def test_images_with_other_channels_than_the_model(command: Command, tiny: Path) -> None:
    one_line(command("fit", "--config", tiny, "--model.in_chans", "1"), "model.in_chans is 1, but the images have 3")


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_labels_beyond_the_classes(command: Command, tiny: Path, verb: str) -> None:
    words = ("--data", f"{__name__}.Mislabelled", "--model.num_classes", "3")
    one_line(command(verb, "--config", tiny, *words), "model.num_classes is 3, so labels must be 0 to 2, but a batch")


def test_a_class_folder_without_an_image(command: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "train" / "cat").mkdir(parents=True)
    words = ("--data", "ImageFolderImages", "--data.root", "images", "--data.image_size", "32")
    one_line(command("fit", "--config", tiny, *words), "cat")


def test_a_run_folder_that_cannot_be_written_to(command: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = command("fit", "--config", tiny, "--trainer.logger", "false", "--trainer.default_root_dir", "file/run")
    one_line(result, "the run folder file/run cannot be written to")


# ---- the explanation itself


def test_the_cause_that_we_raised_is_said_in_its_own_words() -> None:
    error = TypeError("a page of possibilities")
    error.__cause__ = ConfigurationError("too\n  small")
    assert explain(error) == "too small"


def test_an_error_without_words_is_named_by_its_class() -> None:
    assert explain(torch.cuda.OutOfMemoryError()) == "OutOfMemoryError"


def test_a_long_reason_is_cut() -> None:
    assert len(explain(ValueError("x" * 2000))) == LONGEST
