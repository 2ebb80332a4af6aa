"""The run folder of the command line: its config, a look at the disk before training, a checkpoint on Ctrl-C."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lightning_efficient._files import FULL
from lightning_efficient._trainer import callbacks_of
from lightning_efficient.callbacks._moment import last_good_checkpoint, moment
from lightning_efficient.errors import ConfigurationError, NonFiniteLossError
from lightning_efficient.reporting import run_dir
from lightning_efficient.reporting.artifacts import log_run_files, remember_run

# weights, and two moments per weight as Adam has them, twice: a new checkpoint is written before the old one goes
BYTES_PER_PARAMETER = 2 * 3 * 4


class RunFolder(SaveConfigCallback):
    """Keep ``config.yaml`` in the run folder, refuse a folder that cannot hold a run, save when a run is stopped.

    A verb after ``fit`` in the same folder leaves the ``config.yaml`` there alone, and writes ``config_test.yaml``.

    Raises:
        ConfigurationError: before training: the folder cannot be written to, or the disk has too little room.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config; Lightning calls this on the first rank only, before anything runs."""
        folder = run_dir(trainer)
        file = folder / "config.yaml"
        if stage != "fit" and file.exists():  # the checkpoints there are what it says
            file = folder / f"config_{TrainerFn(stage).value}.yaml"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(self.parser.dump(self.config, skip_none=False), encoding="utf-8")
            if stage == "fit":
                remember_run(trainer)
        except OSError as error:
            raise _not_writable(folder, error) from error
        if stage == "fit" and callbacks_of(trainer, ModelCheckpoint):
            _check_room(folder, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let W&B keep what callbacks wrote into the folder."""
        if stage in ("fit", "test"):
            log_run_files(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save ``checkpoints/interrupted.ckpt`` when the user or a scheduler stops a fit."""
        if isinstance(exception, OSError) and not self.already_saved:
            _explain_logger(trainer, exception)
        if isinstance(exception, OSError) and exception.errno in FULL and trainer.state.fn == "fit":
            raise OSError(exception.errno, _full(trainer, exception)) from exception
        if isinstance(exception, ConfigurationError | NonFiniteLossError) and trainer.state.fn == "fit":
            _say_checkpoint(trainer, exception)
        stopped = isinstance(exception, KeyboardInterrupt) or trainer.received_sigterm
        if stopped and trainer.state.fn == "fit" and trainer.global_step > 0:
            path = run_dir(trainer) / "checkpoints" / "interrupted.ckpt"
            trainer.save_checkpoint(path)
            rank_zero_info(f"saved {path}; go on with --ckpt_path {path}")


def _say_checkpoint(trainer: Trainer, error: ConfigurationError | NonFiniteLossError) -> None:
    """Raise what ended a run that has come some way again, with the checkpoint to go on from."""
    if trainer.global_step == 0 or trainer.sanity_checking or "checkpoint" in str(error):
        return
    kind = ConfigurationError if isinstance(error, ConfigurationError) else NonFiniteLossError
    raise kind(f"{str(error).rstrip('.')}; at {moment(trainer)}; {last_good_checkpoint(trainer)}") from error


def _full(trainer: Trainer, error: OSError) -> str:
    what = f" for {error.filename!r}" if error.filename else ""
    return (
        f"the disk has no room{what} at {moment(trainer)} ({os.strerror(error.errno or 0)}); make room and go on with "
        f"--ckpt_path; {last_good_checkpoint(trainer)}"
    )


def _explain_logger(trainer: Trainer, error: OSError) -> None:
    # a logger makes its folder before any callback is asked
    for logger in trainer.loggers:
        folder = Path(logger.save_dir or trainer.default_root_dir)
        if error.filename and Path(error.filename).is_relative_to(folder):
            raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the run folder {folder} cannot be written to ({error.strerror}); choose another with save_dir of the logger, "
        "or --trainer.default_root_dir"
    )


def _check_room(folder: Path, module: LightningModule) -> None:
    needed = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in module.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigurationError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free, and two checkpoints of this model can take "
            f"{needed / 1e6:.0f} MB; make room, or choose another folder with save_dir of the logger"
        )
