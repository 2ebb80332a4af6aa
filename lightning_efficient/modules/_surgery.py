"""Surgery on the network of a module: carried out when it is built, kept in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery import Result, apply, perform, preview, recipe_of
from lightning_efficient.profiling.render import human

Policies: TypeAlias = Sequence[str | Mapping[str, Any]]
"""Names of policies, or mappings with ``class_path`` and ``init_args``."""

_KEPT = "surgery"


def operate(network: nn.Module, policies: Policies | None, *, pretrained: bool) -> Result | None:
    """Carry policies out on a network, in place.

    Raises:
        ConfigurationError: an unknown policy or option, or a policy that finds no block; names ``model.surgery``.
    """
    if not policies:
        return None
    named = [{"class_path": policy} if isinstance(policy, str) else policy for policy in policies]
    return perform(network, named, pretrained=pretrained, optimizer=())  # it is new, no optimiser knows it


def told(result: Result, before: nn.Module, shape: Sequence[int]) -> str:
    """Return in one line what surgery did, and what it saves for an input of this shape."""
    plan = preview(before, result.recipe["steps"], torch.zeros(1, *shape))
    saved = 1 - plan.macs_after / plan.macs_before if plan.macs_before else 0.0
    return (
        f"surgery: {_told(result.recipe['steps'])}; MACs {human(plan.macs_before)} to {human(plan.macs_after)} "
        f"({-100 * saved:+.0f} %), parameters {human(plan.params_before)} to {human(plan.params_after)}; "
        "the verb profile measures the time"
    )


def keep_recipe(checkpoint: dict[str, Any], network: nn.Module) -> None:
    """Write into a checkpoint how its network was changed, if it was."""
    recipe = recipe_of(network)
    if recipe is not None:
        checkpoint[_KEPT] = recipe


def follow_recipe(checkpoint: Mapping[str, Any], network: nn.Module) -> None:
    """Change a network as that of a checkpoint was, in what it still lacks.

    Raises:
        ConfigurationError: it was changed in another way already.
    """
    kept = checkpoint.get(_KEPT)
    theirs, ours = (list(each["steps"]) if each else [] for each in (kept, recipe_of(network)))
    if theirs == ours:
        return
    if ours != theirs[: len(ours)]:
        raise ConfigurationError(
            f"model.surgery makes another network ({_told(ours)}) than that of the checkpoint ({_told(theirs)}); give "
            "the same surgery, or start from the weights alone with model.backbone_checkpoint"
        )
    assert kept is not None
    apply(network, {**kept, "steps": theirs[len(ours) :]}, copy_blocks=False, optimizer=(), trusted=False)


def _told(steps: Sequence[Mapping[str, Any]]) -> str:
    made = [str(step.get("make", step["op"])) for step in steps if step["op"] != "delete"]
    deleted = sum(len(step["names"]) for step in steps if step["op"] == "delete")
    parts = [f"{made.count(name)} x {name}" for name in dict.fromkeys(made)]
    return ", ".join([*parts, *([f"{deleted} blocks deleted"] if deleted else [])]) or "none"
