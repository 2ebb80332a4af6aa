from __future__ import annotations

import math

import pytest
import torch

from lightning_efficient.datamodules.gaussian_modes import GaussianModes
from lightning_efficient.errors import ConfigurationError


def ready(**options) -> GaussianModes:
    data = GaussianModes(**options)
    data.setup()
    return data


def part(data: GaussianModes, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    dataset = data.datasets[split]
    return dataset.inputs, dataset.target


def test_sizes_dtypes_and_shapes_for_building_a_model():
    data = ready()
    assert (data.num_classes, data.input_shape) == (50, (24,))
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [4000, 1000, 4000]
    batches = list(data.train_dataloader())
    assert len(batches) == 15
    inputs, labels = batches[0]
    assert (inputs.shape, inputs.dtype, labels.shape, labels.dtype) == ((256, 24), torch.float32, (256,), torch.int64)


def test_samples_lie_around_the_centres_of_their_class():
    data = ready(noise=0.5, test_samples=20_000)
    inputs, labels = part(data, "test")
    distances = torch.cdist(inputs[:, None], data.centres[labels]).squeeze(1)
    nearest, mode = distances.min(1)
    assert nearest.square().mean().item() == pytest.approx(24 * 0.25, rel=0.02)
    torch.testing.assert_close(mode.bincount() / 20_000, torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    torch.testing.assert_close(labels.bincount() / 20_000, torch.full((50,), 1 / 50), atol=0.005, rtol=0)
    assert data.centres.std().item() == pytest.approx(1, rel=0.05)


def test_prediction_is_that_of_bayes_rule_written_out():
    data = ready(classes=4, dimensions=3, noise=0.7, test_samples=30)
    inputs, _ = part(data, "test")
    for given, predicted in zip(inputs.double().tolist(), data.bayes_predict(inputs).tolist(), strict=True):
        density = [
            sum(math.exp(-(math.dist(given, centre) ** 2) / (2 * 0.7**2)) for centre in modes)
            for modes in data.centres.double().tolist()
        ]
        assert predicted == density.index(max(density))


def test_far_from_all_centres_a_class_is_still_predicted():
    data = ready(classes=3, dimensions=2, noise=0.01)
    far = 1e3 * data.centres[:, 0]
    nearest = torch.cdist(far, data.centres.flatten(0, 1)).argmin(1) // 3
    assert torch.equal(data.bayes_predict(far), nearest)


def test_no_rule_beats_bayes_and_little_noise_leaves_no_doubt():
    hard, easy = ready(), ready(noise=0.1)
    inputs, labels = part(hard, "test")
    bayes = (hard.bayes_predict(inputs) == labels).float().mean().item()
    means = hard.centres.mean(1)
    nearest_mean = (torch.cdist(inputs, means).argmin(1) == labels).float().mean().item()
    assert 0.9 < bayes < 0.96
    assert nearest_mean < bayes - 0.2
    inputs, labels = part(easy, "test")
    assert torch.equal(easy.bayes_predict(inputs), labels)


def test_all_follows_from_the_seed_and_not_from_the_global_one():
    torch.manual_seed(1)
    first = ready(seed=5)
    order = [labels for _, labels in first.train_dataloader()]
    torch.manual_seed(2)
    again, other = ready(seed=5), ready(seed=6)
    for split in ("train", "val", "test"):
        assert all(torch.equal(a, b) for a, b in zip(part(first, split), part(again, split), strict=True))
        assert not torch.equal(part(first, split)[0], part(other, split)[0])
    assert all(torch.equal(a, b) for a, b in zip(order, (y for _, y in again.train_dataloader()), strict=True))
    assert not torch.equal(first.centres, other.centres)


def test_parts_are_independent_and_the_size_of_one_changes_no_other():
    small, large = ready(train_samples=100), ready(train_samples=200)
    for split in ("val", "test"):
        assert torch.equal(part(small, split)[0], part(large, split)[0])
    together = torch.cat([part(large, split)[0] for split in ("train", "val", "test")])
    assert len(together.unique(dim=0)) == len(together)


def test_evaluation_is_in_order():
    data = ready(eval_batch_size=300)
    inputs = torch.cat([inputs for inputs, _ in data.val_dataloader()])
    assert torch.equal(inputs, data.datasets["val"].inputs)
    one, label = data.datasets["val"][1007]
    assert torch.equal(one, inputs[7])
    assert label == data.datasets["val"].target[7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "classes is 1; it must be at least 2"),
        ({"modes": 0}, "modes is 0"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"noise": 0.0}, "noise is 0.0; it must be a finite number above 0"),
        ({"noise": math.nan}, "noise is nan"),
        ({"val_samples": 0}, "val_samples is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        GaussianModes(**options)
