"""Classifiers that look at the output of an inner layer."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_count

ExitHeadName: TypeAlias = Literal["norm", "linear", "hidden"]

HIDDEN_WIDTH = 1024
"""Units between the two linear layers of a ``hidden`` head, as published."""


class ExitHead(nn.Module):
    """From the output of a layer to class scores: a mean over places, then a small classifier.

    Takes maps ``(N, channels, H, W)`` or ``(N, H, W, channels)``, tokens ``(N, L, channels)`` and vectors ``(N,
    channels)``. Of tokens it looks at the class token where there is one, else at their mean.

    Args:
        channels: Of the layer's output.
        num_classes: Outputs.
        kind: ``norm``: layer normalisation and a linear layer, for any scale of the inputs; ``linear``: a linear layer
            alone; ``hidden``: a linear layer, batch normalisation, ReLU, a linear layer.
        hidden_width: Units in the middle of ``hidden``.
        channels_last: Whether a map whose height could be taken for its channels has them last.
        class_token: Whether the first token is the class token.

    Raises:
        ConfigurationError: an unknown kind, or a width below 1.

    Reference:
        Berestizshevsky, Even. Dynamically Sacrificing Accuracy for Reduced Computation: Cascaded Inference Based on
        Softmax Confidence. ICANN 2019: ``hidden``.

    Example:
        >>> import torch
        >>> ExitHead(8, 10)(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        kind: ExitHeadName = "norm",
        *,
        hidden_width: int = HIDDEN_WIDTH,
        channels_last: bool = False,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        check_choice("head", kind, get_args(ExitHeadName))
        check_count("hidden_width", hidden_width)
        self.channels, self.kind = channels, kind
        self.channels_last, self.class_token = channels_last, class_token
        self.classifier = _classifier(channels, num_classes, kind, hidden_width)

    def forward(self, seen: Tensor) -> Tensor:
        """Return class scores ``(N, num_classes)`` of what a layer returned.

        Raises:
            ConfigurationError: a shape without these channels, or one sample in training for ``hidden``.
        """
        if self.training and self.kind == "hidden" and len(seen) == 1:
            raise ConfigurationError(
                "head='hidden' needs two samples or more in training, for its batch normalisation, and the batch has "
                "one; set drop_last, or take head='norm'"
            )
        return self.classifier(self.pooled(seen))

    def pooled(self, seen: Tensor) -> Tensor:
        """Return one vector per sample, ``(N, channels)``."""
        shape = tuple(seen.shape)
        if len(shape) == 4 and self.channels in (shape[1], shape[3]):
            last = shape[1] != self.channels or (self.channels_last and shape[3] == self.channels)
            return seen.mean((1, 2) if last else (2, 3))
        if len(shape) == 3 and shape[2] == self.channels:
            return seen[:, 0] if self.class_token else seen.mean(1)
        if len(shape) == 2 and shape[1] == self.channels:
            return seen
        raise ConfigurationError(
            f"exits: a layer returns shape {shape}, which is no map, no tokens and no vector of {self.channels} "
            "channels; name another module"
        )


def _classifier(channels: int, num_classes: int, kind: str, width: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(channels, num_classes)
    if kind == "norm":
        return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, num_classes))
    return nn.Sequential(nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, num_classes))
