from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_efficient.datamodules._labelled_images import AugmentedImages, ImageDataset, LabelledImages


def noise_of_all_three_generators(image: Image.Image) -> torch.Tensor:
    return torch.tensor([image.getpixel((0, 0)), random.random(), np.random.rand(), torch.rand(()).item()])


@pytest.fixture
def images() -> LabelledImages:
    pairs = [(Image.new("L", (1, 1), 10 * index), index % 2) for index in range(6)]
    return LabelledImages.all_of(pairs, [label for _, label in pairs])


@pytest.fixture
def augmented(images: LabelledImages) -> AugmentedImages:
    return AugmentedImages(images, noise_of_all_three_generators, "L")


def test_a_subset_of_a_subset_counts_within_it(images):
    chosen = images.subset(np.array([1, 3, 5])).subset(np.array([0, 2]))
    assert chosen.positions.tolist() == [1, 5]
    assert chosen.chosen_labels.tolist() == [1, 1]


def test_images_are_converted_to_the_mode_asked_for(images):
    modes = ImageDataset(images, lambda image: image.mode, "RGB")
    assert modes[0] == ("RGB", 0)


def test_reading_past_the_end_raises(images):
    with pytest.raises(IndexError):
        ImageDataset(images, noise_of_all_three_generators, "L")[6]


def test_the_key_alone_decides_the_augmentation(augmented):
    alone = augmented[8][0]
    torch.manual_seed(5)
    together = augmented.__getitems__([1, 8, 2])[1][0]
    assert alone.tolist() == together.tolist()
    assert alone[0] == 20, "key 8 of 6 images is image 2"
    assert (alone[1:] != augmented[2][0][1:]).all(), "another epoch draws other numbers"


def test_global_random_states_are_left_as_they_were(augmented):
    def next_numbers():
        return random.random(), np.random.rand(), torch.rand(()).item()

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = next_numbers()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    augmented.__getitems__([0, 1, 2])
    assert next_numbers() == expected


def test_iterating_an_augmented_set_ends(augmented):
    assert [int(image[0]) for image, _ in augmented] == [0, 10, 20, 30, 40, 50]
