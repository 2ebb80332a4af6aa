from __future__ import annotations

import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "harness.py"


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("harness", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_variants_take_turns_and_none_always_goes_first(harness: ModuleType) -> None:
    calls = []
    times = harness.paired({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}
    assert all(seconds > 0 for each in times.values() for seconds in each)


def test_garbage_collection_is_off_during_a_call_and_on_again_even_after_an_error(harness: ModuleType) -> None:
    seen = []

    def fails() -> None:
        seen.append(gc.isenabled())
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        harness.paired({"a": fails}, rounds=1)
    assert seen == [False]
    assert gc.isenabled()


@pytest.mark.parametrize(("variants", "rounds", "warmup"), [({}, 1, 0), ({"a": int}, 0, 0), ({"a": int}, 1, -1)])
def test_nothing_to_time_is_refused(harness: ModuleType, variants: dict, rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="paired needs"):
        harness.paired(variants, rounds, warmup)


def test_ratios_are_taken_round_by_round(harness: ModuleType) -> None:
    # the machine became ten times slower in the last two rounds, which no per-variant median would forgive
    times = {"slow": [2.0, 4.0, 3.0, 20.0, 40.0], "fast": [1.0, 1.0, 1.0, 10.0, 10.0]}
    assert harness.ratio(times, of="slow", over="fast", spread=1.0) == {
        "median": 3.0,
        "low": 2.0,
        "high": 4.0,
        "rounds": 5,
    }


def test_quantiles_are_interpolated(harness: ModuleType) -> None:
    ordered = [0.0, 1.0, 2.0, 3.0, 10.0]
    assert [harness.quantile(ordered, share) for share in (0.0, 0.125, 0.5, 0.875, 1.0)] == [0.0, 0.5, 2.0, 6.5, 10.0]


def test_rounds_of_different_length_do_not_pair(harness: ModuleType) -> None:
    with pytest.raises(ValueError, match="shorter"):
        harness.ratio({"a": [1.0, 2.0], "b": [1.0]}, of="a", over="b")


def test_a_record_is_saved_with_the_command_and_the_environment(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/study.py", "--rounds", "5", "two words"])
    path = harness.save("study", {"median": 1.5})
    record = json.loads(path.read_text())
    assert path.name == "study.json"
    assert record["command"] == "python benchmarks/study.py --rounds 5 'two words'"
    assert record["median"] == 1.5
    assert record["environment"]["torch"] == importlib.metadata.version("torch")
    assert record["environment"]["cores"] >= 1


def test_the_environment_names_neither_the_host_nor_a_path(harness: ModuleType) -> None:
    import getpass
    import socket

    values = [str(value) for value in harness.environment().values()]
    assert not any(value.startswith("/") for value in values)
    assert socket.gethostname() not in values
    assert getpass.getuser() not in values
    assert {"python", "torch", "lightning", "timm", "torchmetrics", "cpu", "threads", "os", "date"} <= set(
        harness.environment()
    )


def test_an_absent_package_has_no_version(harness: ModuleType) -> None:
    assert harness.version_of("surely-not-installed-anywhere") is None


def test_the_harness_loads_neither_torch_nor_lightning() -> None:
    code = "import sys, harness; harness.environment(); print(sorted({'torch', 'lightning'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert result.stdout.strip() == "[]"


def test_a_table_shows_every_cell(harness: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    harness.table("times", ["variant", "ms"], [["plain", 1.23456], ["ours", 12]])
    text = capsys.readouterr().out
    for cell in ("times", "variant", "plain", "1.235", "12"):
        assert cell in text


def test_a_clock_of_ones_own_tells_the_seconds(harness: ModuleType) -> None:
    ticks = iter(range(100))
    times = harness.paired({"a": int, "b": int}, rounds=2, warmup=0, clock=lambda: float(next(ticks)))
    assert times == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


ALLOCATOR = """
import json, os, sys
import harness
harness.steady_allocator()
print(json.dumps([sys.argv[1:], harness.environment()["steady_allocator"], harness.RESTARTED in os.environ]))
print(os.environ.get(harness.MALLOC[0]))
"""


def run_allocator(tmp_path: Path, *words: str, **variables: str) -> list[str]:
    script = tmp_path / "script.py"
    script.write_text(ALLOCATOR)
    kept = {"PATH", "HOME", "LANG"} & set(os.environ)
    surroundings = {**{name: os.environ[name] for name in kept}, "PYTHONPATH": str(SCRIPT.parent), **variables}
    result = subprocess.run(
        [sys.executable, str(script), *words], env=surroundings, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")


@on_glibc
def test_a_script_starts_anew_once_with_its_arguments_and_keeps_its_memory(tmp_path: Path) -> None:
    first, threshold = run_allocator(tmp_path, "--rounds", "two words")
    assert json.loads(first) == [["--rounds", "two words"], True, True]
    assert threshold == "4294967295"


@on_glibc
def test_thresholds_that_the_user_set_are_kept_and_recorded(tmp_path: Path) -> None:
    mine = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "2000000"}
    first, threshold = run_allocator(tmp_path, **mine)
    assert json.loads(first) == [[], False, False]
    assert threshold == "1000000"


def test_a_script_that_was_started_anew_goes_on_whatever_became_of_the_thresholds(tmp_path: Path) -> None:
    first, threshold = run_allocator(tmp_path, LIGHTNING_EFFICIENT_RESTARTED="1")
    assert json.loads(first) == [[], False, True]
    assert threshold == "None"


def test_nothing_happens_without_glibc(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def restarted(*arguments: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(os, "execv", restarted)
    for name in (*harness.MALLOC, harness.RESTARTED):
        monkeypatch.delenv(name, raising=False)
    harness.steady_allocator()
    assert not harness.allocator_is_steady()
    assert harness.RESTARTED not in os.environ
