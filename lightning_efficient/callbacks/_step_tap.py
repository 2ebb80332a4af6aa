"""What a constraint may be asked for, what it reads from a LightningModule, and where it writes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_efficient.callbacks._borrowed_step import BorrowedMethods
from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import check_choice

Every = Literal["step", "epoch"]
Addition = Callable[[Any, Mapping[str, Any]], Any]
"""From what ``training_step`` returned and what it logged to what it shall return."""


class StepTap:
    """Replace ``training_step`` and ``log`` of a module instance: what a step logs is seen when the step is done.

    Args:
        module: The instance.
        additions: What to do with each step, in this order.

    Raises:
        ConfigurationError: the module steps its optimisers itself.
    """

    def __init__(self, module: LightningModule, additions: Sequence[Addition]) -> None:
        if not module.automatic_optimization:
            raise ConfigurationError(
                f"Constraint: {type(module).__name__} steps its optimisers itself, so nothing can be added to its "
                "loss; give attribute= the name of a number that receives the multiplier"
            )
        self._additions = additions
        self._logged: dict[str, Any] | None = None
        self._borrowed = BorrowedMethods(module)
        self._borrowed.replace("log", self._keeping)
        self._borrowed.replace("training_step", self._adding)

    def remove(self) -> None:
        """Give the module its own methods back."""
        self._borrowed.give_back()

    def _keeping(self, log: Callable[..., Any]) -> Callable[..., Any]:
        def log_and_keep(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
            if self._logged is not None:
                self._logged[name] = value
            log(name, value, *args, **kwargs)

        return log_and_keep

    def _adding(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def step_and_add(*args: Any, **kwargs: Any) -> Any:
            self._logged = {}
            try:
                outputs = step(*args, **kwargs)
                for addition in self._additions:
                    outputs = addition(outputs, self._logged)
                return outputs
            finally:
                self._logged = None

        return step_and_add


def check_options(
    every: Every, attribute: str | None, augmentation: float, relax_every: int | None, relax_for: int
) -> None:
    """Raise unless the options of a constraint fit each other."""
    check_choice("every", every, get_args(Every))
    if attribute is not None and augmentation:
        raise ConfigurationError(
            f"Constraint: augmentation={augmentation!r} is a term of the loss, and with attribute= nothing is added to "
            "it; leave one of the two out"
        )
    if not 0 <= relax_for <= (relax_every or 0):
        raise ConfigurationError(
            f"Constraint: relax_for is {relax_for!r} and relax_every {relax_every!r}; relax_for must lie between 0 and "
            "relax_every, both in updates"
        )


def bound_of(at_most: float | None, at_least: float | None) -> tuple[float, float]:
    """Return the one bound that is given, and the sign of a violation: 1 above it, -1 below it.

    Raises:
        ConfigurationError: both are given, or none, or it is not finite.
    """
    if (at_most is None) == (at_least is None):
        raise ConfigurationError(
            f"Constraint: give one of at_most and at_least; got at_most={at_most!r} and at_least={at_least!r}"
        )
    bound, sign = (at_most, 1.0) if at_most is not None else (at_least, -1.0)
    if bound is None or not math.isfinite(bound):
        raise ConfigurationError(f"Constraint: the bound is {bound!r}; it must be a finite number")
    return float(bound), sign


def value_of(monitor: str, logged: Mapping[str, Any], outputs: Any) -> Tensor | None:
    """Return the scalar that a step logged.

    None where there is nothing to train: the step is skipped, or the network rests, as in the phase of a guide.

    Raises:
        ConfigurationError: it was not logged, or has no graph although the network trains.
    """
    if outputs is None:
        return None
    rests = not torch.is_grad_enabled() or (isinstance(outputs, Mapping) and outputs.get("phase") == "guide")
    if rests and monitor not in logged:
        return None
    value = find(monitor, "training_step", logged)
    if isinstance(value, Tensor) and value.requires_grad:
        return value
    if rests:
        return None
    raise ConfigurationError(
        f"Constraint: {monitor!r} is logged without a gradient, so it cannot be added to the loss; log the tensor with "
        "its graph, or give attribute= the name of a number that receives the multiplier"
    )


def find(monitor: str, place: str, logged: Mapping[str, Any]) -> Any:
    """Return what was logged under a name.

    Raises:
        ConfigurationError: it is not there; says what is.
    """
    if monitor in logged:
        return logged[monitor]
    names = sorted(logged)
    raise ConfigurationError(
        f"Constraint: monitor={monitor!r} was not logged in {place}, which logged {names or 'nothing'}."
        f"{did_you_mean(monitor, names)}"
    )


def holder_of(attribute: str, module: LightningModule) -> tuple[Any, str]:
    """Return the object that has a number of this dotted name, and its name there.

    Raises:
        ConfigurationError: there is none, or it is no number.
    """
    *path, name = attribute.split(".")
    holder: Any = module
    try:
        for part in path:
            holder = getattr(holder, part)
        value = getattr(holder, name)
    except AttributeError as error:
        numbers = [key for key, value in vars(holder).items() if isinstance(value, int | float)]
        raise ConfigurationError(
            f"Constraint: attribute={attribute!r} is not there: {error}.{did_you_mean(name, numbers)}"
        ) from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(
            f"Constraint: attribute={attribute!r} is of type {type(value).__name__}; it must be a number, which "
            "receives the multiplier"
        )
    return holder, name
