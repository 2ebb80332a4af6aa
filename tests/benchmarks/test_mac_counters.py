"""The study of MAC counters: ptflops agrees with ours to 1 % on its ten models, and what is written and told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

MODELS = (
    "resnet18", "resnet50", "mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "densenet121",
    "convnext_tiny", "regnety_004", "mixer_s32_224", "vit_tiny_patch16_224",
)  # fmt: skip


@pytest.fixture
def study(load: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("ptflops")
    module = load("mac_counters")
    monkeypatch.setattr(sys.modules["harness"], "RESULTS", tmp_path)
    return module


def test_the_models_of_the_study_are_the_ten_with_attention_among_them(study: ModuleType) -> None:
    assert study.MODELS == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_ptflops_counts_the_same_operators_and_biases_on_top(study: ModuleType, name: str) -> None:
    ours, theirs = (study.COUNTERS[counter](study.built(name)) for counter in ("ours", "ptflops aten"))
    # one operation per bias that is added is not a multiply-accumulate, and all that differs
    assert 0 <= theirs / ours - 1 < 0.01


def test_the_study_writes_and_tells_every_deviation(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counters = {"ours": lambda model: 100, "ptflops aten": lambda model: 101, "torch-pruning": lambda model: 98}
    monkeypatch.setattr(study, "COUNTERS", counters)
    monkeypatch.setattr(sys, "argv", ["mac_counters.py", "--models", "test_vit"])
    study.main()
    (row,) = json.loads((tmp_path / "mac_counters.json").read_text())["rows"]
    assert row["model"] == "test_vit"
    assert row["deviation"] == {"ptflops aten": pytest.approx(0.01), "torch-pruning": pytest.approx(-0.02)}
    assert "largest deviation: ptflops aten 1.00 %, torch-pruning 2.00 %" in capsys.readouterr().out


def test_the_committed_result_is_of_these_models() -> None:
    file = Path(__file__).parents[2] / "benchmarks" / "results" / "mac_counters.json"
    rows = json.loads(file.read_text())["rows"]
    assert tuple(row["model"] for row in rows) == MODELS
    assert max(abs(row["deviation"]["ptflops aten"]) for row in rows) < 0.01
