"""Put a fake-quantised network in the place of a module's network, and say what its graph lacks."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_efficient.callbacks._quantization_ranges import give_shapes, keep_ranges_apart
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization.aware import AwareNetwork, prepare_aware
from lightning_efficient.profiling.inputs import random_example, rebatch
from lightning_efficient.rng import rng_untouched

_PLAIN = (bool, int, float, str, tuple, list, dict, type(None))
_KEPT = ("_surgery_steps", "_surgery_architecture")
"""What ``nn.surgery`` notes on a network, so that checkpoints hold its recipe."""

_BEFORE: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def replace_network(module: LightningModule, name: str, shape: tuple[int, ...], callback: str) -> AwareNetwork:
    """Put the fake-quantised copy of a network in its place.

    Args:
        module: Changed in place.
        name: Dotted name of the network.
        shape: Of one sample of the network's input.
        callback: Begins every error.

    Raises:
        ConfigurationError: the network is the module itself, or compiled, or it has no graph.
    """
    if not name:
        raise ConfigurationError(
            f"{callback}: network='' is the whole {type(module).__name__}; put its layers into a sub-module and name it"
        )
    network = module.get_submodule(name)
    is_compiled = hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None
    if is_compiled or getattr(module, "_compiler_ctx", None) is not None:
        raise ConfigurationError(
            f"{callback}: {name} is compiled by torch.compile, and its graph has to be traced; train without compile, "
            "the integers are compiled afterwards"
        )
    try:
        aware = prepare_aware(network, example_for(network, shape))
    except ConfigurationError as error:
        raise ConfigurationError(f"{callback}: {name}: {error}") from error
    with rng_untouched():
        give_shapes(aware, example_for(network, shape))
    keep_ranges_apart(aware)
    _tell_attributes(network, aware, f"{callback}: {name}")
    aware.train(network.training)
    module.set_submodule(name, aware)
    _BEFORE[aware] = network
    return aware


def network_before(aware: AwareNetwork) -> nn.Module | None:
    """Return the float network with the weights that the fake-quantised one has now, on the CPU in evaluation mode."""
    network = _BEFORE.get(aware)
    if network is not None:
        network.load_state_dict(aware.state_dict())
        network.eval()
    return network


def example_for(network: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return two samples: of numbers, or of tokens where a network begins with an embedding."""
    if len(shape) == 1 and any(isinstance(module, nn.Embedding) for module in network.modules()):
        return torch.zeros(2, *shape, dtype=torch.long, device=next(network.parameters()).device)
    return rebatch(random_example(network, shape), 2)


def _tell_attributes(network: nn.Module, aware: AwareNetwork, place: str) -> None:
    """Copy the numbers and names that a network tells of itself, and explain that its graph has no other forward."""
    for key, value in vars(network).items():
        if (not key.startswith("_") or key in _KEPT) and isinstance(value, _PLAIN) and not hasattr(aware, key):
            setattr(aware, key, copy.deepcopy(value))
    for key in dir(type(network)):
        if key.startswith("forward_") and callable(getattr(network, key, None)):
            setattr(aware, key, partial(_refuse, place, key))


def _refuse(place: str, key: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise ConfigurationError(
        f"{place} is a graph of forward alone, and the module calls {key} of it; quantise a module that calls the "
        "network as a whole, such as ImageClassifier"
    )
