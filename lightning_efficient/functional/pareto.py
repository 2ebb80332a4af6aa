"""Trade-offs: what no other point beats, how much room a front covers, where it bends, and one number for two aims."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_positive

_CHUNK = 1024


def pareto_mask(points: Tensor, maximize: Sequence[bool]) -> Tensor:
    """Tell which points are not dominated.

    A point is dominated if another is at least as good on every axis and better on one. Equal points do not dominate
    each other. Takes time in proportion to ``N² D``.

    Args:
        points: Shape ``(N, D)``, any real dtype; infinite values are allowed.
        maximize: For each axis whether more is better.

    Returns:
        Bool, shape ``(N,)``; true is on the front.

    Raises:
        ConfigurationError: another shape, NaN, or a direction for each axis is not given.

    Example:
        >>> pareto_mask(torch.tensor([[1.0, 0.7], [2.0, 0.9], [3.0, 0.8]]), maximize=(False, True))
        tensor([ True,  True, False])
    """
    costs = _costs(points, maximize)
    front = torch.ones(len(costs), dtype=torch.bool, device=costs.device)
    for start in range(0, len(costs), _CHUNK):
        chunk = costs[start : start + _CHUNK, None]
        dominated = (costs <= chunk).all(-1) & (costs < chunk).any(-1)
        front[start : start + _CHUNK] = ~dominated.any(1)
    return front


def hypervolume(points: Tensor, reference: Tensor | Sequence[float], maximize: Sequence[bool]) -> float:
    """Volume of all that some point dominates and that dominates the reference point.

    It grows whenever a front gets better anywhere, and depends on the reference, so state that with it. Exact: a sweep
    in two dimensions, slices of one dimension less in more; time grows fast with ``D``.

    Args:
        points: Shape ``(N, D)``; those that are not better than the reference on every axis add nothing.
        reference: Shape ``(D,)``, finite: a point that is worse than what one would accept.
        maximize: For each axis whether more is better.

    Raises:
        ConfigurationError: as :func:`pareto_mask`, or a reference that does not fit.

    Example:
        >>> hypervolume(torch.tensor([[1.0, 0.5], [2.0, 1.0]]), reference=(3.0, 0.0), maximize=(False, True))
        1.5

    Reference:
        Zitzler, Thiele. Multiobjective Evolutionary Algorithms: A Comparative Case Study and the Strength Pareto
        Approach. IEEE Transactions on Evolutionary Computation 1999.
    """
    costs = _costs(points, maximize)
    limit = torch.as_tensor(reference, dtype=torch.float64).cpu()
    if limit.shape != costs.shape[1:] or not limit.isfinite().all():
        raise ConfigurationError(
            f"reference={limit.tolist()} must hold one finite number for each of the {costs.shape[1]} axes."
        )
    limit = _costs(limit[None], maximize)[0]
    rooms = limit - costs.cpu()  # what each point is better by
    rows = sorted({tuple(row) for row in rooms[(rooms > 0).all(1)].tolist()}, reverse=True)
    return _volume(rows)


def knee(points: Tensor, maximize: Sequence[bool]) -> int:
    """Index of the point at which a front bends most: the furthest, towards better, from the line between its ends.

    Axes are normalised to the range of the front first. Where the front has no such point, as with two points or one
    that bends the other way, it is the end that is best on the first axis. Unlike the front, the knee depends on how
    the axes are scaled: give logarithms where those are what you compare.

    Args:
        points: Shape ``(N, 2)``, finite, at least one.
        maximize: For both axes whether more is better.

    Raises:
        ConfigurationError: as :func:`pareto_mask`, not two axes, or no points.

    Example:
        >>> cost_and_accuracy = torch.tensor([[1.0, 0.5], [2.0, 0.9], [9.0, 0.93], [3.0, 0.2]])
        >>> knee(cost_and_accuracy, maximize=(False, True))
        1

    Reference:
        Das. On Characterizing the "Knee" of the Pareto Curve Based on Normal-Boundary Intersection. Structural
        Optimization 1999.
    """
    costs = _costs(points, maximize)
    if costs.shape[1] != 2 or not len(costs) or not costs.isfinite().all():
        raise ConfigurationError(f"points of shape {tuple(points.shape)} must be (N, 2), at least one, and finite.")
    indices = pareto_mask(points, maximize).nonzero().flatten()
    front = costs[indices]
    indices = indices[front[:, 0].sort(stable=True).indices]
    front = costs[indices]
    low, high = front.amin(0), front.amax(0)
    shares = (front - low) / torch.where(high > low, high - low, 1.0)
    # the ends are (0, 1) and (1, 0), and the distance from their line is (1 - x - y) / √2
    distances = 1 - shares.sum(1)
    best = int(distances.argmax())
    return int(indices[best if distances[best] > 1e-12 else 0])


def mnasnet_reward(accuracy: float, latency_ms: float, target_ms: float, exponent: float = -0.07) -> float:
    """One number for accuracy and latency: ``ACC (LAT / T)^w``.

    With ``w = -0.07`` a doubled latency weighs as much as 5 % of the accuracy. Where both can be kept apart, a front
    says more: see :func:`pareto_mask`.

    Args:
        accuracy: 0 or more.
        latency_ms: Above 0.
        target_ms: The latency ``T`` that changes nothing, above 0.
        exponent: ``w``, 0 or less; 0 ignores the latency.

    Raises:
        ConfigurationError: a number is out of range.

    Example:
        >>> f"{mnasnet_reward(0.76, latency_ms=80, target_ms=80):.3f} {mnasnet_reward(0.76, 160, 80):.3f}"
        '0.760 0.724'

    Reference:
        Tan, Chen, Pang, Vasudevan, Sandler, Howard, Le. MnasNet: Platform-Aware Neural Architecture Search for Mobile.
        CVPR 2019.
    """
    check_positive("latency_ms", latency_ms)
    check_positive("target_ms", target_ms)
    if not 0 <= accuracy < math.inf:
        raise ConfigurationError(f"accuracy={accuracy!r} must be a finite number, 0 or more.")
    if not -math.inf < exponent <= 0:
        raise ConfigurationError(f"exponent={exponent!r} must be a finite number, 0 or less.")
    return accuracy * (latency_ms / target_ms) ** exponent


def _costs(points: Tensor, maximize: Sequence[bool]) -> Tensor:
    """Return points as float64 of which less is better on every axis."""
    if points.ndim != 2 or points.shape[1] < 1 or points.isnan().any():
        raise ConfigurationError(f"points of shape {tuple(points.shape)} must be (N, D) with D >= 1 and without NaN.")
    if len(maximize) != points.shape[1]:
        raise ConfigurationError(
            f"maximize={list(maximize)} must say for each of the {points.shape[1]} axes whether more is better."
        )
    signs = torch.tensor([-1.0 if more else 1.0 for more in maximize], dtype=torch.float64, device=points.device)
    return points.detach().double() * signs


def _volume(rows: list[tuple[float, ...]]) -> float:
    """Return the volume of the union of boxes from 0 to each row; rows come sorted, largest first element first."""
    if not rows:
        return 0.0
    if len(rows[0]) == 1:
        return rows[0][0]
    if len(rows[0]) == 2:
        volume, top = 0.0, 0.0
        for width, height in rows:  # from the widest box on, each adds what rises above those before it
            if height > top:
                volume += width * (height - top)
                top = height
        return volume
    volume, slab = 0.0, set[tuple[float, ...]]()
    for number, row in enumerate(rows):  # from the top down, each slab is the union of the boxes that reach it
        slab.add(row[1:])
        below = rows[number + 1][0] if number + 1 < len(rows) else 0.0
        if row[0] > below:
            volume += (row[0] - below) * _volume(sorted(slab, reverse=True))
    return volume
