"""Condensed networks: each resolution keeps its first blocks and has one cheap layer after them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import check_choice, check_flag, is_integer
from lightning_efficient.nn._placed_layer import check_width, placed_at
from lightning_efficient.nn.global_layer_presets import GLOBAL_LAYER_PRESETS
from lightning_efficient.nn.surgery._stages import stage_numbers
from lightning_efficient.nn.surgery.densenet import dense_layers, is_densenet, transition_widths
from lightning_efficient.nn.surgery.makers import MAKERS, Maker, imported
from lightning_efficient.nn.surgery.steps import Step, append_step, delete_step, replace_step
from lightning_efficient.nn.timm_blocks import BLOCK_TYPES, facts_of

Layer: TypeAlias = str | Maker
"""Name of a layer, ``"GlobalLayer"`` or ``"DepthwiseLayer"``, or what makes one of ``(name, block)``."""


LAYERS = ("GlobalLayer", "DepthwiseLayer")
"""Names of the layers that may stand at the end of a condensed stage."""


@dataclass(frozen=True)
class Placement:
    """Where a preset puts layers.

    Attributes:
        wrap: Whether the block in the slot becomes the layer's initialiser; otherwise the layer starts from its input.
        settings: Key of ``GLOBAL_LAYER_PRESETS``.
        stages: Numbers of the stages that get a layer; all where None.
        trim: Whether the other stages lose their later blocks, too.
        keep: Blocks that stay in single stages, where that is not 1, in networks that have all of ``stages``.
    """

    wrap: bool
    settings: str
    stages: tuple[int, ...] | None = None
    trim: bool = False
    keep: Mapping[int, int] = field(default_factory=dict)


_MOBILE = (1, 2, 3, 4, 5)

PLACEMENTS: dict[str, Placement] = {
    "cifar": Placement(False, "cifar", stages=(1, 2, 3), trim=True),
    "wide_resnet": Placement(True, "cifar"),
    "densenet": Placement(False, "cifar"),
    "resnet": Placement(False, "cifar"),
    "imagenet_b0": Placement(True, "imagenet_b0", stages=_MOBILE),
    "imagenet_mbv2": Placement(True, "imagenet_mbv2", stages=_MOBILE),
    "imagenet_mbv3": Placement(True, "imagenet_mbv3", stages=_MOBILE, keep={5: 0}),
}
"""What the presets do. ``resnet``, for stems that pool, is ours; the others are those of the released code."""


def condensation_steps(
    model: nn.Module,
    *,
    pretrained: bool = False,
    then: Layer | None = "GlobalLayer",
    preset: str | None = None,
    stages: int | Sequence[int] | None = None,
    keep: int | Sequence[int] | None = None,
    wrap: bool | None = None,
    **layer_options: Any,
) -> list[Step]:
    """Return the steps that condense a network; nothing is changed.

    A stage keeps its first ``keep`` blocks. The layer takes the place of the next block, with that block as its
    initialiser where ``wrap``, and the later ones are deleted. A stage without a next block gets the layer, with the
    identity as its initialiser, after its last one. A DenseNet keeps the first layers of each dense block and gets
    a layer at the end of each transition, with DenseNet's own two convolutions as its initialiser.

    Stages are ``layer1`` to ``layer4`` of timm's ResNets, ``blocks.0`` to ``blocks.6`` of its EfficientNets and
    MobileNets, and the transitions of its DenseNets, by those numbers.

    Args:
        model: Network of timm.
        pretrained: Whether its weights are trained. Layers then start without effect, by ``layer_scale=0``, wrapped
            blocks are not rebuilt, and layers of a DenseNet have no initialiser, unless the options say so.
        then: ``"GlobalLayer"``, ``"DepthwiseLayer"``, a callable ``(name, block) -> nn.Module``, which gets only the
            options that are given, or None, which only deletes.
        preset: Key of :data:`PLACEMENTS`; None chooses by the network's blocks.
        stages: Numbers of the stages to condense, or one number, and no others; those of the preset if None.
        keep: Blocks that stay in each stage, or one number for each of ``stages``; 1 if None. For a DenseNet
            the layers of each dense block; half of them, rounded up, if None.
        wrap: Overrides the preset's.
        layer_options: Options of the layer; they override the preset's.

    Returns:
        Steps ``replace``, ``append``, ``delete`` and ``thin_densenet``. Empty where no stage has anything to lose and
        ``then`` is None.

    Raises:
        ConfigurationError: an unknown preset, stage, network, block or option of the layer; or ``keep`` that would
            delete a block which changes the shape. Where other stages can be condensed, it names them.

    Example:
        >>> import timm
        >>> [step["op"] for step in condensation_steps(timm.create_model("resnet18"), stages=[1, 2], then=None)]
        ['delete', 'delete']

    Reference:
        Kag, Saligrama. Condensing CNNs with Partial Differential Equations. CVPR 2022.
    """
    chosen = preset_of(model) if preset in (None, "auto") else str(preset)
    check_choice("preset", chosen, PLACEMENTS)
    _check_options(then, layer_options)
    check_flag("wrap", wrap, none=True)
    wanted = stage_numbers(stages)
    if (chosen == "densenet") != is_densenet(model):
        raise ConfigurationError(f"preset={chosen!r} does not fit a {type(model).__name__}; use {preset_of(model)!r}")
    placement = PLACEMENTS[chosen]
    if chosen == "densenet":
        return _dense_steps(model, placement, then, wanted, keep, wrap, layer_options, pretrained)
    found = stages_of(model)
    numbers = _numbers(list(found), wanted, placement)
    as_released = placement.stages is None or found.keys() >= set(placement.stages)
    keeps = _per_stage(keep, numbers)
    wraps = placement.wrap if wrap is None else wrap

    def stage_steps(number: int, *, alone: bool) -> list[Step]:
        has_layer = alone or placement.stages is None or number in placement.stages
        layer = then if has_layer else None
        count = keeps.get(number, placement.keep.get(number, 1) if as_released and layer and wraps else 1)
        settings = _settings(placement.settings, number, wraps and as_released)
        options = _options(layer, settings, layer_options, pretrained)
        return _stage_steps(*found[number], layer, count, wraps, options)

    try:
        return [step for number in numbers for step in stage_steps(number, alone=wanted is not None)]
    except ConfigurationError as error:
        others = [number for number in numbers if _works(partial(stage_steps, number, alone=True))]
        if not others:
            raise
        raise ConfigurationError(f"{str(error).rstrip('.')}; stages={others} can be condensed") from None


def _works(made: Callable[[], object]) -> bool:
    try:
        made()
    except ConfigurationError:
        return False
    return True


def stages_of(model: nn.Module) -> dict[int, tuple[str, nn.Sequential]]:
    """Return the stages of a network that begin with a residual block: number -> (name, blocks)."""
    return {
        number: (name, stage)
        for number, (name, stage) in _known_stages(model).items()
        if type(stage[0]).__name__ != "ConvBnAct"
    }


def preset_of(model: nn.Module) -> str:
    """Return the preset that fits the blocks of a network.

    Raises:
        ConfigurationError: it has no stages of known blocks.

    Example:
        >>> import timm
        >>> preset_of(timm.create_model("mobilenetv3_small_050"))
        'imagenet_mbv3'
    """
    if is_densenet(model):
        return "densenet"
    found = stages_of(model)
    if not found:
        raise ConfigurationError(
            f"{type(model).__name__} has no stages that can be condensed; timm's ResNets, DenseNets, MobileNets and "
            "EfficientNets have"
        )
    kinds = {type(block).__name__ for _, stage in found.values() for block in stage}
    if kinds & {"BasicBlock", "Bottleneck"}:
        if len(found) == 3:
            return "wide_resnet"
        return "cifar" if isinstance(getattr(model, "maxpool", None), nn.Identity) else "resnet"
    if max(_known_stages(model)) not in found:  # MobileNetV3 and later end in a plain convolution
        return "imagenet_mbv3"
    gates = (getattr(block, "se", None) for _, stage in found.values() for block in stage)
    return "imagenet_mbv2" if all(isinstance(gate, nn.Identity | None) for gate in gates) else "imagenet_b0"


def _known_stages(model: nn.Module) -> dict[int, tuple[str, nn.Sequential]]:
    found = {}
    for name, module in model.named_modules():
        match = re.fullmatch(r"(?:blocks\.|layer)(\d+)", name)
        if match and isinstance(module, nn.Sequential) and len(module) and facts_of(module[0]) is not None:
            found[int(match[1])] = (name, module)
    return found


def _stage_steps(
    name: str, stage: nn.Sequential, layer: Layer | None, count: int, wrap: bool, options: dict[str, Any]
) -> list[Step]:
    blocks = [(f"{name}.{key}", block) for key, block in stage.named_children()]
    if not 0 <= count <= len(blocks) or (count == 0 and not (layer and wrap)):
        lowest = 0 if layer and wrap else 1
        raise ConfigurationError(
            f"keep={count!r} does not fit {name}, which has {len(blocks)} blocks; give {lowest} to {len(blocks)}"
        )
    slot, later = blocks[count : count + 1], blocks[count + 1 :]
    if layer is None:
        slot, later = [], slot + later
    for each, block in later if wrap else slot + later:
        _check_removable(each, block)
    if isinstance(layer, str) and options.get("channels") is not None:
        check_width(*(slot or blocks[-1:])[0], options["channels"])
    placed = {"wrap": wrap and bool(slot)} if isinstance(layer, str) else {}
    steps = []
    if layer is not None and slot:
        ((each, block),) = slot
        steps.append({**replace_step(each, layer, **placed, **options), "old": type(block).__name__})
    elif layer is not None:
        options.pop("expansion", None)
        steps.append(append_step(name, layer, **placed, **options))
    return [*steps, *([delete_step(each for each, _ in later)] if later else [])]


def _check_removable(name: str, block: nn.Module) -> None:
    if facts_of(block) is None:
        raise ConfigurationError(
            f"{name} is a {type(block).__name__}; condensation removes only blocks of the types {list(BLOCK_TYPES)}"
        )
    check_keeps_shape(name, block)


def check_keeps_shape(name: str, block: nn.Module) -> None:
    """Raise where a block changes the shape of its input, so that nothing fits without it; unknown blocks pass."""
    facts = facts_of(block)
    if facts is not None and (facts.stride != 1 or facts.in_channels != facts.out_channels):
        raise ConfigurationError(f"{name} changes the shape of its input and cannot be removed; give a larger keep")


def _dense_steps(
    model: nn.Module,
    placement: Placement,
    then: Layer | None,
    stages: Sequence[int] | None,
    keep: int | Sequence[int] | None,
    wrap: bool | None,
    layer_options: Mapping[str, Any],
    pretrained: bool,
) -> list[Step]:
    if wrap:
        raise ConfigurationError("wrap=True does not fit a DenseNet: a transition is no initialiser; use init_kind")
    present = dense_layers(model)
    given = _per_stage(keep, range(1, len(present) + 1))
    kept = list(given.values()) if given else [(number + 1) // 2 for number in present]
    widths = dict(enumerate(transition_widths(model, kept), start=1))
    steps: list[Step] = [] if kept == present else [{"op": "thin_densenet", "keep": kept}]
    if then is None:
        return steps
    named = isinstance(then, str)
    for number in _numbers(list(widths), stages, placement):
        width = widths[number]
        if layer_options.get("channels") not in (None, width):
            raise ConfigurationError(
                f"channels={layer_options['channels']!r} does not fit transition {number}, of {width} channels; "
                "leave it out"
            )
        settings = {**_settings(placement.settings, number, False), "channels": width, "init_kind": "dense"}
        options = _options(then, settings, layer_options, pretrained)
        steps.append(append_step(f"features.transition{number}", then, **({"wrap": False} if named else {}), **options))
    return steps


def _numbers(there: list[int], stages: Sequence[int] | None, placement: Placement) -> list[int]:
    if stages is None:
        wanted = placement.stages
        return there if wanted is None or placement.trim else [number for number in there if number in wanted]
    if unknown := [number for number in stages if number not in there]:
        raise ConfigurationError(f"stages={list(stages)!r}: the network has no stage {unknown[0]!r}; it has {there}")
    return list(dict.fromkeys(stages))


def _per_stage(keep: int | Sequence[int] | None, numbers: Sequence[int]) -> dict[int, int]:
    if keep is None:
        return {}
    if is_integer(keep):
        return dict.fromkeys(numbers, keep)
    each = list(keep) if isinstance(keep, Sequence) else []
    if len(each) != len(numbers) or not all(map(is_integer, each)):
        raise ConfigurationError(f"keep={keep!r} must be one integer, or one for each of stages {list(numbers)}")
    return dict(zip(numbers, each, strict=True))


def _settings(preset: str, stage: int, rebuild: bool) -> dict[str, Any]:
    per_stage = GLOBAL_LAYER_PRESETS[preset]
    settings = dict(per_stage.get(stage, per_stage[max(per_stage)]))
    if not rebuild:
        settings.pop("expansion", None)
    return settings


def _options(
    layer: Layer | None, settings: Mapping[str, Any], given: Mapping[str, Any], pretrained: bool
) -> dict[str, Any]:
    if not isinstance(layer, str):
        return dict(given) if layer else {}
    known = option_names(layer)
    fresh = ("expansion", "init_kind") if pretrained else ()  # what would draw new weights in front of the layer
    options = {name: value for name, value in settings.items() if name in known and name not in fresh} | dict(given)
    if pretrained and not options.get("residual"):
        options.setdefault("layer_scale", 0.0)
    return options


def _check_options(then: Layer | None, given: Mapping[str, Any]) -> None:
    if then is not None and not isinstance(then, str) and not callable(then):
        raise ConfigurationError(f"then={then!r} must be one of {list(LAYERS)}, a callable or None")
    if then is None and given:
        raise ConfigurationError(f"then=None makes no layer that could take {sorted(given)[0]!r}")
    if isinstance(then, str):
        check_choice("then", then, LAYERS)
        known = option_names(then)
        if unknown := [name for name in given if name not in known]:
            own = inspect.signature(condensation_steps).parameters.keys() - {"model", "pretrained", "layer_options"}
            hint = did_you_mean(unknown[0], known | own)
            raise ConfigurationError(f"{then} has no option {unknown[0]!r}.{hint}")


def option_names(layer: str) -> set[str]:
    """Return the names of the options of a layer that stands in a network, by the layer's name."""
    maker = imported(MAKERS[layer])
    made = getattr(inspect.getmodule(maker), layer)
    names = {*inspect.signature(placed_at).parameters, *inspect.signature(made).parameters}
    return names - {"layer", "name", "block", "init", "options", "wrap"}
