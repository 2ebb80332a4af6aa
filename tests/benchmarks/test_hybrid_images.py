"""The study of pairs on images, at toy size: pairs are trained, their thresholds judged, timed, drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn


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
def pairs(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("_hybrid_pairs")
    monkeypatch.setattr(module, "ROUTER_EPOCHS", 2)
    return module


@pytest.fixture
def latency(load: Callable[[str], ModuleType], pairs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("_hybrid_latency")
    monkeypatch.setattr(module, "ROUNDS", {1: 2, 64: 2})
    return module


@pytest.fixture
def study(
    load: Callable[[str], ModuleType], latency: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ModuleType:
    study = load("hybrid_images")
    monkeypatch.setattr("harness.RESULTS", tmp_path)
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(study, "as_completed", list)
    return study


@pytest.fixture
def task(study: ModuleType) -> Any:
    return replace(study.TASKS["digits"], epochs=1, batch=128, global_model="cifar_resnet10_xs")


def test_pairs_are_trained_judged_timed_and_drawn(
    study: ModuleType, task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = study.study("digits", 2, "cpu", 1, tmp_path / "weights", task)
    assert list(record["runs"]) == ["0", "1"]
    for run in record["runs"].values():
        assert list(run["routers"]) == list(study.ROUTERS)
        assert sum(run["parts"].values()) == 1797
        for each in run["routers"].values():
            # nothing kept is the global model, everything kept the base, and no order is better than the best
            ends = [run["global_accuracy"], run["base_accuracy"]]
            assert each["curve"][:: study.GRID] == pytest.approx(ends, abs=1e-5)
            assert 0 <= each["gap"] == pytest.approx(run["oracle"]["area"] - each["area"])
            assert each["promise"]["held"] == (each["promise"]["drop"] <= task.max_drop)
            assert each["hindsight"]["0"] <= each["hindsight"]["0.05"]
    timed = record["latency"]["cpu"]
    assert timed["weights"] == "saved"
    assert list(timed["64"]) == ["base", "global", "routed, 0.9", "routed, 0.7", "routed, 0.5"]
    assert timed["64"]["global"]["median"] == 1
    # of the first batches; the thresholds are of all images
    assert 0 <= timed["64"]["routed, 0.9"]["asked"] < timed["64"]["routed, 0.5"]["asked"] < 0.8
    assert study.saved("digits") == json.loads(json.dumps(record)) | {
        key: study.saved("digits")[key] for key in ("command", "environment")
    }
    # again without weights: what was trained stays as it was
    again = study.measure("digits", study.saved("digits"), task, "cpu", None)
    assert again["latency"]["cpu"]["weights"] == "random"
    assert again["runs"] == study.saved("digits")["runs"] == json.loads(json.dumps(record["runs"]))
    study.report_published()
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("2 seeds") == 2  # a report of each call
    assert "published, not ours" in printed
    study.draw(["digits"], tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").stat().st_size > 10_000


def test_the_same_seed_gives_the_same_pair(pairs: ModuleType, task: Any) -> None:
    runs = [pairs.train(task, seed, "cpu") for seed in (0, 0, 1)]
    for run in runs:
        assert run.pop("seconds") > 0
    assert runs[0] == runs[1]
    assert runs[0]["routers"]["msp"]["area"] != runs[2]["routers"]["msp"]["area"]


def test_no_image_is_in_two_parts(pairs: ModuleType, task: Any) -> None:
    # digits differ from each other, each pixel counted
    parts = pairs.Apart(task, 0, "cpu").parts
    seen = [tuple(image.flatten().tolist()) for images, _ in parts.values() for image in images]
    assert len(seen) == len(set(seen)) == 1797
    assert [len(parts[name][1]) for name in ("router", "calibration")] == [300, 300]
    other = pairs.Apart(task, 1, "cpu").parts
    assert torch.equal(parts["test"][0], other["test"][0])
    assert not torch.equal(parts["router"][0], other["router"][0])
    fewer = pairs.Apart(replace(task, trained_on=100), 0, "cpu").parts
    assert len(fewer["train"][1]) == 100
    assert torch.equal(fewer["router"][0], parts["router"][0])


def outputs_of(pairs: ModuleType, base: list[int], other: list[int], confidence: list[float]) -> Any:
    """Two classes, and every label is 0."""
    pairs_of_two = zip(base, confidence, strict=True)
    logits = torch.tensor([[each if right else 0.0, 0.0 if right else each] for right, each in pairs_of_two])
    global_logits = torch.eye(2)[[0 if right else 1 for right in other]]
    return pairs.Outputs(logits, torch.zeros(len(base), 1), global_logits, torch.zeros(len(base), dtype=torch.long))


def test_thresholds_come_from_calibration_and_figures_from_the_test_part(pairs: ModuleType) -> None:
    confidence = [4.0, 3.0, 2.0, 1.0] * 100
    right, wrong = [1, 1, 1, 0] * 100, [1, 0, 1, 0] * 100
    calibration = outputs_of(pairs, right, [1] * 400, confidence)
    test = outputs_of(pairs, wrong, [1] * 400, confidence)
    router = pairs.build_router("msp", 2)
    found = pairs.judged(router, {"router": calibration, "calibration": calibration, "test": test}, 0.01)
    # the base is right on the three quarters of which it is surest, as the calibration part has it
    assert found["promise"]["calibration_coverage"] == 0.75
    assert found["promise"]["calibration_drop"] == 0
    assert found["promise"]["samples"] == 400
    # on the test part it is not
    assert found["promise"]["coverage"] == 0.75
    assert found["promise"]["accuracy"] == 0.75
    assert found["promise"]["drop"] == 0.25
    assert found["promise"]["drop_error"] == pytest.approx((0.25 * 0.75 / 399) ** 0.5)
    assert not found["promise"]["held"]
    assert found["thresholds"]["0.5"]["coverage"] == 0.5
    assert found["thresholds"]["0.5"]["drop"] == 0.25
    assert found["at"] == pytest.approx({"0.9": 1 - (100 + 60) / 400, "0.7": 0.75, "0.5": 0.75})
    # a quarter can be kept without loss, known afterwards
    assert found["hindsight"] == {"0": 0.25, "0.01": 0.25}


def test_a_promise_that_nothing_keeps_asks_about_everything(pairs: ModuleType) -> None:
    never = outputs_of(pairs, [0] * 400, [1] * 400, [1.0 + each for each in range(400)])
    found = pairs.judged(pairs.build_router("msp", 2), dict.fromkeys(("router", "calibration", "test"), never), 0.01)
    assert found["promise"]["threshold"] == "-inf"
    assert (found["promise"]["coverage"], found["promise"]["drop"]) == (0, 0)
    assert found["promise"]["held"]


def test_networks_that_diverge_are_told(pairs: ModuleType, task: Any) -> None:
    class Lost(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * torch.nan

    network = Lost(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(RuntimeError, match="a network diverged"):
        pairs.outputs(
            task,
            {"base": network, "global_model": network},
            torch.zeros(3, 1, 8, 8),
            torch.zeros(3, dtype=torch.long),
        )


def test_routers_are_compared_seed_by_seed(study: ModuleType) -> None:
    def run(msp: float, other: float) -> dict[str, Any]:
        areas = {router: msp if router == "msp" else other for router in study.ROUTERS}
        return {"routers": {router: {"area": area, "at": {"0.9": area, "0.7": area, "0.5": 0.5}}
                            for router, area in areas.items()}}  # fmt: skip

    found = study.comparisons({"runs": {"0": run(0.80, 0.82), "1": run(0.90, 0.90)}})
    assert set(found) == set(study.ROUTERS) - {"msp"}
    area, first, _, last = found["gain"]
    assert area == first == pytest.approx((1.0, 1.0, 1))
    assert last == (0, 0, 0)


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10-6k"])
def test_the_global_model_costs_at_least_five_times_the_base(study: ModuleType, pairs: ModuleType, name: str) -> None:
    cost = pairs.footprint(study.TASKS[name])
    assert cost["global_model"]["macs"] >= 5 * cost["base"]["macs"] > 50 * cost["router"]["macs"] > 0


@pytest.mark.parametrize("option", [["--results", "FOLDER"], ["--results=FOLDER"]])
def test_results_go_to_the_folder_that_is_named_and_do_not_tell_it(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: list[str]
) -> None:
    folder = tmp_path / "elsewhere"
    called: list[tuple[Any, ...]] = []

    def note(*arguments: Any) -> None:
        called.append(arguments)
        study.save("toy", {}, script="hybrid_images")

    monkeypatch.setattr(study, "study", note)
    option = [each.replace("FOLDER", str(folder)) for each in option]
    monkeypatch.setattr("sys.argv", ["hybrid_images.py", "digits", *option, "--jobs", "2"])
    study.main()
    assert called == [("digits", 5, "cpu", 2, None)]
    command = json.loads((folder / "toy.json").read_text())["command"]
    assert command == "python benchmarks/hybrid_images.py digits --jobs 2"
