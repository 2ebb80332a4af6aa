"""What distillation may see of a network: its logits, the input of its classifier, and one of its feature maps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_efficient._unwrapped import uncompiled
from lightning_efficient.errors import ConfigurationError, did_you_mean


class ModelViews(NamedTuple):
    """What a network shows of one batch.

    Attributes:
        logits: Class scores, shape ``(N, C)``.
        features: Input of the classifier, shape ``(N, D)``; ``None`` unless asked for.
        feature_map: Activations of an inner layer, shape ``(N, channels, H, W)``; ``None`` unless asked for.
    """

    logits: Tensor
    features: Tensor | None = None
    feature_map: Tensor | None = None


class ViewTap:
    """Observe logits, features and a feature map of any network, by hooks that leave its forward as it is.

    Call the tap to run the network once and see what it showed. Where somebody else runs the network, ``attach`` once
    and ``take`` after each forward. Costs nothing but the memory of the views until they are taken; nothing is copied,
    and gradients flow through the views as the network's own mode allows.

    For a timm model the classifier and the maps are the ones that it declares. For any other module the classifier is
    its last ``nn.Linear``, and ``map_module`` names the layer of the map. Maps of transformers (tokens) and of networks
    that keep channels last come as ``(N, channels, H, W)`` too, without class tokens. Of a network that
    ``torch.compile`` wrapped, it sees only what ran after the tap was first attached or called: do so before the first
    forward.

    Args:
        network: Any module that maps a batch to logits.
        features: Whether to see the input of the classifier.
        feature_map: Whether to see a feature map.
        map_index: Which of timm's maps, as an index into its ``feature_info``; the last by default.
        map_module: Dotted name of the module whose output is the map; wins over ``map_index``.

    Attributes:
        num_classes: Outputs of the classifier, or ``None`` where none was found.
        feature_dim: Inputs of the classifier, or ``None`` where there is none or more than one.
        map_channels: Channels of the map, or ``None`` where no map was asked for.

    Raises:
        ConfigurationError: the network has no such classifier or map.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> tap = ViewTap(network, features=True, feature_map=True, map_module="0")
        >>> views = tap(torch.zeros(5, 1, 8, 8))
        >>> tuple(views.features.shape), tuple(views.feature_map.shape), tap.map_channels
        ((5, 4), (5, 4, 6, 6), 4)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        features: bool = False,
        feature_map: bool = False,
        map_index: int = -1,
        map_module: str | None = None,
    ) -> None:
        self.network, self.features, self.feature_map = network, features, feature_map
        inner = uncompiled(network)
        classifiers = find_classifiers(inner)
        names = list(classifiers)
        self._classifier_name = names[0] if names else ""
        self._classifier = classifiers[names[0]] if names else None
        self.num_classes = _attribute(self._classifier, "out_features", "out_channels")
        self.feature_dim = None if len(names) > 1 else _attribute(self._classifier, "in_features", "in_channels")
        if features and self.feature_dim is None:
            found = f"{len(names)} classifiers, {names}" if names else "no linear classifier"
            raise ConfigurationError(
                f"features: {type(inner).__name__} has {found}, so that there is no one vector to take; "
                "ask for its feature map or its logits"
            )
        self._map_name = ""
        self._map: nn.Module | None = None
        self._reduction: int | None = None
        self.map_channels: int | None = None
        if feature_map:
            self._find_map(inner, map_index, map_module)
        self._channels_last = getattr(inner, "output_fmt", None) in ("NHWC", "NLC")
        self._prefix_tokens = int(getattr(inner, "num_prefix_tokens", 0) or 0)
        self._handles: list[RemovableHandle] = []
        self._forget()

    def __call__(self, *inputs: Any) -> ModelViews:
        """Run the network and return what it showed.

        Raises:
            ConfigurationError: the network does not return logits, or a view has an unusable shape.
        """
        was_attached = bool(self._handles)
        if not (was_attached or self.features or self.feature_map):
            return ModelViews(self._logits(inputs))  # without hooks, which a compiler would have to follow
        self.attach()
        try:
            return self.take(self._logits(inputs))
        finally:
            if not was_attached:
                self.detach()

    def _logits(self, inputs: tuple[Any, ...]) -> Tensor:
        output = self.network(*inputs)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise ConfigurationError(
                f"network: {type(self.network).__name__} returns {type(output).__name__}, not a tensor of logits"
            )
        return logits

    def attach(self) -> None:
        """Watch every forward of the network from now on, whoever runs it."""
        if self._handles:
            return
        # in this order, since classifier or map may be the network itself
        self._handles.append(self.network.register_forward_pre_hook(self._begin, with_kwargs=True))
        if self.features and self._classifier is not None:
            self._handles.append(self._classifier.register_forward_pre_hook(self._see_features))
        if self._map is not None:
            self._handles.append(self._map.register_forward_hook(self._see_map))
        self._handles.append(self.network.register_forward_hook(self._end))

    def detach(self) -> None:
        """Watch no longer, and forget what was seen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget()

    def take(self, logits: Tensor) -> ModelViews:
        """Return what the last forward showed, and forget it.

        Args:
            logits: What that forward returned, shape ``(N, C)``.

        Raises:
            RuntimeError: the network, or the part to be seen, did not run since the last ``take``.
            ConfigurationError: a view has a shape that is no vector or no map.
        """
        ran, seen, size = self._ran, self._seen, self._input_size
        self._forget()
        if not ran:
            raise RuntimeError("the network did not run since the last take; attach() the tap before its forward")
        features = self._vector(seen.get("features")) if self.features else None
        feature_map = self._grid(seen.get("map"), size) if self.feature_map else None
        return ModelViews(logits, features, feature_map)

    def __getstate__(self) -> dict[str, Any]:
        # activations belong to one forward, and those with a gradient cannot be copied
        return {**self.__dict__, "_seen": {}, "_input_size": None, "_open": False, "_ran": False}

    def _find_map(self, network: nn.Module, map_index: int, map_module: str | None) -> None:
        declared: list[dict[str, Any]] = list(getattr(network, "feature_info", None) or [])
        kind = type(network).__name__
        if map_module is not None:
            self._map_name = map_module
        elif not declared:
            raise ConfigurationError(
                f"map_module: {kind} declares no feature maps, so name the module whose output is the map"
            )
        elif not -len(declared) <= map_index < len(declared):
            channels = [info["num_chs"] for info in declared]
            raise ConfigurationError(
                f"map_index={map_index} is out of range: {kind} has {len(declared)} maps, with {channels} channels"
            )
        else:
            info = declared[map_index]
            self._map_name, self._reduction, self.map_channels = info["module"], info.get("reduction"), info["num_chs"]
        modules = dict(network.named_modules())
        if self._map_name not in modules:
            hint = did_you_mean(self._map_name, modules)
            raise ConfigurationError(f"map_module: {kind} has no module {self._map_name!r}.{hint}")
        module = self._map = modules[self._map_name]
        if self.map_channels is None:
            self.map_channels = _channels_of(module)
        if self.map_channels is None:
            raise ConfigurationError(
                f"map_module={map_module!r}: nothing in this {type(module).__name__} says how many channels it has; "
                "name one that ends in a convolution or a normalisation"
            )

    def _forget(self) -> None:
        self._seen: dict[str, Any] = {}
        self._input_size: tuple[int, ...] | None = None
        self._open = self._ran = False

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forget()
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        self._input_size = None if first is None else tuple(first.shape[-2:])
        self._open = True

    def _see_features(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # closed while activation checkpointing runs parts of the network again in the backward pass
        if self._open and args:
            self._seen["features"] = args[0]

    def _see_map(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._open:
            self._seen["map"] = output

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._open, self._ran = False, True

    def _vector(self, features: Tensor | None) -> Tensor:
        if features is None:
            raise RuntimeError(f"the classifier {self._classifier_name!r} did not run in the last forward")
        if features.ndim == 4 and features.shape[2:] == (1, 1):  # a classifier that is a 1x1 convolution
            features = features.flatten(1)
        if features.ndim != 2:
            raise ConfigurationError(
                f"features: the input of the classifier {self._classifier_name!r} has shape {tuple(features.shape)}, "
                "not (N, D)"
            )
        return features

    def _grid(self, seen: Any, input_size: tuple[int, ...] | None) -> Tensor:
        if seen is None:
            raise RuntimeError(f"the module {self._map_name!r} of the map did not run in the last forward")
        shape = tuple(seen.shape) if isinstance(seen, Tensor) else ()
        if len(shape) == 4 and self.map_channels in (shape[1], shape[3]):
            last = shape[1] != self.map_channels or (self._channels_last and shape[3] == self.map_channels)
            return seen.permute(0, 3, 1, 2) if last else seen
        if len(shape) == 3 and shape[2] == self.map_channels:
            for prefix in dict.fromkeys((self._prefix_tokens, 0)):
                if sides := self._sides(shape[1] - prefix, input_size):
                    return seen[:, prefix:].transpose(1, 2).unflatten(2, sides)
        given = f"shape {shape}" if shape else f"type {type(seen).__name__}"
        raise ConfigurationError(
            f"map_module: the output of {self._map_name!r} has {given}, which is no map of {self.map_channels} "
            "channels; name another module"
        )

    def _sides(self, tokens: int, input_size: tuple[int, ...] | None) -> tuple[int, int] | None:
        """Return height and width of a grid of tokens, by the size of the input or else as a square."""
        if self._reduction and input_size is not None and len(input_size) == 2:
            height, width = (side // self._reduction for side in input_size)
            if height * width == tokens:
                return height, width
        side = math.isqrt(max(tokens, 0))
        return (side, side) if side and side * side == tokens else None


def find_classifiers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the classifiers of a network by name: timm's own, or else the last ``nn.Linear``.

    Empty where there is none. Only networks with a distillation token have more than one.
    """
    if callable(declared := getattr(network, "get_classifier", None)):
        heads = declared()
        wanted: Iterable[Any] = heads if isinstance(heads, tuple | list) else (heads,)
        found = {id(head) for head in wanted if isinstance(head, nn.Linear | nn.Conv2d)}
        return {name: module for name, module in network.named_modules() if id(module) in found}
    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return dict(linear[-1:])


def _attribute(module: nn.Module | None, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := getattr(module, name, None), int)), None)


def _channels_of(module: nn.Module) -> int | None:
    """Return the channels of a module's output as it, or its last submodule that knows, declares them."""
    own = _attribute(module, "out_channels", "num_features")
    below = [_attribute(submodule, "out_channels", "num_features") for submodule in module.modules()]
    return own or next((channels for channels in reversed(below) if channels), None)
