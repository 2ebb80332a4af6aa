"""The study of abstaining classifiers on images, at toy size: every method on the same images, reported on others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_efficient import functional as LF


@pytest.fixture
def study(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    study = load("selective_images")
    # ``save`` and ``draw`` look into the folder by this name
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr("harness.RESULTS", tmp_path)
    return study


@pytest.fixture
def task(study: ModuleType) -> Any:
    return study.Task("Digits", "cifar_resnet10_xxxs", 1, 2, 64, 1, False)


def test_every_method_is_trained_reported_and_drawn(
    study: ModuleType, task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {method: {"0": study.train(task, grid[-1], 0, "cpu")} for method, grid in study.METHODS.items()}
    assert runs["CE + SR"]["0"] == study.train(task, study.METHODS["CE + SR"][0], 0, "cpu")
    assert len({next(iter(each["0"]["scores"].values()))["aurc"] for each in runs.values()}) == len(runs)
    record = {"task": vars(task), "runs": runs, "chosen": {"OSP": study.METHODS["OSP"][-1]}}
    study.report("toy", record)
    printed = capsys.readouterr().out
    first, second = printed.split("against CE + SR")
    assert first.count("by") == 3  # those with a head of their own are ranked by SR as well
    # of the baseline over itself: level, and ahead on no seed
    assert "+0.00" in second
    assert "chosen by validation:\nOSP: " in second
    study.save(study.result_name("digits"), record, script="selective_images")
    study.draw(["digits"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_thresholds_come_from_one_part_and_figures_from_the_other(study: ModuleType) -> None:
    class Scored(torch.nn.Module):
        """The first pixel is the confidence, and every answer is class 0."""

        score = "msp"

        def scored(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.eye(2)[torch.zeros(len(images), dtype=torch.long)], images[:, 0]

    class Data:
        parts = {
            "val": (torch.tensor([[0.9], [0.8], [0.7], [0.6]]), torch.tensor([0, 0, 0, 1])),
            "test": (torch.tensor([[0.9], [0.75], [0.65], [0.1]]), torch.tensor([0, 1, 0, 1])),
        }

    found = study.evaluated(Scored(), Data(), "msp")
    # all but the last of the validation part are right: the threshold is 0.7
    assert found["risk_0.01"]["val_coverage"] == 0.75
    assert found["risk_0.01"]["threshold"] == pytest.approx(0.7)
    assert found["risk_0.01"]["coverage"] == pytest.approx(0.5)
    assert found["risk_0.01"]["risk"] == pytest.approx(0.25)
    assert found["coverage_1"] == {"threshold": -float("inf"), "coverage": 1.0, "risk": pytest.approx(0.5)}
    summary = LF.risk_coverage_summary(torch.tensor([0.9, 0.75, 0.65, 0.1]), torch.tensor([0, 1, 0, 1]))
    assert found["aurc"] == float(LF.aurc(summary))
    assert len(found["curve"]) == study.GRID
    assert found["curve"][-1] == 0.5


def test_options_are_chosen_by_the_coverage_on_the_validation_part(study: ModuleType) -> None:
    def found(coverage: float) -> dict[str, Any]:
        other = {"risk_0.01": {"val_coverage": 1 - coverage}}
        return {"scores": {"selector": {"risk_0.01": {"val_coverage": coverage}}, "msp": other}}

    assert study.choose(["first", "second", "third"], [found(0.2), found(0.5), found(0.1)]) == "second"
