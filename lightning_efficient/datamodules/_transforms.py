"""From options in timm's words to transforms: PIL image in, normalised tensor out.

timm is imported where it is used: it loads all its models and wandb, and ``fit --help`` needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from PIL import Image
from torch import Tensor

from lightning_efficient.errors import ConfigurationError, did_you_mean

Transform = Callable[[Image.Image], Tensor]

AUGMENTATIONS = (
    "auto_augment",
    "color_jitter",
    "color_jitter_prob",
    "gaussian_blur_prob",
    "grayscale_prob",
    "hflip",
    "interpolation",
    "ratio",
    "re_count",
    "re_mode",
    "re_prob",
    "scale",
    "train_crop_mode",
    "vflip",
)
"""Names that ``augment`` may hold: the training options of ``timm.data.create_transform``."""


@dataclass(frozen=True)
class Preparation:
    """How images are prepared for a network: size, normalisation and interpolation.

    Attributes:
        input_shape: ``(C, H, W)``.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
        interpolation: In timm's words, such as ``"bicubic"``.
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    @classmethod
    def resolve(
        cls,
        input_shape: tuple[int, int, int],
        options: Mapping[str, Any],
        data_config: Mapping[str, Any],
    ) -> Preparation:
        """Let explicit options win over the model's data config, and that over ImageNet's usual values.

        Example:
            >>> Preparation.resolve((1, 32, 32), {"mean": None, "std": [0.2]}, {"mean": (0.2, 0.3, 0.4)})
            Preparation(input_shape=(1, 32, 32), mean=(0.3,), std=(0.2,), interpolation='bilinear')
        """
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        known: dict[str, Any] = {
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bilinear",
        }
        for source in (data_config, options):
            known |= {name: source[name] for name in known if source.get(name) is not None}
        channels = input_shape[0]
        return cls(
            input_shape,
            _per_channel("mean", known["mean"], channels),
            _per_channel("std", known["std"], channels),
            known["interpolation"],
        )

    def training(self, policy: Mapping[str, Any]) -> Transform:
        """Return timm's training transform with the augmentations of ``policy``.

        Raises:
            ConfigurationError: a value that timm cannot use.
        """
        # timm builds a jitter that changes nothing, and costs time, for 0.
        jitter = policy.get("color_jitter") or None
        return self._built({**policy, "is_training": True, "color_jitter": jitter})

    def evaluation(self, crop_pct: float) -> Transform:
        """Return timm's evaluation transform: resize the shorter edge to ``size / crop_pct``, crop the centre."""
        return self._built({"is_training": False, "crop_pct": crop_pct})

    def _built(self, words: Mapping[str, Any]) -> Transform:
        from timm.data import create_transform

        common = {"mean": self.mean, "std": self.std, "interpolation": self.interpolation}
        try:
            return create_transform(self.input_shape, **{**common, **words})
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            message = f"timm.data.create_transform refuses {dict(words)} with {common}: {error!r}"
            raise ConfigurationError(message) from error


def merged_policy(augment: bool | Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the augmentations to use, or ``None`` for none.

    Raises:
        ConfigurationError: an unknown name.

    Example:
        >>> merged_policy({"hflip": 0.0}, {"hflip": 0.5, "scale": (0.6, 1.0)})
        {'hflip': 0.0, 'scale': (0.6, 1.0)}
        >>> merged_policy(False, {"hflip": 0.5}) is None
        True
    """
    if augment is False:
        return None
    changes = {} if augment is True else dict(augment)
    for name in changes:
        if name not in AUGMENTATIONS:
            raise ConfigurationError(
                f"augment has no option '{name}'; choose from {', '.join(AUGMENTATIONS)}."
                f"{did_you_mean(name, AUGMENTATIONS)}"
            )
    return {**default, **changes}


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(values)
    if channels == 1 or len(values) == 1:
        return (fmean(values),) * channels
    raise ConfigurationError(f"{name} has {len(values)} values for {channels} channels; give 1 or {channels}")
