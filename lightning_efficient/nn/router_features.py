"""What a router looks at in a classifier's logits."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.confidence import entropy

_SUREST = -1e4


def log_odds_of_error(logits: Tensor) -> Tensor:
    """Log-odds ``log((1 - p) / p)`` of the largest softmax probability ``p``; larger for less sure.

    Ranks as ``-p`` does, but keeps its resolution where ``p`` rounds to 1: it is the logsumexp of the other logits
    minus the largest.

    Args:
        logits: Class scores, shape ``(N, C)`` with ``C >= 2``, any float dtype (computed in float32; float64 stays).

    Returns:
        Shape ``(N,)``, from -10000 to ``log(C - 1)``.

    Example:
        >>> log_odds_of_error(torch.tensor([[0.0, 0.0], [50.0, 0.0]]))
        tensor([  0., -50.])
    """
    logits = at_least_float32(logits)
    largest = logits.max(-1, keepdim=True)
    # a mask and not a scatter, which fewer runtimes know
    classes = torch.arange(logits.shape[-1], device=logits.device)
    others = (logits - largest.values).masked_fill(classes == largest.indices, -torch.inf)
    return others.logsumexp(-1).clamp(min=_SUREST)


def top_probabilities(logits: Tensor, top_k: int = 10) -> Tensor:
    """The ``min(top_k, C)`` largest softmax probabilities, largest first, float32 or wider.

    Args:
        logits: Class scores, shape ``(N, C)``.
        top_k: How many at most.
    """
    return at_least_float32(logits).softmax(-1).topk(min(top_k, logits.shape[-1])).values


def released_logit_features(logits: Tensor, top_k: int = 10) -> Tensor:
    """What the published routers see: the entropy, and all differences of the largest probabilities.

    With ``K = min(top_k, C)`` it is the entropy in nats and the ``K x K`` matrix ``p_(i) - p_(j)``, row by row, with
    its zeros and both signs of each difference.

    Args:
        logits: Class scores, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
        top_k: How many probabilities at most.

    Returns:
        Shape ``(N, 1 + K * K)``.

    Example:
        >>> released_logit_features(torch.tensor([[0.0, 1.0]])).shape
        torch.Size([1, 5])

    Reference:
        Released code of: Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query.
        ICLR 2023.
    """
    top = top_probabilities(logits, top_k)
    differences = (top.unsqueeze(2) - top.unsqueeze(1)).flatten(1)
    return torch.cat([-entropy(logits).unsqueeze(1), differences], 1)


def logit_features(logits: Tensor, top_k: int = 10) -> Tensor:
    """What our routers see: entropy, each difference of the largest probabilities once, and the logsumexp.

    Args:
        logits: Class scores, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
        top_k: How many probabilities at most.

    Returns:
        Shape ``(N, 2 + K * (K - 1) / 2)`` with ``K = min(top_k, C)``.

    Example:
        >>> logit_features(torch.tensor([[0.0, 0.0]]))
        tensor([[0.6931, 0.0000, 0.6931]])
    """
    logits = at_least_float32(logits)
    top = top_probabilities(logits, top_k)
    count = top.shape[1]
    pairs = [top[:, place : place + 1] - top[:, place + 1 :] for place in range(count - 1)]
    return torch.cat([-entropy(logits).unsqueeze(1), *pairs, logits.logsumexp(-1, keepdim=True)], 1)


def logit_feature_size(num_classes: int, top_k: int = 10) -> int:
    """How many numbers :func:`logit_features` gives."""
    count = min(top_k, num_classes)
    return 2 + count * (count - 1) // 2
