"""Measurements of a pruned network beside the dense one."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_efficient.nn.quantization.files import size_on_disk
from lightning_efficient.nn.surgery import recipe_of
from lightning_efficient.profiling.in_turns import time_in_turns
from lightning_efficient.profiling.inputs import rebatch

BATCH_SIZES = (1, 32)
ROUNDS = 40


def latency_in_turns(new: nn.Module, old: nn.Module, example: Tensor, device: torch.device) -> dict[str, Any]:
    """Return medians of the latency of two networks and their ratios, below 1 where the new one is faster."""
    networks = {"pruned": _ready(new, device), "dense": _ready(old, device)}
    found: dict[str, Any] = {"device": f"{device.type}, {torch.get_num_threads()} threads", "latency_ms": {}}
    with torch.inference_mode():
        for size in BATCH_SIZES:
            batch = rebatch(example, size).to(device)
            calls = {name: _call(network, batch) for name, network in networks.items()}
            seconds = time_in_turns(calls, rounds=ROUNDS, device=device)
            medians = {name: 1000 * statistics.median(each) for name, each in seconds.items()}
            found["latency_ms"][f"b{size}"] = medians
            found[f"latency_ratio_b{size}"] = medians["pruned"] / medians["dense"]
    return found


def largest_difference(one: nn.Module, other: nn.Module, example: Tensor) -> float:
    """Return by how much the outputs differ at most."""
    batch = torch.cat([example, 2 * example, -example])
    with torch.inference_mode():
        outputs = [_ready(each, example.device)(batch) for each in (one, other)]
    flat = [torch.cat([leaf.flatten() for leaf in torch.utils._pytree.tree_leaves(each)]) for each in outputs]
    return float((flat[0] - flat[1]).abs().max())


def filled(network: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy in which small random numbers stand in place of the zeros."""
    dense = copy.deepcopy(network)
    parameters = dict(dense.named_parameters(remove_duplicate=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = parameters[name]
            noise = 0.01 * torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.copy_(torch.where(mask.to(parameter.device), parameter, noise))
    return dense


def bytes_of(network: nn.Module) -> dict[str, int]:
    """Return the bytes of the state dict in a file, and of that file compressed."""
    return {"on_disk": size_on_disk(network), "compressed": size_on_disk(network, compressed=True)}


def made_of(module: LightningModule, network: nn.Module) -> dict[str, Any] | None:
    """Return the timm model that a network is, where its module tells and nothing has changed its blocks."""
    if network is not getattr(module, "backbone", None) or recipe_of(network) is not None:
        return None
    told = module.hparams
    if not isinstance(told.get("backbone"), str):
        return None
    options = {"num_classes": told.get("num_classes"), "in_chans": told.get("in_chans")}
    given = {key: value for key, value in options.items() if value is not None}
    return {"name": told["backbone"], **given, "kwargs": dict(told.get("backbone_kwargs") or {})}


def _ready(network: nn.Module, device: torch.device) -> nn.Module:
    return copy.deepcopy(network).to(device).eval()


def _call(network: nn.Module, batch: Tensor) -> Any:
    return lambda: network(batch)
