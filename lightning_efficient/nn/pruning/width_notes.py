"""What a network notes of its own widths beside its weights, as timm's do, and how these notes stay true."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Shapes of what a module reads and writes, by its name."""

_READ = ("in_features", "in_channels", "in_chs", "in_chans")
_WRITTEN = ("out_features", "out_channels", "out_chs", "out_chans")
_WITHIN = ("num_features", "head_hidden_size", "hidden_size", "pool_dim")
_STAGES = ("forward_features", "forward_head(pre_logits)", "forward_head")


def widths(network: nn.Module, input_shape: Sequence[int] = ()) -> Shapes:
    """Return the shapes that all modules of a network read and write, without computing anything.

    Args:
        network: Not modified.
        input_shape: Of a batch; by default what timm notes of the network.

    Returns:
        Shapes by name, and those of timm's ``forward_features`` and ``forward_head`` below such names; empty where the
        network notes no widths, its input is unknown or it does not run on the meta device.
    """
    shape = tuple(input_shape) or _usual_input(network)
    if not shape or not _has_notes(network):
        return {}
    try:
        return _observed(network, shape)
    except Exception:  # whatever a forward may raise on the meta device
        return {}


def follow_widths(network: nn.Module, before: Shapes, input_shape: Sequence[int] = ()) -> None:
    """Update, in place, the notes that were true of a network before it lost channels.

    Args:
        network: Smaller now.
        before: Its :func:`widths` before that.
        input_shape: As for :func:`widths`.
    """
    now = widths(network, input_shape) if before else {}
    if not now:
        return
    for name, module in network.named_modules():
        inside = [name, *(f"{name}.{child}".lstrip(".") for child, _ in module.named_children())]
        for attribute, noted in _noted(module).items():
            places = [name]
            sides: tuple[int, ...] = (0,) if attribute in _READ else (1,)
            if attribute in _WITHIN:
                stage = _STAGES[int(attribute == "head_hidden_size")]
                places, sides = ([stage, *inside], (1, 0)) if not name else (inside, (0, 1))
            if (new := _moved(noted, before, now, places, sides)) is not None:
                setattr(module, attribute, new)
    for entry in _feature_info(network):
        new = _moved(entry.get("num_chs"), before, now, [str(entry.get("module"))], (1, 0))
        if new is not None:
            entry["num_chs"] = new


def take_notes(network: nn.Module) -> dict[str, Any]:
    """Return what a network notes of widths, as plain data for :func:`write_notes`."""
    return {
        "modules": {name: found for name, module in network.named_modules() if (found := _noted(module))},
        "feature_info": [entry.get("num_chs") for entry in _feature_info(network)],
    }


def write_notes(network: nn.Module, notes: Mapping[str, Any]) -> None:
    """Write notes of widths into a network, in place; only where it has such a note already."""
    modules, stages = notes.get("modules"), notes.get("feature_info")
    for name, module in network.named_modules():
        given = modules.get(name) if isinstance(modules, Mapping) else None
        if not isinstance(given, Mapping):
            continue
        for attribute in _noted(module):
            if type(given.get(attribute)) is int:
                setattr(module, attribute, given[attribute])
    entries = _feature_info(network)
    if isinstance(stages, list) and len(stages) == len(entries):
        for entry, width in zip(entries, stages, strict=True):
            if type(width) is int:
                entry["num_chs"] = width


def first_layers(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that read a network's input, as timm notes them; nothing where it does not."""
    config: Any = getattr(network, "pretrained_cfg", None)
    noted = config.get("first_conv") if isinstance(config, Mapping) else None
    return (noted,) if isinstance(noted, str) else tuple(noted or ())


def _noted(module: nn.Module) -> dict[str, int]:
    """Return the notes of a module that has other modules; those of a layer are its own sizes."""
    if not any(True for _ in module.children()):
        return {}
    found = {attribute: module.__dict__.get(attribute) for attribute in (*_READ, *_WRITTEN, *_WITHIN)}
    return {attribute: value for attribute, value in found.items() if type(value) is int}


def _moved(noted: Any, before: Shapes, now: Shapes, places: Sequence[str], sides: Sequence[int]) -> int | None:
    """Return the new size of the first dimension of channels that had the noted size and has another one now."""
    for place in places:
        for side in sides:
            old, new = (each.get(place, ((), ()))[side] for each in (before, now))
            if len(old) != len(new) or len(old) < 2:
                continue
            for dim in (1, -1):
                if old[dim] == noted:
                    return new[dim]
    return None


def _observed(network: nn.Module, shape: tuple[int, ...]) -> Shapes:
    shadow = copy.deepcopy(network).to("meta").eval()
    seen: Shapes = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen.setdefault(name, (_shape(inputs[0] if inputs else None), _shape(output)))

        return hook

    for name, module in shadow.named_modules():
        for table in (module._forward_hooks, module._forward_pre_hooks):
            table.clear()
        module.register_forward_hook(note(name))
    dtype = next((each.dtype for each in shadow.parameters() if each.is_floating_point()), torch.float32)
    example = torch.empty(shape, dtype=dtype, device="meta")
    with torch.no_grad():
        if callable(getattr(shadow, "forward_features", None)) and callable(getattr(shadow, "forward_head", None)):
            features: Any = shadow.forward_features(example)  # type: ignore[operator]
            hidden: Any = shadow.forward_head(features, pre_logits=True)  # type: ignore[operator]
            logits: Any = shadow.forward_head(features)  # type: ignore[operator]
            for name, output in zip(_STAGES, (features, hidden, logits), strict=True):
                seen[name] = ((), _shape(output))
        else:
            shadow(example)
    return seen


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _has_notes(network: nn.Module) -> bool:
    return bool(_feature_info(network)) or any(_noted(module) for module in network.modules())


def _feature_info(network: nn.Module) -> list[MutableMapping[str, Any]]:
    noted: Any = getattr(network, "feature_info", None)
    noted = getattr(noted, "info", noted)
    return [each for each in noted if isinstance(each, MutableMapping)] if isinstance(noted, list | tuple) else []


def _usual_input(network: nn.Module) -> tuple[int, ...]:
    """Return the shape of a batch of one image, from what timm notes of a network."""
    config: Any = getattr(network, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    if not isinstance(size, tuple | list) or len(size) != 3:
        return ()
    first = next((each for each in network.modules() if isinstance(each, nn.Conv2d)), None)
    channels = size[0] if first is None else first.in_channels
    inner: Any = getattr(getattr(network, "patch_embed", None), "img_size", None)
    height, width = inner if isinstance(inner, tuple) and len(inner) == 2 else size[1:]
    return (1, channels, height, width)
