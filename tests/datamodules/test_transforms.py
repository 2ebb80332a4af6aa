from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_efficient.datamodules._transforms import Preparation, merged_policy
from lightning_efficient.errors import ConfigurationError

SHAPE = (3, 4, 4)
NOTHING = {"mean": None, "std": None, "interpolation": None}
PLAIN = Preparation(SHAPE, (0.0,) * 3, (1.0,) * 3, "bilinear")


def test_options_win_over_the_model_and_the_model_over_imagenet():
    config = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "interpolation": "bicubic"}
    assert Preparation.resolve(SHAPE, NOTHING, {}).mean == (0.485, 0.456, 0.406)
    assert Preparation.resolve(SHAPE, NOTHING, config) == Preparation(SHAPE, (0.5,) * 3, (0.25,) * 3, "bicubic")
    chosen = Preparation.resolve(SHAPE, {**NOTHING, "mean": [0.1, 0.2, 0.3]}, config)
    assert (chosen.mean, chosen.std) == ((0.1, 0.2, 0.3), (0.25,) * 3)


def test_one_value_serves_three_channels_and_two_values_are_refused():
    assert Preparation.resolve(SHAPE, {**NOTHING, "mean": [0.2]}, {}).mean == (0.2, 0.2, 0.2)
    with pytest.raises(ConfigurationError, match="std has 2 values for 3 channels; give 1 or 3"):
        Preparation.resolve(SHAPE, {**NOTHING, "std": [0.1, 0.2]}, {})


def test_evaluation_scales_to_unit_range_and_normalises():
    white = Image.new("RGB", (4, 4), (255, 255, 255))
    prepared = Preparation(SHAPE, (0.5, 0.0, 1.0), (0.5, 2.0, 1.0), "bilinear").evaluation(1.0)(white)
    torch.testing.assert_close(prepared[:, 0, 0], torch.tensor([1.0, 0.5, 0.0]))
    assert prepared.dtype == torch.float32


def test_evaluation_keeps_the_centre_of_a_wide_image():
    pixels = np.zeros((4, 8), dtype=np.uint8)
    pixels[:, 2:6] = 255
    image = Image.fromarray(pixels).convert("RGB")
    assert (PLAIN.evaluation(1.0)(image) == 1).all()


def test_zero_jitter_builds_no_jitter():
    without = PLAIN.training({"color_jitter": 0.0, "hflip": 0.0})
    assert [type(step).__name__ for step in without.transforms] == [
        "RandomResizedCropAndInterpolation",
        "MaybeToTensor",
        "Normalize",
    ]
    jittered = PLAIN.training({"color_jitter": 0.4, "hflip": 0.0})
    assert "ColorJitter" in [type(step).__name__ for step in jittered.transforms]


def test_an_unknown_augmentation_is_refused_with_a_suggestion():
    with pytest.raises(ConfigurationError, match=r"augment has no option 'hflp'.*Did you mean 'hflip'"):
        merged_policy({"hflp": 0.5}, {})
