"""A hybrid learns on two processes: both end with the same weights and thresholds, and metrics are of all samples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrid_settings import TRAIN, same

SCRIPT = Path(__file__).with_name("hybrid_two_processes.py")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run([sys.executable, SCRIPT, folder], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.mark.parametrize("name", ["score on 2", "held_out", "out_of_fold", "score alone"])
def test_both_processes_end_with_the_same_weights_and_thresholds(name: str, results: Any) -> None:
    first, second = results[name]
    assert same(first["state"], second["state"])
    assert bool(first["state"]["threshold"].isfinite())
    one, other = (
        {name: value for name, value in each["metrics"].items() if name.startswith("val/")} for each in (first, second)
    )
    assert one == other


def test_two_processes_learn_and_report_as_one_with_batches_twice_as_large(results: Any) -> None:
    [one], two = results["score on 1"], results["score on 2"]
    assert sum(each["scores"] for each in two) == one["scores"] == TRAIN
    for name, value in one["state"].items():
        torch.testing.assert_close(two[0]["state"][name], value, rtol=0, atol=1e-5)
    names = [name for name in one["metrics"] if name.startswith("val/")]
    assert {"val/accuracy", "val/gap_to_oracle", "val/coverage", "val/routed_accuracy"} <= set(names)
    for name in names:
        assert two[0]["metrics"][name] == pytest.approx(one["metrics"][name], abs=1e-4), name


def test_each_process_takes_up_its_own_scores_and_samples(results: Any) -> None:
    first, second, *again = results["resumed"]
    assert not torch.equal(first["seen"], second["seen"])
    for whole, later in zip((first, second), again, strict=True):
        assert same(whole["state"], later["state"])
        assert torch.equal(whole["seen"], later["seen"])
        assert whole["scores"] == later["scores"]
