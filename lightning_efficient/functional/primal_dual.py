"""The multiplier of an inequality constraint, moved by projected ascent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_fraction, check_positive
from lightning_efficient.functional._precision import at_least_float32

WARM_SHARE = 0.25
"""Share of the ascent's rate at which the released warm steps descend."""


class PrimalDual:
    """The multiplier λ of a constraint ``residual <= 0``, for training that descends on ``loss + penalty``.

    Per step of the optimiser: add ``penalty(residual)`` to the loss, and afterwards call ``step(float(residual))``. The
    multiplier rises while the constraint is violated and falls while it is met with room. Plain Python floats: no
    device, and a resumed run goes on bit for bit.

    Args:
        rate: Ascent rate ρ, above 0.
        initial: Multiplier at the beginning, between ``minimum`` and ``maximum``.
        minimum: Least multiplier, 0 or more.
        maximum: Largest multiplier; infinity for none.
        augmentation: Weight c of the quadratic term, 0 or more; it damps the oscillation that plain ascent is prone to.
        relaxation: Factor on the multiplier in ``relax``, in ``[0, 1]``.

    Attributes:
        multiplier: The multiplier as it is now, in units of the loss per unit of the residual.
        updates: How often it was moved; residuals that are not finite do not count.

    Raises:
        ConfigurationError: an option outside its range.

    Example:
        >>> dual = PrimalDual(rate=0.5, maximum=1.0)
        >>> dual.step(1.0), dual.step(3.0), dual.step(-0.5)
        (0.5, 1.0, 0.75)

    Reference:
        Rockafellar. The multiplier method of Hestenes and Powell applied to convex programming. 1973. For ``relax`` and
        ``correction``: Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023, released
        code.
    """

    def __init__(
        self,
        rate: float = 0.1,
        initial: float = 0.0,
        minimum: float = 0.0,
        maximum: float = math.inf,
        augmentation: float = 0.0,
        relaxation: float = 0.5,
    ) -> None:
        check_positive("rate", rate)
        if not 0 <= minimum < math.inf:
            raise ConfigurationError(f"minimum={minimum!r} must be a finite number, 0 or more.")
        if not minimum <= maximum:
            raise ConfigurationError(f"maximum={maximum!r} must be at least minimum={minimum!r}.")
        if not (minimum <= initial <= maximum and math.isfinite(initial)):
            raise ConfigurationError(
                f"initial={initial!r} must be finite, and between minimum={minimum!r} and maximum={maximum!r}."
            )
        if not 0 <= augmentation < math.inf:
            raise ConfigurationError(f"augmentation={augmentation!r} must be a finite number, 0 or more.")
        check_fraction("relaxation", relaxation, zero=True)
        self.rate = float(rate)
        self.initial = float(initial)
        self.minimum = float(minimum)
        self.maximum = float(maximum)
        self.augmentation = float(augmentation)
        self.relaxation = float(relaxation)
        self.reset()

    def __repr__(self) -> str:
        return f"PrimalDual(multiplier={self.multiplier:g}, rate={self.rate:g}, updates={self.updates})"

    @property
    def at_maximum(self) -> bool:
        """Whether the multiplier can rise no further."""
        return self.multiplier >= self.maximum

    def step(self, residual: float, correction: float = 0.0) -> float:
        """Move the multiplier up where the constraint is violated, down where it is met: ``clip(λ + ρR + correction)``.

        Args:
            residual: By how much the constraint is violated, R; negative where it is met. A residual that is not
                finite, from a step that a gradient scaler skips for instance, leaves everything as it is.
            correction: What to add besides, in units of the multiplier.

        Returns:
            The new multiplier.
        """
        return self._move(self.multiplier + self.rate * residual + correction)

    def relax(self, residual: float) -> float:
        """Let the multiplier fall back, ``clip(relaxation * (λ - ρR / 4))``, as in the released code's warm steps.

        Args:
            residual: As in ``step``.

        Returns:
            The new multiplier.
        """
        return self._move(self.relaxation * (self.multiplier - WARM_SHARE * self.rate * residual))

    def penalty(self, residual: Tensor) -> Tensor:
        """Return what to add to the loss; its gradient is that of the residual times the multiplier.

        ``λR``, or with augmentation the augmented Lagrangian of inequalities, ``(max(0, λ + cR)² - λ²) / 2c``, whose
        gradient is that of the residual times ``max(0, λ + cR)``. It may be negative.

        Args:
            residual: Any shape and float dtype (computed in float32 at least), with a graph.

        Returns:
            Same shape, in units of the loss, differentiable in ``residual``.

        Example:
            >>> import torch
            >>> PrimalDual(initial=2.0, augmentation=1.0).penalty(torch.tensor([1.0, -3.0])).tolist()
            [2.5, -2.0]
        """
        residual = at_least_float32(residual)
        if self.augmentation == 0:
            return self.multiplier * residual
        # the same function without the difference of two squares, which loses digits where c is small
        bounded = residual.clamp(min=-self.multiplier / self.augmentation)
        return self.multiplier * bounded + 0.5 * self.augmentation * bounded.square()

    def reset(self) -> None:
        """Return to the initial multiplier and forget the count."""
        self.multiplier = self.initial
        self.updates = 0

    def state_dict(self) -> dict[str, float | int]:
        """Return multiplier and count, plain numbers."""
        return {"multiplier": self.multiplier, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Continue from a state."""
        self.multiplier = float(state["multiplier"])
        self.updates = int(state["updates"])

    def _move(self, target: float) -> float:
        if math.isfinite(target):
            self.multiplier = min(max(target, self.minimum), self.maximum)
            self.updates += 1
        return self.multiplier


def project_(values: Tensor, minimum: float = 0.0, maximum: float = math.inf) -> Tensor:
    """Clip multipliers or allowances to their bounds in place, as :class:`PrimalDual` does with its multiplier.

    For tensors that an optimiser moves: call it after each of its steps. No gradient is recorded.

    Args:
        values: Any shape and float dtype, changed in place; a parameter may be given.
        minimum: Least value.
        maximum: Largest value, at least ``minimum``; infinity for none.

    Returns:
        ``values``. A NaN stays one.

    Raises:
        ConfigurationError: ``maximum`` below ``minimum``.

    Example:
        >>> project_(torch.tensor([-0.5, 0.5, 3.0]), maximum=2.0)
        tensor([0.0000, 0.5000, 2.0000])
    """
    if not minimum <= maximum:
        raise ConfigurationError(f"maximum={maximum!r} must be at least minimum={minimum!r}.")
    with torch.no_grad():
        return values.clamp_(minimum, maximum)


def dual_group(parameters: Iterable[Tensor], *, ascend: bool, **options: Any) -> dict[str, Any]:
    """Make a parameter group for variables of a saddle point, which one optimiser then moves beside the network.

    Such variables get no weight decay, which would pull them from the saddle. Those that the objective is maximised
    over have ``maximize=True``. Most optimisers of torch know that key; one that does not ignores it without a word,
    so check its signature before.

    Args:
        parameters: Multipliers (``ascend=True``) or allowances (``ascend=False``).
        ascend: Whether to climb the gradient.
        **options: Further keys of the group, such as ``lr``; not ``weight_decay`` or ``maximize``.

    Returns:
        A group for ``torch.optim.Optimizer``.

    Raises:
        ConfigurationError: an option that the group fixes.

    Example:
        >>> multiplier = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([dual_group([multiplier], ascend=True, lr=0.5)], lr=0.1)
        >>> (3 * multiplier).backward()
        >>> optimizer.step()
        >>> multiplier.item()
        1.5
    """
    for name in ("weight_decay", "maximize"):
        if name in options:
            raise ConfigurationError(f"{name}={options[name]!r} cannot be set here; the group of a dual fixes it.")
    group: dict[str, Any] = {"params": list(parameters), "weight_decay": 0.0, **options}
    return {**group, "maximize": True} if ascend else group
