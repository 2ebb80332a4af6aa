"""The table of beliefs: parity with the released code, growth, duplicates, resuming, and several processes."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.losses.self_adaptive import SelfAdaptiveLoss
from lightning_efficient.nn.selective_heads import SelectiveOutputs

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "abstention.npz")
CLOSE = {"rtol": 1e-10, "atol": 1e-14}


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def outputs_of(logits: Tensor) -> SelectiveOutputs:
    return SelectiveOutputs(logits[:, :-1], abstain_logit=logits[:, -1])


def step_of(seed: int, rows: list[int], classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(rows), classes + 1, generator=generator)
    return logits, torch.randint(0, classes, (len(rows),), generator=generator), torch.tensor(rows, dtype=torch.long)


def visit(objective: SelfAdaptiveLoss, step: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    logits, target, index = step
    return objective(outputs_of(logits), target, index)


def label_probability(step: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    logits, target, _ = step
    return logits[:, :-1].softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("num_samples", [None, 10])
def test_three_visits_are_those_of_the_released_code(num_samples: int | None) -> None:
    objective, target, index = SelfAdaptiveLoss(num_samples=num_samples), array("bl__targets"), array("bl__sat_index")
    for step in range(3):
        logits = array(f"bl__sat_step{step}_logits").requires_grad_()
        loss = objective(outputs_of(logits), target, index)["loss"]
        torch.testing.assert_close(loss, array(f"bl__sat_step{step}_loss"), **CLOSE)
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], array(f"bl__sat_step{step}_grad"), **CLOSE)
        kept = array(f"bl__sat_step{step}_hist")[index, target]
        torch.testing.assert_close(objective.belief(index), kept, rtol=1e-10, atol=1e-12)
    assert objective.doubt.values.dtype == torch.float64


def test_a_sample_that_was_not_seen_is_believed() -> None:
    objective = SelfAdaptiveLoss()
    assert torch.equal(objective.belief(torch.tensor([0, 5])), torch.ones(2))
    visit(objective, step_of(0, [2]))
    assert objective.belief(torch.tensor([0, 1, 3, 1000])).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert objective.belief(torch.tensor([2])) < 1


def test_each_sample_has_a_belief_of_its_own_whatever_the_batches() -> None:
    objective, last = SelfAdaptiveLoss(momentum=0.7), dict.fromkeys(range(6), 1.0)
    for seed, rows in enumerate(([4, 0, 2], [1, 3, 5], [5, 4], [0])):
        step = step_of(seed, rows)
        found = visit(objective, step)
        for row, p in zip(rows, label_probability(step).tolist(), strict=True):
            last[row] = 0.7 * last[row] + 0.3 * p
        assert found["belief"].item() == pytest.approx(sum(last[row] for row in rows) / len(rows), rel=1e-5)
    torch.testing.assert_close(objective.belief(torch.arange(6)), torch.tensor(list(last.values())))


def test_the_table_has_one_number_per_sample_and_grows_with_the_largest_index() -> None:
    objective = SelfAdaptiveLoss()
    sizes = []
    for seed, rows in enumerate(([3, 1], [0], [9])):
        visit(objective, step_of(seed, rows))
        sizes.append(objective.doubt.values.shape)
    assert sizes == [(4,), (4,), (10,)]
    assert objective.doubt.values.dtype == torch.float32
    assert SelfAdaptiveLoss(num_samples=7).doubt.values.shape == (7,)


def test_of_two_places_of_one_index_the_last_is_kept() -> None:
    objective, step = SelfAdaptiveLoss(momentum=0.5), step_of(0, [2, 0, 2, 1, 2, 0])
    probability = label_probability(step)
    found = visit(objective, step)
    torch.testing.assert_close(objective.belief(torch.arange(3)), 0.5 + 0.5 * probability[[5, 3, 4]])
    torch.testing.assert_close(found["belief"], (0.5 + 0.5 * probability).mean())


def test_evaluation_keeps_nothing_and_needs_no_index() -> None:
    objective, step = SelfAdaptiveLoss(), step_of(0, [0, 1])
    visit(objective, step)
    before = objective.doubt.values.clone()
    objective.eval()
    logits, target, index = step_of(1, [0, 1])
    for given in (None, index):
        found = objective(outputs_of(logits), target, given)
        torch.testing.assert_close(found["loss"], F.cross_entropy(logits, target))
        assert found["belief"] == 1
    assert torch.equal(objective.doubt.values, before)


@pytest.mark.parametrize("num_samples", [None, 20])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path, num_samples: int | None) -> None:
    whole = SelfAdaptiveLoss(num_samples=num_samples)
    for seed in range(3):
        visit(whole, step_of(seed, [seed, 7, 2]))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    resumed = SelfAdaptiveLoss(num_samples=num_samples)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in range(3, 6):
        step = step_of(seed, [seed, 7, 12])
        assert torch.equal(visit(whole, step)["loss"], visit(resumed, step)["loss"])
    assert torch.equal(whole.doubt.values, resumed.doubt.values)


def test_a_copy_has_a_table_of_its_own() -> None:
    objective = SelfAdaptiveLoss()
    visit(objective, step_of(0, [0, 1]))
    other, before = copy.deepcopy(objective), objective.doubt.values.clone()
    visit(other, step_of(1, [0, 1]))
    assert torch.equal(objective.doubt.values, before)
    assert not torch.equal(other.doubt.values, before)


def test_half_precision_keeps_a_table_of_float32() -> None:
    low, full = SelfAdaptiveLoss(), SelfAdaptiveLoss()
    logits, target, index = step_of(0, [0, 1, 2])
    rounded = logits.half()
    for _ in range(2):
        losses = [visit(low, (rounded, target, index))["loss"], visit(full, (rounded.float(), target, index))["loss"]]
        assert torch.equal(*losses)
    assert low.doubt.values.dtype == torch.float32
    assert torch.equal(low.doubt.values, full.doubt.values)


def test_any_type_of_integer_is_an_index() -> None:
    objective, (logits, target, index) = SelfAdaptiveLoss(), step_of(0, [3, 1])
    objective(outputs_of(logits), target.int(), index.to(torch.uint8))
    assert (objective.belief(index) < 1).all()


@pytest.mark.parametrize(
    ("options", "index", "message"),
    [
        ({}, None, r"objective 'sat' needs to know which samples a batch has;.*data module with sample_keys"),
        ({}, None, r"or batches \(inputs, target, index\)"),
        ({}, torch.tensor([0, -1]), r"index has -1; it must be a position in the training data, 0 or more\."),
        ({}, torch.tensor([0]), r"index has dtype torch.int64 and shape \(1,\); give .*shape \(2,\)"),
        ({}, torch.tensor([0.0, 1.0]), r"index has dtype torch.float32"),
        ({}, torch.tensor([True, False]), r"index has dtype torch.bool"),
        ({"num_samples": 3}, torch.tensor([0, 3]), r"index has 3; .* and below num_samples=3"),
        ({"num_samples": 3}, torch.tensor([-5, 2]), r"index has -5"),
    ],
)
def test_an_index_that_cannot_work_is_said_and_nothing_is_kept(
    options: dict, index: Tensor | None, message: str
) -> None:
    objective, (logits, target, _) = SelfAdaptiveLoss(**options), step_of(0, [0, 1])
    with pytest.raises(ConfigurationError, match=message) as error:
        objective(outputs_of(logits), target, index)
    assert "\n" not in str(error.value)
    assert not objective.doubt.values.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.1}, r"momentum=1.1 is outside \[0, 1\]"),
        ({"num_samples": 0}, r"num_samples=0 must be a whole number, 1 or more"),
        ({"num_samples": 2.5}, r"num_samples=2.5 must be a whole number"),
    ],
)
def test_options_that_cannot_work_are_said(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SelfAdaptiveLoss(**options)


def test_outputs_without_the_head_are_said() -> None:
    with pytest.raises(ConfigurationError, match=r"SelfAdaptiveLoss needs abstain_logit.*needs=abstain"):
        SelfAdaptiveLoss()(SelectiveOutputs(torch.zeros(1, 2)), torch.tensor([0]), torch.tensor([0]))


@pytest.mark.slow
def test_two_processes_with_parts_of_the_batch_have_the_table_of_one_with_all_of_it(tmp_path: Path) -> None:
    rows = [[0, 1, 2, 3, 4, 5, 6, 7], [7, 8, 0, 9, 1, 20], [3, 2, 5, 4], [4, 1, 4, 1]]
    cuts = {"halves": [4, 3, 2, 2], "uneven": [7, 1, 3, 2], "empty": [8, 0, 4, 0]}
    cases = {
        name: [(*step_of(seed, row), cut) for seed, (row, cut) in enumerate(zip(rows, at, strict=True))]
        for name, at in cuts.items()
    }
    torch.save(cases, tmp_path / "data.pt")
    worker = Path(__file__).with_name("self_adaptive_worker.py")
    arguments = [str(tmp_path / name) for name in ("store", "data.pt", "found")]
    ranks = [subprocess.Popen([sys.executable, str(worker), str(rank), *arguments]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    found = [torch.load(tmp_path / f"found.{rank}", weights_only=True) for rank in range(2)]
    for name, steps in cases.items():
        alone = SelfAdaptiveLoss()
        losses = [visit(alone, step[:3])["loss"] * len(step[2]) for step in steps]
        assert torch.equal(found[0][name]["table"], found[1][name]["table"])
        torch.testing.assert_close(found[0][name]["table"], alone.doubt.values, rtol=1e-6, atol=1e-7)
        parts = sum(rank[name]["losses"].nan_to_num() for rank in found)
        torch.testing.assert_close(parts, torch.stack(losses), rtol=1e-5, atol=1e-5)
