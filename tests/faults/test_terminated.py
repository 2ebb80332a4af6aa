"""A run that is told to stop, by its user or a scheduler, leaves a checkpoint to go on from and no traceback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed import STEPS, load

Fit = Callable[..., Any]
STATUS = {"SIGINT": 130, "SIGTERM": 143}


def signal_at(step: int, name: str, place: str = "step", times: int = 1) -> list[str]:
    values = {"step": step, "name": name, "place": place, "times": times}
    return [
        "--trainer.callbacks+=faults.SignalAt",
        *(f"--trainer.callbacks.{key}={each}" for key, each in values.items()),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "signals", "steps"),
    [
        # the step in which Ctrl-C came had taken its batch
        pytest.param("SIGINT", signal_at(8, "SIGINT"), STEPS - 1, id="ctrl_c"),
        pytest.param(
            "SIGINT",
            [*signal_at(7, "SIGINT"), *signal_at(7, "SIGINT", "dump")],
            STEPS - 1,
            id="ctrl_c_again_while_saving",
        ),
        pytest.param("SIGTERM", signal_at(8, "SIGTERM", times=2), STEPS, id="sigterm_twice"),
        pytest.param("SIGTERM", signal_at(10, "SIGTERM", "validation"), STEPS, id="sigterm_in_validation"),
        pytest.param("SIGTERM", signal_at(8, "SIGTERM", "rename"), STEPS, id="sigterm_in_a_checkpoint"),
        pytest.param(
            "SIGTERM",
            [*signal_at(8, "SIGTERM"), *signal_at(9, "SIGTERM", "dump")],
            STEPS,
            id="sigterm_again_while_saving",
        ),
    ],
)
def test_a_stopped_run_leaves_a_checkpoint_to_go_on_from(
    name: str, signals: list[str], steps: int, fit: Fit, tmp_path: Path
) -> None:
    stopped = fit(*signals)
    assert stopped.status == STATUS[name], stopped.stderr
    assert "Traceback" not in stopped.stderr
    saved = Path("runs/quickstart/version_0/checkpoints/interrupted.ckpt")
    assert f"go on with --ckpt_path {saved}" in stopped.stderr
    for path in tmp_path.rglob("*.ckpt"):
        load(path)
    resumed = fit("--ckpt_path", saved)
    assert resumed.status == 0, resumed.stderr
    end = load(max(tmp_path.rglob("version_1/**/last.ckpt")))
    assert end["global_step"] == steps
    assert all(value.isfinite().all() for value in end["state_dict"].values())


@pytest.mark.slow
def test_a_job_that_slurm_requeues_goes_on_by_itself(fit: Fit, tmp_path: Path) -> None:
    commands = tmp_path / "commands"
    commands.mkdir()
    # SLURM ends a job that it requeues, first politely
    scontrol = commands / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\necho "$@" > "{commands}/asked"\nkill -TERM $PPID\nkill -KILL $PPID\n', encoding="utf-8"
    )
    scontrol.chmod(0o755)
    names = ("PROCID", "LOCALID", "NODEID")
    job = {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_ID": "7",
        **{f"SLURM_{name}": "0" for name in names},
    }
    environment = {**job, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    options = ["--trainer.default_root_dir=job"]
    requeued = fit(*options, *signal_at(8, "SIGUSR1"), environment=environment)
    assert requeued.status == -9, requeued.stderr
    assert (commands / "asked").read_text(encoding="utf-8").split() == ["requeue", "7"]
    assert load(tmp_path / "job" / "hpc_ckpt_1.ckpt")["global_step"] == 8
    again = fit(*options, environment=environment)
    assert again.status == 0, again.stderr
    end = load(next(tmp_path.rglob("version_1/**/last.ckpt")))
    assert end["global_step"] == STEPS - 1  # it had taken the batch of the step in which the signal came
