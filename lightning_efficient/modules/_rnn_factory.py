"""Recurrent networks by name, with errors that help."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lightning_efficient.errors import ConfigurationError, did_you_mean

_TORCH: dict[str, type[nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
_OURS = {"irnn": "lightning_efficient.nn.IncrementalRNN", "tarnn": "lightning_efficient.nn.TimeAdaptiveRNN"}
NAMES = (*_TORCH, *_OURS)


def create_rnn(
    rnn: str | type[nn.Module],
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    dropout: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Create a recurrent network whose inputs are ``(N, T, F)``.

    Args:
        rnn: One of ``NAMES``, an import path, or a class that is constructed like ``torch.nn.GRU``.
        input_size: Features per time step.
        hidden_size: Width of the state.
        num_layers: How many networks are stacked.
        dropout: Share of dropped outputs between layers; without effect for one layer.
        options: Further arguments of the class.

    Raises:
        ConfigurationError: the name is unknown, or the class does not take these arguments.
    """
    options = dict(options or {})
    if options.get("bidirectional"):
        raise ConfigurationError(
            "model.rnn_kwargs has bidirectional: true, but a state that is carried from part to part knows no future; "
            "remove it"
        )
    build: Callable[..., nn.Module] = _class_of(rnn)
    try:
        # torch warns of a dropout that has no layers to stand between
        between = dropout if num_layers > 1 else 0.0
        return build(input_size, hidden_size, num_layers, batch_first=True, dropout=between, **options)
    except (TypeError, ValueError) as error:
        message = f"model.rnn_kwargs: {rnn_name(rnn)} cannot be built with {options}: {error}"
        raise ConfigurationError(message) from error


def rnn_name(rnn: str | type[nn.Module]) -> str:
    """Return a name that a checkpoint can keep: the given one, or the import path of a class.

    Example:
        >>> rnn_name("lstm"), rnn_name(nn.GRU)
        ('lstm', 'torch.nn.modules.rnn.GRU')
    """
    return rnn if isinstance(rnn, str) else f"{rnn.__module__}.{rnn.__qualname__}"


def _class_of(rnn: str | type[nn.Module]) -> type[nn.Module]:
    found = _imported(_OURS.get(rnn, rnn)) if isinstance(rnn, str) and rnn not in _TORCH else rnn
    found = _TORCH[found] if isinstance(found, str) else found
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigurationError(f"model.rnn is {rnn!r}, which is no subclass of torch.nn.Module")
    return found


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if not module:
        raise ConfigurationError(
            f"model.rnn: unknown recurrent network {path!r}; it is one of {', '.join(NAMES)}, or the import path of a "
            f"class.{did_you_mean(path, NAMES)}"
        )
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"model.rnn: {path!r} cannot be imported: {error}") from error
