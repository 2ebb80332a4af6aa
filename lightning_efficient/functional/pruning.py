"""Which weights to remove: saliency, how much by when, and masks with exact counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import check_choice, check_count, check_fraction, check_number, is_integer
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.schedules import TOLERANCE

SALIENCIES = ("magnitude", "first_order", "random")
"""What a weight is worth: its size, the loss that its removal costs to first order, or a draw."""

SCOPES = ("global", "layer")
"""Whether a sparsity holds for all layers together or for each of them."""


def saliency(
    weight: Tensor, gradient: Tensor | None = None, kind: str = "magnitude", generator: torch.Generator | None = None
) -> Tensor:
    """How much each weight matters; the lowest are removed first.

    Args:
        weight: Any shape, floating point.
        gradient: Of the loss, mean or sum over a calibration set, shape of ``weight``; for ``"first_order"`` only.
        kind: ``"magnitude"`` is ``|w|``, ``"first_order"`` ``|w ∂L/∂w|``, ``"random"`` uniform in ``[0, 1)``.
        generator: Random state of ``"random"``; its device may differ from the weight's.

    Returns:
        Scores of 0 or more, shape and device of ``weight``, float32 or wider, without gradient.

    Raises:
        ConfigurationError: an unknown kind, or no gradient of the right shape where one is needed.

    Example:
        >>> saliency(torch.tensor([-2.0, 0.5]), torch.tensor([0.1, 1.0]), "first_order")
        tensor([0.2000, 0.5000])

    Reference:
        LeCun, Denker, Solla. Optimal Brain Damage. NeurIPS 1989: the word. Molchanov, Tyree, Karras, Aila, Kautz.
        Pruning Convolutional Neural Networks for Resource Efficient Inference. ICLR 2017: first order.
    """
    check_choice("saliency", kind, SALIENCIES)
    values = at_least_float32(weight.detach())
    if kind == "magnitude":
        return values.abs()
    if kind == "random":
        device = generator.device if generator is not None else weight.device
        draws = torch.rand(weight.shape, dtype=values.dtype, device=device, generator=generator)
        return draws.to(weight.device)
    if gradient is None or gradient.shape != weight.shape:
        given = "none" if gradient is None else f"shape {tuple(gradient.shape)}"
        raise ConfigurationError(
            f"saliency='first_order' needs a gradient of the weight's shape {tuple(weight.shape)}, got {given}."
        )
    return (values * at_least_float32(gradient.detach())).abs()


def round_fraction(sparsity: float, rounds: int) -> float:
    """Fraction ``p`` of what is left to remove in each round, ``1 - (1 - s)^(1/N)``, to end at sparsity ``s``.

    Args:
        sparsity: Share of all weights that is gone after the last round, in ``[0, 1]``.
        rounds: How many rounds ``N``, at least 1.

    Raises:
        ConfigurationError: a number is out of range.

    Example:
        >>> round_fraction(0.75, rounds=2)
        0.5

    Reference:
        Menghani. Efficient Deep Learning: A Survey on Making Deep Learning Models Smaller, Faster, and Better. ACM
        Computing Surveys 2023: Algorithm 1.
    """
    return sparsity_after_round(sparsity, 1, rounds)


def sparsity_after_round(sparsity: float, round: int, rounds: int) -> float:
    """Sparsity after some of the rounds that each remove the same fraction of what is left: ``1 - (1 - s)^(r/N)``.

    Args:
        sparsity: The final one ``s``, in ``[0, 1]``.
        round: How many rounds ``r`` are done, 0 to ``rounds``.
        rounds: How many there are, at least 1.

    Raises:
        ConfigurationError: a number is out of range.

    Example:
        >>> [sparsity_after_round(0.75, round, rounds=2) for round in (0, 1, 2)]
        [0.0, 0.5, 0.75]
    """
    check_fraction("sparsity", sparsity, zero=True)
    check_count("rounds", rounds)
    if not is_integer(round) or not 0 <= round <= rounds:
        raise ConfigurationError(f"round={round!r} must be an integer from 0 to the {rounds} rounds.")
    if round in (0, rounds) or sparsity == 1:  # exact ends, whatever the rounding
        return float(sparsity) if round else 0.0
    return -math.expm1(round / rounds * math.log1p(-sparsity))


def cubic_sparsity(progress: float, final: float, initial: float = 0.0) -> float:
    """Sparsity that rises fast at first and slowly at the end: ``s_f + (s_0 - s_f) (1 - progress)^3``.

    Args:
        progress: Share of the pruning phase that is done, in ``[0, 1]``; rounding may take it outside by 1e-9.
        final: Sparsity at its end, in ``[0, 1]``.
        initial: Sparsity at its beginning, in ``[0, 1]``.

    Raises:
        ConfigurationError: a number is out of range.

    Example:
        >>> [cubic_sparsity(progress, final=0.5) for progress in (0, 0.5, 1)]
        [0.0, 0.4375, 0.5]

    Reference:
        Zhu, Gupta. To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression. ICLR 2018
        workshop.
    """
    check_fraction("final", final, zero=True)
    check_fraction("initial", initial, zero=True)
    if not -TOLERANCE <= progress <= 1 + TOLERANCE:
        raise ConfigurationError(f"progress={progress!r} is outside [0, 1]; give the share of the pruning phase done.")
    left = (1 - min(max(float(progress), 0.0), 1.0)) ** 3
    return (1 - left) * final + left * initial


def keep_masks(
    scores: Mapping[str, Tensor],
    sparsity: float | Mapping[str, float],
    *,
    scope: str = "global",
    max_layer_sparsity: float = 0.95,
    costs: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Masks that keep the highest scores and remove a sparsity of all entries, or of each layer's.

    Counts are exact: ``round(s n)`` entries go, so far as each layer's limit allows. Equal scores go in the order of
    their positions. For the same scores a higher sparsity removes all that a lower one does; to keep removed what an
    earlier call removed, give it a score below all others, such as -1.

    Args:
        scores: Scores by layer, any shapes; no NaN.
        sparsity: Share to remove, in ``[0, 1)``. A mapping gives each layer its own, and 0 to those it does not name.
        scope: ``"global"``: one threshold for all layers together. ``"layer"``: the same sparsity in each.
        max_layer_sparsity: Largest sparsity of any one layer, in ``(0, 1]``; each keeps at least one entry in any case.
        costs: By layer how many parameters one entry stands for, such as a channel; 1 by default. A global sparsity
            then counts parameters, and the lowest scores go until it is met as closely as whole entries allow.

    Returns:
        By layer, a bool tensor of the shape and on the device of its scores; true is kept.

    Raises:
        ConfigurationError: as :func:`check_sparsity`, or scores that are NaN.

    Example:
        >>> masks = keep_masks({"a": torch.tensor([4.0, 3.0]), "b": torch.tensor([0.1, 0.2, 5.0])}, 0.4)
        >>> {name: mask.tolist() for name, mask in masks.items()}
        {'a': [True, True], 'b': [False, False, True]}

    Reference:
        Menghani. Efficient Deep Learning. ACM Computing Surveys 2023: Algorithm 1. Han, Pool, Tran, Dally. Learning
        both Weights and Connections for Efficient Neural Networks. NeurIPS 2015.
    """
    sizes = {name: each.numel() for name, each in scores.items()}
    check_sparsity(sizes, sparsity, scope, max_layer_sparsity, costs)
    for name, each in scores.items():
        if each.isnan().any():
            raise ConfigurationError(f"scores of layer {name!r} have NaN; they must be numbers.")
    if not isinstance(sparsity, Mapping) and scope == "global":
        return _global_masks(scores, sparsity, max_layer_sparsity, costs)
    shares = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(scores, sparsity)
    return {
        name: ~_lowest(
            each, min(_share(shares.get(name, 0.0), sizes[name]), _removable(sizes[name], max_layer_sparsity))
        )
        for name, each in scores.items()
    }


def check_sparsity(
    sizes: Mapping[str, int],
    sparsity: float | Mapping[str, float],
    scope: str = "global",
    max_layer_sparsity: float = 0.95,
    costs: Mapping[str, float] | None = None,
) -> None:
    """Raise for a sparsity that would remove a whole layer, or that the limit of each layer makes impossible.

    Args:
        sizes: Number of entries by layer.
        sparsity: As in :func:`keep_masks`.
        scope: Likewise.
        max_layer_sparsity: Likewise.
        costs: Likewise.

    Raises:
        ConfigurationError: one line that names the layer and the largest possible value.

    Example:
        >>> check_sparsity({"conv": 100, "head": 10}, 0.9)
        >>> check_sparsity({"conv": 100, "head": 10}, {"head": 0.99})
        Traceback (most recent call last):
        lightning_efficient.errors.ConfigurationError: sparsity=0.99 of layer 'head' is above max_layer_sparsity=0.95.
    """
    check_choice("scope", scope, SCOPES)
    check_number("max_layer_sparsity", max_layer_sparsity)
    check_fraction("max_layer_sparsity", max_layer_sparsity, zero=False)
    if not sizes or min(sizes.values()) < 1:
        empty = next((name for name, size in sizes.items() if size < 1), None)
        raise ConfigurationError(f"layer {empty!r} has no entries." if sizes else "there is no layer to prune.")
    if isinstance(sparsity, Mapping):
        for name in sparsity:
            if name not in sizes:
                raise ConfigurationError(
                    f"sparsity names a layer {name!r} that is not there.{did_you_mean(name, sizes)}"
                )
    shares = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(sizes, sparsity)
    for name, share in shares.items():
        check_number("sparsity", share)
        check_fraction("sparsity", share, zero=True)
        if scope != "layer" and not isinstance(sparsity, Mapping):
            continue
        if share > max_layer_sparsity:
            raise ConfigurationError(f"sparsity={share!r} of layer {name!r} is above {max_layer_sparsity=!r}.")
        if share == 1:
            limit = _floored((sizes[name] - 1) / sizes[name])
            raise ConfigurationError(f"sparsity={share!r} of layer {name!r} is above the largest possible {limit}.")
    if not isinstance(sparsity, Mapping) and scope == "global":
        each = {name: (costs or {}).get(name, 1.0) for name in sizes}
        removable = {name: _removable(size, max_layer_sparsity) for name, size in sizes.items()}
        total = sum(each[name] * size for name, size in sizes.items())
        possible = sum(each[name] * count for name, count in removable.items())
        # half an entry is what rounding to whole entries may miss
        if sparsity * total > possible + max(each.values()) / 2:
            name = min(sizes, key=lambda layer: removable[layer] / sizes[layer])
            raise ConfigurationError(
                f"sparsity={sparsity!r} cannot be reached, the largest possible is {_floored(possible / total)}: "
                f"{max_layer_sparsity=!r} leaves layer {name!r} {sizes[name] - removable[name]} of {sizes[name]}."
            )


def regrow(mask: Tensor, scores: Tensor, gradient: Tensor, count: int) -> Tensor:
    """Remove the lowest of what is kept and bring back as much of what was removed, where the gradient is largest.

    What goes now cannot come back at once, so the sparsity stays as it is. Ties are broken by position.

    Args:
        mask: True is kept, any shape.
        scores: Of the same shape, such as ``|w|``.
        gradient: Of the loss in the dense weights, of the same shape.
        count: How many go and come, 0 or more; fewer where fewer are kept or removed.

    Returns:
        The new mask.

    Raises:
        ConfigurationError: shapes that differ, or a negative count.

    Example:
        >>> mask = torch.tensor([True, True, False, False])
        >>> regrow(mask, torch.tensor([0.1, 2.0, 0.0, 0.0]), torch.tensor([9.0, 0.0, 1.0, -3.0]), count=1)
        tensor([False,  True, False,  True])

    Reference:
        Evci, Gale, Menick, Castro, Elsen. Rigging the Lottery: Making All Tickets Winners. ICML 2020.
    """
    if not mask.shape == scores.shape == gradient.shape:
        shapes = [tuple(each.shape) for each in (mask, scores, gradient)]
        raise ConfigurationError(f"mask, scores and gradient have shapes {shapes}; they must be the same.")
    if not is_integer(count) or count < 0:
        raise ConfigurationError(f"count={count!r} must be an integer of at least 0.")
    kept = int(mask.sum())
    count = min(count, kept, mask.numel() - kept)
    if count == 0:
        return mask.clone()
    infinity = float("inf")
    dropped = _lowest(_finite(scores).masked_fill(~mask, infinity), count)
    grown = _lowest((-_finite(gradient.abs())).masked_fill(mask, infinity), count)
    return (mask & ~dropped) | grown


def sparsity_of(masks: Mapping[str, Tensor]) -> float:
    """Share of all entries that masks remove.

    Example:
        >>> sparsity_of({"a": torch.tensor([True, False]), "b": torch.tensor([True, True])})
        0.25
    """
    total = sum(mask.numel() for mask in masks.values())
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / total if total else 0.0


def _global_masks(
    scores: Mapping[str, Tensor], sparsity: float, max_layer_sparsity: float, costs: Mapping[str, float] | None
) -> dict[str, Tensor]:
    device = next(iter(scores.values())).device
    flat, possible = [], 0
    for each in scores.values():
        values = _finite(each.detach()).flatten()
        removable = _removable(values.numel(), max_layer_sparsity)
        flat.append(values.masked_fill(~_lowest(values, removable), float("inf")).to(device))
        possible += removable
    sizes = [each.numel() for each in flat]
    together = torch.cat(flat)
    if costs is None:
        removed = _lowest(together, min(_share(sparsity, together.numel()), possible))
    else:
        each_cost = torch.tensor([costs.get(name, 1.0) for name in scores], dtype=torch.float64, device=device)
        paid = each_cost.repeat_interleave(torch.tensor(sizes, device=device))
        removed = _lowest_costs(together, paid, sparsity, possible)
    parts = removed.split(sizes)
    return {
        name: ~part.view(each.shape).to(each.device) for (name, each), part in zip(scores.items(), parts, strict=True)
    }


def _lowest_costs(values: Tensor, costs: Tensor, sparsity: float, possible: int) -> Tensor:
    """Mark the lowest values whose costs together come closest to a share of all."""
    order = values.sort(stable=True).indices
    paid = torch.cat([costs.new_zeros(1), costs[order[:possible]].cumsum(0)])
    count = int((paid - sparsity * costs.sum()).abs().argmin())
    return torch.zeros_like(values, dtype=torch.bool).index_fill_(0, order[:count], True)


def _lowest(values: Tensor, count: int) -> Tensor:
    """Mark exactly ``count`` of the lowest values; of equal ones the first."""
    flat = values.flatten()
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    limit = flat.kthvalue(count).values  # much faster than a sort
    marked = flat < limit
    ties = (flat == limit).nonzero().flatten()
    marked[ties[: count - int(marked.sum())]] = True
    return marked.view(values.shape)


def _removable(size: int, share: float) -> int:
    """Return how many entries of a layer may go; in exact decimals, as 0.95 of 20 is 19."""
    return min(math.floor(Fraction(repr(float(share))) * size), size - 1)


def _share(share: float, size: int) -> int:
    return round(Fraction(repr(float(share))) * size)


def _floored(share: float) -> float:
    return math.floor(share * 1e4) / 1e4


def _finite(values: Tensor) -> Tensor:
    return at_least_float32(values).nan_to_num(nan=0.0)  # infinity marks what may not be chosen
