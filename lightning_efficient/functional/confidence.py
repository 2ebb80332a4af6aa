"""How sure a classifier is of its answer: one number per sample, higher means surer.

All scores are computed in float32 at least, so that half-precision outputs do not create ties of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_positive
from lightning_efficient.functional._precision import at_least_float32

ScoreName: TypeAlias = Literal["msp", "margin", "entropy", "energy", "max_logit"]
Score: TypeAlias = ScoreName | Callable[[Tensor], Tensor]
"""A score by name, or a function from ``(N, C)`` to ``(N,)`` whose higher values mean surer."""


def msp(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Maximum softmax probability, also called softmax response; in ``(0, 1]``.

    Args:
        logits: Class scores, shape ``(N, C)``, any float dtype.
        temperature: Divides the logits before the softmax.

    Returns:
        Confidence, shape ``(N,)``, float32 or wider.

    Example:
        >>> msp(torch.tensor([[0.0, 0.0], [0.0, 100.0]]))
        tensor([0.5000, 1.0000])

    Reference:
        Hendrycks, Gimpel. A Baseline for Detecting Misclassified and Out-of-Distribution Examples. ICLR 2017.
    """
    logits = _scaled(logits, temperature)
    # Subtracting the largest logit and not the logsumexp keeps full precision where the logits are large.
    return (logits - logits.amax(-1, keepdim=True)).exp().sum(-1).reciprocal()


def margin(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Difference between the two largest softmax probabilities; in ``[0, 1]``.

    Args:
        logits: Class scores, shape ``(N, C)`` with ``C >= 2``, any float dtype.
        temperature: Divides the logits before the softmax.

    Returns:
        Confidence, shape ``(N,)``, float32 or wider.

    Example:
        >>> margin(torch.tensor([[0.0, 0.0, -1.0], [0.0, 100.0, 0.0]]))
        tensor([0., 1.])
    """
    logits = _scaled(logits, temperature, classes=2)
    first, second = logits.topk(2).values.unbind(-1)
    # abs() and not a minus sign, so that a tie is 0.0 and not -0.0.
    return torch.expm1(second - first).abs() / (logits - first.unsqueeze(-1)).exp().sum(-1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Negative Shannon entropy of the softmax, nats; in ``[-log C, 0]``.

    Args:
        logits: Class scores, shape ``(N, C)``, any float dtype; ``-inf`` rules a class out.
        temperature: Divides the logits before the softmax.

    Returns:
        Confidence, shape ``(N,)``, float32 or wider.

    Example:
        >>> entropy(torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
        tensor([-0.6931, -0.3653])
    """
    logits = _scaled(logits, temperature)
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    total = weights.sum(-1)
    return torch.xlogy(weights, weights).sum(-1) / total - total.log()


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Negative free energy, ``T * logsumexp(logits / T)``; unbounded.

    Args:
        logits: Class scores, shape ``(N, C)``, any float dtype.
        temperature: ``T`` above.

    Returns:
        Confidence, shape ``(N,)``, float32 or wider.

    Example:
        >>> energy(torch.tensor([[0.0, 0.0], [0.0, 100.0]]))
        tensor([  0.6931, 100.0000])

    Reference:
        Liu, Wang, Owens, Li. Energy-based Out-of-distribution Detection. NeurIPS 2020.
    """
    return temperature * _scaled(logits, temperature).logsumexp(-1)


def max_logit(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Largest logit divided by the temperature; unbounded.

    Args:
        logits: Class scores, shape ``(N, C)``, any float dtype.
        temperature: A common factor; it does not change the ranking.

    Returns:
        Confidence, shape ``(N,)``, float32 or wider.

    Example:
        >>> max_logit(torch.tensor([[1.0, 3.0]]))
        tensor([3.])
    """
    return _scaled(logits, temperature).amax(-1)


def confidence(logits: Tensor, score: Score = "msp", temperature: float = 1.0) -> Tensor:
    """Confidence of a classifier from its logits, by the name of the score.

    Args:
        logits: Class scores, shape ``(N, C)``, any float dtype (computed in float32 or wider).
        score: ``"msp"``, ``"margin"``, ``"entropy"``, ``"energy"``, ``"max_logit"``, or a function that takes
            ``logits / temperature`` and returns one value per sample, higher for surer.
        temperature: Divides the logits. It can change the ranking when there are more than two classes.

    Returns:
        Confidence, shape ``(N,)``, float32 or wider.

    Raises:
        ConfigurationError: unknown score, temperature not above 0, or a tensor of the wrong shape.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.5, 0.0]])
        >>> confidence(logits, "margin")
        tensor([0.7616, 0.2449])
        >>> confidence(logits, lambda z: -z.var(-1))
        tensor([-2.0000, -0.1250])
    """
    if callable(score):
        return _one_per_sample(score(_scaled(logits, temperature)), logits)
    check_choice("score", score, _FROM_LOGITS)
    return _FROM_LOGITS[score](logits, temperature)


def confidence_from_probs(probs: Tensor, score: Score = "msp") -> Tensor:
    """Confidence of a classifier from its probabilities.

    Args:
        probs: Class probabilities, shape ``(N, C)``, rows that sum to 1, any float dtype.
        score: ``"msp"``, ``"margin"``, ``"entropy"``, or a function of the probabilities; energy and largest logit
            cannot be recovered from probabilities.

    Returns:
        Confidence, shape ``(N,)``, float32 or wider.

    Raises:
        ConfigurationError: a score that needs logits, an unknown one, or a tensor of the wrong shape.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3]])
        >>> confidence_from_probs(probs, "margin")
        tensor([0.8000, 0.1000])
        >>> confidence_from_probs(probs, "entropy")
        tensor([-0.3251, -1.0889])
    """
    probs = _class_scores(probs, classes=2 if score == "margin" else 1)
    if callable(score):
        return _one_per_sample(score(probs), probs)
    if score in ("energy", "max_logit"):
        message = f"score={score!r} needs logits, and probabilities were given; pass logits or use 'msp'."
        raise ConfigurationError(message)
    check_choice("score", score, _FROM_PROBS)
    return _FROM_PROBS[score](probs)


def _margin_from_probs(probs: Tensor) -> Tensor:
    first, second = probs.topk(2).values.unbind(-1)
    return first - second


_FROM_LOGITS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "msp": msp,
    "margin": margin,
    "entropy": entropy,
    "energy": energy,
    "max_logit": max_logit,
}
_FROM_PROBS: dict[str, Callable[[Tensor], Tensor]] = {
    "msp": lambda probs: probs.amax(-1),
    "margin": _margin_from_probs,
    "entropy": lambda probs: torch.xlogy(probs, probs).sum(-1),
}


def _scaled(logits: Tensor, temperature: float, classes: int = 1) -> Tensor:
    check_positive("temperature", temperature)
    logits = _class_scores(logits, classes)
    return logits if temperature == 1 else logits / temperature


def _class_scores(values: Tensor, classes: int = 1) -> Tensor:
    if values.ndim != 2 or values.shape[1] < classes:
        wanted = f"(N, C) with C >= {classes}" if classes > 1 else "(N, C)"
        message = f"confidence needs class scores of shape {wanted}, got {tuple(values.shape)}; reshape them first."
        raise ConfigurationError(message)
    return at_least_float32(values)


def _one_per_sample(values: Tensor, inputs: Tensor) -> Tensor:
    if values.shape != inputs.shape[:1]:
        shapes = f"shape {tuple(values.shape)} for {inputs.shape[0]} samples"
        raise ConfigurationError(f"The score function returned {shapes}; it must return one value per sample.")
    return values
