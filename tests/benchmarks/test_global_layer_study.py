from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def study(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("global_layer")


@pytest.mark.parametrize("diffusion", [None, 1.0])
def test_every_variant_computes_what_the_released_form_does(study: ModuleType, diffusion: float | None) -> None:
    found = study.study((2, 4, 5, 6), steps=3, diffusion=diffusion, rounds=2)
    assert set(found["largest_difference_from_released"]) == {
        study.RELEASED, study.REFERENCE, study.SOLVER, study.LAYER,
    }  # fmt: skip
    assert max(found["largest_difference_from_released"].values()) < 1e-4


@pytest.mark.parametrize(("diffusion", "maps"), [(None, 6), (1.0, 4)])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_fused_layer_keeps_less_than_a_third_of_the_released_form(
    study: ModuleType, steps: int, diffusion: float | None, maps: int
) -> None:
    inputs = torch.randn(2, 8, 16, 16, requires_grad=True)
    layers = study.make_layers(8, steps, diffusion, compiled=False)
    kept = {name: study.kept_maps(layer, inputs) for name, layer in layers.items()}
    assert kept[study.LAYER] == pytest.approx(maps, abs=0.1)  # and a few numbers per channel
    assert kept[study.LAYER] < kept[study.RELEASED] / 3


def test_a_quick_run_prints_a_table_and_saves_nothing(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.modules["harness"], "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["global_layer.py", "--quick", "--steps", "2"])
    study.main()
    printed = capsys.readouterr().out
    assert "2x8x6x5, K=2, learned diffusion" in printed
    assert "constant diffusion" in printed
    assert not list(tmp_path.iterdir())


def test_saved_results_are_printed_again(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record = {"shape": [2, 4, 3, 3], "studies": [study.study((2, 4, 3, 3), 1, None, 2)]}
    (tmp_path / "global_layer.json").write_text(json.dumps(record))
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["global_layer.py", "--draw"])
    study.main()
    assert "2x4x3x3, K=1, learned diffusion" in capsys.readouterr().out
