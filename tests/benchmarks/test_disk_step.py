"""The study of a DiSK step, at toy size: each variant trains what it says, and the figures mean what they say."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def study(load: Callable[[str], ModuleType]) -> ModuleType:
    module = load("disk_step")
    module.TEACHER, module.STUDENT, module.CLASSES = "cifar_resnet10_xxs", "cifar_resnet10_xxxs", 12
    module.MAP_WIDTH, module.TRAIN_SIZE = 8, 20
    return module


def weights(network: torch.nn.Module) -> torch.Tensor:
    values = [value.detach().flatten().double() for value in network.state_dict().values()]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *values])


def test_a_step_changes_whom_the_variant_trains_and_nobody_else(study: ModuleType, tmp_path: Path) -> None:
    for name, step in study.steps(4, "cpu", tmp_path).items():
        student, guide = weights(step.student), weights(step.objective)
        step()
        assert torch.equal(weights(step.student), student) == (name == study.GUIDE), name
        learns = step.phase != "student" and len(guide) > 0
        assert torch.equal(weights(step.objective), guide) != learns, name


def test_stored_outputs_train_the_same_student_without_the_teacher(study: ModuleType, tmp_path: Path) -> None:
    ready, asked = study.steps(4, "cpu", tmp_path), []
    ready[study.KD].teacher.network.register_forward_hook(lambda *seen: asked.append(1))
    for stored, usual in study.GAINS.items():
        asked.clear()
        ready[stored]()
        assert not asked
        ready[usual]()
        assert len(asked) == 1
        torch.testing.assert_close(weights(ready[stored].student), weights(ready[usual].student))
        torch.testing.assert_close(weights(ready[stored].objective), weights(ready[usual].objective))


def test_the_peak_of_a_step_is_the_same_again_and_grows_with_the_batch(study: ModuleType, tmp_path: Path) -> None:
    small, large = (study.steps(size, "cpu", tmp_path / str(size)) for size in (4, 8))
    for name in study.WEIGHED:
        peak = small[name].peak()
        assert small[name].peak() == peak
        assert 1.5 * peak < large[name].peak() < 2.5 * peak


def test_the_record_holds_ratios_of_the_times_that_were_taken(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["harness"], "RESULTS", tmp_path)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # before each of the steps it would take longer than the step
    monkeypatch.setattr(sys, "argv", ["disk_step.py", "--batch", "4", "--rounds", "1"])
    study.main()
    record = json.loads((tmp_path / "disk_step.json").read_text())
    seconds = {name: values[0] for name, values in record["seconds"].items()}
    assert set(seconds) == set(study.VARIANTS)
    for name, found in record["over_kd"].items():
        assert found["median"] == pytest.approx(seconds[name] / seconds[study.KD])
    for name, found in record["asking_the_teacher_over_stored"].items():
        assert found["median"] == pytest.approx(seconds[study.GAINS[name]] / seconds[name])
    for name, reached in record["reached"].items():
        assert reached == (record["over_kd"][name]["median"] <= 1.15)
    assert "times KD" in capsys.readouterr().out
