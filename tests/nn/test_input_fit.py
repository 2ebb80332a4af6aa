"""InputFit: the size and the normalisation that a network wants, kept in its state."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.input_fit import InputFit

OURS, THEIRS = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.48, 0.45, 0.4), (0.27, 0.26, 0.28))


def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def normalised(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def test_without_an_option_a_batch_stays_as_it_is() -> None:
    images = pixels()
    assert torch.equal(InputFit(3)(images), images)
    fit = InputFit(3)
    fit.renormalize(*OURS, *OURS)
    assert torch.equal(fit(images), images)
    tokens = torch.randn(2, 5)  # no images
    assert torch.equal(InputFit(1)(tokens), tokens)


def test_images_of_one_normalisation_become_those_of_another() -> None:
    fit = InputFit(3)
    fit.renormalize(*OURS, *THEIRS)
    torch.testing.assert_close(fit(normalised(pixels(), *OURS)), normalised(pixels(), *THEIRS))


def test_a_second_normalisation_takes_the_place_of_the_first() -> None:
    fit = InputFit(3)
    fit.renormalize(*OURS, *THEIRS)
    fit.renormalize(*OURS, *OURS)
    assert torch.equal(fit(pixels()), pixels())


def test_the_normalisation_is_part_of_the_state() -> None:
    fit, other = InputFit(3), InputFit(3)
    fit.renormalize(*OURS, *THEIRS)
    other.load_state_dict(fit.state_dict())
    assert torch.equal(other(pixels()), fit(pixels()))
    other.load_state_dict(InputFit(3).state_dict())
    assert torch.equal(other(pixels()), pixels())


@pytest.mark.parametrize("size", [4, 8, 16])
def test_images_are_resized_without_aliasing(size: int) -> None:
    expected = F.interpolate(pixels(), size=(size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(InputFit(3, size)(pixels()), pixels() if size == 8 else expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_is_kept_and_computed_in_float32_at_least(dtype: torch.dtype) -> None:
    fit, images = InputFit(3, 4), pixels().to(dtype)
    fit.renormalize(*OURS, *THEIRS)
    seen = fit(images)
    assert seen.dtype == dtype
    wide = fit(images.to(torch.promote_types(dtype, torch.float32)))
    assert torch.equal(seen, wide.to(dtype))


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_that_is_none_is_told(size: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"image_size={size} must be a number of pixels, 1 or more"):
        InputFit(3, size)


@pytest.mark.parametrize(
    "given",
    [((0.5,), (0.5,), *THEIRS), (OURS[0], (0.2, 0.0, 0.3), *THEIRS), (*OURS, THEIRS[0], (0.2, 0.3, -0.1))],
)
def test_statistics_that_cannot_be_are_told_and_change_nothing(given: tuple[tuple[float, ...], ...]) -> None:
    fit = InputFit(3)
    with pytest.raises(ConfigurationError, match=r"must have 3 values each, the deviations above 0"):
        fit.renormalize(*given)
    assert torch.equal(fit(pixels()), pixels())
