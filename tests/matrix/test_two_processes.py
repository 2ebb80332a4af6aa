"""Every callback on two CPU processes, and metrics that count each sample once."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix_settings import SETTINGS, differing

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What ``two_processes.py`` found: weights or metrics of each process."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each worker a folder below the one they share: the first to come runs the script for all
    folder = (base.parent if base.name.startswith("popen-") else base) / "two_processes"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "results.pt").exists():
            done = subprocess.run(
                [sys.executable, SCRIPT, folder], cwd=folder, capture_output=True, text=True, timeout=240
            )
            assert done.returncode == 0, done.stderr
    return torch.load(folder / "results.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if not setting.observes])
def test_two_processes_end_with_the_same_weights(name: str, results: Any) -> None:
    first, second = results[name]
    assert not differing(first, second)


@pytest.mark.slow
def test_two_processes_that_are_observed_end_with_the_weights_of_two_that_are_not(results: Any) -> None:
    first, second = results["everything"]
    assert not differing(first, second)
    assert not differing(first, results["without"][0])


@pytest.mark.slow
def test_two_resumed_processes_end_with_the_weights_of_the_uninterrupted_ones(results: Any) -> None:
    for whole, resumed in zip(results["everything"], results["resumed"], strict=True):
        assert not differing(whole, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ChunkedBackprop", "FPTT"])
def test_two_processes_in_parts_equal_one_with_batches_twice_as_large(name: str, results: Any) -> None:
    [one], two = results[f"{name} on 1"], results[f"{name} on 2"]
    assert not differing(*two)
    for key, value in one.items():
        torch.testing.assert_close(two[0][key], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_two_processes_distil_as_one_with_batches_twice_as_large(results: Any) -> None:
    [one], two = results["Distiller on 1"], results["Distiller on 2"]
    assert not differing(*two)
    assert any(name.startswith("objective.guide") for name in one)
    for key, value in one.items():
        torch.testing.assert_close(two[0][key], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["gamblers", "sat"])
def test_two_processes_learn_to_abstain_as_one_with_batches_twice_as_large(objective: str, results: Any) -> None:
    [one], two = results[f"{objective} on 1"], results[f"{objective} on 2"]
    assert not differing(*two)
    # what is kept by sample is known to both, and is that of one process
    assert ("objective.doubt._extra_state" in one) == (objective == "sat")
    for key, value in one.items():
        torch.testing.assert_close(two[0][key], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_two_processes_move_the_same_multipliers(results: Any) -> None:
    one, other = results["osp"]
    assert not differing(one, other)
    assert len(one["objective.multipliers"].unique()) > 1


@pytest.mark.slow
def test_each_process_carries_its_own_state_over_a_resume(results: Any) -> None:
    first, second, *resumed = results["carried"]
    assert not differing(first, resumed[0])
    assert not differing(second, resumed[1])


@pytest.mark.slow
@pytest.mark.parametrize("module", ["ours", "own"])
def test_metrics_of_uneven_shards_are_those_of_one_process(module: str, results: Any) -> None:
    one, *two = results[module]
    assert {"val/loss", "val/accuracy", "val/calibration_error", "val/aurc", "selective/val_aurc"} <= one.keys()
    for rank in two:
        assert {name: float(value) for name, value in rank.items()} == pytest.approx(
            {name: float(value) for name, value in one.items()}, abs=1e-6
        )


@pytest.mark.slow
def test_samples_that_lightning_repeats_for_a_foreign_loader_are_counted_once(results: Any) -> None:
    one, *two = results["foreign"]
    names = [name for name in one if name.startswith(("selective/", "binned/"))]
    assert len(names) == 11
    # Lightning's own mean counts the repeated sample twice: the data do tell the two apart
    assert float(two[0]["val_loss"]) != pytest.approx(float(one["val_loss"]), abs=1e-6)
    for rank in two:
        assert [float(rank[name]) for name in names] == pytest.approx([float(one[name]) for name in names], abs=1e-6)
