from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lightning_efficient import plugins
from lightning_efficient.callbacks import LatencyProfiler, SelectiveCoverage
from lightning_efficient.cli.config_files import find
from lightning_efficient.cli.configs import run_configs
from lightning_efficient.cli.configs_check import ConfigParser
from lightning_efficient.errors import ConfigurationError

BLOCKS = """
from lightning.pytorch import Callback, LightningModule

class TinyPluginCallback(Callback):
    def __init__(self, every: int = 2) -> None:
        self.every = every

class TinyPluginModule(LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
"""
CONFIG = """\
# an experiment of the tiny plugin
model: TinyPluginModule
trainer:
  callbacks:
    - class_path: TinyPluginCallback
      init_args:
        every: 5
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that installs a package as pip would: its module, and the dist-info that declares a plugin.

    What a test imports stays in ``sys.modules``: the parser looks through all classes that are alive.
    """
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def into(name: str, source: str = BLOCKS) -> Path:
        package, info = site / f"{name}_plugin", site / f"{name}_plugin-1.0.dist-info"
        (package / "configs" / "small").mkdir(parents=True)
        info.mkdir()
        (package / "__init__.py").write_text("")
        (package / "blocks.py").write_text(source)
        (package / "configs" / "small" / "first.yaml").write_text(CONFIG)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = {name}_plugin.blocks\n")
        return package

    return into


def fit_config(*words: object) -> object:
    return ConfigParser(args=["fit", *map(str, words)]).config["fit"]


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-efficient"])
    monkeypatch.delenv(plugins.CALLBACKS_VARIABLE, raising=False)


def test_the_classes_of_a_plugin_are_known_by_their_short_names(install: Callable[..., Path]) -> None:
    install("tiny")
    config = fit_config("--model", "TinyPluginModule", "--trainer.callbacks+=TinyPluginCallback")
    assert config.model.class_path == "tiny_plugin.blocks.TinyPluginModule"
    assert config.model.init_args.width == 4
    assert config.trainer.callbacks[0].class_path == "tiny_plugin.blocks.TinyPluginCallback"


def test_the_configs_of_a_plugin_are_listed_with_their_owner_and_nothing_is_imported(
    install: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    install("unread")
    assert run_configs(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split(maxsplit=1) == ["unread/small/first", "an experiment of the tiny plugin  [unread-plugin]"]
    assert [line for line in lines if line.endswith("]")] == lines[-1:]
    assert "unread_plugin" not in sys.modules


def test_the_config_of_a_plugin_is_found_by_name(
    install: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    install("tiny")
    config = fit_config("--config", find("tiny/small/first"))
    assert config.trainer.callbacks[0].init_args.every == 5
    assert run_configs(["check", "tiny/small/first"]) == 0
    with pytest.raises(ConfigurationError, match="Did you mean 'tiny/small/first'"):
        find("tiny/small/firts")


@pytest.mark.parametrize("source", ["raise RuntimeError('half baked')", "def (", "import a_missing_dependency"])
def test_a_broken_plugin_is_named_in_a_warning_and_left_out(install: Callable[..., Path], source: str) -> None:
    install("broken", source)
    install("tiny")
    with pytest.warns(UserWarning, match=r"plugin 'broken' \(broken-plugin\) could not be loaded"):
        config = fit_config("--model", "TinyPluginModule")
    assert config.model.class_path == "tiny_plugin.blocks.TinyPluginModule"


def test_a_plugin_whose_module_is_gone_brings_no_configs(install: Callable[..., Path], tmp_path: Path) -> None:
    install("lost").rename(tmp_path / "gone")
    assert list(plugins.config_folders()) == []


def plain_trainer(**options: object) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)


def ours(trainer: Trainer) -> list[type]:
    return [type(one) for one in trainer.callbacks if not type(one).__module__.startswith("lightning.")]


@pytest.mark.parametrize("options", [{}, {"barebones": True}])
def test_a_plain_trainer_gets_no_callback_of_ours(options: dict[str, bool]) -> None:
    trainer = Trainer(accelerator="cpu", **options) if options else plain_trainer()
    assert ours(trainer) == []


def test_the_environment_adds_callbacks_to_a_plain_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.CALLBACKS_VARIABLE, "SelectiveCoverage, LatencyProfiler,")
    assert ours(plain_trainer()) == [SelectiveCoverage, LatencyProfiler]


def test_the_environment_may_name_callbacks_of_plugins(
    install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("tiny")
    monkeypatch.setenv(plugins.CALLBACKS_VARIABLE, "TinyPluginCallback")
    assert [one.every for one in plugins.callbacks_from_environment()] == [2]


@pytest.mark.parametrize("name", ["LatencyProfilr", "EarlyStopping"])
def test_an_unknown_callback_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(plugins.CALLBACKS_VARIABLE, name)
    with pytest.raises(ConfigurationError, match=f"LIGHTNING_EFFICIENT_CALLBACKS: no callback '{name}'"):
        plain_trainer()
