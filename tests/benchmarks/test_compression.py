"""The study of compression, at toy size: every variant is made, judged, timed, compared and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

NETWORK = "test_resnet"


@pytest.fixture
def variants(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    load("images")
    module = load("_compression_variants")
    monkeypatch.setattr(module, "BATCHES", {1: 1, 64: 1})
    # inductor takes a minute
    monkeypatch.setattr(module, "compile_quantized", lambda network: network)
    return module


@pytest.fixture
def study(
    load: Callable[[str], ModuleType], variants: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ModuleType:
    study = load("compression")
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr("harness.RESULTS", tmp_path)
    monkeypatch.setattr(study, "ROUNDS", 1)
    return study


@pytest.mark.study
def test_variants_are_made_judged_timed_reported_and_drawn(
    study: ModuleType, variants: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = variants.Task("Digits", 1, 16, epochs=1, more_epochs=1, batch=256, shift=1, flips=False)
    kept = tmp_path / "kept"
    kept.mkdir()
    found = study.run(task, NETWORK, 0, str(kept))
    assert list(found) == list(variants.VARIANTS)
    assert all(0 <= each["accuracy"] <= 1 for each in found.values())
    whole, small = found[variants.LONGER], found[variants.CHANNELS]
    assert small["macs"] < whole["macs"]
    assert small["parameters"] < whole["parameters"]
    assert found[variants.RESHAPED]["macs"] == small["macs"] == found[variants.CHANNELS_STATIC]["macs"]
    assert found[variants.WEIGHTS]["compressed_bytes"] < 0.6 * whole["compressed_bytes"]
    assert found[variants.HALF]["bytes"] < 0.6 * whole["bytes"]
    assert found[variants.STATIC]["int8_layers"] > 5
    ready = {name: study.loaded(kept, name) for name in variants.TIMED}
    latency = {way: variants.latencies(ready, task, 1, compiled=way == "compiled") for way in ("eager", "compiled")}
    assert variants.STATIC not in latency["eager"]  # it would compute in floats
    assert latency["compiled"][variants.FLOAT]["64"]["median"] == 1
    record = {"task": vars(task), "runs": {NETWORK: {"0": found, "1": found}}, "latency": {NETWORK: latency}}
    study.save(study.result_name("digits"), record, script="compression")
    study.report("digits", study.saved("digits"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 seeds" in printed
    assert "over a control, seed by seed" in printed
    study.draw(["digits"], tmp_path / "compression.png")
    assert (tmp_path / "compression.png").stat().st_size > 10_000


def test_a_network_with_new_weights_has_the_shape_and_no_weight_of_the_old(study: ModuleType) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3))
    fresh = study.with_new_weights(network)
    assert fresh[0].weight.shape == network[0].weight.shape
    assert not torch.equal(fresh[0].weight, network[0].weight)


def run_of(accuracy: float) -> dict[str, Any]:
    return {"accuracy": accuracy}


def test_variants_are_compared_with_their_controls_seed_by_seed(study: ModuleType, variants: ModuleType) -> None:
    names = variants.VARIANTS
    seeds = {"0": {name: run_of(0.5) for name in names}, "1": {name: run_of(0.6) for name in names}}
    seeds["1"][variants.CHANNELS] = run_of(0.55)
    found = {(variant, control): ahead for variant, control, ahead in study.comparisons(seeds)}
    assert found[variants.CHANNELS, variants.LONGER] == pytest.approx([0, -5])
    assert found[variants.CHANNELS, variants.RESHAPED] == pytest.approx([0, -5])
    assert (variants.LONGER, variants.LONGER) not in found
