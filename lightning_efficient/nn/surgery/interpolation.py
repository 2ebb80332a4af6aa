"""Which blocks of a network a spatial interpolation replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, is_integer
from lightning_efficient.nn._resampling import Sampling, Upsampling
from lightning_efficient.nn.spatial_interpolation import (
    DESIGNS,
    Blend,
    InterpolatedChain,
    SpatialInterpolation,
    check_interpolation,
)
from lightning_efficient.nn.surgery._stages import stage_numbers, stage_of
from lightning_efficient.nn.surgery.makers import MAKERS
from lightning_efficient.nn.surgery.meta import example_shape, output_sizes
from lightning_efficient.nn.surgery.steps import merge_step, replace_step
from lightning_efficient.nn.timm_blocks import BLOCK_TYPES, BlockFacts, facts_of

Which: TypeAlias = Literal["skip", "stride1"]
PolicyDesign: TypeAlias = Literal["add", "detail", "strided", "grid", "chain"]


def interpolation_steps(
    model: nn.Module,
    *,
    pretrained: bool = False,
    factor: int = 2,
    design: PolicyDesign = "add",
    sampling: Sampling = "average",
    upsampling: Upsampling = "bilinear",
    cheap: bool | None = None,
    blend: Blend = "add",
    zero_init: bool | None = None,
    which: Which = "skip",
    stages: int | Sequence[int] | None = None,
    min_size: int | None = None,
    input_size: int | Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Return the steps that give a network's residual blocks a coarse branch and a cheap one; changes nothing.

    Stems, heads and blocks with a stride are never chosen, and with ``design="strided"`` none without a spatial
    convolution. What is replaced already is left alone.

    Args:
        model: A convolutional network of timm, or any module with such blocks.
        pretrained: Whether the network's weights are trained.
        factor: As for :class:`~lightning_efficient.nn.spatial_interpolation.SpatialInterpolation`.
        design: A design of that class, or ``"chain"``: neighbours that are chosen become one
            :class:`~lightning_efficient.nn.spatial_interpolation.InterpolatedChain`; a block without chosen neighbour
            gets the design ``"add"``.
        sampling: As for that class.
        upsampling: As for that class.
        cheap: As for that class.
        blend: As for that class.
        zero_init: Whether the cheap branches start at zero. By default they do where the network is pretrained, and
            there is a cheap branch that is added.
        which: ``"skip"``: blocks that add their input to their output; ``"stride1"``: also those that change the number
            of channels at stride 1.
        stages: Numbers of the stages to look at, as in the names ``blocks.1`` or ``layer1``, or one; all by default.
        min_size: Pixels: blocks whose map is lower or narrower are left alone.
        input_size: Of one input, ``(channels, height, width)`` or the side of a square, from which the sizes of maps
            follow for ``min_size``; by default what the network's configuration in timm says.

    Raises:
        ConfigurationError: an option that cannot work, or no block is found.

    Example:
        >>> import timm, torch
        >>> with torch.device("meta"):
        ...     network = timm.create_model("resnet18")
        >>> [step["name"] for step in interpolation_steps(network)]
        ['layer1.0', 'layer1.1', 'layer2.1', 'layer3.1', 'layer4.1']
    """
    check_choice("design", design, (*DESIGNS, "chain"))
    check_choice("which", which, get_args(Which))
    cheap = design != "strided" if cheap is None else cheap
    zero_init = (pretrained and cheap and blend == "add") if zero_init is None else zero_init
    inner: Any = "add" if design == "chain" else design
    check_interpolation(factor, inner, sampling, upsampling, cheap, blend, zero_init)
    if design == "chain" and (which != "skip" or blend != "add"):
        given = f"which={which!r}" if which != "skip" else f"blend={blend!r}"
        raise ConfigurationError(f"{given} does not fit design='chain', which takes which='skip' and blend='add'")
    wanted = stage_numbers(stages)
    _check_input_size(input_size)
    found = _candidates(model, which)
    if design == "strided":
        found = {name: facts for name, facts in found.items() if facts.spatial}
    if wanted is not None:
        found = _in_stages(found, wanted)
    if min_size is not None and found:
        found = _of_size(model, found, min_size, input_size)
    if not found:
        raise ConfigurationError(_nothing(model, design, which, wanted, min_size))
    options = {"factor": factor, "sampling": sampling, "upsampling": upsampling, "cheap": cheap, "zero_init": zero_init}
    runs = _runs(model, found) if design == "chain" else [[name] for name in found]
    return [_step(run, found, options, {"design": inner, "blend": blend}) for run in runs]


def _step(
    run: list[str], found: Mapping[str, BlockFacts], options: dict[str, Any], alone: dict[str, Any]
) -> dict[str, Any]:
    kinds = [found[name].kind for name in run]
    if len(run) > 1:
        return {**merge_step(run, "InterpolatedChain", **options), "old": kinds}
    return {**replace_step(run[0], "SpatialInterpolation", **options, **alone), "old": kinds[0]}


def _candidates(model: nn.Module, which: str) -> dict[str, BlockFacts]:
    found: dict[str, BlockFacts] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if type(module).__name__ in MAKERS:  # put in by a surgery, or by hand
            inside += (f"{name}." if name else "",)
            continue
        facts = facts_of(module)
        if facts is None or facts.stride != 1:
            continue
        # without shortcut a single convolution with norm is no residual block but part of a head
        if facts.has_skip or (which == "stride1" and facts.kind != "ConvBnAct"):
            found[name] = facts
    return found


def _in_stages(found: Mapping[str, BlockFacts], stages: Sequence[int]) -> dict[str, BlockFacts]:
    numbers = {name: number for name in found if (number := stage_of(name)) is not None}
    unknown = [stage for stage in stages if stage not in numbers.values()]
    if unknown or not stages:
        raise ConfigurationError(
            f"stages={list(stages)!r}: stages with blocks that can be replaced are {sorted(set(numbers.values()))}"
        )
    return {name: facts for name, facts in found.items() if numbers.get(name) in stages}


def _of_size(
    model: nn.Module, found: Mapping[str, BlockFacts], min_size: int, input_size: int | Sequence[int] | None
) -> dict[str, BlockFacts]:
    if not is_integer(min_size) or min_size < 1:
        raise ConfigurationError(f"min_size={min_size!r} must be a whole number of pixels, 1 or more.")
    shape = _input_shape(model, input_size)
    try:
        sizes = output_sizes(model, (1, *shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        given = "" if input_size is None else f"input_size={input_size!r}: "
        raise ConfigurationError(
            f"{given}{type(model).__name__} does not run on an input of shape {shape}: {reason}"
        ) from error
    return {name: facts for name, facts in found.items() if min(sizes[name]) >= min_size}


def _check_input_size(given: object) -> None:
    sizes = tuple(given) if isinstance(given, Sequence) else (given,) * 3
    if given is not None and (len(sizes) != 3 or not all(is_integer(each) and each > 0 for each in sizes)):
        raise ConfigurationError(
            f"input_size={given!r} must be (channels, height, width) or one number, integers of at least 1."
        )


def _input_shape(model: nn.Module, input_size: int | Sequence[int] | None) -> tuple[int, ...]:
    if isinstance(input_size, int):
        first = next(each for each in model.modules() if isinstance(each, nn.Conv2d))
        return (first.in_channels, input_size, input_size)
    if input_size is not None:
        return tuple(input_size)
    try:
        return example_shape(model)[1:]
    except ConfigurationError:
        raise ConfigurationError(
            f"min_size needs input_size, such as (3, 224, 224): {type(model).__name__} names none"
        ) from None


def _runs(model: nn.Module, found: Mapping[str, BlockFacts]) -> list[list[str]]:
    """Return the names in groups: those that follow each other in a Sequential with as many channels are together."""
    runs: list[list[str]] = []
    for name, facts in found.items():
        previous = runs[-1][-1] if runs else ""
        if runs and _follows(model, previous, name) and found[previous].out_channels == facts.in_channels:
            runs[-1].append(name)
        else:
            runs.append([name])
    return runs


def _follows(model: nn.Module, first: str, second: str) -> bool:
    parent, _, child = second.rpartition(".")
    container = model.get_submodule(parent)
    if first.rpartition(".")[0] != parent or not isinstance(container, nn.Sequential):
        return False
    names = list(container._modules)
    return names.index(first.rpartition(".")[2]) + 1 == names.index(child)


def _nothing(model: nn.Module, design: str, which: str, stages: Sequence[int] | None, min_size: int | None) -> str:
    options = [*([f"design={design!r}"] if design == "strided" else []), f"which={which!r}"]
    options += [f"stages={list(stages)!r}"] if stages is not None else []
    options += [f"min_size={min_size}"] if min_size is not None else []
    done = sum(isinstance(each, SpatialInterpolation | InterpolatedChain) for each in model.modules())
    already = f" ({done} are interpolated already)" if done else ""
    takes = "with a shortcut" if which == "skip" else "of any channels"
    takes += " and with a spatial convolution" if design == "strided" else ""
    return (
        f"SpatialInterpolation found no block in {type(model).__name__} for {', '.join(options)}{already}; "
        f"it takes blocks of stride 1 {takes}: {', '.join(BLOCK_TYPES)}"
    )
