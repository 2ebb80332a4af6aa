"""Weights in 8 bits, arithmetic in floating point: a smaller file, no integer kernels."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.quantization import affine_parameters, quantization_range, quantize
from lightning_efficient.nn.quantization._graph import check_example, copied
from lightning_efficient.nn.quantization.result import Quantized
from lightning_efficient.rng import rng_untouched

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Embedding)
_OTHERS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear, nn.EmbeddingBag)


def quantize_weights(network: nn.Module, example: Tensor) -> Quantized:
    """Store the weights of linear layers, convolutions and embeddings as int8.

    Symmetric, one scale per output channel (per row of an embedding), so a zero stays exactly zero. Arithmetic stays in
    floating point: each forward pass turns the integers back into numbers. The file shrinks to about a quarter, and on
    a CPU the network usually becomes slower, not faster.

    Args:
        network: Any module, from a tensor; it stays as it is.
        example: A batch ``(N, ...)``.

    Raises:
        ConfigurationError: the network has no such layer, or weights that are not finite.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> quantized = quantize_weights(network, torch.zeros(1, 4))
        >>> quantized.quantized, quantized.module[0].weight_int8.dtype
        (('0', '2'), torch.int8)
    """
    example = check_example(example).detach().cpu()
    with rng_untouched(), torch.no_grad():
        module = copied(network, "cpu").eval()
        done: dict[int, tuple[Tensor, Tensor]] = {}
        quantized, skipped = [], {}
        for name, layer in module.named_modules():
            if isinstance(layer, _OTHERS):
                skipped[name] = f"{type(layer).__name__} reads its weights in another way"
            if not isinstance(layer, _TYPES):
                continue
            if reason := _reason(layer):
                skipped[name] = reason
                continue
            _quantize(layer, name, done)
            quantized.append(name)
        if not quantized:
            found = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise ConfigurationError(
                f"the network has no layer whose weights can be quantised ({found or 'no Linear, Conv or Embedding'})."
            )
    example = example.float() if example.is_floating_point() else example
    return Quantized(module, "weight_only", tuple(quantized), skipped, tuple(example.shape[1:]), example.dtype)


def _reason(layer: Any) -> str:
    if "weight" not in layer._parameters or layer._parameters["weight"] is None:
        return "its weight is computed from other parameters"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "max_norm changes its weight in the forward pass"
    return ""


def _quantize(layer: nn.Module, name: str, done: dict[int, tuple[Tensor, Tensor]]) -> None:
    weight = layer._parameters.pop("weight")
    assert weight is not None
    if not weight.isfinite().all():
        raise ConfigurationError(f"{name}.weight has values that are not finite.")
    if id(weight) not in done:  # tied weights stay tied
        dim = 1 if isinstance(layer, _TRANSPOSED) else 0
        parameters = affine_parameters(*quantization_range(weight, dim=dim), symmetric=True)
        done[id(weight)] = quantize(weight, parameters), parameters.scale
    integers, scale = done[id(weight)]
    layer.register_buffer("weight_int8", integers)
    layer.register_buffer("weight_scale", scale)
    layer.__class__ = _int8_class(type(layer))  # type: ignore[arg-type]


@cache
def _int8_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class like a layer's, whose weight is computed from integers when it is read."""
    attributes: dict[str, Any] = {"weight": property(_weight), "__module__": kind.__module__}
    if kind is nn.Embedding:
        attributes["forward"] = _rows
    return type(f"Int8{kind.__name__}", (kind,), attributes)


def _weight(layer: Any) -> Tensor:
    return layer.weight_int8.to(layer.weight_scale.dtype) * layer.weight_scale


def _rows(layer: Any, indices: Tensor) -> Tensor:
    return layer.weight_int8[indices].to(layer.weight_scale.dtype) * layer.weight_scale[indices]
