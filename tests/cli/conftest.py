"""The command, run inside the test's process: a process of its own would import Lightning for ten seconds."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

TINY: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "ImageClassifier",
        "init_args": {"backbone": "test_byobnet", "num_classes": 10, "optimizer": {"class_path": "torch.optim.SGD"}},
    },
    "data": {"class_path": "Digits", "init_args": {"batch_size": 4}},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": 2,
        "limit_val_batches": 2,
        "limit_test_batches": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "logger": [
            {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": "tiny"}}
        ],
    },
}


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str

    def assert_refused(self, message: str) -> None:
        """Fail unless it ended with 2 and one error, in the last line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert (self.status, len(lines)) == (2, 1), self.err
        assert message in lines[0]
        assert self.err.splitlines()[-1] == lines[0]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """A function that runs ``lightning-efficient WORDS``."""
    from lightning_efficient.cli.main import main

    def run(*words: object) -> Result:
        arguments = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["lightning-efficient", *arguments])
        for name in ("lightning.pytorch", "lightning.fabric"):  # their handlers hold the stream of import time
            for handler in logging.getLogger(name).handlers:
                if type(handler) is logging.StreamHandler:  # pytest adds kinds of its own
                    monkeypatch.setattr(handler, "stream", sys.stderr)
        capsys.readouterr()
        status = main(arguments)
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that returns the config that ``lightning-efficient fit WORDS`` would run."""
    import timm

    from lightning_efficient.cli.arguments import expand
    from lightning_efficient.cli.configs_check import ConfigParser

    def fit(*words: object) -> Any:
        arguments = expand(["fit", *map(str, words)], timm.is_model)
        monkeypatch.setattr(sys, "argv", ["lightning-efficient", *arguments])
        return ConfigParser().config["fit"]

    return fit


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A config of one training batch, one validation batch and no footprint."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the run of the test file's ``TINY`` has been."""
    from lightning_efficient.cli.main import main

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(request.module.TINY)
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lightning-efficient"])
        assert main(["fit", "--config", "tiny.yaml"]) == 0
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that folder, in which the test runs."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path
