"""A layer whose features flow and spread over the map: advection and diffusion with learned coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.fx
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_positive,
    is_integer,
)
from lightning_efficient.functional._global_layer import can_fuse, fused_global_layer
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.advection_diffusion import Solver, advection_diffusion, is_small_inference
from lightning_efficient.nn._coefficients import (
    COEFFICIENT_KINDS,
    Coefficient,
    CoefficientKind,
    activation_type,
    bounded,
    check_kernel_size,
    coefficient_eps,
    flow,
)
from lightning_efficient.nn._placed_layer import (
    checked_map,
    feature_info_of,
    placed_at,
    same_shape_or,
    surroundings,
)
from lightning_efficient.nn._released_global_layer import from_released, released_names

# what looks at shapes or dtypes stays one node in a traced graph
torch.fx.wrap("advection_diffusion")
torch.fx.wrap("bounded")
torch.fx.wrap("checked_map")
torch.fx.wrap("same_shape_or")


class GlobalLayer(nn.Module):
    """Solve an advection-diffusion equation per channel, with coefficients computed from the features themselves.

    The features ``h`` that ``init`` makes of the input are the state ``H`` at time 0. They move with the velocity
    ``(u, v)`` and spread with the diffusion ``(Dx, Dy)`` for ``steps`` explicit steps of ``dt``; the input ``f`` of the
    layer flows in all the while. Coefficients are depthwise convolutions of ``h`` with BatchNorm and activation,
    computed once. The output is ``act(norm(H))``. Rows are x, columns y; the map is periodic.

    How far a pixel sees: ``steps * spacing + kernel_size // 2`` pixels up, down and aside, less far along diagonals.
    One step, the published setting, sees 21 pixels, fewer than two 3x3 convolutions: it is not global. That takes about
    half as many steps as the map has rows.

    Stability: diffusion is stable at any ``dt``. Advection needs ``|u| dt / dx + |v| dt / dy <= 1``, and nothing
    enforces it: ``coeff_eps="channels"`` keeps velocities small, but with a small ``coeff_eps`` and more than two to
    four steps the state may grow without limit. ``velocity_bound=True`` keeps to the condition. The state then grows
    more slowly, and still grows where velocities differ from pixel to pixel.

    Cost: counters of multiply-adds see the convolutions, ``4 k^2 C H W``, and not the solver, about ``6 steps C H W``
    more. The layer is bound by memory traffic and slower than its count suggests: measure it.

    Args:
        channels: Of the features ``h``, and of the output.
        init: Makes ``h`` of the input; the identity where it is None. May change shape: then ``f`` is ``h`` too.
        steps: K.
        dt: Length of one step.
        spacing: Of the grid, ``(dx, dy)`` in pixels: the distance of the neighbours that a step looks at.
        diffusion: "learned" (the same as "depthwise"), another kind of convolution, or constants: one for both
            directions, or two.
        velocity: What looks at the features: "depthwise", "identity", "conv" (full), "pointwise", "basic_block" or
            "bottleneck" (timm's, expansion 1). Each coefficient has its own.
        tied: Whether ``u = v`` and ``Dx = Dy``: each ``act(BN(conv) * act(BN(conv)))``.
        kernel_size: Odd; of the coefficients' depthwise or full convolutions.
        coeff_eps: Epsilon of the coefficients' BatchNorm. "channels" is the number of channels, as released.
        act: Activation of coefficients and output: a type, or timm's name of it, such as "hard_swish".
        source: Whether ``f`` flows in.
        residual: Whether ``f`` is added to the output, after the activation.
        velocity_from: Whether the velocity is computed from ``h`` ("initial") or from ``f`` ("source"). The diffusion
            is always computed from ``h``.
        previous: State before time 0: ``f`` ("source") or ``h`` ("initial").
        bias: Whether the coefficients' convolutions have one.
        velocity_bound: Largest ``|u|`` and ``|v|``, approached smoothly; True is half of ``spacing / dt``, which meets
            the condition above; None is none.
        drop_path: Fraction of samples that skip the layer while training; needs ``residual`` or ``layer_scale``.
        layer_scale: Initial value of one learned factor per channel: the output is ``h + factor * act(norm(H))``. With
            0 the layer starts as ``init`` alone, for pretrained networks. Not together with ``residual``.
        solver: Of :func:`~lightning_efficient.functional.advection_diffusion.advection_diffusion`.

    Shape:
        ``(N, C, H, W)``, any float dtype, to the shape of ``h``. The equation is solved in float32 or wider, so under
        autocast the output is float32.

    Raises:
        ConfigurationError: an option cannot work; also from a call whose features have other channels.

    Example:
        >>> layer = GlobalLayer(16, steps=4, diffusion=1.0)
        >>> layer(torch.rand(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])

    Reference:
        Kag, Saligrama. Condensing CNNs with Partial Differential Equations. CVPR 2022.
    """

    def __init__(
        self,
        channels: int,
        init: nn.Module | None = None,
        steps: int = 1,
        dt: float = 0.2,
        spacing: int | Sequence[int] = (1, 1),
        diffusion: CoefficientKind | Literal["learned"] | float | Sequence[float] = "learned",
        velocity: CoefficientKind = "depthwise",
        tied: bool = False,
        kernel_size: int = 3,
        coeff_eps: float | Literal["channels"] = "channels",
        act: type[nn.Module] | str = nn.ReLU,
        source: bool = True,
        residual: bool = False,
        *,
        velocity_from: Literal["initial", "source"] = "initial",
        previous: Literal["source", "initial"] = "source",
        bias: bool = False,
        velocity_bound: bool | float | None = None,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        solver: Solver = "auto",
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("steps", steps)
        check_number("dt", dt)
        check_positive("dt", dt)
        check_kernel_size(kernel_size)
        check_choice("velocity", velocity, COEFFICIENT_KINDS)
        check_choice("velocity_from", velocity_from, ["initial", "source"])
        check_choice("previous", previous, ["source", "initial"])
        check_choice("solver", solver, get_args(Solver))
        for option, flag in (("tied", tied), ("source", source), ("residual", residual), ("bias", bias)):
            check_flag(option, flag)
        self.channels, self.steps, self.dt = channels, steps, float(dt)
        self.spacing = _spacing(spacing)
        self.tied, self.source, self.residual = tied, source, residual
        self.velocity_from, self.previous, self.solver = velocity_from, previous, solver
        self.velocity_bound = _bound(velocity_bound, self.spacing, self.dt)
        kind, self.diffusion = _diffusion(diffusion)
        eps, act_type = coefficient_eps(coeff_eps, channels), activation_type(act)

        def coefficient(kind: str) -> Coefficient:
            return Coefficient(channels, kind, kernel_size, eps, act_type, bias=bias)

        self.init = nn.Identity() if init is None else init
        self.velocity_x, self.velocity_y = coefficient(velocity), coefficient(velocity)
        self.diffusion_x = None if kind is None else coefficient(kind)
        self.diffusion_y = None if kind is None else coefficient(kind)
        self.norm = nn.BatchNorm2d(channels)
        self.act = act_type()
        self.layer_scale, self.drop_path = surroundings(channels, residual, layer_scale, drop_path)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features at the end, normalised and activated, shaped as those of ``init``."""
        initial = checked_map(self.init(inputs), self.channels, "GlobalLayer")
        source = same_shape_or(inputs, initial)
        if self._can_fuse(initial):
            outputs = self._fused(initial, source)
        else:
            outputs = self.act(self.norm(self._evolve(initial, source).to(self.norm.weight.dtype)))
        if self.layer_scale is not None:
            return initial + self.drop_path(self.layer_scale(outputs))
        return self.drop_path(outputs) + source if self.residual else outputs

    def _coefficients(self) -> list[Coefficient]:
        learned = (self.velocity_x, self.velocity_y, self.diffusion_x, self.diffusion_y)
        return [each for each in learned if each is not None]

    def _can_fuse(self, initial: Tensor) -> bool:
        if self.solver not in ("auto", "fused") or self.tied or self.velocity_bound is not None:
            return False
        if isinstance(initial, torch.fx.Proxy):
            return False
        coefficients = self._coefficients()
        if any(type(each) is not Coefficient for each in coefficients):  # somebody put something else there
            return False
        norms = [*(each.norm for each in coefficients), self.norm]
        fits = can_fuse(norms, self.act, initial, around=coefficients)
        return fits and not (self.solver == "auto" and is_small_inference(initial))

    def _fused(self, initial: Tensor, source: Tensor) -> Tensor:
        seen = source if self.velocity_from == "source" else initial
        inputs = [seen, seen, initial, initial]
        coefficients = self._coefficients()
        alike, initial = source is initial, at_least_float32(initial)
        source = initial if alike else source.to(initial.dtype)
        return fused_global_layer(
            initial,
            inputs[: len(coefficients)],
            [*(each.norm for each in coefficients), self.norm],
            convolutions=[each.conv for each in coefficients],
            diffusion=self.diffusion,
            source=source if self.source else None,
            previous=source if self.previous == "source" else initial,
            steps=self.steps,
            dt=self.dt,
            spacing=self.spacing,
        )

    def _evolve(self, initial: Tensor, source: Tensor) -> Tensor:
        seen = source if self.velocity_from == "source" else initial
        u, v = flow(self.velocity_x, self.velocity_y, seen, self.act, tied=self.tied)
        if self.velocity_bound is not None:
            u, v = bounded(u, self.velocity_bound[0]), bounded(v, self.velocity_bound[1])
        diffusion: tuple[Tensor | float, Tensor | float]
        if self.diffusion_x is None or self.diffusion_y is None:
            assert self.diffusion is not None
            diffusion = self.diffusion
        else:
            diffusion = flow(self.diffusion_x, self.diffusion_y, initial, self.act, tied=self.tied)
        return advection_diffusion(
            initial,
            (u, v),
            diffusion,
            source=source if self.source else None,
            previous=source if self.previous == "source" else None,
            steps=self.steps,
            dt=self.dt,
            spacing=self.spacing,
            solver=self.solver,
        )

    def released_keys(self) -> dict[str, str]:
        """Map names of this layer's ``state_dict`` to those of the authors' code, for all that it has.

        Where coefficients are tied, ``velocity_x`` is the outer factor and ``velocity_y`` the gate inside.

        Example:
            >>> GlobalLayer(8).released_keys()["velocity_x.conv.weight"]
            'convg.weight'
        """
        return released_names(self.state_dict())

    def load_released(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of one layer as the authors' code saves them.

        Raises:
            ConfigurationError: weights are missing, or have no place in this layer.
        """
        self.load_state_dict({**self.state_dict(), **from_released(state_dict, self.released_keys())})

    def feature_info(self, location: str) -> dict[str, Any]:
        """Tell timm where the features of this layer are, as its own blocks do."""
        return feature_info_of(self.init, self.channels, location)

    def extra_repr(self) -> str:
        """Name the settings that the children do not show."""
        shown = {"steps": self.steps, "dt": self.dt, "spacing": self.spacing}
        shown |= {"diffusion": self.diffusion} if self.diffusion else {}
        shown |= {name: True for name in ("tied", "residual") if getattr(self, name)}
        return f"{self.channels}, " + ", ".join(f"{name}={value}" for name, value in shown.items())


def global_layer_at(name: str, block: nn.Module, *, wrap: bool, **options: Any) -> GlobalLayer:
    """Make the Global layer that stands at or behind a block of a network.

    Args:
        name: Of the block, for errors.
        block: Of the network.
        wrap: Whether the block becomes the layer's initialiser; else the layer takes the block's output.
        **options: Of :class:`GlobalLayer`, and ``channels``, ``expansion``, ``init_kind``, ``kernel_size="block"``
            and ``act=None``, see :func:`~lightning_efficient.nn._placed_layer.placed_at`.

    Raises:
        ConfigurationError: the block's channels cannot be read off, or options exclude each other.
    """
    return placed_at(GlobalLayer, name, block, wrap=wrap, **options)


def _spacing(given: int | Sequence[int]) -> tuple[int, int]:
    pair = tuple(given) if isinstance(given, list | tuple) else (given, given)
    if len(pair) != 2 or any(not is_integer(each) or each < 1 for each in pair):
        raise ConfigurationError(f"spacing={given!r} must be one or two whole numbers of pixels, at least 1.")
    return pair[0], pair[1]


def _diffusion(given: str | float | Sequence[float]) -> tuple[str | None, tuple[float, float] | None]:
    if isinstance(given, str):
        check_choice("diffusion", given, ["learned", *COEFFICIENT_KINDS])
        return ("depthwise" if given == "learned" else given), None
    pair = tuple(given) if isinstance(given, list | tuple) else (given, given)
    if len(pair) != 2 or not all(map(_is_diffusivity, pair)):
        raise ConfigurationError(f"diffusion={given!r} must be a kind, or one or two finite numbers of at least 0.")
    return None, (float(pair[0]), float(pair[1]))


def _is_diffusivity(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < float("inf")


def _bound(given: bool | float | None, spacing: tuple[int, int], dt: float) -> tuple[float, float] | None:
    if given is None or given is False:
        return None
    if given is True:
        return 0.5 * spacing[0] / dt, 0.5 * spacing[1] / dt
    check_number("velocity_bound", given)
    check_positive("velocity_bound", given)
    return float(given), float(given)
