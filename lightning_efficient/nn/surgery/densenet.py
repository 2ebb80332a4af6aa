"""Shorter dense blocks: later layers go, and what read their channels is cut so that kept weights stay."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import is_integer

Slices: TypeAlias = dict[str, tuple[Tensor, ...]]
"""Key of the state dict -> indices that are kept, one tensor per dimension that is cut, from dimension 0 on."""


def is_densenet(model: nn.Module) -> bool:
    """Tell whether a model is timm's DenseNet, or torchvision's, whose names are the same."""
    return bool(_dense_blocks(model)) and isinstance(getattr(model, "classifier", None), nn.Module)


def dense_layers(model: nn.Module) -> list[int]:
    """Return how many layers each dense block has."""
    return [len(_layers(block)) for block in _dense_blocks(model).values()]


def transition_widths(model: nn.Module, keep: Sequence[int] | None = None) -> list[int]:
    """Return the channels after each transition, as they are or as they would be after :func:`thin`."""
    return [len(outputs) for _, outputs in _kept_channels(model, _checked(model, keep))][:-1]


def thin(model: nn.Module, keep: Sequence[int]) -> Slices:
    """Keep the first layers of each dense block, in place, and cut what reads the channels of the others.

    The concatenated inputs of later layers, of the transitions, of the last normalisation and of the classifier lose
    the channels of the layers that go; all other weights stay as they were. A transition keeps its ratio of outputs to
    inputs and the first of its outputs. Modules that change are replaced by new ones, so a copy of the old
    ``_modules`` and attributes undoes it. With ``keep`` equal to the present numbers nothing changes.

    Args:
        model: timm's DenseNet, pretrained or not. torchvision's have the same names and work, too.
        keep: Layers per dense block, each at least 1.

    Returns:
        Where each entry that was cut comes from, ``new = cut(old, slices[key])``. The keys that stay keep their names.

    Raises:
        ConfigurationError: the model is no DenseNet, or ``keep`` does not fit its dense blocks.

    Example:
        >>> import timm
        >>> network = timm.create_model("densenet121")
        >>> slices = thin(network, [3, 6, 12, 8])
        >>> network.num_features, sum(parameter.numel() for parameter in network.parameters())
        (516, 2826784)

    Reference:
        Huang, Liu, van der Maaten, Weinberger. Densely Connected Convolutional Networks. CVPR 2017.
    """
    kept = _checked(model, keep)
    if kept == dense_layers(model):
        return {}
    slices: Slices = {}
    features: Any = model.get_submodule("features")
    width, last = features.norm5.num_features, torch.empty(0)
    for (number, block), wanted, (inputs, outputs) in zip(
        _dense_blocks(model).items(), kept, list(_kept_channels(model, kept)), strict=True
    ):
        prefix = f"features.denseblock{number}"
        growth = _layers(block)["denselayer1"].conv2.out_channels
        before = len(inputs) - wanted * growth
        for index, (name, layer) in enumerate(list(_layers(block).items())):
            if index >= wanted:
                delattr(block, name)
                continue
            channels = inputs[: before + index * growth]
            _cut_norm(layer, "norm1", f"{prefix}.{name}", channels, slices)
            _cut_convolution(layer, "conv1", f"{prefix}.{name}", None, channels, slices)
        transition = getattr(features, f"transition{number}", None)
        if transition is not None:
            _cut_norm(transition, "norm", f"features.transition{number}", inputs, slices)
            _cut_convolution(transition, "conv", f"features.transition{number}", outputs, inputs, slices)
        last = inputs
    _cut_norm(features, "norm5", "features", last, slices)
    _cut_head(model, width, last, slices)
    return slices


def cut(tensor: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    """Return the entries of a tensor that ``indices`` keep, one index per dimension from dimension 0 on.

    Example:
        >>> cut(torch.arange(6).reshape(2, 3), (torch.tensor([1]), torch.tensor([0, 2])))
        tensor([[3, 5]])
    """
    for dimension, index in enumerate(indices):
        tensor = tensor.index_select(dimension, index.to(tensor.device))
    return tensor


def _checked(model: nn.Module, keep: Sequence[int] | None) -> list[int]:
    if not is_densenet(model):
        raise ConfigurationError(
            f"thin_densenet takes timm's DenseNet, not {type(model).__name__}"
            + ("; thin it before features_only takes it apart" if hasattr(model, "features_denseblock1") else "")
        )
    present = dense_layers(model)
    if keep is None:
        return present
    given: list[Any] = list(keep) if isinstance(keep, Sequence) else [keep]
    shown = given if isinstance(keep, Sequence) else keep
    fits = len(given) == len(present) and all(map(is_integer, given))
    if not fits or not all(1 <= wanted <= there for wanted, there in zip(given, present, strict=True)):
        raise ConfigurationError(f"keep={shown!r} does not fit dense blocks of {present} layers, each 1 or more")
    for name, child in model.get_submodule("features").named_children():
        names = {each for each, _ in child.named_children()} if name.startswith("transition") else set()
        if names - {"norm", "relu", "conv", "pool"}:
            raise ConfigurationError(f"features.{name} has a layer added to it; make dense blocks shorter before that")
    return given


def _dense_blocks(model: nn.Module) -> dict[int, nn.Module]:
    features = getattr(model, "features", None)
    children = features.named_children() if isinstance(features, nn.Module) else ()
    return {
        int(name.removeprefix("denseblock")): child
        for name, child in children
        if name.startswith("denseblock") and "denselayer1" in dict(child.named_children())
    }


def _layers(block: nn.Module) -> dict[str, Any]:
    return {name: child for name, child in block.named_children() if name.startswith("denselayer")}


def _kept_channels(model: nn.Module, keep: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, per dense block, which of its concatenated channels stay and which outputs of its transition."""
    stem: Any = None
    for (number, block), wanted in zip(_dense_blocks(model).items(), keep, strict=True):
        layers = _layers(block)
        first, growth = layers["denselayer1"].conv1.in_channels, layers["denselayer1"].conv2.out_channels
        stem = torch.arange(first) if stem is None else stem
        inputs = torch.cat([stem, first + torch.arange(wanted * growth)])
        transition: Any = getattr(model.get_submodule("features"), f"transition{number}", None)
        if transition is None:
            yield inputs, inputs
        else:
            ratio = transition.conv.out_channels / transition.conv.in_channels
            stem = torch.arange(int(ratio * len(inputs)))
            yield inputs, stem


def _cut_norm(parent: nn.Module, name: str, prefix: str, channels: Tensor, slices: Slices) -> None:
    kept = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,))
    _put(parent, name, prefix, kept, {"num_features": len(channels)}, slices)


def _cut_convolution(
    parent: nn.Module, name: str, prefix: str, outputs: Tensor | None, inputs: Tensor, slices: Slices
) -> None:
    outputs = torch.arange(getattr(parent, name).out_channels) if outputs is None else outputs
    kept = {"weight": (outputs, inputs), "bias": (outputs,)}
    _put(parent, name, prefix, kept, {"out_channels": len(outputs), "in_channels": len(inputs)}, slices)


def _cut_head(model: Any, width: int, channels: Tensor, slices: Slices) -> None:
    if isinstance(model.classifier, nn.Linear):
        # timm's "catavgmax" pooling puts two vectors side by side
        copies = model.classifier.in_features // width
        columns = torch.cat([channels + width * number for number in range(copies)])
        kept = {"weight": (torch.arange(model.classifier.out_features), columns)}
        _put(model, "classifier", "", kept, {"in_features": len(columns)}, slices)
    if hasattr(model, "num_features"):
        model.head_hidden_size = model.head_hidden_size // model.num_features * len(channels)
        model.num_features = len(channels)
    if hasattr(model, "feature_info"):
        features = model.get_submodule("features")
        widths = {f"features.denseblock{number}": _width(block) for number, block in _dense_blocks(model).items()}
        widths["features.norm5"] = features.norm5.num_features
        model.feature_info = [
            {**info, "num_chs": widths.get(info["module"], info["num_chs"])} for info in model.feature_info
        ]


def _width(block: nn.Module) -> int:
    layers = list(_layers(block).values())
    return int(layers[-1].conv1.in_channels + layers[-1].conv2.out_channels)


def _put(
    parent: nn.Module,
    name: str,
    prefix: str,
    kept: Mapping[str, tuple[Tensor, ...]],
    attributes: Mapping[str, int],
    slices: Slices,
) -> None:
    """Put a copy of a child, with its tensors cut, in the place of the child; nothing where nothing is cut."""
    old = getattr(parent, name)
    if all(getattr(old, attribute, value) == value for attribute, value in attributes.items()):
        return
    # tensors that are not cut stay the same objects: optimisers hold them
    new = copy.copy(old)
    new._parameters, new._buffers = dict(old._parameters), dict(old._buffers)
    for key, indices in kept.items():
        tensor = getattr(old, key, None)
        if tensor is None:
            continue
        smaller: Tensor = cut(tensor.detach(), indices).clone(memory_format=torch.preserve_format)
        if smaller.shape == tensor.shape:
            continue
        slices[".".join(part for part in (prefix, name, key) if part)] = indices
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(new, key, nn.Parameter(smaller, tensor.requires_grad) if is_parameter else smaller)
    for attribute, value in attributes.items():
        setattr(new, attribute, value)
    setattr(parent, name, new)
