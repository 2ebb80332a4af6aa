"""A trained network that others learn from: always in eval mode, never trained, saved nor copied."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError, NonFiniteLossError
from lightning_efficient.nn.checkpoints import hash_weights
from lightning_efficient.nn.views import ModelViews, ViewTap


class Teacher:
    """Hold a network and return its views without a gradient.

    On purpose no ``nn.Module``: a module that holds a teacher neither saves, trains, moves, synchronises nor optimises
    it. Move it with ``to``. The network given is put into eval mode and its parameters require no gradient any more.

    Args:
        network: Any module that maps a batch to logits.
        features: Whether its views have the input of the classifier.
        feature_map: Whether they have a feature map.
        map_index: Which of timm's maps.
        map_module: Name of the module whose output is the map; wins over ``map_index``.
        renormalize: Mean and deviation per channel of the inputs, then those that the teacher was trained with, where
            both differ; ``(mean, std, mean, std)``.
        image_size: Height and width that the teacher wants, where its inputs have another size.

    Attributes:
        num_classes: Outputs of the classifier.
        feature_dim: Inputs of the classifier.
        map_channels: Channels of the feature map; ``None`` where none was asked for.

    Raises:
        ConfigurationError: an option that does not fit the network.

    Example:
        >>> teacher = Teacher(nn.Linear(2, 3).train())
        >>> views = teacher(torch.zeros(4, 2))
        >>> tuple(views.logits.shape), views.logits.requires_grad, teacher.network.training
        ((4, 3), False, False)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        features: bool = False,
        feature_map: bool = False,
        map_index: int = -1,
        map_module: str | None = None,
        renormalize: tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]] | None = None,
        image_size: int | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.tap = ViewTap(
            network, features=features, feature_map=feature_map, map_index=map_index, map_module=map_module
        )
        self.num_classes, self.feature_dim = self.tap.num_classes, self.tap.feature_dim
        self.map_channels = self.tap.map_channels
        if image_size is not None and image_size < 1:
            raise ConfigurationError(f"image_size={image_size!r} must be a number of pixels, 1 or more")
        self.image_size = image_size
        self._affine = None if renormalize is None else _affine(renormalize)
        self._options = {
            "features": features,
            "feature_map": feature_map,
            "map_index": map_index,
            "map_module": map_module,
            "renormalize": None if renormalize is None else [[float(x) for x in values] for values in renormalize],
            "image_size": image_size,
        }

    @torch.no_grad()
    def __call__(self, inputs: Any) -> ModelViews:
        """Return the views of a batch, without a gradient.

        Args:
            inputs: What the network takes; with ``renormalize`` or ``image_size``, images of shape ``(N, C, H, W)``.
                Floating tensors are cast to the network's dtype.
        """
        if any(module.training for module in self.network.modules()):
            self.network.eval()
        # not inference mode: the views enter losses, whose graphs save them for the backward pass
        return self.tap(self._fit(inputs))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Teacher:
        """Move the network, and cast it where a dtype is given; returns the teacher."""
        self.network.to(device=device, dtype=dtype)
        return self

    def check_finite(self, views: ModelViews, where: str) -> None:
        """Raise if logits of the teacher are NaN or infinite; waits for the device.

        Args:
            views: What the teacher returned.
            where: Begins the message, such as ``"step 12"``.

        Raises:
            NonFiniteLossError: some logits are not finite.
        """
        bad = int((~torch.isfinite(views.logits)).any(dim=-1).sum())
        if bad:
            raise NonFiniteLossError(
                f"{where}: the teacher ({type(self.network).__name__}) gives NaN or infinite logits for {bad} of "
                f"{len(views.logits)} samples"
            )

    def fingerprint(self) -> str:
        """Return a SHA-256 of class, weights and options: what its views depend on, beside the inputs.

        The same on every device. Reads all weights, about a second for each gigabyte.
        """
        kind = type(self.network)
        digest = hashlib.sha256(repr((kind.__module__, kind.__qualname__, self._options)).encode())
        hash_weights(digest, self.network.state_dict())
        return digest.hexdigest()

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    def __repr__(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in self._options.items() if value not in (None, False))
        return f"Teacher({type(self.network).__name__}{given})"

    def _fit(self, inputs: Any) -> Any:
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            return inputs
        if self._affine is not None:
            inputs = self._renormalized(inputs, *self._affine)
        if self.image_size is not None and inputs.shape[-2:] != (self.image_size, self.image_size):
            inputs = F.interpolate(inputs, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), inputs.dtype)
        return inputs.to(dtype)

    def _renormalized(self, inputs: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if inputs.ndim != 4 or len(scale) not in (1, inputs.shape[1]):
            raise ConfigurationError(
                f"renormalize has {len(scale)} channels, and the inputs have shape {tuple(inputs.shape)}"
            )
        if scale.device != inputs.device:
            self._affine = scale, shift = scale.to(inputs.device), shift.to(inputs.device)
        precise = torch.promote_types(inputs.dtype, torch.float32)
        return inputs * scale.to(precise).view(-1, 1, 1) + shift.to(precise).view(-1, 1, 1)


def _affine(renormalize: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift per channel in float64; ``None`` where both normalisations agree."""
    lengths = {len(values) for values in renormalize}
    if len(renormalize) != 4 or len(lengths) != 1 or min(map(min, renormalize[1::2])) <= 0:
        raise ConfigurationError(
            f"renormalize={renormalize!r} must be (mean, std, mean, std) with one value per channel each, the "
            "deviations above 0"
        )
    mean, std, own_mean, own_std = (torch.tensor(values, dtype=torch.float64) for values in renormalize)
    if torch.equal(mean, own_mean) and torch.equal(std, own_std):
        return None
    return std / own_std, (mean - own_mean) / own_std
