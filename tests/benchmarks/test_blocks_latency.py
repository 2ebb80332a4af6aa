"""The study of latency after surgery, on small images and in few rounds: what it measures, tells and draws."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

Load = Callable[[str], ModuleType]
FOLDER = Path(__file__).parents[2] / "benchmarks"
NETWORK = "mobilenetv3_small_050"


@pytest.fixture
def study(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("blocks_latency")
    monkeypatch.setattr(module, "IMAGE", (3, 64, 64))
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys.modules["harness"], "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "PICTURE", tmp_path / "docs" / "images" / "blocks_latency.png")
    monkeypatch.syspath_prepend(str(FOLDER.parent / "docs"))
    return module


def record_of(study: ModuleType, network: str, speed_up: float) -> dict[str, Any]:
    names = [study.BASE, "add", study.GLOBAL]
    found = {"milliseconds": 10.0, "speed_up": {"median": speed_up, "low": 0.9, "high": 1.5, "rounds": 3}}
    size = {"macs": 133_200_000, "parameters": 5_480_000, "macs_saved": 0.385}
    cells = [
        {"batch": batch, "layout": layout, "variants": dict.fromkeys(names, found)}
        for batch in (1, 32)
        for layout in study.LAYOUTS
    ]
    return {"network": network, "sizes": dict.fromkeys(names, size), "cells": cells}


@pytest.mark.parametrize(
    ("network", "least"), [("mobilenetv3_large_100", 0.38), ("efficientnet_b0", 0.38), ("resnet18", 0.46)]
)
def test_the_default_saves_what_the_pages_say(study: ModuleType, network: str, least: float) -> None:
    found = study.sizes(study.build(network, [study.BASE, "add"]), (3, 224, 224))
    assert found["add"]["macs_saved"] >= least
    assert found["add"]["parameters"] > found[study.BASE]["parameters"]
    assert found[study.BASE]["macs_saved"] == 0


def test_every_variant_is_another_network_that_runs(study: ModuleType) -> None:
    models = study.build("mobilenetv3_large_100", study.VARIANTS)
    images = torch.zeros(1, 3, 64, 64)
    texts = {name: str(model) for name, model in models.items()}
    assert len(set(texts.values())) == len(study.VARIANTS)
    with torch.no_grad():
        assert {name: model(images).shape for name, model in models.items()} == dict.fromkeys(models, (1, 1000))
    assert not any(module.training for model in models.values() for module in model.modules())


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_weights_and_images_have_the_layout_of_the_cell(study: ModuleType, layout: str) -> None:
    models = study.build(NETWORK, [study.BASE])
    seen = set()
    models[study.BASE].conv_stem.register_forward_pre_hook(
        lambda module, inputs: seen.update(
            each.is_contiguous(memory_format=study.LAYOUTS[layout]) for each in (module.weight, inputs[0])
        )
    )
    found = study.timings(models, batch=2, layout=layout, rounds=1)
    assert seen == {True}
    assert found[study.BASE]["speed_up"] == {"median": 1.0, "low": 1.0, "high": 1.0, "rounds": 1}


@pytest.mark.parametrize(("batch", "passes"), [(1, 16), (5, 3), (16, 1), (32, 1)])
def test_a_timed_call_runs_some_sixteen_images_at_least(study: ModuleType, batch: int, passes: int) -> None:
    calls = []
    study.forward(lambda images: calls.append(torch.is_grad_enabled()), torch.zeros(batch, 1))()
    assert calls == [False] * passes


def test_the_speed_up_is_that_over_the_base_and_times_are_per_forward_pass(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {study.BASE: [0.32, 0.48, 0.64], "add": [0.16, 0.16, 0.16]}
    monkeypatch.setattr(study, "paired", lambda *arguments, **options: times)
    found = study.timings(dict.fromkeys(times, torch.nn.Identity()), batch=4, layout=study.LAST, rounds=3)
    assert found["add"]["milliseconds"] == pytest.approx(40)
    assert found["add"]["speed_up"]["median"] == pytest.approx(3)


def test_a_quick_run_prints_and_saves_nothing(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--quick", "--networks", NETWORK, "--layouts", "channels_last", "--variants", "add"]
    monkeypatch.setattr(sys, "argv", ["blocks_latency.py", *words])
    study.main()
    text = capsys.readouterr().out
    assert f"{NETWORK}: speed-up, one thread" in text
    assert list(tmp_path.iterdir()) == []


def test_a_run_saves_each_network_and_draws(study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["--networks", NETWORK, "--batches", "1", "--variants", "chain", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["blocks_latency.py", *words])
    study.main()
    record = json.loads((tmp_path / "results" / f"blocks_latency_{NETWORK}.json").read_text())
    assert record["command"] == f"python benchmarks/blocks_latency.py {' '.join(words)}"
    assert list(record["sizes"]) == ["base", "chain"]
    assert [(cell["batch"], cell["layout"]) for cell in record["cells"]] == [(1, study.FIRST), (1, study.LAST)]
    assert study.PICTURE.stat().st_size > 1000


def test_saved_results_are_printed_and_drawn_again(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study.RESULTS.mkdir(parents=True)
    for network, speed_up in (("first", 1.23), ("second", 1.34)):
        text = json.dumps(record_of(study, network, speed_up))
        (study.RESULTS / f"blocks_latency_{network}.json").write_text(text)
    monkeypatch.setattr(sys, "argv", ["blocks_latency.py", "--draw", "--networks", "first", "second"])
    monkeypatch.setattr(study, "study", None)
    monkeypatch.setenv("COLUMNS", "200")
    study.main()
    text = capsys.readouterr().out
    for cell in ("133.2", "38.5 %", "5.48", "1.23 (0.90 to 1.50)", "1.34 (0.90 to 1.50)", "10.0 ms", "32, last"):
        assert cell in text
    assert study.PICTURE.exists()
