"""Residual blocks whose costly branch runs on a coarse sampling of the map, beside a cheap one at full resolution."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_flag, is_integer
from lightning_efficient.nn._folded_branch import can_fold, folded_with_shortcut
from lightning_efficient.nn._resampling import (
    SAMPLINGS,
    UPSAMPLINGS,
    Sampling,
    Upsampling,
    sample,
    upsample_like,
    upsample_nodes_like,
    without_nodes,
)
from lightning_efficient.nn.timm_blocks import BLOCK_TYPES, BlockFacts, facts_of, init_convolution_, new_norm, run_chain

Design: TypeAlias = Literal["add", "detail", "strided", "grid"]
Blend: TypeAlias = Literal["add", "convex"]

DESIGNS: tuple[str, ...] = get_args(Design)
BLENDS: tuple[str, ...] = get_args(Blend)
_KEPT_ATTRIBUTES = ("has_skip", "has_pw_act", "stride", "dilation")


class SpatialInterpolation(nn.Module):
    """A residual block of timm whose branch runs at a lower resolution, beside a cheap branch at the full one.

    For input ``X``, the block's branch ``F``, sampling ``S`` by ``factor`` and upsampling ``U``::

        G = BatchNorm(depthwise 3x3(X))     BatchNorm(1x1(X)) where the block changes the number of channels
        Y = X + U(F(S(X))) + G              design "add"

    This is a reconstruction. The block was never published and there is no code of it; public is one sentence of its
    authors: (1) it applies to any generic residual block; (2) the output is decomposed as an interpolation between
    features processed at a low-resolution sampling of the input and cheaper features processed at the input
    resolution; (3) variants of MobileNetV3 and EfficientNet were trained on ImageNet; (4) up to 40 % of the compute is
    saved without loss of accuracy. Every detail here is our assumption.

    The children of the block keep their names, so the state dict of the original block loads with ``strict=False`` and
    only ``cheap_conv``, ``cheap_norm`` and ``blend_logit`` are missing. They are shared with the block, which itself is
    not changed. Squeeze and excitation pools over the coarse map. Stochastic depth drops both branches together. In
    evaluation mode the cheap branch and the shortcut run as one convolution. ``torch.jit.script`` does not work;
    ``torch.export``, ``torch.compile``, ``torch.fx`` and ``torch.jit.trace`` do.

    Args:
        block: A block of timm that :func:`~lightning_efficient.nn.timm_blocks.facts_of` knows, of stride 1.
        factor: Pixels per coarse pixel in each direction, 2 or more.
        design: ``"add"`` as above; ``"detail"``: ``X + U(F(S(X))) + G - U(S(G))``, the cheap branch adds only what the
            coarse map cannot hold; ``"strided"``: the branch starts at full resolution and its spatial convolution
            gets the stride ``factor``; ``"grid"``: the branch's values at every ``factor``-th pixel, and between them
            their linear interpolation plus ``G``.
        sampling: ``"average"`` over windows, or ``"strided"``: the first pixel of each.
        upsampling: ``"bilinear"`` or ``"nearest"``; ``"grid"`` has its own.
        cheap: Whether there is a cheap branch; by default in all designs but ``"strided"``, which sees all pixels.
        blend: ``"add"``, or ``"convex"``: ``a U(F(S(X))) + (1 - a) G`` with one learned ``a`` per channel, first 0.5.
        zero_init: Whether the cheap branch starts at zero, so that ``Y`` starts as ``X + U(F(S(X)))``.

    Raises:
        ConfigurationError: an unknown block, a stride other than 1, or options that do not fit together.

    Example:
        >>> from timm.models._efficientnet_blocks import InvertedResidual
        >>> block = SpatialInterpolation(InvertedResidual(8, 8, exp_ratio=3.0))
        >>> block(torch.zeros(2, 8, 7, 5)).shape
        torch.Size([2, 8, 7, 5])

    Reference:
        Kag, Wadhwa, Saligrama, Jain. Spatially Interpolated Inverted Residual Block. Listed as a pre-print, not
        published. Prior art of "heavy at low resolution, light at full resolution": Chen, Fan, Mallinar, Sercu, Feris.
        Big-Little Net. ICLR 2019. Chen et al. Drop an Octave (OctConv). ICCV 2019. Li, Zhou, Yao. HBONet: Harmonious
        Bottleneck on Two Orthogonal Dimensions. ICCV 2019. Xie et al. Spatially Adaptive Inference with Stochastic
        Feature Sampling and Interpolation. ECCV 2020.
    """

    def __init__(
        self,
        block: nn.Module,
        factor: int = 2,
        design: Design = "add",
        sampling: Sampling = "average",
        upsampling: Upsampling = "bilinear",
        cheap: bool | None = None,
        blend: Blend = "add",
        zero_init: bool = False,
    ) -> None:
        cheap = design != "strided" if cheap is None else cheap
        check_interpolation(factor, design, sampling, upsampling, cheap, blend, zero_init)
        facts = _facts(block, "SpatialInterpolation")
        super().__init__()
        self.factor, self.design, self.sampling, self.upsampling = factor, design, sampling, upsampling
        self.cheap, self.blend = cheap, blend
        for name in _KEPT_ATTRIBUTES:
            if name in block.__dict__:
                setattr(self, name, block.__dict__[name])
        for name, child in block._modules.items():
            self.add_module(name, child)
        if design == "strided":
            name = _child_for_stride(facts)
            self.add_module(name, _with_stride(getattr(block, name), factor))
        self.chain = facts.chain
        self.in_channels, self.out_channels = facts.in_channels, facts.out_channels
        # blocks of the ResNet family add their shortcut whatever their channels
        self.adds_shortcut = facts.has_skip or facts.activation is not None
        self.activation = facts.activation
        if cheap:
            self.cheap_conv, self.cheap_norm = _cheap_branch(block, facts, zero_init)
        if blend == "convex":
            self.blend_logit = nn.Parameter(torch.zeros(facts.out_channels))
            _follow(self.blend_logit, block)
        self.training = block.training

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of shape ``(N, C', H, W)`` for maps of shape ``(N, C, H, W)``, any ``H`` and ``W``."""
        if not self.adds_shortcut:
            return self._added(x)
        if self._can_fold(x):
            total = folded_with_shortcut(self.cheap_conv, self.cheap_norm, x).add_(self._heavy(x))
        else:
            added = self._added(x)
            drop_path, downsample = getattr(self, "drop_path", None), getattr(self, "downsample", None)
            if drop_path is not None:
                added = drop_path(added)
            total = added + (x if downsample is None else downsample(x))
        return total if self.activation is None else getattr(self, self.activation)(total)

    def _can_fold(self, x: Tensor) -> bool:
        plain = self.cheap and self.blend == "add" and self.design in ("add", "strided")
        alone = not self.training and getattr(self, "downsample", None) is None
        return plain and alone and can_fold(self.cheap_conv, self.cheap_norm, x)

    def _heavy(self, x: Tensor) -> Tensor:
        coarse = x if self.design == "strided" else sample(x, self.factor, self.sampling)
        coarse = run_chain(self, self.chain, coarse)
        if self.design == "grid":
            return upsample_nodes_like(coarse, x, self.factor)
        return upsample_like(coarse, x, self.upsampling)

    def _added(self, x: Tensor) -> Tensor:
        heavy = self._heavy(x)
        if not self.cheap:
            return heavy
        light = self.cheap_norm(self.cheap_conv(x))
        if self.design == "grid":
            light = without_nodes(light, self.factor)
        if self.design == "detail":
            light = light - upsample_like(sample(light, self.factor, self.sampling), x, self.upsampling)
        if self.blend == "convex":
            share = self.blend_logit.sigmoid().view(1, -1, 1, 1)
            return share * heavy + (1 - share) * light
        return heavy + light

    def feature_info(self, location: str) -> dict[str, Any]:
        """Return what timm asks a block for: which output to tap, and its channels.

        Raises:
            ConfigurationError: the location lies inside the branch, which has no map at full resolution.
        """
        return _feature_info(location, self.out_channels)

    def extra_repr(self) -> str:
        """Return the options, for ``print``."""
        options = (self.design, f"factor={self.factor}", self.sampling, self.upsampling, f"blend={self.blend}")
        return ", ".join(options)


class InterpolatedChain(nn.Module):
    """Consecutive residual blocks of timm at a lower resolution together, beside one cheap branch at the full one.

    For the blocks one after the other ``R``, shortcuts included: ``Y = X + U(R(S(X)) - S(X)) + G``. Blocks that end in
    an activation give it to the sum too. It resamples once where :class:`SpatialInterpolation` does so for each block.
    The blocks are children named ``0``, ``1``, and so on, and are not changed.

    Like :class:`SpatialInterpolation`, a reconstruction of something unpublished; the chain is our own variant.

    Args:
        blocks: Blocks that keep their input's shape and add it to their output.
        factor: Pixels per coarse pixel in each direction, 2 or more.
        sampling: As for :class:`SpatialInterpolation`.
        upsampling: As for :class:`SpatialInterpolation`.
        cheap: Whether there is a cheap branch.
        zero_init: Whether the cheap branch starts at zero.

    Raises:
        ConfigurationError: no blocks, one of an unknown type, or one without shortcut.

    Example:
        >>> from timm.models._efficientnet_blocks import InvertedResidual
        >>> chain = InterpolatedChain([InvertedResidual(8, 8) for _ in range(3)])
        >>> chain(torch.zeros(2, 8, 7, 5)).shape
        torch.Size([2, 8, 7, 5])
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        factor: int = 2,
        sampling: Sampling = "average",
        upsampling: Upsampling = "bilinear",
        cheap: bool = True,
        zero_init: bool = False,
    ) -> None:
        check_interpolation(factor, "add", sampling, upsampling, cheap, "add", zero_init)
        if not blocks:
            raise ConfigurationError("InterpolatedChain: blocks=[] is empty; give one block or more")
        known = [_facts(block, "InterpolatedChain") for block in blocks]
        if not all(facts.has_skip for facts in known):
            without = next(i for i, facts in enumerate(known) if not facts.has_skip)
            raise ConfigurationError(
                f"InterpolatedChain: blocks[{without}] ({known[without].kind}) does not add its input to its output; "
                "only blocks that do can share one sampling"
            )
        super().__init__()
        self.factor, self.sampling, self.upsampling, self.cheap = factor, sampling, upsampling, cheap
        self.length = len(blocks)
        for index, block in enumerate(blocks):
            self.add_module(str(index), block)
        self.out_channels = known[-1].out_channels
        self.activation = known[-1].activation
        if cheap:
            self.cheap_conv, self.cheap_norm = _cheap_branch(blocks[-1], known[-1], zero_init)
        self.training = blocks[0].training

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of shape ``(N, C, H, W)`` for maps of the same shape, any ``H`` and ``W``."""
        coarse = refined = sample(x, self.factor, self.sampling)
        for index in range(self.length):
            refined = getattr(self, str(index))(refined)
        heavy = upsample_like(refined - coarse, x, self.upsampling)
        if self.cheap and not self.training and can_fold(self.cheap_conv, self.cheap_norm, x):
            total = folded_with_shortcut(self.cheap_conv, self.cheap_norm, x).add_(heavy)
        else:
            total = x + heavy
            if self.cheap:
                total = total + self.cheap_norm(self.cheap_conv(x))
        if self.activation is None:
            return total
        return cast(Tensor, getattr(getattr(self, str(self.length - 1)), self.activation)(total))

    def feature_info(self, location: str) -> dict[str, Any]:
        """Return what timm asks a block for: which output to tap, and its channels.

        Raises:
            ConfigurationError: the location lies inside a branch, which has no map at full resolution.
        """
        return _feature_info(location, self.out_channels)

    def extra_repr(self) -> str:
        """Return the options, for ``print``."""
        return f"factor={self.factor}, {self.sampling}, {self.upsampling}"


def interpolated_block(name: str, block: nn.Module, **options: Any) -> SpatialInterpolation:
    """Return :class:`SpatialInterpolation` of a block; errors name the block."""
    try:
        return SpatialInterpolation(block, **options)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None


def interpolated_chain(name: str, blocks: list[nn.Module], **options: Any) -> InterpolatedChain:
    """Return :class:`InterpolatedChain` of blocks; errors name the first one."""
    try:
        return InterpolatedChain(blocks, **options)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None


def check_interpolation(
    factor: int, design: str, sampling: str, upsampling: str, cheap: bool, blend: str, zero_init: bool
) -> None:
    """Raise one line unless the options of :class:`SpatialInterpolation` are known and fit together."""
    if not is_integer(factor) or factor < 2:
        raise ConfigurationError(f"factor={factor!r} must be a whole number of 2 or more.")
    for option, given, allowed in (
        ("design", design, DESIGNS),
        ("sampling", sampling, SAMPLINGS),
        ("upsampling", upsampling, UPSAMPLINGS),
        ("blend", blend, BLENDS),
    ):
        check_choice(option, given, allowed)
    check_flag("cheap", cheap)
    check_flag("zero_init", zero_init)
    problem = ""
    if not cheap and (design == "detail" or blend == "convex"):
        needs = "design='detail'" if design == "detail" else "blend='convex'"
        problem = f"cheap=False leaves {needs} nothing to work with; set cheap=True"
    elif zero_init and not cheap:
        problem = "zero_init=True concerns the cheap branch, which cheap=False leaves out; set zero_init=False"
    elif blend == "convex" and design in ("detail", "grid"):
        problem = f"blend='convex' does not fit design={design!r}; it takes design='add' or 'strided'"
    elif blend == "convex" and zero_init:
        problem = "zero_init=True does not fit blend='convex', which would halve the block's branch; use blend='add'"
    elif design == "grid" and upsampling != "bilinear":
        problem = f"upsampling={upsampling!r} does not fit design='grid', which interpolates linearly between its nodes"
    elif design == "strided" and sampling != "average":
        problem = f"sampling={sampling!r} does not fit design='strided', which samples by a convolution's stride"
    if problem:
        raise ConfigurationError(problem)


def _facts(block: nn.Module, layer: str) -> BlockFacts:
    facts = facts_of(block)
    if facts is None:
        raise ConfigurationError(f"{layer} does not know {type(block).__name__}; it takes {', '.join(BLOCK_TYPES)}")
    if facts.stride != 1:
        raise ConfigurationError(f"{layer} takes blocks of stride 1; this {facts.kind} has stride {facts.stride}")
    return facts


def _cheap_branch(block: nn.Module, facts: BlockFacts, zero_init: bool) -> tuple[nn.Module, nn.Module]:
    if facts.in_channels == facts.out_channels:
        channels = facts.in_channels
        convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    else:
        convolution = nn.Conv2d(facts.in_channels, facts.out_channels, 1, bias=False)
    init_convolution_(convolution)
    norm = new_norm(facts.norm, facts.out_channels)
    if zero_init:
        # a frozen norm could never leave zero
        nn.init.zeros_(norm.weight if isinstance(norm.weight, nn.Parameter) else convolution.weight)
    reference = next(block.parameters())
    trained = any(parameter.requires_grad for parameter in block.parameters())
    convolution.to(reference.device, reference.dtype).train(block.training).requires_grad_(trained)
    norm.to(reference.device, reference.dtype)
    # norms may be frozen in a block that trains; a weight of zero has to learn all the same
    weight = getattr(facts.norm, "weight", None)
    learns = zero_init or not isinstance(weight, nn.Parameter) or weight.requires_grad
    norm.train(block.training if facts.norm is None else facts.norm.training).requires_grad_(trained and learns)
    if _is_channels_last(block):
        convolution.to(memory_format=torch.channels_last)
    return convolution, norm


def _follow(parameter: nn.Parameter, block: nn.Module) -> None:
    reference = next(block.parameters())
    parameter.data = parameter.data.to(reference.device, reference.dtype)
    parameter.requires_grad_(any(each.requires_grad for each in block.parameters()))


def _is_channels_last(block: nn.Module) -> bool:
    weights = [each for each in block.parameters() if each.ndim == 4]
    return any(each.is_contiguous(memory_format=torch.channels_last) and not each.is_contiguous() for each in weights)


def _child_for_stride(facts: BlockFacts) -> str:
    if not facts.spatial:
        raise ConfigurationError(f"design='strided' needs a spatial convolution, which this {facts.kind} lacks")
    # the place where timm puts the stride of such a block
    return "dw_mid" if "dw_mid" in facts.spatial else facts.spatial[0]


def _with_stride(module: nn.Module, factor: int) -> nn.Module:
    """Return a copy of a convolution, or of a module with one inside, of another stride that shares all parameters."""
    copied = copy.copy(module)
    for kind in ("_parameters", "_buffers", "_modules"):
        copied.__dict__[kind] = dict(module.__dict__[kind])
    if isinstance(copied, nn.Conv2d):
        copied.stride = (factor, factor)
    else:
        for name, child in module.named_children():
            if any(isinstance(each, nn.Conv2d) for each in child.modules()):
                copied._modules[name] = _with_stride(child, factor)
    return copied


def _feature_info(location: str, channels: int) -> dict[str, Any]:
    if location == "expansion":
        raise ConfigurationError(
            "feature_location='expansion' lies inside an interpolated block, at low resolution; use 'bottleneck'"
        )
    return {"module": "", "num_chs": channels}
