"""One batch of images, shown to each of several networks as that network wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._precision import at_least_float32


class InputFit(nn.Module):
    """Resize and renormalise a batch that was prepared for another network.

    Networks that look at the same images so see the same crop of them, each at its own resolution and with its own
    mean and deviation. Without an option it returns the batch as it is. The normalisation is part of ``state_dict``.

    Args:
        channels: Channels of the images.
        image_size: Height and width that the network wants, pixels; ``None`` leaves them.

    Raises:
        ConfigurationError: a size that is no number of pixels.

    Example:
        >>> fit = InputFit(1, image_size=4)
        >>> fit.renormalize((0.5,), (0.5,), (0.0,), (1.0,))
        >>> fit(torch.ones(2, 1, 8, 8))[0, 0, 0].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int, image_size: int | None = None) -> None:
        super().__init__()
        if image_size is not None and image_size < 1:
            raise ConfigurationError(f"image_size={image_size!r} must be a number of pixels, 1 or more")
        self.image_size = image_size
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))
        self._changes = False

    def renormalize(
        self, mean: Sequence[float], std: Sequence[float], own_mean: Sequence[float], own_std: Sequence[float]
    ) -> None:
        """Take images of one mean and deviation per channel to those that the network was trained with.

        Raises:
            ConfigurationError: another number of channels, or a deviation that is not above 0.
        """
        given = (mean, std, own_mean, own_std)
        if {len(values) for values in given} != {len(self.scale)} or min(*std, *own_std) <= 0:
            raise ConfigurationError(
                f"mean and deviation {given} must have {len(self.scale)} values each, the deviations above 0"
            )
        # float64, so that equal statistics give exactly one and zero
        first, spread, own, own_spread = (torch.tensor(values, dtype=torch.float64) for values in given)
        self.scale.copy_(spread / own_spread)
        self.shift.copy_((first - own) / own_spread)
        self._note()

    def forward(self, images: Tensor) -> Tensor:
        """Return images ``(N, C, H, W)`` for the network, in their own dtype."""
        # float32 at least: not every device resizes bfloat16
        seen = at_least_float32(images)
        if self._changes:
            scale, shift = (each.to(seen.dtype).view(-1, 1, 1) for each in (self.scale, self.shift))
            seen = seen * scale + shift
        if self.image_size is not None and images.shape[-2:] != (self.image_size, self.image_size):
            seen = F.interpolate(seen, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        return seen.to(images.dtype)

    def _note(self) -> None:
        self._changes = bool((self.scale != 1).any() or (self.shift != 0).any())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, *args, **kwargs)
        self._note()
