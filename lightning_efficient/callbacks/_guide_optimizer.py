"""A group of its own for a guide, in the optimiser of a module that does not know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, MultiStepLR, ReduceLROnPlateau, StepLR

from lightning_efficient.errors import ConfigurationError

LEARN_OF_A_GROUP = (CosineAnnealingLR, ExponentialLR, MultiStepLR, StepLR)
"""Schedulers that need no more than a base rate to take up another group; others fail, or use a wrong rate."""


def with_guide_group(
    configure: Callable[[], Any], module: LightningModule, attribute: str, guide_lr: float | None
) -> Any:
    """Call a module's ``configure_optimizers`` and see to it that the guide is trained.

    Where the optimiser takes ``module.parameters()`` and the guide has no rate of its own, it is there already.

    Args:
        configure: The module's own method.
        module: The module, which holds the guide.
        attribute: Name of the guide in it.
        guide_lr: Learning rate of the guide; ``None`` for that of the first group.

    Raises:
        ConfigurationError: several optimisers, none, or a scheduler that cannot learn of another group.
    """
    guide = module.get_submodule(attribute)
    if guide_lr is not None:
        del module._modules[attribute]
    try:
        configured = configure()
    finally:
        if guide_lr is not None:
            module.add_module(attribute, guide)
    optimizers, schedulers = _parts(configured)
    if len(optimizers) != 1:
        raise ConfigurationError(
            f"DiSK: {type(module).__name__}.configure_optimizers gives {len(optimizers)} optimisers; it must give one"
        )
    optimizer = optimizers[0]
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [parameter for parameter in guide.parameters() if id(parameter) not in known]
    if not missing:
        return configured
    for scheduler in schedulers:
        if not isinstance(scheduler, (*LEARN_OF_A_GROUP, ReduceLROnPlateau)):
            raise ConfigurationError(
                f"DiSK: {type(scheduler).__name__} cannot take up the guide as another group of the optimiser; leave "
                "guide_lr out and give the optimiser self.parameters(), or use the module Distiller"
            )
    first = optimizer.param_groups[0]
    rate = guide_lr if guide_lr is not None else first.get("initial_lr", first["lr"])
    optimizer.add_param_group({"params": missing, "lr": rate, "initial_lr": rate})
    for scheduler in schedulers:
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.min_lrs.append(scheduler.min_lrs[0])
        else:
            scheduler.base_lrs.append(rate)
            scheduler._last_lr.append(rate)
    return configured


def _parts(configured: Any) -> tuple[list[Optimizer], list[Any]]:
    """Take apart whatever ``configure_optimizers`` may return."""
    if isinstance(configured, Optimizer):
        return [configured], []
    if isinstance(configured, Mapping):
        scheduler = configured.get("lr_scheduler")
        return [configured["optimizer"]], [] if scheduler is None else [_scheduler(scheduler)]
    if isinstance(configured, Sequence) and configured:
        if isinstance(configured[0], Sequence):
            schedulers = configured[1] if len(configured) > 1 else []
            return list(configured[0]), [_scheduler(each) for each in schedulers]
        pairs = [_parts(each) for each in configured]
        return [each for pair in pairs for each in pair[0]], [each for pair in pairs for each in pair[1]]
    return [], []


def _scheduler(given: Any) -> Any:
    return given["scheduler"] if isinstance(given, Mapping) else given
