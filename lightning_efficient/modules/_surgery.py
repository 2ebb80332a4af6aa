"""Surgery on the network of a module: carried out when it is built, kept in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.checkpoints import load_weights
from lightning_efficient.nn.surgery import apply, perform, preview, recipe_of
from lightning_efficient.profiling.render import human

Policies: TypeAlias = Sequence[str | Mapping[str, Any]]
"""Names of policies, or mappings with ``class_path`` and ``init_args``."""

_KEPT = "surgery"


def operate(network: nn.Module, policies: Policies | None, *, pretrained: bool) -> None:
    """Carry policies out on a network, in place.

    Raises:
        ConfigurationError: an unknown policy or option, or a policy that finds no block; names ``model.surgery``.
    """
    if policies:
        # the network is new: no optimiser knows it. The result is let go, and the blocks that were deleted with it
        perform(network, named(policies), pretrained=pretrained, optimizer=())


def named(policies: Policies | None) -> list[Mapping[str, Any]]:
    """Return policies as mappings."""
    return [{"class_path": policy} if isinstance(policy, str) else policy for policy in policies or ()]


def told(recipe: Mapping[str, Any], before: nn.Module, shape: Sequence[int]) -> str:
    """Return in one line what surgery did, and what it saves for an input of this shape."""
    plan = preview(before, recipe["steps"], torch.zeros(1, *shape))
    saved = 1 - plan.macs_after / plan.macs_before if plan.macs_before else 0.0
    return (
        f"surgery: {_summary(recipe['steps'])}; MACs {human(plan.macs_before)} to {human(plan.macs_after)} "
        f"({-100 * saved:+.0f} %), parameters {human(plan.params_before)} to {human(plan.params_after)}; "
        "the verb profile measures the time"
    )


def load_first_weights(network: nn.Module, original: nn.Module, path: str, option: str) -> None:
    """Load a file with the weights of a network as it was before surgery; what is new stays as it is.

    Args:
        network: Receives the weights.
        original: A network as it was before surgery, of which this makes what it likes.
        path: File.
        option: Begins every error.
    """
    recipe = recipe_of(network)
    if recipe is None:
        load_weights(network, path, option=option)
        return
    load_weights(original, path, option=option)
    result = apply(original, recipe, copy_blocks=False, optimizer=())
    state = original.state_dict()
    for key in result.new_keys:
        state.pop(key, None)
    network.load_state_dict(state, strict=False)


def keep_recipe(checkpoint: dict[str, Any], network: nn.Module) -> None:
    """Write into a checkpoint how its network was changed, if it was."""
    recipe = recipe_of(network)
    if recipe is not None:
        checkpoint[_KEPT] = recipe


def lacking(checkpoint: Mapping[str, Any], network: nn.Module) -> list[Any] | None:
    """Return the steps that a network still lacks to be that of a checkpoint; None where it was changed otherwise."""
    theirs, ours = _steps(checkpoint.get(_KEPT)), _steps(recipe_of(network))
    return theirs[len(ours) :] if ours == theirs[: len(ours)] else None


def follow_recipe(checkpoint: Mapping[str, Any], network: nn.Module) -> None:
    """Change a network as that of a checkpoint was, in what it still lacks.

    Raises:
        ConfigurationError: it was changed in another way already.
    """
    steps = lacking(checkpoint, network)
    if steps is None:
        difference = _difference(_steps(recipe_of(network)), _steps(checkpoint.get(_KEPT)))
        raise ConfigurationError(
            f"model.surgery makes another network than that of the checkpoint: {difference}; give the same surgery, or "
            "start from the weights alone with model.backbone_checkpoint"
        )
    if steps:
        apply(network, {**checkpoint[_KEPT], "steps": steps}, copy_blocks=False, optimizer=(), trusted=False)


def _steps(recipe: Mapping[str, Any] | None) -> list[Any]:
    return list(recipe["steps"]) if recipe else []


def _difference(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> str:
    if _summary(ours) != _summary(theirs):
        return f"{_summary(ours)}, and there {_summary(theirs)}"
    one, other = next((one, other) for one, other in zip(ours, theirs, strict=True) if one != other)
    kinds = {**one, **one.get("options", {})}, {**other, **other.get("options", {})}
    key = next(key for key in (*kinds[0], *kinds[1]) if key != "options" and kinds[0].get(key) != kinds[1].get(key))
    return f"{one.get('make', one['op'])} with {key}={kinds[0].get(key)!r}, and there {kinds[1].get(key)!r}"


def _summary(steps: Sequence[Mapping[str, Any]]) -> str:
    made = [str(step.get("make", step["op"])) for step in steps if step["op"] != "delete"]
    deleted = sum(len(step["names"]) for step in steps if step["op"] == "delete")
    parts = [f"{made.count(name)} x {name}" for name in dict.fromkeys(made)]
    return ", ".join([*parts, *([f"{deleted} blocks deleted"] if deleted else [])]) or "none"
