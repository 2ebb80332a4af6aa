"""The study of what routing costs, on small batches and in few rounds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

Load = Callable[[str], ModuleType]
PAIR = "small, 16x16"


@pytest.fixture
def study(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("routed_latency")
    monkeypatch.setattr(sys.modules["harness"], "RESULTS", tmp_path / "results")
    return module


def test_the_small_pair_has_the_size_that_it_is_named_for(study: ModuleType) -> None:
    macs = study.Hybrid(PAIR, 4).macs
    assert 20_000 < macs["base"] < 28_000
    assert 0.9e6 < macs["global"] < 1.2e6


@pytest.mark.parametrize("coverage", [0.9, 0.7, 0.5, 0.0])
def test_the_threshold_keeps_the_share_that_it_should(study: ModuleType, coverage: float) -> None:
    hybrid = study.Hybrid(PAIR, 40)
    assert hybrid.asked(coverage) == round((1 - coverage) * 40)


def test_every_variant_runs_without_gradients_and_the_number_varies(study: ModuleType) -> None:
    hybrid = study.Hybrid(PAIR, 40)
    sizes: list[int] = []
    hybrid.other.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0])) if not torch.is_grad_enabled() else None
    )
    variants = hybrid.variants()
    assert {f"{kind} {coverage}" for kind in ("routed", "apart") for coverage in study.COVERAGES} < set(variants)
    expected = {"edge": [], "global": [40], "routed 0.9": [4], "apart 0.5": [20], "routed 0.0": [40], "watched": [12]}
    for name, seen in expected.items():
        sizes.clear()
        variants[name]()
        assert sizes == seen, name
    sizes.clear()
    for _ in range(10):
        variants["varying"]()
    assert len(set(sizes)) > 3
    sizes.clear()
    variants["one by one"]()
    assert sizes == [1] * 12


def test_ratios_are_taken_round_by_round(study: ModuleType) -> None:
    times = {"edge": [1.0, 2.0, 1.0], "global": [10.0, 20.0, 10.0], "routed 0.7": [4.0, 8.0, 6.0]}
    found = study.against(times, "routed 0.7", 0.7)
    assert found["median"] == pytest.approx(1.0)
    assert found["high"] > 1.3


def test_a_quick_run_prints_and_saves_nothing_and_a_run_saves(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["routed_latency.py", "--quick", "--pairs", PAIR])
    study.main()
    text = capsys.readouterr().out
    for cell in ("routed, coverage 0.5", "varying, about 0.7", "one by one, 0.7", "watched over routed: "):
        assert cell in text
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sys, "argv", ["routed_latency.py", "--pairs", PAIR, "--batch", "20", "--rounds", "2"])
    study.main()
    record = json.loads((tmp_path / "results" / "routed_latency.json").read_text())
    assert [pair["pair"] for pair in record["pairs"]] == [PAIR]
    assert record["pairs"][0]["kept"] == {"0.9": 0.9, "0.7": 0.7, "0.5": 0.5, "0.0": 0.0}
    assert set(record["pairs"][0]["over_linear"]) == {"0.9", "0.7", "0.5", "0.0"}
