"""What puts a new module in a block's place, by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from lightning_efficient.errors import ConfigurationError, did_you_mean

Maker: TypeAlias = Callable[..., nn.Module | None]
"""``(name, block)`` to the module that takes the block's place, or to None where the block stays."""

_NN = "lightning_efficient.nn"
MAKERS: dict[str, str] = {
    "SpatialInterpolation": f"{_NN}.spatial_interpolation:interpolated_block",
    "InterpolatedChain": f"{_NN}.spatial_interpolation:interpolated_chain",
    "GlobalLayer": f"{_NN}.global_layer:global_layer_at",
    "DepthwiseLayer": f"{_NN}.depthwise_layer:depthwise_layer_at",
}
"""Makers that a step may name, and where each is."""


def maker_of(make: str | Maker, options: Mapping[str, Any] | None = None) -> Maker:
    """Return the maker that a step means, with its options bound.

    Args:
        make: A key of :data:`MAKERS`, ``"package.module:function"``, or the maker itself.
        options: Its keyword arguments.

    Raises:
        ConfigurationError: an unknown name, or something that is not there.
    """
    if not isinstance(make, str):
        if not callable(make):
            raise ConfigurationError(f"make={make!r} is neither a name nor a function of (name, block)")
        return partial(make, **decoded(options)) if options else make
    if make not in MAKERS and ":" not in make:
        known = list(MAKERS)
        raise ConfigurationError(
            f"make={make!r} is neither one of {known} nor 'package.module:function'.{did_you_mean(make, known)}"
        )
    return partial(imported(MAKERS.get(make, make)), **decoded(options))


def imported(path: str) -> Any:
    """Return what ``"package.module:name"`` names.

    Raises:
        ConfigurationError: there is no such module or name.

    Example:
        >>> imported("torch.nn:ReLU")
        <class 'torch.nn.modules.activation.ReLU'>
    """
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{path!r} cannot be imported: {error}") from error
    return found


def path_of(thing: Any) -> str | None:
    """Return ``"package.module:name"`` of a function or class; None where that does not lead back to it.

    Example:
        >>> path_of(nn.ReLU), path_of(lambda name, block: block)
        ('torch.nn.modules.activation:ReLU', None)
    """
    path = f"{getattr(thing, '__module__', None)}:{getattr(thing, '__qualname__', None)}"
    try:
        return path if imported(path) is thing else None
    except ConfigurationError:
        return None


def encoded(value: Any) -> Any:
    """Return an option in the way JSON would give it back; functions and classes by their import path.

    Raises:
        ConfigurationError: a value that cannot be written down.

    Example:
        >>> encoded({"act": nn.ReLU, "spacing": (1, 2)})
        {'act': {'import': 'torch.nn.modules.activation:ReLU'}, 'spacing': [1, 2]}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [encoded(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): encoded(each) for key, each in value.items()}
    path = path_of(value) if callable(value) else None
    if path is None:
        raise ConfigurationError(f"{value!r} cannot be written into a recipe; name a function or class of a module")
    return {"import": path}


def decoded(value: Any) -> Any:
    """Return what :func:`encoded` wrote down; None becomes no options at all.

    Example:
        >>> decoded({"act": {"import": "torch.nn:ReLU"}})
        {'act': <class 'torch.nn.modules.activation.ReLU'>}
    """
    return {key: _decoded(each) for key, each in (value or {}).items()}


def _decoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return imported(value["import"]) if list(value) == ["import"] else decoded(value)
    return [_decoded(each) for each in value] if isinstance(value, list) else value
