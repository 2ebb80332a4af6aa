"""The checks of the soak: what leaks, slows down, is wrong or does not come back is seen; what only varies is not."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_efficient.inference.routed import BASE, FALLBACK, GLOBAL

Load = Callable[[str], ModuleType]


@pytest.fixture
def checks(load: Load) -> ModuleType:
    return load("_soak_checks")


@pytest.fixture
def report(load: Load, checks: ModuleType) -> ModuleType:
    return load("_soak_report")


@pytest.fixture
def study(load: Load, report: ModuleType) -> ModuleType:
    return load("serving_soak")


def series(checks: ModuleType, growth: dict[str, float], size: int = 100, every: float = 5.0) -> list:
    """Readings with noise and a warm-up, and with something that grows by so much in all after it."""
    draws, samples = random.Random(0), []
    for number in range(size):
        later = max(0.0, number / size - 0.3) / 0.7
        grown = {kind: growth.get(kind, 0.0) * later for kind in ("memory", "files", "threads")}
        warm = 200 * min(1.0, number / size / 0.2)
        burst = draws.choice([0, 0, 0, 5])
        memory = 300 + warm + grown["memory"] + draws.uniform(-3, 3)
        samples.append(
            checks.Sample(number * every, memory, 10 + burst + int(grown["files"]), 8 + int(grown["threads"]))
        )
    return samples


def held(found: list) -> dict[str, bool]:
    return {check.name: check.held for check in found}


def test_memory_that_varies_after_a_warm_up_holds(checks: ModuleType) -> None:
    assert held(checks.check_memory("it", series(checks, {}))) == {"it: memory": True}


def test_memory_that_grows_does_not_hold_and_its_rate_is_said(checks: ModuleType) -> None:
    (check,) = checks.check_memory("it", series(checks, {"memory": 40.0}))
    assert not check.held
    grown = float(check.found.split(" MB")[0])
    assert grown == pytest.approx(40, abs=3)


def test_one_reading_that_is_too_high_is_no_growth(checks: ModuleType) -> None:
    samples = series(checks, {})
    samples[-1] = samples[-1]._replace(resident_mb=5000.0)
    assert held(checks.check_memory("it", samples)) == {"it: memory": True}


@pytest.mark.parametrize("kind", ["files", "threads"])
def test_a_descriptor_or_thread_that_leaks_is_seen_and_a_burst_is_not(checks: ModuleType, kind: str) -> None:
    assert held(checks.check_counts("it", series(checks, {}))) == {"it: files": True, "it: threads": True}
    found = held(checks.check_counts("it", series(checks, {kind: 30.0})))
    assert found == {"it: files": kind != "files", "it: threads": kind != "threads"}


def test_too_few_readings_are_not_judged(checks: ModuleType) -> None:
    samples = series(checks, {"memory": 500.0, "files": 50.0}, size=7)
    assert checks.check_memory("it", samples) == checks.check_counts("it", samples) == []
    assert checks.check_memory("it", []) == checks.check_counts("it", []) == []


def test_descriptors_and_memory_of_this_process_are_read(checks: ModuleType) -> None:
    if sys.platform != "linux":
        pytest.skip("/proc")
    before = checks.read_processes([os.getpid()], 1.0)
    ends = os.pipe()
    after = checks.read_processes([os.getpid()], 2.0)
    for end in ends:
        os.close(end)
    assert after.files == before.files + 2
    assert before.threads >= 1
    assert before.resident_mb > 20
    assert os.getpid() in checks.session_of(os.getsid(0))


def phase(**changes: float) -> dict[str, float]:
    return {"wrong": 0, "rows": 100, "asked": 50, "global": 0.9, "fallback": 0.1, **changes}


@pytest.mark.parametrize(
    ("phases", "problems", "hung", "broken"),
    [
        ({"a": phase()}, [], 0, set()),
        ({"a": phase(wrong=1)}, [], 0, {"wrong answers"}),
        ({"a": phase(rows=0)}, [], 0, {"wrong answers"}),
        ({"a": phase()}, ["ValueError: no"], 0, {"missing answers, refusals not given"}),
        ({"a": phase()}, [], 1, {"threads that hang"}),
    ],
    ids=["all right", "a wrong answer", "no answers", "an error", "a thread that hangs"],
)
def test_answers_must_be_there_and_right(
    checks: ModuleType, phases: dict, problems: list[str], hung: int, broken: set[str]
) -> None:
    found = held(checks.check_answers(phases, problems, hung))
    assert {name for name, good in found.items() if not good} == broken


def test_only_the_base_may_answer_while_the_server_is_away(checks: ModuleType) -> None:
    alone = phase(fallback=1.0) | {"global": 0.0}
    good = checks.check_fallback({"before": phase(), "away": alone}, "away")
    assert all(check.held for check in good)
    swapped = checks.check_fallback({"before": alone, "away": phase()}, "away")
    assert not any(check.held for check in swapped)
    assert not checks.check_fallback({"away": phase(asked=0, fallback=0.0)}, "away")[0].held


def test_a_late_batch_is_forgiven_as_far_as_the_machine_was_held_up(checks: ModuleType) -> None:
    assert checks.is_late(0.9, deadline=0.3, grace=0.5, stall=0.0)
    assert not checks.is_late(0.9, deadline=0.3, grace=0.5, stall=0.05)
    assert not checks.is_late(0.7, deadline=0.3, grace=0.5, stall=0.0)


@pytest.mark.parametrize(
    ("late", "slowest", "ratios", "broken"),
    [
        (0, 1.0, [10.0, 12.0], set()),
        (10, 1.0, [10.0, 12.0], set()),
        (11, 1.0, [10.0, 12.0], {"late batches"}),
        (0, 40.0, [10.0, 12.0], {"slowest batch"}),
        (0, 1.0, [10.0, 200.0], {"slower with time"}),
        (0, 1.0, [200.0, 10.0], set()),
        (0, 1.0, [], set()),
    ],
    ids=["fine", "few late", "too many late", "a hang", "slower", "faster", "too short to tell"],
)
def test_latency_must_not_run_away(
    checks: ModuleType, late: int, slowest: float, ratios: list[float], broken: set[str]
) -> None:
    found = held(checks.check_latency(1000, late, slowest, ratios))
    assert {name for name, good in found.items() if not good} == broken


def test_a_fault_must_be_recovered_from_and_a_signal_obeyed(checks: ModuleType) -> None:
    fine = checks.check_recovery({"killed": 3.0}, {"SIGTERM": (143, 143, 2.0)})
    assert all(check.held for check in fine)
    bad = checks.check_recovery({"killed": -1.0, "slow": 1e3}, {"SIGTERM": (0, 143, 2.0), "SIGINT": (130, 130, 1e3)})
    assert not any(check.held for check in bad)


def test_a_wrong_a_missing_and_a_borrowed_answer_are_counted(study: ModuleType) -> None:
    torch.manual_seed(0)
    base, large = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images = torch.randn(4, 1, 2, 2)
    images[3, 0, 0, 0] = torch.nan
    source = torch.tensor([BASE, GLOBAL, FALLBACK, FALLBACK])

    def count(source: torch.Tensor, probabilities: torch.Tensor) -> int:
        return study.count_wrong(images, SimpleNamespace(source=source, probabilities=probabilities), base, large)

    with torch.inference_mode():
        right = torch.where((source == GLOBAL)[:, None], large(images), base(images)).softmax(-1)
        assert count(source, right) == 0
        wrong = right.clone()
        wrong[0] = wrong[0].flip(0)
        assert count(source, wrong) == 1
        assert count(torch.tensor([GLOBAL, GLOBAL, FALLBACK, FALLBACK]), right) == 1  # says that another one answered
        assert count(torch.tensor([BASE, GLOBAL, FALLBACK, GLOBAL]), right) == 1  # asked about what is not finite
        assert count(source, right.masked_fill(torch.arange(4)[:, None] == 1, math.nan)) == 1
        assert count(source[:3], right[:3]) == 4  # one is missing, so that nobody knows whose the others are


def test_windows_share_the_time_evenly_and_compare_batches_with_their_networks_alone(report: ModuleType) -> None:
    at = [float(second) for second in range(60)]
    windows = report.in_windows(at, [0.02] * 30 + [0.06] * 30, [0.01] * 60, 60.0)
    assert len(windows) == report.WINDOWS
    assert sum(window["batches"] for window in windows) == 60
    phases = {"first": {"begin_s": 0.0, "end_s": 20.0}, "last": {"begin_s": 40.0, "end_s": 60.0}}
    assert report.steady(windows, phases) == pytest.approx([2.0, 6.0])
    assert windows[-1]["p50_ms"] == pytest.approx(60.0)


def test_a_report_fails_where_one_check_does(
    report: ModuleType, checks: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"seconds": 1.0, "deadline_ms": 300, "phases": {"before": phase()}, "client": {}}
    good = checks.Check("a thing", "1", "2", True)._asdict()
    assert report.report(found | {"checks": [good]})
    assert not report.report(found | {"checks": [good, good | {"held": False}]})
    assert "NO" in capsys.readouterr().out


def test_the_picture_has_a_panel_for_latency_memory_and_files(report: ModuleType, tmp_path, checks: ModuleType) -> None:
    found = {
        "seconds": 60.0,
        "deadline_ms": 300,
        "phases": {"before": {"begin_s": 0.0, "end_s": 30.0}, "away": {"begin_s": 30.0, "end_s": 60.0}},
        "windows": report.in_windows([1.0, 40.0], [0.02, 0.03], [0.01, 0.01], 60.0),
        "samples": {"client": [list(checks.Sample(1.0, 300.0, 10, 8))], "server, before": []},
    }
    report.draw(found, tmp_path / "soak.png", "away")
    assert (tmp_path / "soak.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.study
def test_a_soak_of_seconds_holds() -> None:
    from pathlib import Path

    script = Path(__file__).parents[2] / "benchmarks" / "serving_soak.py"
    done = subprocess.run([sys.executable, script, "--seconds", "15"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
