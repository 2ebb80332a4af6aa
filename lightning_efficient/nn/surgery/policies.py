"""Policies: surgeries that a configuration names, and their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.nn.surgery._surgeon import Surgeon
from lightning_efficient.nn.surgery.makers import imported
from lightning_efficient.nn.surgery.result import Result, finished, optimizers_of
from lightning_efficient.nn.surgery.steps import Step

_HERE = "lightning_efficient.nn.surgery"


class Policy:
    """A function from a model to steps, which is imported when it is used.

    Args:
        path: ``"package.module:function"``.
        fixed: Options that the policy sets. The options of the layer that ``then`` names are the policy's, too.
    """

    def __init__(self, path: str, **fixed: Any) -> None:
        self.path, self.fixed = path, fixed

    def __call__(self, model: nn.Module, *, pretrained: bool = False, **options: Any) -> list[Step]:
        """Return the steps; nothing is changed."""
        steps: list[Step] = imported(self.path)(model, pretrained=pretrained, **self.fixed, **options)
        return steps

    def options(self) -> list[str]:
        """Return the names of its options."""
        from lightning_efficient.nn.surgery.condensation import option_names

        names = _keywords(imported(self.path), named_only=True) or []
        layer = self.fixed.get("then")
        own = [] if layer is None else sorted(option_names(layer))
        return [name for name in dict.fromkeys([*names, *own]) if name not in ("model", "pretrained", *self.fixed)]


_CONDENSATION = f"{_HERE}.condensation:condensation_steps"

POLICIES: dict[str, Callable[..., list[Step]]] = {
    "SpatialInterpolation": Policy(f"{_HERE}.interpolation:interpolation_steps"),
    "GlobalLayer": Policy(_CONDENSATION, then="GlobalLayer"),
    "DepthwiseLayer": Policy(_CONDENSATION, then="DepthwiseLayer"),
    "Condense": Policy(_CONDENSATION, then=None),
}
"""Policies by name, each ``(model, *, pretrained=False, **options) -> steps``."""


def perform(
    model: nn.Module,
    policies: Sequence[Mapping[str, Any]],
    *,
    pretrained: bool = False,
    option: str = "model.surgery",
    copy_blocks: bool = False,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> Result:
    """Carry policies out on a model, one after the other, in place; none of them where one cannot be.

    Args:
        model: The model.
        policies: Mappings with ``class_path``, a key of :data:`POLICIES` or an import path of a user's function, and
            with its options as ``init_args``.
        pretrained: Whether the weights are trained ones, so that new branches should start without effect.
        option: What the list is called in messages.
        copy_blocks: As in :func:`~lightning_efficient.nn.surgery.result.carry_out`.
        optimizer: As in :func:`~lightning_efficient.nn.surgery.result.carry_out`.

    Raises:
        ConfigurationError: an unknown policy or option, or a policy that finds no block.
    """
    surgeon = Surgeon(model, copy_blocks, optimizers_of(optimizer))
    try:
        for index, policy in enumerate(policies):
            _perform(surgeon, policy, pretrained, f"{option}[{index}]")
    except BaseException:
        surgeon.give_up()
        raise
    return finished(surgeon)


def _perform(surgeon: Surgeon, policy: Mapping[str, Any], pretrained: bool, here: str) -> None:
    if not isinstance(policy, Mapping) or not isinstance(policy.get("class_path"), str):
        raise ConfigurationError(f"{here}: a policy is a mapping with 'class_path' and 'init_args', not {policy!r}")
    if unknown := [key for key in policy if key not in ("class_path", "init_args")]:
        raise ConfigurationError(f"{here}: a policy has 'class_path' and 'init_args', and no {unknown[0]!r}")
    name, given = policy["class_path"], policy.get("init_args")
    if given is not None and not isinstance(given, Mapping):
        raise ConfigurationError(f"{here}.init_args must be a mapping of options, not {given!r}")
    options = dict(given or {})
    chosen = _policy(name, here)
    allowed = chosen.options() if isinstance(chosen, Policy) else _keywords(chosen)
    for option in options:
        if allowed is not None and option not in allowed:
            hint = did_you_mean(str(option), allowed)
            raise ConfigurationError(f"{here}.init_args: {name} has no option {option!r}.{hint}")
    try:
        steps = chosen(surgeon.root, pretrained=pretrained, **options)
    except ConfigurationError as error:
        raise ConfigurationError(f"{here}: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        # what a user's own function raises in its midst is not ours to shorten
        if not (_is_ours(chosen, error) or isinstance(error, TypeError)):
            raise
        raise ConfigurationError(f"{here}: {name} cannot be called with {options}: {_one_line(error)}") from error
    if not steps:
        kind = type(surgeon.root).__name__
        takes = f"it takes {', '.join(allowed)}" if allowed else "it has no options"
        raise ConfigurationError(f"{here}: {name} found no block in this {kind} with {options}; {takes}")
    try:
        surgeon.carry_out(steps)
    except ConfigurationError as error:
        raise ConfigurationError(f"{here}: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        if not _is_ours(chosen, error):
            raise
        raise ConfigurationError(f"{here}: {name} cannot be carried out with {options}: {_one_line(error)}") from error


def _is_ours(policy: Any, error: Exception) -> bool:
    return isinstance(policy, Policy) and not isinstance(error, torch.OutOfMemoryError)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _policy(name: str, here: str) -> Callable[..., list[Step]]:
    if name in POLICIES:
        return POLICIES[name]
    module, _, function = name.replace(":", ".").rpartition(".")
    if not module:
        known = did_you_mean(name, POLICIES)
        raise ConfigurationError(f"{here}: class_path={name!r} is none of {list(POLICIES)} and no import path.{known}")
    try:
        found: Callable[..., list[Step]] = imported(f"{module}:{function}")
    except ConfigurationError as error:
        raise ConfigurationError(f"{here}: {error}") from error
    if not callable(found):
        raise ConfigurationError(f"{here}: {name} is a {type(found).__name__}, not a function from a model to steps")
    return found


def _keywords(function: Any, named_only: bool = False) -> list[str] | None:
    """Return the names of the options of a function; None where it takes any."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    if not named_only and any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return None
    names = [each.name for each in parameters if each.kind not in kinds]
    return names if named_only else [name for name in names if name not in ("model", "pretrained")]
