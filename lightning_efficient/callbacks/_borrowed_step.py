"""Two methods of somebody else's LightningModule, replaced on the instance while it trains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn


class BorrowedMethods:
    """Replace methods on an instance, and put back what was there.

    Args:
        module: The instance.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self._before: dict[str, Any] = {}

    def replace(self, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace one method by ``wrap(method)``, which keeps its signature, since Lightning looks at it."""
        self._before.setdefault(name, vars(self.module).get(name))
        inner = getattr(self.module, name)
        setattr(self.module, name, functools.wraps(inner)(wrap(inner)))

    def give_back(self) -> None:
        """Put back every method."""
        for name, before in self._before.items():
            if before is None:
                vars(self.module).pop(name, None)
            else:
                setattr(self.module, name, before)
        self._before = {}


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
