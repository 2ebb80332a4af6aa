"""Kinds of layers that can lose channels, and how each of them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lightning_efficient.nn.pruning.members import Entries, Side


def is_depthwise(layer: nn.Module) -> bool:
    """Tell whether a layer is a convolution of each channel alone."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def side_size(layer: nn.Module, side: Side) -> int | None:
    """Return how many channels a layer writes or reads; None for a layer that cannot lose any there."""
    if isinstance(layer, _ConvNd):
        if is_depthwise(layer):
            return layer.out_channels if side == "out" else None
        if layer.groups > 1:
            return None
        return layer.out_channels if side == "out" else layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features if side == "out" else layer.in_features
    if side == "out" and isinstance(layer, _NormBase):
        return layer.num_features
    if side == "out" and isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return layer.num_parameters
    return None


def entries_of(name: str, layer: nn.Module, side: Side) -> tuple[Entries, ...]:
    """Return the parameters of a layer that have a dimension for one of its sides."""
    transposed = isinstance(layer, _ConvNd) and layer.transposed and not is_depthwise(layer)
    dims = {"weight": int((side == "in") != transposed)}
    if side == "out":
        dims["bias"] = 0
    found = ((each, getattr(layer, each, None), dim) for each, dim in dims.items())
    return tuple(
        Entries(f"{name}.{each}".lstrip("."), tuple(value.shape), dim)
        for each, value, dim in found
        if isinstance(value, Tensor)
    )


def cut(layer: nn.Module, side: Side, kept: Sequence[int]) -> None:
    """Leave a layer, in place, only some of the channels of one side."""
    transposed = isinstance(layer, _ConvNd) and layer.transposed and not is_depthwise(layer)
    dims = {"weight": int((side == "in") != transposed)}
    if side == "out":
        dims |= {"bias": 0, "running_mean": 0, "running_var": 0}
    for name, dim in dims.items():
        value = getattr(layer, name, None)
        if isinstance(value, Tensor):
            index = torch.tensor(kept, dtype=torch.long, device=value.device)
            _put(layer, name, value.detach().index_select(dim, index))
    if isinstance(layer, _NormBase):
        layer.num_features = len(kept)  # it may have no weights that tell
    note_sizes(layer)


def fit(layer: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Give a layer, in place, weights of other and no larger shapes, of no particular values; tell whether it can.

    Args:
        layer: Changed only where it can be.
        shapes: By names of the layer's own parameters and buffers.
    """
    own = {name: value for name, value in (*layer._parameters.items(), *layer._buffers.items()) if value is not None}
    changed = {name: shape for name, shape in shapes.items() if name in own and own[name].shape != shape}
    if not changed:
        return True
    if not isinstance(layer, _ConvNd | nn.Linear | _NormBase | nn.PReLU):
        return False
    for name, shape in changed.items():
        old = tuple(own[name].shape)
        if len(shape) != len(old) or not all(1 <= new <= size for new, size in zip(shape, old, strict=True)):
            return False
        if shape[2:] != old[2:]:
            return False
    weight = shapes.get("weight")
    if (
        isinstance(layer, _ConvNd)
        and layer.groups > 1
        and (not is_depthwise(layer) or weight is None or weight[1] != 1)
    ):
        return False
    width = {shape[0] for name, shape in shapes.items() if shape and name != "weight"}
    if weight is not None:
        transposed = isinstance(layer, _ConvNd) and layer.transposed and not is_depthwise(layer)
        width.add(weight[1 if transposed else 0])
    if len(width) > 1:
        return False
    for name, shape in changed.items():
        _put(layer, name, own[name].detach()[tuple(slice(size) for size in shape)])
    note_sizes(layer)
    return True


def note_sizes(layer: nn.Module) -> None:
    """Give the attributes of a layer the sizes that its weights have."""
    if isinstance(layer, _ConvNd):
        depthwise = is_depthwise(layer)
        written, read = layer.weight.shape[:2] if not layer.transposed else layer.weight.shape[:2][::-1]
        if depthwise:
            layer.groups = layer.in_channels = layer.out_channels = layer.weight.shape[0]
        else:
            layer.out_channels, layer.in_channels = written, read
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _NormBase):
        sized = next((each for each in (layer.weight, layer.running_mean) if each is not None), None)
        layer.num_features = layer.num_features if sized is None else len(sized)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)


def _put(layer: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or a buffer; memory format and ``requires_grad`` are those of the old one."""
    old = getattr(layer, name)
    value = value.contiguous()
    if old.ndim == 4 and not old.is_contiguous() and old.is_contiguous(memory_format=torch.channels_last):
        value = value.contiguous(memory_format=torch.channels_last)
    value = value.clone(memory_format=torch.preserve_format)  # a slice may share the memory of the larger tensor
    if name in layer._parameters:
        value = nn.Parameter(value, requires_grad=old.requires_grad)
    setattr(layer, name, value)
