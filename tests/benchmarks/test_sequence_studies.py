"""The studies of training in parts, at toy size: what they measure is there, and means what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lightning_efficient.callbacks import FPTT, ChunkedBackprop
from lightning_efficient.datamodules import SequentialImages

Load = Callable[[str], ModuleType]


def test_memory_grows_with_the_length_only_where_the_whole_of_it_is_back_propagated(load: Load) -> None:
    study = load("fptt_memory")
    study.LENGTHS, study.PART, study.HIDDEN, study.BATCH = (50, 500), 25, 8, 4
    found = study.peaks("cpu")
    assert found["BPTT"][500] > 5 * found["BPTT"][50]
    for method in ("ChunkedBackprop", "FPTT"):
        assert found[method][50] == found[method][500] < found["BPTT"][50]


def test_times_are_those_of_the_steps(load: Load) -> None:
    study = load("fptt_memory")
    study.PART, study.HIDDEN = 10, 8
    timed = study.times(rounds=1, device="cpu", batch_size=2, length=20)
    [fptt], [chunked] = (timed["seconds_per_sequence"][name] for name in ("FPTT", "ChunkedBackprop"))
    assert timed["FPTT over ChunkedBackprop"]["median"] == pytest.approx(fptt / chunked)


@pytest.mark.study
def test_a_run_on_the_adding_problem_is_followed_and_counted(
    load: Load, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = load("fptt_adding")
    found = {name: {"0": study.run(name, length=20, seed=0, most=40)} for name in study.METHODS}
    assert [one["0"]["optimizer_steps"] for one in found.values()] == [40, 400, 400]
    assert all([step for step, _ in one["0"]["curve"]] == [20, 40] for one in found.values())
    record = {"runs": {"20": found}, "most_batches": {20: 40}}
    study.report(record)
    assert "first below" in capsys.readouterr().out
    study.draw(record, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_every_network_and_method_runs_on_a_task(load: Load) -> None:
    study = load("fptt_tasks")
    task = study.Task(lambda: SequentialImages("Digits", steps="rows", train_samples=64), parts=2, epochs=1, hidden=4)
    for network in study.NETWORKS:
        for method in study.METHODS:
            found = study.run(task, network, method, seed=0)
            assert 0 <= found["test_accuracy"] <= 1
            assert found["parameters"] > 50
    callbacks = [study.METHODS[method](3) for method in study.METHODS]
    assert [type(one[0]) if one else None for one in callbacks] == [None, ChunkedBackprop, FPTT, FPTT]
