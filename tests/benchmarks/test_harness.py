from __future__ import annotations

import gc
import importlib.util
import json
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
