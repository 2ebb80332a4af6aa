"""The schedule of stochastic depth after blocks went."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_efficient.nn.surgery._takeover import is_replacement


def drop_path_rates(model: nn.Module) -> list[float]:
    """Return the rate of each block that can be dropped, in the model's order."""
    return [_rate(owner) for owner in _owners(model)]


def respread(model: nn.Module, before: list[float]) -> None:
    """Spread the rates of what is left linearly from the first to the last rate of before.

    Nothing happens where there was no stochastic depth, or where its rates did not rise linearly.
    """
    owners: Any = _owners(model)
    if not any(before) or len(before) < 2 or not owners or not _linear(before):
        return
    from timm.layers import DropPath

    first, last, intervals = before[0], before[-1], max(1, len(owners) - 1)
    for index, owner in enumerate(owners):
        rate = first + (last - first) * (index if len(owners) > 1 else 1) / intervals
        if isinstance(owner.drop_path, DropPath):
            owner.drop_path.drop_prob = rate
        elif rate > 0:
            owner.drop_path = DropPath(rate).train(owner.training)


def _owners(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if _counts(module)]


def _counts(module: nn.Module) -> bool:
    child = getattr(module, "drop_path", _NONE)
    if type(child).__name__ == "DropPath":
        return True
    # a layer that a surgery put in has stochastic depth only where it was asked for
    return (child is None or isinstance(child, nn.Identity)) and not is_replacement(module)


def _rate(owner: nn.Module) -> float:
    return float(getattr(getattr(owner, "drop_path", None), "drop_prob", None) or 0.0)


def _linear(rates: list[float]) -> bool:
    step = (rates[-1] - rates[0]) / (len(rates) - 1)
    return all(abs(rate - rates[0] - index * step) < 1e-6 for index, rate in enumerate(rates))


_NONE = object()
