"""What we take from inside Lightning and jsonargparse: each test fails if they change it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from torch.utils.data import DataLoader

from lightning_efficient._lightning_compat import (
    ExplicitArgumentsWin,
    ParsesOnly,
    hyperparameters_are_given,
    option_names,
    train_loaders_given_to_fit,
)
from lightning_efficient.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py"])


class Seen(BoringModel):
    """Keeps what a callback would see at the start of a fit."""

    def on_fit_start(self) -> None:
        self.loaders = train_loaders_given_to_fit(self.trainer)


def loader() -> DataLoader:
    return DataLoader(torch.randn(4, 32))


def fitted(**data: Any) -> Seen:
    module = Seen()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, enable_model_summary=False, **options).fit(
        module, **data
    )
    return module


def test_a_loader_given_to_fit_is_found_before_it_is_set_up() -> None:
    given = loader()
    assert fitted(train_dataloaders=given).loaders == [given]


def test_every_loader_of_a_collection_is_found() -> None:
    given = {"a": loader(), "b": [loader(), loader()]}
    module = Seen()
    module.training_step = lambda batch, batch_idx: None
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, enable_model_summary=False, **options)
    trainer.fit(module, given)
    assert module.loaders == [given["a"], *given["b"]]


@pytest.mark.parametrize("data", [{}, {"datamodule": BoringDataModule()}])
def test_loaders_that_come_from_a_hook_are_not_there_yet(data: dict[str, LightningDataModule]) -> None:
    assert fitted(**data).loaders == []


class Net(LightningModule):
    """A module that saves its hyper-parameters, and whether they came from a config or a checkpoint."""

    def __init__(self, width: int, depth: int = 2, rate: float = 0.1) -> None:
        super().__init__()
        self.given = hyperparameters_are_given()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)


class Cli(ExplicitArgumentsWin):
    """Builds, and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        return


class ParsingCli(ParsesOnly, ExplicitArgumentsWin):
    """Parses only."""


def cli(cls: type[LightningCLI], *words: object, **options: Any) -> LightningCLI:
    arguments = [str(word) for word in words]
    return cls(args=arguments, save_config_callback=None, seed_everything_default=False, **options)


def test_hyper_parameters_are_plain_values_only_under_the_command_line(tmp_path: Path) -> None:
    assert Net(3).given is False
    built = cli(Cli, "fit", "--model", f"{__name__}.Net", "--model.width=3", "--trainer.accelerator=cpu")
    assert built.model.given is True
    assert dict(built.model.hparams)["_class_path"] == f"{__name__}.Net"
    assert hyperparameters_are_given() is False


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    stored = {"_class_path": f"{__name__}.Net", "_instantiator": "somewhere", "width": 3, "depth": 7, "rate": 0.7}
    torch.save({"hyper_parameters": stored, "state_dict": {}}, tmp_path / "net.ckpt")
    return tmp_path / "net.ckpt"


def hyper_parameters(*words: object) -> tuple[int, int, float]:
    values = cli(ParsingCli, *words).config["fit"].model.init_args
    return values.width, values.depth, values.rate


def test_lightning_itself_still_lets_the_checkpoint_win(checkpoint: Path) -> None:
    class Upstream(ParsesOnly, LightningCLI):
        pass

    words = ("fit", "--model", f"{__name__}.Net", "--model.width=5", "--ckpt_path", checkpoint)
    # when this fails, Lightning has taken over what ExplicitArgumentsWin does
    assert cli(Upstream, *words).config["fit"].model.init_args.width == 3


def test_options_win_over_a_checkpoint_and_the_rest_is_taken_from_it(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"model:\n  class_path: {__name__}.Net\n  init_args:\n    depth: 1\n")
    assert hyper_parameters("fit", "--ckpt_path", checkpoint) == (3, 7, 0.7)
    assert hyper_parameters("fit", f"--ckpt_path={checkpoint}", "--model.rate=0.9") == (3, 7, 0.9)
    assert hyper_parameters("fit", "--config", config, "--ckpt_path", checkpoint) == (3, 1, 0.7)
    assert hyper_parameters("fit", "--config", config, "--model.width=9", "--ckpt_path", checkpoint) == (9, 1, 0.7)


def test_a_checkpoint_named_in_a_config_counts_too(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"ckpt_path: {checkpoint}\nmodel:\n  class_path: {__name__}.Net\n  init_args:\n    width: 5\n")
    assert hyper_parameters("fit", "--config", config) == (5, 7, 0.7)


def test_arguments_given_as_a_dict_count_too(checkpoint: Path) -> None:
    model = {"class_path": f"{__name__}.Net", "init_args": {"width": 5}}
    arguments = {"subcommand": "fit", "fit": {"model": model, "ckpt_path": str(checkpoint)}}
    parsed = ParsingCli(args=arguments, save_config_callback=None, seed_everything_default=False)
    assert (parsed.config["fit"].model.init_args.width, parsed.config["fit"].model.init_args.depth) == (5, 7)


@pytest.mark.parametrize("path", ["best", "last", "hpc", "registry:model", "s3://bucket/last.ckpt"])
def test_a_checkpoint_that_lightning_will_find_gives_no_hyper_parameters(path: str) -> None:
    assert hyper_parameters("fit", "--model", f"{__name__}.Net", "--model.width=5", "--ckpt_path", path) == (5, 2, 0.1)


def test_a_checkpoint_without_hyper_parameters_changes_nothing(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    words = ("--model", f"{__name__}.Net", "--model.width=5", "--ckpt_path", tmp_path / "bare.ckpt")
    assert hyper_parameters("fit", *words) == (5, 2, 0.1)


def test_a_checkpoint_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no checkpoint 'lost\.ckpt'"):
        cli(ParsingCli, "fit", "--ckpt_path", "lost.ckpt")


def test_parsing_only_seeds_builds_and_runs_nothing() -> None:
    state = torch.get_rng_state()
    words = ["fit", "--model", f"{__name__}.Net", "--model.width=3", "--seed_everything=5"]
    parsed = ParsingCli(args=words, save_config_callback=None)
    assert parsed.config["fit"].seed_everything == 5
    assert not hasattr(parsed, "model")
    assert not hasattr(parsed, "trainer")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_options_of_a_verb_are_named() -> None:
    parser = cli(ParsingCli, "fit", "--model", f"{__name__}.Net", "--model.width=3").parser
    names = option_names(parser, "fit")
    assert {"config", "seed_everything", "model", "data", "trainer.max_epochs", "ckpt_path"} <= set(names)
    assert "verbose" not in names  # that of validate
    assert set(option_names(parser, "ftt")) == set(names)  # those of all verbs, of which only this one has any
    assert [name for name in names if name.endswith(".help") or ":" in name] == []
    assert names == sorted(set(names))


def test_the_options_of_a_parser_without_verbs_are_named() -> None:
    parser = Cli(BoringModel, args=["--trainer.accelerator=cpu"], run=False, save_config_callback=None).parser
    assert {"trainer.max_epochs", "data"} <= set(option_names(parser, ""))


def test_only_the_parser_of_the_given_verb_gets_options() -> None:
    parsers = cli(ParsingCli, "fit", "--model", f"{__name__}.Net", "--model.width=3")._subcommand_parsers
    assert set(parsers) == set(LightningCLI.subcommands())
    with_trainer = [verb for verb, parser in parsers.items() if any("trainer" in each.dest for each in parser._actions)]
    assert with_trainer == ["fit"]


def test_help_without_a_verb_names_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli(ParsingCli, "--help")
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in LightningCLI.subcommands())
