"""Advection and diffusion on a periodic grid: the explicit scheme behind ``GlobalLayer``."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._advection_diffusion import FusedAdvectionDiffusion
from lightning_efficient.functional._advection_diffusion_steps import Scheme
from lightning_efficient.functional._checks import check_choice, check_positive, is_integer
from lightning_efficient.functional._precision import at_least_float32

SMALL = 1 << 17
"""Elements of a state below which ``"auto"`` takes the reference on a CPU where no gradients are wanted."""

Solver: TypeAlias = Literal["auto", "fused", "reference", "triton"]
_SOLVERS: tuple[str, ...] = get_args(Solver)  # here, since torch.compile of 2.8 stops at get_args


def advection_diffusion(
    initial: Tensor,
    velocity: tuple[Tensor, Tensor],
    diffusion: tuple[Tensor | float, Tensor | float],
    *,
    source: Tensor | None = None,
    previous: Tensor | None = None,
    steps: int = 1,
    dt: float = 0.2,
    spacing: tuple[int, int] = (1, 1),
    solver: Solver = "auto",
) -> Tensor:
    """Follow ``dH/dt = D lap H + div(v H) + f`` for a few explicit steps, each channel for itself.

    The scheme has three levels: central differences in time and space, and the centre of the second derivative
    replaced by the mean of the levels before and after (Du Fort and Frankel). Both directions of the grid are periodic.
    With positive velocities what there is moves towards lower rows and columns. The velocity and the diffusion
    coefficients stay as they are over all steps.

    Diffusion alone is stable for every ``dt``. Advection is so only where ``|u| dt / dx + |v| dt / dy <= 1``, which
    nothing here enforces. After K steps a pixel depends on those up to K spacings away.

    Args:
        initial: The state ``(N, C, H, W)``; half precision is taken to float32.
        velocity: ``u`` along the rows' index and ``v`` along the columns' index, maps of the same shape, in pixels per
            unit of time.
        diffusion: ``Dx`` from row to row and ``Dy`` from column to column, maps of the same shape or numbers, at least
            0, in squared pixels per unit of time.
        source: ``f``, a map of the same shape; None for no source.
        previous: The state one step before ``initial``, of the same shape; None for ``initial`` itself.
        steps: K, at least 1.
        dt: Length of a step.
        spacing: ``(dx, dy)``: how far away the neighbours are, in whole pixels, and the spacing of the formulas.
        solver: ``"fused"``: a block of samples at a time, with a backward pass by hand that keeps the inputs only and
            is differentiable once. ``"reference"``: plain tensor operations, differentiable as often as one likes;
            ``torch.compile`` fuses them. ``"triton"``: all steps in one kernel where that is possible, float32 on CUDA
            with planes of at most 4096 pixels, otherwise as ``"auto"``. ``"auto"``: fused. All of them are the
            reference inside ``torch.compile``, ``torch.export``, ``torch.func`` and forward-mode differentiation. So
            is ``"auto"`` on a CPU without gradients for states of fewer than 2^17 elements, where it is faster.

    Returns:
        The state after the last step, ``(N, C, H, W)``, float32 or wider, whatever autocast says.

    Raises:
        ConfigurationError: Maps of other shapes, a velocity that is no map, negative diffusion, fewer than one step,
            ``dt`` not above 0, a spacing that is not a whole number above 0, or an unknown solver.

    Example:
        >>> heat = torch.zeros(1, 1, 3, 3)
        >>> heat[..., 1, 1] = 1.0
        >>> still = torch.zeros_like(heat)
        >>> advection_diffusion(heat, (still, still), (1.0, 1.0), dt=0.25)[0, 0]
        tensor([[0.0000, 0.2500, 0.0000],
                [0.2500, 0.0000, 0.2500],
                [0.0000, 0.2500, 0.0000]])

    Reference:
        Kag and Saligrama, "Condensing CNNs with Partial Differential Equations", CVPR 2022; the scheme is of Du Fort
        and Frankel, "Stability Conditions in the Numerical Treatment of Parabolic Differential Equations", Mathematical
        Tables and Other Aids to Computation 1953.
    """
    check_choice("solver", solver, get_args(Solver))
    check_positive("dt", dt)
    if not is_integer(steps) or steps < 1:
        raise ConfigurationError(f"steps={steps!r} must be a whole number, at least 1.")
    pair = spacing if isinstance(spacing, (tuple, list)) else ()  # torch.compile of 2.8 stops at tuple | list
    if len(pair) != 2 or any(not is_integer(each) or each < 1 for each in pair):
        raise ConfigurationError(f"spacing={spacing!r} must be two whole numbers of pixels, each at least 1.")
    if not all(isinstance(each, Tensor) for each in velocity):
        raise ConfigurationError("velocity must be two maps; numbers are allowed for diffusion only.")
    for value in diffusion:
        if not isinstance(value, Tensor) and not 0 <= value < float("inf"):
            raise ConfigurationError(f"diffusion={diffusion!r} must be maps, or finite numbers of at least 0.")
    maps = {"u": velocity[0], "v": velocity[1], "Dx": diffusion[0], "Dy": diffusion[1]}
    for name, each in {**maps, "source": source, "previous": previous}.items():
        if isinstance(each, Tensor) and each.shape != initial.shape:
            raise ConfigurationError(f"{name} has the shape {tuple(each.shape)}, not initial's {tuple(initial.shape)}.")
    if initial.ndim != 4:
        raise ConfigurationError(f"initial has the shape {tuple(initial.shape)}, which must be (N, C, H, W).")
    given = [each for each in (initial, source, previous, *maps.values()) if isinstance(each, Tensor)]
    dtype = torch.float32
    for each in given:
        dtype = torch.promote_types(dtype, each.dtype)
    initial, scheme = initial.to(dtype), Scheme(steps, dt, (spacing[0], spacing[1]))
    source = None if source is None else source.to(dtype)
    previous = initial if previous is None else previous.to(dtype)
    if solver == "reference" or is_transformed() or (solver == "auto" and is_small_inference(initial)):
        u, v, along, across = (at_least_float32(each) if isinstance(each, Tensor) else each for each in maps.values())
        return _reference(initial, (u, v), (along, across), source, previous, scheme)  # type: ignore[arg-type]
    if solver == "triton":
        from lightning_efficient.functional import _triton_advection_diffusion as kernels

        if kernels.runs(initial):
            return kernels.solve(initial, *velocity, *diffusion, source, previous, steps, dt, scheme.spacing)
    return FusedAdvectionDiffusion.apply(initial, previous, source, *maps.values(), scheme)


def is_small_inference(state: Tensor) -> bool:
    """Say whether plain operations are faster: nothing to keep, and so few pixels that calls take the time (CPU)."""
    return not torch.is_grad_enabled() and state.device.type == "cpu" and state.numel() < SMALL


def is_transformed() -> bool:
    """Say whether something looks into the computation that a backward pass by hand cannot serve.

    That is ``torch.compile``, ``torch.export``, ``torch.jit.trace``, ``torch.func`` and forward-mode differentiation.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def _reference(
    initial: Tensor,
    velocity: tuple[Tensor, Tensor],
    diffusion: tuple[Tensor | float, Tensor | float],
    source: Tensor | None,
    previous: Tensor,
    scheme: Scheme,
) -> Tensor:
    (dx, dy), rates = scheme.spacing, scheme.rates()
    drift, slip = velocity[0] * rates[0], velocity[1] * rates[1]
    along, across = diffusion[0] * rates[2], diffusion[1] * rates[3]
    scale = 1 / (1 + along + across)
    here = drift.roll(-dx, 2) - drift.roll(dx, 2) + slip.roll(-dy, 3) - slip.roll(dy, 3)
    before, here = (1 - along - across) * scale, here * scale
    north, south, west, east = (each * scale for each in (along - drift, along + drift, across - slip, across + slip))
    forcing = 0.0 if source is None else 2 * scheme.dt * source * scale
    last, state = previous, initial
    for _ in range(scheme.steps):
        following = before * last + here * state + forcing
        following = following + north * state.roll(dx, 2) + south * state.roll(-dx, 2)
        following = following + west * state.roll(dy, 3) + east * state.roll(-dy, 3)
        last, state = state, following
    return state
