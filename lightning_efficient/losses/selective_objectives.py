"""Objectives for abstaining classifiers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.losses._options import check_option_names
from lightning_efficient.losses._selective_objective import SelectiveObjective
from lightning_efficient.losses.gamblers import GamblersLoss
from lightning_efficient.losses.one_sided import OneSidedLoss
from lightning_efficient.losses.selective_cross_entropy import SelectiveCrossEntropy
from lightning_efficient.losses.selective_net import SelectiveNetLoss
from lightning_efficient.losses.self_adaptive import SelfAdaptiveLoss

SelectiveObjectiveName: TypeAlias = Literal["ce", "osp", "selectivenet", "gamblers", "sat"]

_OBJECTIVES: Mapping[str, Callable[..., SelectiveObjective]] = {
    "ce": SelectiveCrossEntropy,
    "osp": OneSidedLoss,
    "selectivenet": SelectiveNetLoss,
    "gamblers": GamblersLoss,
    "sat": SelfAdaptiveLoss,
}
_SIZES = ("num_classes",)


def check_selective_options(objective: str, options: Mapping[str, Any]) -> None:
    """Raise for an objective or an option of it that does not exist, before anything is built.

    Raises:
        ConfigurationError: an unknown name; it says which there are.

    Example:
        >>> check_selective_options("gamblers", {"payoff": 2.2})
    """
    check_choice("model.objective", objective, get_args(SelectiveObjectiveName))
    check_option_names(objective, options, _OBJECTIVES[objective], _SIZES)


def build_selective_objective(objective: str, options: Mapping[str, Any], num_classes: int) -> SelectiveObjective:
    """Build an objective that is called with a network's outputs and the target.

    Args:
        objective: ``ce``, ``osp`` (one-sided prediction), ``selectivenet``, ``gamblers`` or ``sat`` (self-adaptive
            training).
        options: Its keyword arguments.
        num_classes: Number of classes ``K``.

    Raises:
        ConfigurationError: a name that does not exist, or a value that cannot work.

    Example:
        >>> objective = build_selective_objective("gamblers", {"payoff": 2.2}, num_classes=10)
        >>> sorted(objective.needs), objective.default_score
        (['abstain'], 'abstain_logit')
    """
    check_selective_options(objective, options)
    sizes = {"num_classes": num_classes} if objective == "osp" else {}
    try:
        built = _OBJECTIVES[objective](**sizes, **options)
    except ConfigurationError as error:
        raise ConfigurationError(f"model.objective_kwargs: {error}") from error
    if isinstance(built, GamblersLoss) and built.payoff > num_classes:
        raise ConfigurationError(
            f"model.objective_kwargs: payoff is {built.payoff}, but there are {num_classes} classes; set payoff above "
            f"1 and to {num_classes} or less"
        )
    return built
