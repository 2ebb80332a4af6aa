"""The studies of scaffolded distillation, at toy size, and the landscape at its full size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

Load = Callable[[str], ModuleType]


@pytest.fixture
def landscape(load: Load) -> ModuleType:
    return load("disk_landscape")


@pytest.fixture
def toy(load: Load) -> ModuleType:
    study = load("disk_toy")
    study.TEACHER_STEPS, study.WARM_STEPS, study.STEPS = 20, 10, 40
    return study


def test_help_on_the_hard_points_leaves_only_the_best_of_three_minima(landscape: ModuleType) -> None:
    found = landscape.study([1.5, 1.75, 2.0], [0.0, 0.2, 1.0])
    places = {name: [(one.start, one.width) for one in each] for name, each in found["1.75"].items()}
    assert places["KD"] == places["g = 0"] == [(2.0, 1.5), (2.25, 4.75), (4.75, 2.5)]
    assert places["g = 1"] == [(4.75, 2.5)]
    counts = {name: [len(found[steepness][name]) for steepness in ("1.5", "2")] for name in places}
    assert counts == {"KD": [2, 3], "g = 0": [2, 3], "g = 0.2": [1, 2], "g = 1": [1, 2]}


def test_without_help_the_landscape_is_that_of_distillation(landscape: ModuleType) -> None:
    found = landscape.surfaces(1.75, [0.0], landscape.points(4))
    torch.testing.assert_close(found["g = 0"], found["KD"])


def test_loss_of_one_student_is_the_average_of_its_logarithms(landscape: ModuleType) -> None:
    data = landscape.points(4)
    start, width = landscape.STARTS[8], landscape.WIDTHS[3]
    ends = torch.sigmoid(2 * (data.position - start)) * torch.sigmoid(2 * (start + width - data.position))
    inside = torch.sigmoid(8 * (ends - 0.5))
    helped = torch.where(data.inside, inside, 1 - inside) + 0.3 * ((data.position > 2) & (data.position < 3))
    expected = -(data.share * helped.log()).sum()
    torch.testing.assert_close(landscape.surfaces(2.0, [0.3], data)["g = 0.3"][8, 3], expected)


def test_shares_give_the_published_accuracies_to_students_with_hard_ends(landscape: ModuleType) -> None:
    data = landscape.points()
    assert data.share.sum().item() == pytest.approx(1)
    right = landscape.accuracies(1000.0, data)
    places = [(4 * start, 4 * width - 1) for start, width in ((5, 2), (2, 5), (2, 1))]
    assert [right[place].item() for place in places] == pytest.approx([0.87, 0.83, 0.67])


def test_minima_lie_inside_the_grid_and_below_all_neighbours(landscape: ModuleType) -> None:
    surface = torch.ones(35, 36, dtype=torch.float64)
    surface[4, 7], surface[20, 20], surface[20, 21], surface[0, 30] = 0.5, 0.2, 0.2, -1.0
    accuracy = torch.zeros(35, 36)
    accuracy[4, 7] = 0.75
    assert landscape.minima(surface, accuracy) == [(1.0, 2.0, 0.5, 0.75)]


def test_surfaces_are_drawn_small(landscape: ModuleType, tmp_path: Path) -> None:
    landscape.draw(tmp_path / "surfaces.png")
    assert 10_000 < (tmp_path / "surfaces.png").stat().st_size < 150_000


def test_methods_differ_in_what_they_were_taught_only(
    toy: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    toy.KD_GRID, toy.DKD_GRID, toy.HELP_GRID = [(1.0, 0.1), (4.0, 0.0)], [(1.0, 1.0)], (0.1, 1.0)
    found = toy.compare(toy.prepare(seed=100), hidden=8)
    assert list(found) == ["CE, start", "CE", "KD", "KD, twice the steps", "DKD", *toy.METHODS[4:]]
    assert found["KD"]["val_accuracy"] == max(run["val_accuracy"] for run in found["KD"]["tried"])
    assert found["KD, twice the steps"]["options"] == found["KD"]["options"]
    assert [run["options"] for run in found["DiSK, constant help"]["tried"]] == [{"help": 0.1}, {"help": 1.0}]
    assert 0 < found["DiSK"]["guide_mean"] < 1
    assert found["CE"]["test_accuracy"] > found["CE, start"]["test_accuracy"] > 1 / 50
    record = {"runs": {"8": {"100": {"methods": found}}}}
    record["summary"] = {"8": toy.summary(record["runs"]["8"])}
    toy.report(record)
    assert "DiSK minus it" in capsys.readouterr().out
    toy.draw(record, tmp_path / "accuracies.png")
    assert 1000 < (tmp_path / "accuracies.png").stat().st_size < 150_000


def test_without_help_and_with_all_classes_as_support_disk_is_distillation(toy: ModuleType) -> None:
    task = toy.prepare(seed=100)
    students = []
    for objective in (toy.scaffold(toy.ConstantGuide(0.0)), toy.KnowledgeDistillation(1.0)):
        torch.manual_seed(0)
        students.append(toy.perceptron(8))
        if isinstance(objective, toy.GuidedDistillation):
            objective.loss.top_k = 50
        toy.learn(students[-1], objective, task, steps=30)
    logits = [student(task.data["val"].inputs) for student in students]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def test_student_and_guide_both_learn_and_the_student_has_all_its_steps(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, learned = toy.prepare(seed=100), []
    advance = toy.advance
    monkeypatch.setattr(toy, "advance", lambda optimizer, loss: (learned.append(optimizer), advance(optimizer, loss)))
    guide = toy.FeaturesGuide(256, hidden=(16,))
    before = [parameter.clone() for parameter in guide.parameters()]
    toy.learn_in_turns(toy.perceptron(8), toy.scaffold(guide), task, steps=40)
    first, last = learned[0], learned[-1]
    assert learned.count(last) == 40
    # the warm-up, then a turn after each of the student's two whole turns
    assert learned.count(first) == 50 + 2 * 16
    assert not all(torch.equal(old, new) for old, new in zip(before, guide.parameters(), strict=True))


def test_summary_compares_seed_by_seed(toy: ModuleType) -> None:
    def seed(disk: float, kd: float) -> dict:
        reached = dict.fromkeys(("CE, start", *toy.METHODS), 0.1) | {"DiSK": disk, "KD": kd}
        return {"methods": {name: {"test_accuracy": one, "cpu_seconds": 2.0} for name, one in reached.items()}}

    found = toy.summary({"0": seed(0.5, 0.25), "1": seed(0.25, 0.5), "2": seed(0.5, 0.25)})
    gap = found["DiSK minus"]["KD"]
    assert gap["seeds"] == [25.0, -25.0, 25.0]
    assert gap["wins"] == 2
    assert gap["mean"] == pytest.approx(25 / 3)
    assert gap["se"] == pytest.approx(50 / 3)
    assert found["accuracy"]["CE"]["mean"] == pytest.approx(10)
    assert (found["cpu_seconds"], found["cpu_seconds_of_CE_KD_DiSK"]) == (48.0, 24.0)


@pytest.mark.study
@pytest.mark.slow
def test_a_guide_helps_a_student_that_is_too_small_more_than_distillation_does(toy: ModuleType) -> None:
    toy.TEACHER_STEPS, toy.WARM_STEPS, toy.STEPS = 100, 400, 240
    toy.KD_GRID, toy.DKD_GRID, toy.HELP_GRID = [(1.0, 0.0), (2.0, 0.0), (4.0, 0.0)], [(1.0, 1.0)], (0.1,)
    found = toy.compare(toy.prepare(seed=100), hidden=8)
    # by 1.8 to 3.0 points on seeds 100 to 103, over the distillation that validation chooses
    assert found["DiSK"]["test_accuracy"] > max(run["test_accuracy"] for run in found["KD"]["tried"]) + 0.005
    assert found["DiSK"]["guide_mean_wrong"] > found["DiSK"]["guide_mean_right"]
    assert found["DiSK"]["help_cost"] < 0.6
