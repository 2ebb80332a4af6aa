"""The study of distillation on images, at toy size: every method trains from the same start and is reported."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def study(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("disk_images")


def test_every_method_goes_on_from_the_start_that_was_kept(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "cifar_resnet10_xxxs"
    task = study.Task("Digits", small, small, 1, 1, 1, 1, 64, 1, False)
    run = partial(study.train, task, small, seed=0, device="cpu", folder=tmp_path)
    ce = study.METHODS["CE"][0]
    teacher = run(ce, 1, keep="teacher.pt")
    start = run(ce, 1, keep="0.pt")
    assert teacher == start  # the same seed: what a run gives depends on nothing else
    found: dict[str, dict[str, Any]] = {
        method: {"0": run(grid[-1], 1, start="0.pt")} for method, grid in study.METHODS.items()
    }
    assert len({runs["0"]["test/accuracy"] for runs in found.values()}) > 1
    assert found["DiSK, constant guide"]["0"]["guide/mean"] == pytest.approx(0.2)
    assert found["CE"]["0"]["test/accuracy"] > start["test/accuracy"]
    study.report("toy", {"task": vars(task), "teacher": teacher, "warm": start["test/accuracy"], "runs": found})
    assert "DiSK, constant guide" in capsys.readouterr().out.replace("\n", " ")


def test_images_are_moved_by_whole_pixels_and_mirrored(load: Callable[[str], ModuleType]) -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4).repeat(64, 2, 1, 1) + 1
    draw = torch.Generator().manual_seed(0)
    moved = load("images").augmented(images, 1, True, draw)
    padded = torch.nn.functional.pad(images[0, 0], (1, 1, 1, 1))
    possible = [padded[down : down + 4, right : right + 4] for down in range(3) for right in range(3)]
    possible += [each.flip(1) for each in possible]
    for image in moved:
        assert torch.equal(image[0], image[1])
        assert any(torch.equal(image[0], each) for each in possible)
    assert len({tuple(image[0].flatten().tolist()) for image in moved}) > 9
