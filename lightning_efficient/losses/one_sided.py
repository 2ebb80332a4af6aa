"""The objective of one-sided prediction: misses and false positives of each class's own set, traded at a price."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_positive
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.one_sided import (
    CostConstants,
    OneSidedCosts,
    one_sided_costs,
    one_sided_lagrangian,
    one_sided_released,
)
from lightning_efficient.functional.primal_dual import dual_group, project_
from lightning_efficient.losses._options import check_below_one
from lightning_efficient.losses._selective_objective import SelectiveObjective
from lightning_efficient.nn.selective_heads import SelectiveOutputs

Dual: TypeAlias = Literal["minimax", "fixed", "release"]

_INITIAL_GAP = 0.5


class OneSidedLoss(SelectiveObjective):
    """One-sided prediction: for each class a set of its own, large at a bounded cost of false positives.

    ``(1 - a) · M + a · CE``, where ``M`` is what ``dual`` names and ``CE`` the cross-entropy of an auxiliary classifier
    that is not used afterwards. At the saddle a higher price gives fewer errors and less coverage. Accept by
    the maximum softmax probability, with one threshold for all classes; the error that the paper bounds is the
    generalized risk. Costs are those of the process's own batch.

    With ``minimax`` the multipliers and the allowances of the K classes are parameters. One optimiser moves all: give
    it ``parameter_groups()`` and call ``project()`` after each of its steps. Where it settles, every multiplier is the
    price; ``fixed`` sets it so from the beginning, has no parameters, and is the cheaper way to the same optimum. The
    multipliers are slow at the default rate: in a short run they stay near where they began, at ``price - 0.5``, which
    is then the weight of the false positives; at a price of 0.5 or less that is none at all, with a warning.

    Args:
        num_classes: Classes ``K``, 2 or more.
        price: ``μ``, price of a false positive in units of a miss, above 0.
        dual: ``minimax``, the Lagrangian of :func:`~lightning_efficient.functional.one_sided.one_sided_lagrangian`;
            ``fixed``, with every multiplier at the price; or ``release``, the authors' PyTorch code, for parity only:
            its multipliers do not multiply the costs, so that the network's gradient does not depend on the price.
        auxiliary_weight: ``a``, in ``[0, 1)``; at 0 the auxiliary head is not needed.
        initial_multiplier: Multiplier of every class at the beginning; default ``max(price - 0.5, 0)``, for
            ``release`` without the maximum. Not for ``fixed``.
        initial_allowance: Allowed cost of false positives of every class at the beginning, nats.
        constants: See :func:`~lightning_efficient.functional.one_sided.one_sided_costs`; default ``exact``, for
            ``release`` ``released``.
        dual_rate: Learning rate of the multipliers, as a multiple of the optimiser's.

    Attributes:
        multipliers: Parameter of shape ``(K,)``; ``None`` for ``fixed``. Stays in float32 in a model that is cast to
            half precision, where its steps would be lost in rounding.
        allowances: The same, nats.

    Raises:
        ConfigurationError: an option outside its range.

    Example:
        >>> objective = OneSidedLoss(num_classes=2, price=2.0, dual="fixed", auxiliary_weight=0.0)
        >>> terms = objective(SelectiveOutputs(torch.tensor([[0.0, 0.0], [0.0, 0.0]])), torch.tensor([0, 1]))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'loss': 4.1589, 'miss_cost': 0.6931, 'false_positive_cost': 0.6931}

    Reference:
        Gangrade, Kag, Saligrama. Selective Classification via One-Sided Prediction. AISTATS 2021, poster and released
        code.
    """

    multipliers: nn.Parameter | None
    allowances: nn.Parameter | None

    def __init__(
        self,
        num_classes: int,
        price: float = 1.0,
        dual: Dual = "minimax",
        auxiliary_weight: float = 0.1,
        initial_multiplier: float | None = None,
        initial_allowance: float = 0.5,
        constants: CostConstants | None = None,
        dual_rate: float = 0.01,
    ) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ConfigurationError(f"num_classes={num_classes!r} must be a whole number of 2 or more.")
        check_positive("price", price)
        check_choice("dual", dual, get_args(Dual))
        check_below_one("auxiliary_weight", auxiliary_weight)
        if constants is None:
            constants = "released" if dual == "release" else "exact"
        check_choice("constants", constants, get_args(CostConstants))
        check_positive("dual_rate", dual_rate)
        if dual == "fixed" and initial_multiplier is not None:
            raise ConfigurationError(
                f"initial_multiplier={initial_multiplier!r} has no effect with dual='fixed', whose multipliers are the "
                "price; leave it out, or use dual='minimax'."
            )
        # the release takes values below 0, and never moves them
        least = -math.inf if dual == "release" else 0.0
        if initial_multiplier is None:
            initial_multiplier = max(price - _INITIAL_GAP, least)
            if dual == "minimax" and initial_multiplier == 0:
                warnings.warn(
                    f"price={price!r} starts with multipliers of 0, so that false positives cost nothing until they "
                    "have risen; give a price above 0.5, an initial_multiplier, or dual='fixed'.",
                    stacklevel=2,
                )
        _check_initial("initial_multiplier", initial_multiplier, least)
        _check_initial("initial_allowance", initial_allowance, least)
        self.num_classes, self.price, self.dual, self.constants = num_classes, price, dual, constants
        self.auxiliary_weight, self.dual_rate = auxiliary_weight, dual_rate
        self.needs = frozenset({"auxiliary"} if auxiliary_weight > 0 else ())
        if dual == "fixed":
            self.register_parameter("multipliers", None)
            self.register_parameter("allowances", None)
        else:
            self.multipliers = nn.Parameter(torch.full((num_classes,), float(initial_multiplier)))
            self.allowances = nn.Parameter(torch.full((num_classes,), float(initial_allowance)))

    def extra_repr(self) -> str:
        """Say what was chosen, for the printed form of a model."""
        return f"{self.num_classes}, price={self.price:g}, dual={self.dual!r}"

    def forward(self, outputs: SelectiveOutputs, target: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss of a batch, and what to log.

        Args:
            outputs: Logits of shape ``(N, K)`` and, where ``auxiliary_weight`` is above 0, auxiliary logits of the same
                shape; any float dtype (computed in float32; float64 stays).
            target: Classes, integers of shape ``(N,)``.
            index: Not used.

        Returns:
            ``loss``, a scalar with a graph, and without one ``miss_cost`` and ``false_positive_cost``, means over the
            classes in nats; for ``minimax`` also ``multiplier`` and ``allowance``, means over the classes.

        Raises:
            ConfigurationError: another number of classes, a target that does not fit, or no auxiliary logits.
        """
        if outputs.logits.ndim != 2 or outputs.logits.shape[1] != self.num_classes:
            raise ConfigurationError(
                f"logits have shape {tuple(outputs.logits.shape)}, and the objective is for "
                f"{self.num_classes} classes; give (N, {self.num_classes})."
            )
        costs = one_sided_costs(outputs.logits, target, self.constants)
        loss = (1 - self.auxiliary_weight) * self._traded(costs)
        if self.auxiliary_weight > 0:
            auxiliary = at_least_float32(self._head(outputs, "auxiliary_logits"))
            loss = loss + self.auxiliary_weight * F.cross_entropy(auxiliary, target.long())
        terms = {"miss_cost": costs.miss.mean(), "false_positive_cost": costs.false_positive.mean()}
        if self.dual == "minimax" and self.multipliers is not None and self.allowances is not None:
            terms |= {"multiplier": self.multipliers.mean(), "allowance": self.allowances.mean()}
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def project(self) -> None:
        """Clip multipliers and allowances at 0; ``release`` has other means and keeps them."""
        if self.dual == "minimax" and self.multipliers is not None and self.allowances is not None:
            project_(self.multipliers)
            project_(self.allowances)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return allowances, which descend, and multipliers, which ascend, without weight decay; none for ``fixed``.

        The multipliers have the key ``lr_scale``; see
        :meth:`~lightning_efficient.losses._selective_objective.SelectiveObjective.parameter_groups`.
        """
        if self.multipliers is None or self.allowances is None:
            return []
        return [
            dual_group([self.allowances], ascend=False),
            dual_group([self.multipliers], ascend=True, lr_scale=self.dual_rate),
        ]

    def _traded(self, costs: OneSidedCosts) -> Tensor:
        if self.multipliers is None or self.allowances is None:
            return (costs.miss + self.price * costs.false_positive).sum()
        lagrangian = one_sided_lagrangian if self.dual == "minimax" else one_sided_released
        return lagrangian(costs, self.multipliers, self.allowances, self.price)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OneSidedLoss:
        """Move the duals with a model, but never to half precision: a step of 1e-4 on 1.0 would be rounded away."""

        def moved(values: Tensor) -> Tensor:
            result = fn(values)
            narrower = result.is_floating_point() and at_least_float32(result).dtype != result.dtype
            return values.to(result.device) if narrower else result

        return super()._apply(moved, recurse)


def _check_initial(option: str, given: float, least: float) -> None:
    if not (least <= given and math.isfinite(given)):
        wanted = "a finite number" if least < 0 else "a finite number, 0 or more"
        raise ConfigurationError(f"{option}={given!r} must be {wanted}.")
