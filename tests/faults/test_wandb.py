"""W&B that cannot be reached, or dies: the training does not notice, and the rows are on the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from wandb_servers import Working, base_url, serving

from lightning_efficient.reporting._wandb_offline import read_wandb_file
from lightning_efficient.reporting.run_records import run_folders
from lightning_efficient.reporting.steady_wandb import SteadyWandbLogger

STEPS, AT = 12, 5
QUICK = {"silent": True, "console": "off", "init_timeout": 1, "finish_timeout": 1, "x_disable_viewer": True}
QUICK |= {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "x_file_stream_transmit_interval": 0.1}


class Model(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = super().training_step(batch, batch_idx)
        self.log("loss", output["loss"])
        return output


class Before(Callback):
    """Do something before one of the steps."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.act = step, act

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.act()


def forget() -> None:
    with suppress(Exception):  # its process may be dead
        wandb.teardown()
    wandb.run = None


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody's login
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield
    forget()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def settle(address: str) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", address)

    return settle


def weights(logger: SteadyWandbLogger | bool, *callbacks: Callback) -> torch.Tensor:
    """Train, and return the final weights."""
    seed_everything(0, verbose=False)
    model = Model()
    trainer = Trainer(
        max_epochs=2,
        limit_train_batches=STEPS // 2,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=logger,
        callbacks=list(callbacks),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model)
    assert trainer.global_step == STEPS
    return model.layer.weight.detach()


def logger(**options: Any) -> SteadyWandbLogger:
    return SteadyWandbLogger(save_dir="runs", **{"project": "p", "settings": QUICK, **options})


def losses(pattern: str = "offline-run-*") -> dict[int, float]:
    """The loss at each step, of the last folder, once W&B has written its end."""
    deadline = time.monotonic() + 30
    while True:
        files = sorted(Path("runs/wandb").glob(f"{pattern}/*.wandb"), key=lambda file: file.stat().st_mtime)
        run = read_wandb_file(files[-1])
        if run.finished or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    rows = [row for row in run.rows if "loss" in row]
    found = {int(row["trainer/global_step"]): row["loss"] for row in rows}
    assert len(found) == len(rows)  # none twice
    assert run_folders("runs") == [files[-1].parent]  # what was begun and could not go on is no run of its own
    return found


def kill_wandb() -> None:
    listed = subprocess.run(["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in listed.splitlines()]
    cores = [int(pid) for pid, parent, command in lines if parent == str(os.getpid()) and "wandb-core" in command]
    assert cores
    for core in cores:  # that of an earlier test may still be about to end
        os.kill(core, signal.SIGKILL)
    time.sleep(0.1)  # until the connection notices


@pytest.fixture(scope="module")
def alone() -> torch.Tensor:
    return weights(False)


@pytest.mark.parametrize("kind", ["closed", "silent", "broken"])
def test_a_server_that_does_not_answer_costs_a_warning_and_the_run_is_written_offline(
    kind: str, online: Callable[[str], None], alone: torch.Tensor
) -> None:
    with base_url(kind) as address:
        online(address)
        with pytest.warns(UserWarning, match=r"^W&B: [^\n]*; the run goes on offline, and `wandb sync` can send it"):
            trained = weights(logger())
        wandb.finish()
        assert torch.equal(trained, alone)
        assert sorted(losses()) == list(range(STEPS))


def test_nobody_logged_in_costs_a_warning_and_the_run_is_written_offline(
    monkeypatch: pytest.MonkeyPatch, alone: torch.Tensor
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.warns(UserWarning, match=r"^W&B: [^\n]*(?i:api.key|login)[^\n]*; the run goes on offline"):
        trained = weights(logger())
    wandb.finish()
    assert torch.equal(trained, alone)
    assert sorted(losses()) == list(range(STEPS))


def test_a_server_that_dies_in_mid_run_stops_nothing_and_every_row_is_on_the_disk(
    online: Callable[[str], None], alone: torch.Tensor
) -> None:
    with serving(Working) as server:

        def die() -> None:
            server.shutdown()
            server.server_close()

        online(f"http://127.0.0.1:{server.server_address[1]}")
        trained = weights(logger(settings={**QUICK, "init_timeout": 20}), Before(AT, die))
        began = time.monotonic()
        wandb.finish()
        assert time.monotonic() - began < 60  # `finish_timeout` bounds it, by itself W&B waits for ever
    assert torch.equal(trained, alone)
    assert sorted(losses("run-*")) == list(range(STEPS))


@pytest.mark.parametrize("flush_seconds", [15.0, 0.02], ids=["before-it-wrote", "after-it-wrote-some"])
def test_a_killed_process_of_wandb_is_replaced_and_no_row_is_lost_or_doubled(
    flush_seconds: float, alone: torch.Tensor
) -> None:
    settings = {**QUICK, "x_transaction_log_flush_interval": flush_seconds}
    made = logger(offline=True, settings=settings, id="first")

    def kill() -> None:
        time.sleep(0.1)
        kill_wandb()

    with pytest.warns(UserWarning, match=r"^W&B's process has died \([^\n]*\); run \w+ goes on offline in a new one$"):
        trained = weights(made, Before(AT, kill))
    made.experiment.finish()
    assert torch.equal(trained, alone)
    assert made.version == "first"
    assert sorted(losses()) == list(range(STEPS))


def test_where_no_new_process_can_be_had_nothing_more_is_logged_and_the_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, alone: torch.Tensor
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError("no more processes")

    def kill() -> None:
        kill_wandb()
        monkeypatch.setattr(wandb, "init", refuse)

    with pytest.warns(UserWarning, match=r"^W&B cannot go on \(no more processes\); nothing more is logged to it$"):
        trained = weights(logger(offline=True), Before(AT, kill))
    assert torch.equal(trained, alone)


def test_a_mistake_in_the_options_is_no_fault_and_is_raised() -> None:
    with pytest.raises(Exception, match=r"a/b"):
        weights(logger(offline=True, project="a/b"))
