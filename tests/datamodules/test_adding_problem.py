from __future__ import annotations

import pytest
import torch

from lightning_efficient.datamodules.adding_problem import AddingProblem, marked_sums
from lightning_efficient.errors import ConfigurationError


def batches(count: int = 1, **options) -> list[tuple[torch.Tensor, torch.Tensor]]:
    data = AddingProblem(**{"length": 10, "batch_size": 50, "train_samples": 100, **options})
    data.setup("fit")
    loader = data.train_dataloader()
    return [batch for _ in range(count) for batch in loader]


def whole(part: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([inputs for inputs, _ in part])


@pytest.mark.parametrize("length", [2, 3, 10, 11])
def test_one_step_of_each_half_is_marked_and_the_marked_values_are_added(length):
    (inputs, target), _ = batches(length=length)
    assert (inputs.shape, target.shape) == ((50, length, 2), (50,))
    assert (inputs.dtype, target.dtype) == (torch.float32, torch.float32)
    values, marks = inputs.unbind(-1)
    assert set(marks.unique().tolist()) <= {0.0, 1.0}
    half = length // 2
    assert marks[:, :half].sum(1).eq(1).all()
    assert marks[:, length - half :].sum(1).eq(1).all()
    assert marks.sum(1).eq(2).all()
    expected = torch.stack([row[mark == 1].sum() for row, mark in zip(values, marks, strict=True)])
    torch.testing.assert_close(target, expected)


def test_places_and_values_are_uniform_and_the_baseline_is_a_sixth():
    data = AddingProblem(8, test_samples=20_000)
    data.setup("test")
    inputs, target = data.datasets["test"].__getitems__(range(20_000))
    torch.testing.assert_close(inputs[..., 1].mean(0), torch.full((8,), 0.25), atol=0.015, rtol=0)
    torch.testing.assert_close(inputs[..., 0].mean(0), torch.full((8,), 0.5), atol=0.015, rtol=0)
    assert data.baseline_loss == 1 / 6
    assert (target - 1).square().mean().item() == pytest.approx(data.baseline_loss, rel=0.03)


def test_the_largest_draw_still_marks_a_step():
    inputs, _ = marked_sums(torch.full((1, 8), 1 - 2**-24), length=6)
    assert inputs[0, :, 1].tolist() == [0, 0, 1, 0, 0, 1]


def test_a_batch_is_what_its_samples_are_one_by_one():
    data = AddingProblem(20)
    data.setup("fit")
    dataset = data.datasets["train"]
    keys = [7, 2**50 + 3, 12_801]
    inputs, target = dataset.__getitems__(keys)
    singles = [dataset[key] for key in keys]
    assert torch.equal(inputs, torch.stack([each[0] for each in singles]))
    assert torch.equal(target, torch.stack([each[1] for each in singles]))


def test_fresh_epochs_never_repeat_a_sample():
    seen = whole(batches(3))
    assert len(seen.unique(dim=0)) == len(seen) == 300


def test_without_fresh_every_epoch_has_the_same_samples_in_another_order():
    first, second = whole(batches(2, fresh=False)).split(100)
    assert not torch.equal(first, second)
    assert torch.equal(first.flatten(1).unique(dim=0), second.flatten(1).unique(dim=0))


def test_samples_follow_from_the_seed_and_not_from_the_global_one():
    torch.manual_seed(1)
    first = whole(batches(seed=5))
    torch.manual_seed(2)
    assert torch.equal(whole(batches(seed=5)), first)
    assert not torch.equal(whole(batches(seed=6)), first)


def test_validation_and_test_are_fixed_and_share_no_sample_with_training():
    data = AddingProblem(10, train_samples=200, val_samples=70, test_samples=60)
    data.setup()
    parts = [whole(list(loader())) for loader in (data.val_dataloader, data.test_dataloader, data.train_dataloader)]
    assert [len(part) for part in parts[:2]] == [70, 60]
    assert torch.equal(whole(list(data.val_dataloader())), parts[0])
    together = torch.cat(parts)
    assert len(together.unique(dim=0)) == len(together)


def test_shapes_for_building_and_profiling_a_model():
    data = AddingProblem(30)
    assert (data.input_shape, data.input_size) == ((30, 2), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "length is 1; it must be at least 2"),
        ({"train_samples": 0}, "train_samples is 0"),
        ({"val_samples": 0}, "val_samples is 0"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        AddingProblem(**options)
