from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lightning_efficient.datamodules import Digits


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits(image_size=8, in_chans=1, mean=[0.0], std=[1.0], augment=False)
    data.setup()
    return data


def test_parts_have_fixed_sizes_and_share_no_image(digits):
    positions = {split: dataset.images.positions for split, dataset in digits.datasets.items()}
    assert {split: len(chosen) for split, chosen in positions.items()} == {"train": 1197, "val": 300, "test": 300}
    assert sorted(np.concatenate(list(positions.values()))) == list(range(1797))


def test_classes_are_in_proportion_in_every_part(digits):
    for dataset in digits.datasets.values():
        counts = np.bincount(dataset.images.chosen_labels)
        exact = np.bincount(load_digits().target) * len(dataset) / 1797
        assert np.abs(counts - exact).max() < 1.5


def test_split_ignores_global_seeds_and_split_options(digits):
    torch.manual_seed(123)
    np.random.seed(123)
    other = Digits(image_size=8, split_seed=9, val_fraction=0.5)
    other.setup()
    for split, dataset in other.datasets.items():
        assert dataset.images.positions.tolist() == digits.datasets[split].images.positions.tolist()


def test_pixels_at_native_size_are_those_of_scikit_learn(digits):
    dataset = digits.datasets["val"]
    original = load_digits().images[dataset.images.positions[0]]
    image, label = dataset[0]
    np.testing.assert_allclose(image[0].numpy() * 16, original, atol=16 / 255)
    assert label == load_digits().target[dataset.images.positions[0]]


@pytest.mark.parametrize("in_chans", [1, 3])
def test_default_size_is_32_with_any_channels(in_chans):
    data = Digits(in_chans=in_chans)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, *data.input_shape) == (64, in_chans, 32, 32)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_augmentation_moves_digits_and_never_mirrors_them(digits):
    moving = Digits(image_size=8, in_chans=1, mean=[0.0], std=[1.0])
    moving.setup("fit")
    still = torch.stack([image for image, _ in digits.datasets["train"]])
    moved = torch.stack([image for image, _ in moving.datasets["train"]])

    def distance(a, b):
        return (a - b).square().mean()

    assert distance(moved, still) > 0.01
    assert 2 * distance(moved, still) < distance(moved, still.flip(-1))
    steps = [type(step).__name__ for step in moving.datasets["train"].transform.transforms]
    assert not any("Flip" in name for name in steps)
