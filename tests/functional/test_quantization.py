"""Affine quantisation: exact zero, half a step of error, and a gradient that ignores the rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.quantization import (
    affine_parameters,
    dequantize,
    fake_quantize,
    quantization_range,
    quantize,
)

numbers = st.floats(-(2.0**100), 2.0**100, width=32)
tensors = st.lists(numbers, min_size=1, max_size=20).map(lambda values: torch.tensor(values, dtype=torch.float32))
bits = st.integers(2, 16)
kinds = st.sampled_from([(True, False), (False, False), (True, True)])


@given(tensors, bits, kinds)
@settings(deadline=None)
def test_zero_comes_back_as_zero_and_the_rest_within_half_a_step(x, bits: int, kind: tuple[bool, bool]) -> None:
    parameters = affine_parameters(*quantization_range(x), bits, *kind)
    x = torch.cat([x, torch.zeros(1)])
    integers = quantize(x, parameters)
    back = dequantize(integers, parameters)
    assert back[-1] == 0
    assert integers[-1] == parameters.zero_point
    assert parameters.low <= integers.min() <= integers.max() <= parameters.high
    # float32 carries 24 bits, of which the integers take up to 16
    slack = 1e-5 * (2**bits) * float(parameters.scale) / 2
    assert (back - x).abs().max() <= float(parameters.scale) / 2 + slack / 2**6
    if kind == (True, True):
        assert parameters.zero_point == 0


@given(numbers, st.integers(1, 5), bits, kinds)
@settings(deadline=None)
def test_constants_come_back(value: float, size: int, bits: int, kind: tuple[bool, bool]) -> None:
    x = torch.full((size,), value)
    parameters = affine_parameters(*quantization_range(x), bits, *kind)
    assert parameters.scale > 0
    torch.testing.assert_close(dequantize(quantize(x, parameters), parameters), x, rtol=1e-6, atol=1e-33)


@pytest.mark.parametrize(
    ("bits", "signed", "symmetric", "low", "high", "dtype"),
    [
        (8, True, False, -128, 127, torch.int8),
        (8, False, False, 0, 255, torch.uint8),
        (8, True, True, -127, 127, torch.int8),
        (4, True, False, -8, 7, torch.int8),
        (4, False, False, 0, 15, torch.uint8),
        (16, True, False, -32768, 32767, torch.int32),
    ],
)
def test_integers_have_the_range_of_their_bits(
    bits: int, signed: bool, symmetric: bool, low: int, high: int, dtype: torch.dtype
) -> None:
    parameters = affine_parameters(-1.0, 1.0, bits, signed, symmetric)
    assert (parameters.low, parameters.high) == (low, high)
    integers = quantize(torch.tensor([-9.0, 9.0]), parameters)
    assert integers.dtype == dtype
    assert integers.tolist() == [low, high]


def test_a_known_range_has_a_known_scale_and_zero_point() -> None:
    parameters = affine_parameters(-1.0, 3.0, bits=4, signed=False)
    assert float(parameters.scale) == pytest.approx(4 / 15)
    assert int(parameters.zero_point) == 4  # 15 / 4, rounded
    assert int(affine_parameters(-1.0, 3.0, bits=4).zero_point) == 4 - 8


def test_a_range_is_widened_to_contain_zero() -> None:
    low, high = quantization_range(torch.tensor([2.0, 3.0]))
    assert (float(low), float(high)) == (0.0, 3.0)
    parameters = affine_parameters(2.0, 3.0, signed=False)
    assert (float(parameters.scale), int(parameters.zero_point)) == (pytest.approx(3 / 255), 0)


def test_each_channel_has_a_step_of_its_own() -> None:
    x = torch.stack([torch.linspace(-1, 1, 9), torch.linspace(0, 100, 9), torch.zeros(9)]).reshape(3, 3, 3)
    parameters = affine_parameters(*quantization_range(x, dim=0))
    assert parameters.scale.shape == (3, 1, 1)
    assert parameters.scale.flatten().tolist() == pytest.approx([2 / 255, 100 / 255, 1.0])
    error = (dequantize(quantize(x, parameters), parameters) - x).abs()
    assert (error <= parameters.scale / 2 + 1e-5).all()
    assert error[2].max() == 0
    assert quantization_range(x, dim=-1)[0].shape == (1, 1, 3)
    vector = torch.tensor([1.0, -2.0])
    assert quantization_range(vector, dim=0)[0].tolist() == [0.0, -2.0]


def test_the_widest_range_of_floats_does_not_overflow() -> None:
    largest = torch.finfo(torch.float32).max
    parameters = affine_parameters(-largest, largest)
    assert parameters.scale.isfinite()
    assert dequantize(quantize(torch.tensor([0.0, 1e38]), parameters), parameters)[1] == pytest.approx(1e38, rel=0.02)


@given(tensors, numbers, numbers, bits, st.booleans())
@settings(deadline=None)
def test_fake_quantisation_is_there_and_back_with_a_gradient_of_one_inside_only(
    x, first: float, second: float, bits: int, symmetric: bool
) -> None:
    low, high = sorted((first, second))
    x = x.requires_grad_()
    rounded = fake_quantize(x, low, high, bits, symmetric)
    (3 * rounded).sum().backward()
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    parameters = affine_parameters(low, high, bits, symmetric=symmetric)
    inside = x.detach().clamp(low, high)
    assert torch.equal(rounded.detach(), dequantize(quantize(inside, parameters), parameters))
    expected = ((x >= torch.tensor(low)) & (x <= torch.tensor(high))).float() * 3
    assert torch.equal(x.grad, expected)


def test_the_range_gets_no_gradient_and_half_precision_stays() -> None:
    x = torch.tensor([0.3, 0.7], dtype=torch.bfloat16, requires_grad=True)
    low, high = torch.tensor(-1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    rounded = fake_quantize(x, low, high)
    assert rounded.dtype == torch.bfloat16
    rounded.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]
    assert low.grad is None
    assert high.grad is None


def test_fake_quantisation_takes_one_range_for_each_channel() -> None:
    x = torch.tensor([[0.4, 40.0], [0.4, 40.0]])
    rounded = fake_quantize(x, *quantization_range(torch.tensor([[1.0], [100.0]]), dim=0), bits=2)
    torch.testing.assert_close(rounded, torch.tensor([[1 / 3, 1.0], [0.0, 100 / 3]]))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: affine_parameters(-1.0, 1.0, bits=1), "bits=1 must be an integer from 2 to 16"),
        (lambda: affine_parameters(-1.0, 1.0, bits=8.0), "bits=8.0 must be"),
        (lambda: affine_parameters(-1.0, 1.0, signed="no"), "signed='no' must be True or False"),
        (lambda: affine_parameters(-1.0, 1.0, signed=False, symmetric=True), "symmetric=True needs signed=True"),
        (lambda: affine_parameters(1.0, -1.0), "finite numbers with low <= high"),
        (lambda: affine_parameters(-1.0, float("inf")), "finite numbers with low <= high"),
        (lambda: quantization_range(torch.tensor([1.0, float("nan")])), "finite ones only"),
        (lambda: quantization_range(torch.zeros(0, 2)), r"x of shape \(0, 2\) must hold"),
        (lambda: quantization_range(torch.zeros(3, 2), dim=2), "dim=2 must be None or a dimension"),
    ],
    ids=["bits", "float", "flag", "unsigned", "order", "infinite", "nan", "empty", "dim"],
)
def test_bad_input_is_named(call, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        call()
