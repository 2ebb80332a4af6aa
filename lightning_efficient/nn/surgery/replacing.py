"""Blocks that are found by a condition, and what takes their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import is_integer
from lightning_efficient.nn.surgery._architecture import check_architecture
from lightning_efficient.nn.surgery._surgeon import Surgeon, inner_model
from lightning_efficient.nn.surgery._takeover import is_replacement
from lightning_efficient.nn.surgery.makers import Maker
from lightning_efficient.nn.surgery.plans import Plan, preview
from lightning_efficient.nn.surgery.result import VERSION, Result, carry_out, finished, optimizers_of
from lightning_efficient.nn.surgery.steps import (
    Step,
    append_step,
    check_harmless,
    check_steps,
    delete_step,
    replace_step,
)
from lightning_efficient.nn.surgery.where import Condition, matches, where_of


def plan(
    model: nn.Module, where: Condition, make: str | Maker, *, example: Tensor | Sequence[int] | None = None
) -> Plan:
    """Tell what :func:`replace` would do; nothing is changed.

    Args:
        model: The model.
        where: Which modules; see :data:`~lightning_efficient.nn.surgery.where.Condition`.
        make: What takes their place; see :func:`replace`.
        example: An input or its shape; the input size of timm's configuration by default.

    Raises:
        ConfigurationError: nothing matches, or nothing says how large an input is.
    """
    return preview(model, _replacements(inner_model(model), where, make, "auto"), example)


def replace(
    model: nn.Module,
    where: Condition,
    make: str | Maker,
    *,
    transplant: Any = "auto",
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    copy_blocks: bool = True,
) -> Result:
    """Put new modules in the place of those that a condition means, in place.

    All are found before the first is replaced. A new module takes over mode, device, dtype, memory format and
    frozenness, and the hooks on the block itself.

    Args:
        model: The model. Where it matches itself, the new one is ``Result.model``.
        where: Which modules; see :data:`~lightning_efficient.nn.surgery.where.Condition`.
        make: ``(name, block) -> module``, or None where the block stays; a name of
            :data:`~lightning_efficient.nn.surgery.makers.MAKERS`; or ``"package.module:function"``. A
            ``functools.partial`` of a function keeps its keywords in the recipe.
        transplant: ``"auto"`` copies weights of equal name and shape into a new module that does not hold the old
            ones; ``(old, new)`` does as it likes; None leaves the new module as it was made.
        optimizer: As in :func:`~lightning_efficient.nn.surgery.result.carry_out`.
        copy_blocks: As in :func:`~lightning_efficient.nn.surgery.result.carry_out`.

    Raises:
        ConfigurationError: nothing matches, everything that matches was replaced already, or a hook is in the way.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.ReLU())
        >>> replace(model, nn.ReLU, lambda name, block: nn.GELU()).names
        ['1', '2']
    """
    steps = _replacements(inner_model(model), where, make, transplant)
    result = carry_out(model, steps, copy_blocks=copy_blocks, optimizer=optimizer)
    if not result.steps:
        raise ConfigurationError(
            f"make returned None for all {len(steps)} modules that where= means; nothing was replaced"
        )
    return result


def apply(
    model: nn.Module,
    recipe: Mapping[str, Any],
    *,
    copy_blocks: bool = True,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    trusted: bool = True,
) -> Result:
    """Do to a model what a recipe says, in place; all of it, or nothing where it does not fit.

    Args:
        model: A model of the architecture that the recipe was made on.
        recipe: Of :attr:`Result.recipe` or :func:`~lightning_efficient.nn.surgery.result.recipe_of`, or read from JSON.
            A model that was operated on may get further steps of its whole recipe, or a recipe for what it is now.
        copy_blocks: As in :func:`~lightning_efficient.nn.surgery.result.carry_out`.
        optimizer: As in :func:`~lightning_efficient.nn.surgery.result.carry_out`.
        trusted: Whether functions that the recipe names by their import path may be called. Not so for a recipe out of
            a file that somebody else made: then only makers of ours are, and layers of torch and timm as options.

    Raises:
        ConfigurationError: it is no recipe of this version, it has no steps, it was made on another architecture, or a
            block has another name, type or size here.
    """
    if not isinstance(recipe, Mapping) or "steps" not in recipe:
        raise ConfigurationError("recipe must be a mapping with 'version' and 'steps', as Result.recipe gives it")
    if recipe.get("version") != VERSION:
        raise ConfigurationError(f"recipe: version={recipe.get('version')!r} is not {VERSION}, the one that is known")
    if not trusted:
        check_harmless(recipe["steps"])
    check_steps(recipe["steps"], "recipe.steps")
    if not recipe["steps"]:
        raise ConfigurationError("recipe.steps is empty; there is nothing to carry out")
    surgeon = Surgeon(model, copy_blocks, optimizers_of(optimizer))
    if "architecture" in recipe and surgeon.original is not None:
        check_architecture(recipe["architecture"], [surgeon.original, surgeon.architecture])
    try:
        surgeon.carry_out(recipe["steps"], "recipe.steps")
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} (a recipe fits the architecture that it was made on)") from error
    return finished(surgeon)


def condense(
    model: nn.Module,
    stage: int | str | Sequence[int | str],
    keep: int = 1,
    then: str | Maker | None = None,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    copy_blocks: bool = True,
    **options: Any,
) -> Result:
    """Keep the first blocks of stages, put something in the place of the next, and delete the rest.

    Args:
        model: The model.
        stage: Number of a stage (``blocks.N``, ``stages.N``, ``layerN``), name of a ``Sequential``, or several.
        keep: Blocks that stay, from the first on.
        then: What takes the place of the next block, as in :func:`replace`; a stage without a next block gets it as a
            further child. None puts nothing there.
        optimizer: As in :func:`~lightning_efficient.nn.surgery.result.carry_out`.
        copy_blocks: As in :func:`~lightning_efficient.nn.surgery.result.carry_out`.
        options: Keyword arguments of ``then``. ``"GlobalLayer"`` and ``"DepthwiseLayer"`` do not wrap the next block
            unless ``wrap=True`` is among them.

    Raises:
        ConfigurationError: there is no such stage, nothing in it goes, or a block that changes the shape would go.
    """
    from lightning_efficient.nn.surgery.condensation import LAYERS, check_keeps_shape

    if not is_integer(keep) or keep < 0:
        raise ConfigurationError(f"keep={keep!r} must be an integer, 0 or more")
    if then is None and options:
        raise ConfigurationError(f"then=None makes nothing that could take {sorted(options)[0]!r}")
    stages = list(stage) if isinstance(stage, Sequence) and not isinstance(stage, str) else [stage]
    if not stages or any(not is_integer(each) and not isinstance(each, str) for each in stages):
        raise ConfigurationError(f"stage={stage!r} must be a number, a name, or a list of these")
    root, steps = inner_model(model), list[Step]()
    for each in stages:
        name = _stage_name(root, each)
        blocks = [f"{name}.{key}" for key in root.get_submodule(name)._modules]
        rest, given = blocks[keep:], options
        if isinstance(then, str) and then in LAYERS:
            # behind the last block a layer starts from the output of that block, which must not run twice
            given = {**options, "wrap": bool(rest) and options.get("wrap", False)}
        # what wraps a block, or is made by the user's function, answers for the shape by itself
        for going in rest[1:] if then is not None and given.get("wrap", True) else rest:
            check_keeps_shape(going, root.get_submodule(going))
        if then is not None:
            steps.append(replace_step(rest[0], then, **given) if rest else append_step(name, then, **given))
            rest = rest[1:]
        if rest:
            steps.append(delete_step(rest))
    if not steps:
        raise ConfigurationError(f"keep={keep} leaves every block of stage={stage!r}; nothing was condensed")
    return carry_out(model, steps, copy_blocks=copy_blocks, optimizer=optimizer)


def interpolate(
    model: nn.Module,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    copy_blocks: bool = True,
    **options: Any,
) -> Result:
    """Run the branches of residual blocks at a lower resolution; ``options`` are those of ``interpolation_steps``."""
    from lightning_efficient.nn.surgery.interpolation import interpolation_steps

    steps = interpolation_steps(inner_model(model), **options)
    if not steps:
        raise ConfigurationError(_nothing("interpolate", model, options))
    return carry_out(model, steps, copy_blocks=copy_blocks, optimizer=optimizer)


def global_layers(
    model: nn.Module,
    preset: str | None = None,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    copy_blocks: bool = True,
    **options: Any,
) -> Result:
    """Condense a network with Global layers; ``options`` are those of ``condensation_steps``."""
    from lightning_efficient.nn.surgery.condensation import condensation_steps

    steps = condensation_steps(inner_model(model), preset=preset, then="GlobalLayer", **options)
    if not steps:
        raise ConfigurationError(_nothing("global_layers", model, options))
    return carry_out(model, steps, copy_blocks=copy_blocks, optimizer=optimizer)


def _replacements(root: nn.Module, where: Condition, make: str | Maker, transplant: Any) -> list[Step]:
    if isinstance(transplant, str) and transplant != "auto" and ":" not in transplant:
        raise ConfigurationError(f"transplant={transplant!r} is none of: 'auto', None, a function, 'module:function'")
    found = matches(root, where)
    if found:
        return [replace_step(name, make, transplant) for name, _ in found]
    test = where_of(where).bind(root)
    inside = any(is_replacement(module) for module in root.modules())
    if inside and any(test(name, module) for name, module in root.named_modules()):
        raise ConfigurationError(f"where={where!r}: all that it means was replaced already; undo that surgery first")
    kinds = list(dict.fromkeys(type(module).__name__ for module in root.modules()))
    raise ConfigurationError(
        f"where={where!r} means nothing in this {type(root).__name__}; it has {', '.join(kinds[:12])}"
    )


def _stage_name(root: nn.Module, stage: int | str) -> str:
    modules = dict(root.named_modules())
    names = [f"blocks.{stage}", f"stages.{stage}", f"layer{stage}"] if isinstance(stage, int) else [stage]
    for name in names:
        if isinstance(modules.get(name), nn.Sequential):
            return name
    known = [name for name, module in modules.items() if isinstance(module, nn.Sequential) and name.count(".") < 2]
    raise ConfigurationError(f"stage={stage!r} is no Sequential of {type(root).__name__}; there are {known[:12]}")


def _nothing(what: str, model: nn.Module, options: Mapping[str, Any]) -> str:
    return f"{what} found nothing to do in this {type(inner_model(model)).__name__} with {options}"
