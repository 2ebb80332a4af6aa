"""The study of efficient blocks on images, at toy size: networks are made, trained, measured, compared, drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class Inline:
    """A pool of processes whose work is done where it is submitted."""

    def __init__(self, jobs: int, mp_context: object) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Inline:
        done = Inline(1, None)
        done.result = partial(lambda found: found, work(*arguments))
        return done


@pytest.fixture
def variants(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("_blocks_variants")
    monkeypatch.setattr(module, "BATCHES", {1: 1, 64: 1})
    return module


@pytest.fixture
def study(
    load: Callable[[str], ModuleType], variants: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ModuleType:
    study = load("blocks_images")
    # ``save`` and ``saved`` look into the folder by this name
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr("harness.RESULTS", tmp_path)
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(study, "ROUNDS", 1)
    return study


@pytest.fixture
def task(variants: ModuleType) -> Any:
    return variants.Task("Digits", 1, 8, (2, 2, 2, 2), (8, 16, 16, 32), epochs=1, batch=128, shift=1, flips=False)


def run_of(accuracy: float, val_accuracy: float = 0.5, val_loss: float = 1.0, diverged: bool = False) -> dict[str, Any]:
    found = {"accuracy": accuracy, "val_accuracy": val_accuracy, "val_loss": val_loss, "diverged": diverged}
    return {"rate": {"lr": 0.1}, **found}


@pytest.mark.study
def test_networks_are_trained_measured_compared_and_drawn(
    study: ModuleType, task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["base", "Global, K=4", "condensed, depthwise", "interpolated", "narrow as interpolated"]
    record = study.study("digits", 2, "cpu", 1, names[:-1], task)
    assert all(list(seeds) == ["0", "1"] for seeds in record["runs"].values())
    for name, tried in record["selection"].items():
        assert [each["rate"] for each in tried] == list(study.RATES)
        assert record["runs"][name]["0"] in tried
        assert record["runs"][name]["1"]["rate"] == record["runs"][name]["0"]["rate"]
    # the rest of the networks later: what there is stays as it was
    later = study.study("digits", 2, "cpu", 1, names[-1:], task)
    assert list(later["runs"]) == names
    assert {name: later["runs"][name] for name in names[:-1]} == record["runs"]
    assert study.saved("digits")["runs"] == later["runs"]
    assert all(set(later["latency"][name]) == {"1", "64"} for name in names)
    assert later["latency"]["base"]["1"]["median"] == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 seeds" in printed
    assert printed.count("over the controls, seed by seed") == 2  # a report of each call
    study.draw(["digits"], tmp_path / "blocks.png")
    assert (tmp_path / "blocks.png").stat().st_size > 10_000


def test_the_same_seed_gives_the_same_run_and_other_rates_another(study: ModuleType, task: Any) -> None:
    low, high = study.RATES[0], study.RATES[-1]
    run = partial(study.train, task, "base", task.widths, seed=0, device="cpu")
    assert run(low) == run(low)
    assert run(low)["val_loss"] != run(high)["val_loss"]


def test_a_rate_is_chosen_on_the_validation_part(study: ModuleType) -> None:
    runs = [run_of(0.9, 0.6), run_of(0.95, 0.8, 0.7), run_of(0.7, 0.8, 0.6), run_of(0.99, 0.9, float("nan"), True)]
    # the most accurate of those that have not diverged; of two, the one with the smaller loss
    assert study.choose(runs)["accuracy"] == 0.7
    assert study.choose(runs[::-1])["accuracy"] == 0.7


def test_networks_are_compared_seed_by_seed(study: ModuleType) -> None:
    runs = {
        "base": {"0": run_of(0.80), "1": run_of(0.90)},
        "condensed": {"0": run_of(0.81), "1": run_of(0.88)},
        "narrow as Global": {"0": run_of(0.79), "1": run_of(0.85)},
    }
    found = {(variant, control): ahead for variant, control, ahead in study.comparisons(runs)}
    assert set(found) == {("condensed", "base"), ("condensed", "narrow as Global"), ("narrow as Global", "base")}
    assert found["condensed", "base"] == pytest.approx([1, -2])
    assert found["condensed", "narrow as Global"] == pytest.approx([2, 3])


def test_controls_and_targets_of_macs_are_networks_of_the_study(variants: ModuleType) -> None:
    for variant in variants.VARIANTS.values():
        assert {*variant.controls, variant.narrowed_to or variants.BASE} <= set(variants.VARIANTS)


@pytest.mark.parametrize("name", ["cifar10-6k"])
def test_networks_differ_from_their_controls_only_in_what_is_asked(
    study: ModuleType, variants: ModuleType, name: str
) -> None:
    task = study.TASKS[name]
    found = {each: variants.footprint(task, each) for each in variants.VARIANTS}
    params = {each: cost["params"] for each, cost in found.items()}
    macs = {each: cost["macs"] for each, cost in found.items()}
    bare, width = params["condensed"], sum(task.widths[:3])  # a layer after each of the first three stages
    assert params["Global, K=1"] == params["Global, K=4"] == bare + 46 * width
    assert params["Global, K=1, constant D"] == params["Global, K=4, constant D"] == bare + 24 * width
    assert params["condensed, depthwise"] == bare + 11 * width
    assert macs["Global, K=4"] == macs["Global, K=1"] < macs["base"] / 2
    assert found["Global, K=4"]["solver_macs"] == 4 * found["Global, K=1"]["solver_macs"] > 0
    assert found["interpolated"]["solver_macs"] == 0
    assert params["interpolated, no cheap branch"] == params["base"] < params["interpolated"]
    assert macs["interpolated, no cheap branch"] < macs["interpolated"] < macs["base"] / 2
    assert macs["narrow as Global"] == pytest.approx(macs["Global, K=1"], rel=0.06)
    assert macs["narrow as interpolated"] == pytest.approx(macs["interpolated"], rel=0.06)
