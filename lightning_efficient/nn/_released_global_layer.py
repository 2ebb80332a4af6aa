"""Names of a Global layer's weights in its authors' code, and ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from lightning_efficient.errors import ConfigurationError, did_you_mean

_PREFIXES = {
    "velocity_x.conv.": "convg.",
    "velocity_x.norm.": "bng.",
    "velocity_y.conv.": "convg1.",
    "velocity_y.norm.": "bng1.",
    "diffusion_x.conv.": "convDx.",
    "diffusion_x.norm.": "bnDx.",
    "diffusion_y.conv.": "convDy.",
    "diffusion_y.norm.": "bnDy.",
    "init.": "init_h.",
    "norm.": "bn_out.",
}


def released_names(ours: Iterable[str]) -> dict[str, str]:
    """Map our names to the authors', for all that they have."""
    return {
        name: theirs + name.removeprefix(prefix)
        for name in ours
        for prefix, theirs in _PREFIXES.items()
        if name.startswith(prefix)
    }


def from_released(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the authors' weights under our names.

    Raises:
        ConfigurationError: one is missing, or one has no place in this layer.
    """
    missing = [theirs for theirs in names.values() if theirs not in state]
    if missing:
        told = did_you_mean(missing[0], state)
        raise ConfigurationError(f"state_dict lacks {missing[0]!r} and {len(missing) - 1} more.{told}")
    unknown = sorted(set(state) - set(names.values()))
    if unknown:
        raise ConfigurationError(
            f"state_dict has {unknown[0]!r} and {len(unknown) - 1} more that this layer lacks; build it with the "
            "released layer's options (tied, diffusion, velocity, bias, init)."
        )
    return {ours: state[theirs] for ours, theirs in names.items()}
