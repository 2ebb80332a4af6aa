"""Numbers as small integers: affine quantisation in which zero stays exactly zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_flag, is_integer
from lightning_efficient.functional._precision import at_least_float32

_BITS = (2, 16)


@dataclass(frozen=True)
class QuantizationParameters:
    """What it takes to turn numbers into integers and back: ``x̂ = scale (q - zero_point)``.

    Attributes:
        scale: Step between two neighbouring numbers, above 0; float, scalar or broadcastable to the numbers.
        zero_point: The integer that stands for 0, int32, shape of ``scale``.
        low: Smallest integer.
        high: Largest integer.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int


def quantization_range(x: Tensor, *, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Smallest and largest number, widened to contain 0.

    Args:
        x: Any shape, at least one number, finite.
        dim: None for one range of the whole tensor; else the dimension of the channels, each with a range of its own.

    Returns:
        Lower and upper end, float32 or wider: scalars, or of shape ``(1, ..., channels, ..., 1)``.

    Raises:
        ConfigurationError: no numbers, numbers that are not finite, or no such dimension.

    Example:
        >>> quantization_range(torch.tensor([[1.0, 3.0], [-2.0, 1.0]]), dim=0)
        (tensor([[ 0.],
                [-2.]]), tensor([[3.],
                [1.]]))
    """
    values = at_least_float32(x.detach())
    if not values.numel() or not values.isfinite().all():
        raise ConfigurationError(f"x of shape {tuple(x.shape)} must hold at least one number, and finite ones only.")
    if dim is None:
        low, high = values.aminmax()
    else:
        if not is_integer(dim) or not -x.ndim <= dim < x.ndim:
            raise ConfigurationError(f"dim={dim!r} must be None or a dimension of the shape {tuple(x.shape)}.")
        others = [each for each in range(x.ndim) if each != dim % x.ndim]
        low = values.amin(others, keepdim=True) if others else values
        high = values.amax(others, keepdim=True) if others else values
    return low.clamp(max=0.0), high.clamp(min=0.0)


def affine_parameters(
    low: Tensor | float, high: Tensor | float, bits: int = 8, signed: bool = True, symmetric: bool = False
) -> QuantizationParameters:
    """Scale and zero point of a range.

    The range is widened to contain 0. Its ends are then at most half a step from integers, and
    ``scale = (high - low) / (2^b - 1)``; a range that is 0 alone gets a scale of 1.

    Args:
        low: Lower end, scalar or one for each channel.
        high: Upper end, likewise.
        bits: Of an integer, 2 to 16.
        signed: Integers from ``-2^(b-1)`` to ``2^(b-1) - 1``, else from 0 to ``2^b - 1``.
        symmetric: Make the zero point 0, as is usual for weights: the scale is then that of the larger end, and
            integers are signed and without ``-2^(b-1)``.

    Raises:
        ConfigurationError: an option is out of range, ends that are not finite or not in order, or unsigned integers
            of a symmetric range.

    Example:
        >>> parameters = affine_parameters(-1.0, 1.55)
        >>> f"{parameters.scale:.2f}", int(parameters.zero_point), parameters.low, parameters.high
        ('0.01', -28, -128, 127)

    Reference:
        Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko. Quantization and Training of Neural Networks for
        Efficient Integer-Arithmetic-Only Inference. CVPR 2018. Menghani. Efficient Deep Learning. ACM Computing Surveys
        2023: Algorithms 2 and 3.
    """
    check_flag("signed", signed)
    check_flag("symmetric", symmetric)
    if not is_integer(bits) or not _BITS[0] <= bits <= _BITS[1]:
        raise ConfigurationError(f"bits={bits!r} must be an integer from {_BITS[0]} to {_BITS[1]}.")
    if symmetric and not signed:
        raise ConfigurationError("symmetric=True needs signed=True: half of the unsigned integers would go unused.")
    low, high = _ends(low, high)
    first = -(2 ** (bits - 1)) if signed else 0
    last = first + 2**bits - 1
    if symmetric:
        first += 1
        scale = _scale(torch.maximum(-low, high) / last)
        zero_point = torch.zeros_like(scale)
    else:
        scale = _scale(high / (2**bits - 1) - low / (2**bits - 1))  # high - low could overflow
        zero_point = (first - low / scale).round().clamp(first, last)
    return QuantizationParameters(scale, zero_point.to(torch.int32), first, last)


def quantize(x: Tensor, parameters: QuantizationParameters) -> Tensor:
    """Integers ``clamp(round(x / scale) + zero_point)``.

    Args:
        x: Finite numbers, any shape to which the scale broadcasts.
        parameters: Of :func:`affine_parameters`.

    Returns:
        Shape of ``x``; the smallest of int8, uint8 and int32 that holds the integers.

    Example:
        >>> quantize(torch.tensor([-1.0, 0.0, 1.55, 9.0]), affine_parameters(-1.0, 1.55))
        tensor([-128,  -28,  127,  127], dtype=torch.int8)
    """
    # half of a float32 is not exact beyond 2^23, so the clamp comes before the cast
    steps = (at_least_float32(x) / parameters.scale).round() + parameters.zero_point
    integers = steps.clamp(parameters.low, parameters.high)
    return integers.to(_integer_type(parameters))


def dequantize(q: Tensor, parameters: QuantizationParameters) -> Tensor:
    """Numbers ``scale (q - zero_point)``; 0 comes back as exactly 0.

    Args:
        q: Integers of :func:`quantize`.
        parameters: The same.

    Returns:
        Shape of ``q``, dtype of the scale. A number inside the range comes back within half a step.

    Example:
        >>> parameters = affine_parameters(-1.0, 1.55)
        >>> dequantize(quantize(torch.tensor([0.0, 0.5]), parameters), parameters)
        tensor([0.0000, 0.5000])
    """
    return parameters.scale * (q.to(torch.int32) - parameters.zero_point)


def fake_quantize(
    x: Tensor, low: Tensor | float, high: Tensor | float, bits: int = 8, symmetric: bool = False
) -> Tensor:
    """What quantising and back makes of numbers, with a gradient that passes straight through the rounding.

    The gradient in ``x`` is 1 within the range, both ends included, and 0 outside; the range gets none.

    Args:
        x: Any shape.
        low: Lower end of the range, scalar or broadcastable; it is widened to contain 0.
        high: Upper end, likewise.
        bits: Of an integer, 2 to 16.
        symmetric: As in :func:`affine_parameters`; the range is then made symmetric for the gradient too.

    Returns:
        Exactly ``dequantize(quantize(x))``, shape and dtype of ``x``.

    Raises:
        ConfigurationError: as :func:`affine_parameters`.

    Example:
        >>> x = torch.tensor([-2.0, 0.3, 0.9], requires_grad=True)
        >>> rounded = fake_quantize(x, -1.0, 2.0, bits=2)
        >>> rounded.sum().backward()
        >>> rounded.tolist(), x.grad.tolist()
        ([-1.0, 0.0, 1.0], [0.0, 1.0, 1.0])

    Reference:
        Bengio, Léonard, Courville. Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation. 2013: the straight-through estimator. Jacob et al. CVPR 2018.
    """
    low, high = _ends(low, high)
    parameters = affine_parameters(low, high, bits, symmetric=symmetric)
    low, high = low.to(x.device), high.to(x.device)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    values = at_least_float32(x)
    parameters = _on(parameters, x.device)
    rounded = dequantize(quantize(values.detach().clamp(low, high), parameters), parameters)
    passing = torch.where((values >= low) & (values <= high), values, 0.0)
    return (rounded + (passing - passing.detach())).to(x.dtype)  # exactly `rounded`: what is added is 0


def _ends(low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
    ends = [at_least_float32(torch.as_tensor(end).detach()) for end in (low, high)]
    if not all(end.isfinite().all() for end in ends) or (ends[0] > ends[1]).any():
        raise ConfigurationError("low and high must be finite numbers with low <= high.")
    return ends[0].clamp(max=0.0), ends[1].clamp(min=0.0)


def _scale(scale: Tensor) -> Tensor:
    # a subnormal step would be too coarse for its own range
    return torch.where(scale == 0, 1.0, scale.clamp(min=torch.finfo(scale.dtype).tiny))


def _integer_type(parameters: QuantizationParameters) -> torch.dtype:
    small = torch.int8 if parameters.low < 0 else torch.uint8
    fits = torch.iinfo(small).min <= parameters.low and parameters.high <= torch.iinfo(small).max
    return small if fits else torch.int32


def _on(parameters: QuantizationParameters, device: torch.device) -> QuantizationParameters:
    return QuantizationParameters(
        parameters.scale.to(device), parameters.zero_point.to(device), parameters.low, parameters.high
    )
