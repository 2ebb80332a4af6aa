"""The clock on the wall is set a day back or ahead while a run trains, and nothing comes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from killed import STEPS, differences, load, options_of

from lightning_efficient.profiling.energy import EnergyCounter

DAY = 86_400.0


@pytest.mark.parametrize("jump", [-DAY, DAY], ids=["back", "ahead"])
def test_a_window_of_energy_lasts_as_long_as_it_lasts_when_the_clock_is_set(
    jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeus_energy = pytest.importorskip("zeus.monitor.energy")
    fake = SimpleNamespace(
        __len__=lambda: 1,
        supports_get_total_energy_consumption=lambda index: True,
        get_total_energy_consumption=lambda index: 5000,
        get_instant_power_usage=lambda index: 1,
    )
    monkeypatch.setattr("zeus.device.get_gpus", lambda: fake)
    monkeypatch.setattr(zeus_energy, "get_gpus", lambda: fake)
    monkeypatch.setattr("lightning_efficient.profiling.energy._gpu_problem", lambda gpus: None)
    monkeypatch.setattr("torch.cuda.synchronize", lambda index: None)
    counter = EnergyCounter(gpus=[0], cpus=False)
    assert counter.available() is None
    counter.begin("window")
    now = time.time()
    monkeypatch.setattr(zeus_energy, "time", lambda: now + jump)
    assert 0 < counter.end("window").seconds < 60


@pytest.mark.slow
def test_a_run_whose_clock_is_set_ends_like_any_other(fit: Callable[..., Any], tmp_path: Path) -> None:
    every_hour = "lightning.pytorch.callbacks.ModelCheckpoint"
    hourly = [f"--trainer.callbacks+={every_hour}", "--trainer.callbacks.train_time_interval=01:00:00"]
    ends = []
    for name, more in (("calm", []), ("set", ["--trainer.callbacks+=faults.SetClock"])):
        folder = tmp_path / name
        options = [*options_of("averaged", folder), *hourly, "--trainer.callbacks.dirpath=hourly", *more]
        finished = fit(*options, folder=folder)
        assert finished.status == 0, finished.stderr
        assert [*folder.glob("hourly/*")] == []
        ends.append(load(next(folder.rglob("last.ckpt"))))
    assert differences(*ends) == []
    energy = json.loads(next((tmp_path / "set").rglob("energy.json")).read_text(encoding="utf-8"))
    assert energy["complete"] is True
    assert energy["joules"] == energy["train_seconds"] + energy["val_seconds"] == STEPS
    profile = json.loads(next((tmp_path / "set").rglob("profile.json")).read_text(encoding="utf-8"))
    for row in profile["latencies"]:
        assert all(0 < row[name] < 60_000 for name in ("p50_ms", "p95_ms", "mean_ms"))
