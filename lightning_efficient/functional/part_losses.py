"""Losses of a sequence that is trained part by part: weights over time, masks, and the divergence terms of FPTT.

A sequence is cut into parts along time. A label that is known at the end only is also asked for at the end of earlier
parts, with less weight there. All functions return one value per sample, so that one mean closes every loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.typing import Part


def part_weight(index: int, count: int | Tensor) -> float | Tensor:
    """How much a label of the whole sequence weighs at the end of a part: ``(index + 1) / count``.

    Args:
        index: Number of the part, from 0.
        count: Parts of the sequence, or int64 of shape ``(N,)``: the parts in which each sequence has time steps.

    Returns:
        A number in ``(0, 1]``, or a float tensor of shape ``(N,)``.

    Example:
        >>> part_weight(0, 4)
        0.25
        >>> part_weight(1, torch.tensor([2, 4]))
        tensor([1.0000, 0.5000])
    """
    if isinstance(count, Tensor):
        return ((index + 1) / count.clamp(min=1)).clamp(max=1.0)
    return (index + 1) / count


def counted_mean(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean over the values that count; 0 with a gradient of zeros where none does.

    Args:
        values: Float tensor of any shape.
        counted: Boolean tensor of the same shape; ``None`` counts all.

    Returns:
        A scalar.

    Example:
        >>> counted_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    if counted is None:
        return values.mean()
    # a product with 0 would keep a NaN of the values that do not count
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def valid_steps(lengths: Tensor, steps: int) -> Tensor:
    """Tell which time steps of padded sequences are real.

    Args:
        lengths: Valid steps of each sequence, int64 of shape ``(N,)``.
        steps: ``T``, the padded length.

    Returns:
        Boolean tensor of shape ``(N, T)``.

    Example:
        >>> valid_steps(torch.tensor([1, 3]), 3)
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(1)


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over the last dimension in float32 or wider.

    Example:
        >>> log_probabilities(torch.zeros(1, 2, dtype=torch.bfloat16))
        tensor([[-0.6931, -0.6931]])
    """
    return at_least_float32(logits).log_softmax(-1)


def divergence(log_probs: Tensor, reference: Tensor, over_classes: Literal["sum", "mean"] = "sum") -> Tensor:
    """Cross-entropy of predictions with a reference distribution, ``-sum_y Q(y) log P(y)``.

    Args:
        log_probs: Log-probabilities of the model, shape ``(N, C)``, any float dtype.
        reference: ``Q``, shape ``(N, C)``; a row of zeros asks for nothing.
        over_classes: ``sum`` as in the paper. The released code takes the ``mean``, which is ``C`` times smaller.

    Returns:
        One value per sample, shape ``(N,)``.

    Raises:
        ConfigurationError: ``over_classes`` is neither.

    Example:
        >>> log_probs = torch.tensor([[0.25, 0.75]]).log()
        >>> divergence(log_probs, torch.tensor([[0.5, 0.5]]))
        tensor([0.8370])
        >>> divergence(log_probs, torch.tensor([[0.5, 0.5]]), "mean")
        tensor([0.4185])

    Reference:
        Kag, Saligrama. Training Recurrent Neural Networks via Forward Propagation Through Time. ICML 2021.
    """
    check_choice("over_classes", over_classes, ("sum", "mean"))
    values = -(reference * log_probs)
    return values.sum(-1) if over_classes == "sum" else values.mean(-1)


def in_last_full_part(part: Part) -> bool:
    """Tell whether a part is the last one of full length, or comes after it.

    The released code cuts ``T`` steps into ``K`` parts of ``T // K`` and, if steps are left, one shorter part more;
    from the ``K``-th part on its divergence term asks for the label itself. Where parts differ by one step at most, as
    in a balanced split, all of them are of full length.

    Example:
        >>> [in_last_full_part(Part(i, 5, 3 * i, min(3 * i + 3, 13), 13)) for i in range(5)]
        [False, False, False, True, True]
        >>> [in_last_full_part(Part(i, 3, 4 * i, 4 * i + 4, 12)) for i in range(3)]
        [False, False, True]
    """
    if part.index != part.count - 2:
        return part.index == part.count - 1
    left = part.length - part.stop
    return part.stop - part.start - left > 1


def first_wrong_per_class(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Find, for each class, the first sample of a batch that is of this class and taken for another one.

    Args:
        logits: Class scores or probabilities, shape ``(N, C)``.
        labels: Classes, int64 of shape ``(N,)``; values outside ``0..C-1`` belong to no class.

    Returns:
        ``(found, sample)``: for each class whether there is one, boolean of shape ``(C,)``, and its row, int64 of
        shape ``(C,)``, 0 where there is none.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 1.0], [1.0, 3.0]])
        >>> first_wrong_per_class(logits, torch.tensor([0, 0, 1, 0]))
        (tensor([True, True]), tensor([1, 2]))
    """
    samples, classes = logits.shape
    wrong = logits.argmax(1) != labels
    belongs = labels.unsqueeze(1) == torch.arange(classes, device=labels.device)
    rows = torch.arange(samples, device=labels.device).unsqueeze(1)
    first = torch.where(belongs & wrong.unsqueeze(1), rows, samples).amin(0)
    found = first < samples
    return found, torch.where(found, first, 0)
