"""Methods and a part of the state of somebody else's LightningModule, replaced on the instance while it trains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_efficient._trainer import refuse_manual_optimization, refuse_shards
from lightning_efficient.errors import ConfigurationError, did_you_mean

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def check_can_borrow(trainer: Trainer, module: LightningModule, network: str, name: str) -> None:
    """Raise for a module, a part of it, or a strategy that leaves a callback no way to add to its training step.

    Args:
        trainer: Of the run.
        module: The module.
        network: Dotted name of the part of it that is to be there.
        name: Of the callback; begins every error.

    Raises:
        ConfigurationError: manual optimisation, parameters in shards, or no such part.
    """
    refuse_manual_optimization(module, name)
    refuse_shards(trainer, name)
    parts = [part for part, _ in module.named_modules()]
    if network not in parts:
        raise ConfigurationError(
            f"{name}: {type(module).__name__} has no part network={network!r}.{did_you_mean(network, parts)}"
        )


class BorrowedMethods:
    """Replace methods on an instance, and give them back, in any order among several that do so.

    The replacements of one method lie over each other. One that is given back while another lies over it only passes
    calls on from then, and is taken away together with that other.

    Args:
        module: The instance.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self._layers: dict[str, list[_Layer]] = {}

    def replace(self, name: str, wrap: Wrap, *, keeps_signature: bool = True) -> None:
        """Replace one method by ``wrap(method)``.

        Args:
            name: Of the method.
            wrap: From the method as it is to the one to call in its place.
            keeps_signature: Whether the arguments stay those of the method, whatever ``wrap`` declares.
        """
        layer = _Layer(self.module, name, wrap, keeps_signature)
        self._layers.setdefault(name, []).append(layer)
        setattr(self.module, name, layer.method)

    def give_back(self) -> None:
        """Put back every method; what a compiler had installed is kept."""
        for name, layers in self._layers.items():
            for layer in layers:
                layer.given_back = True
            _uncover(self.module, name)
        self._layers = {}


class _Layer:
    """One replacement of a method of an instance, over what was there."""

    def __init__(self, module: LightningModule, name: str, wrap: Wrap, keeps_signature: bool) -> None:
        self.before = vars(module).get(name)
        self.given_back = False
        below = getattr(module, name)
        replacement = wrap(below)
        lower = _layer_of(below)
        # Lightning looks for the arguments one level down and no deeper
        self.declared: Callable[..., Any] = below if lower is None else lower.declared
        if not keeps_signature:
            self.declared = replacement

        @functools.wraps(self.declared)
        def method(*args: Any, **kwargs: Any) -> Any:
            return (below if self.given_back else replacement)(*args, **kwargs)

        vars(method)["layer"] = self
        self.method = method


def _layer_of(method: Any) -> _Layer | None:
    layer = getattr(method, "layer", None)
    # functools.wraps copies the attribute to whatever somebody else puts over a layer
    return layer if isinstance(layer, _Layer) and layer.method is method else None


def _uncover(module: LightningModule, name: str) -> None:
    """Take off the layers that were given back and that nothing lies over."""
    while (layer := _layer_of(vars(module).get(name))) is not None and layer.given_back:
        if layer.before is None:
            del vars(module)[name]
        else:
            setattr(module, name, layer.before)


@contextmanager
def evaluating(module: nn.Module, but: nn.Module) -> Iterator[None]:
    """Have a module in eval mode, all but one part of it, and then as it was."""
    kept = set(but.modules())
    training = [each for each in module.modules() if each.training and each not in kept]
    for each in training:
        each.training = False
    try:
        yield
    finally:
        for each in training:
            each.training = True


def keep_out_of_state(module: nn.Module, attribute: str) -> list[RemovableHandle]:
    """Have a module save and load its state dict as if it did not have one of its submodules.

    So does a moving average, which copies the hooks with the module; they refer to nothing that would be copied too.

    Returns:
        What undoes it by ``remove()``.
    """
    leave_out, fill_in = functools.partial(_leave_out, attribute), functools.partial(_fill_in, attribute)
    return [
        module.register_state_dict_post_hook(leave_out),
        module.register_load_state_dict_pre_hook(fill_in),
    ]


def _leave_out(attribute: str, module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}{attribute}.")]:
        del state_dict[name]


def _fill_in(attribute: str, module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    submodule = getattr(module, attribute, None)
    if submodule is not None:
        for name, value in submodule.state_dict().items():
            state_dict.setdefault(f"{prefix}{attribute}.{name}", value)
