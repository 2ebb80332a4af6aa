"""Distillation in which a helper adds probability to the student on samples that are too hard for it.

Symbols of the paper: student and teacher logits ``z^s``, ``z^t``; temperatures ``T_s``, ``T_t``; help ``g``; support
size ``K``. All functions return one value per sample, so that one mean closes every term.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_positive
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.distillation import check_class_indices
from lightning_efficient.functional.part_losses import log_probabilities


def support_mask(teacher_logits: Tensor, target: Tensor, top_k: int) -> Tensor:
    """Mark the classes on which the student is compared: the teacher's best ones and the label.

    Args:
        teacher_logits: Class scores, shape ``(N, C)``.
        target: Classes, integers of shape ``(N,)``.
        top_k: ``K``, from 1 to ``C``.

    Returns:
        Boolean, shape ``(N, C)``, with ``K`` or ``K + 1`` classes true in each row.

    Raises:
        ConfigurationError: ``top_k`` is outside its range, or ``target`` holds no class indices.

    Example:
        >>> support_mask(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([3]), top_k=2)
        tensor([[ True,  True, False,  True]])

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """
    classes = teacher_logits.shape[-1]
    if not 1 <= top_k <= classes:
        raise ConfigurationError(f"top_k={top_k!r} must be a whole number from 1 to {classes}, the number of classes.")
    check_class_indices(teacher_logits, target)
    best = teacher_logits.topk(top_k, dim=1, sorted=False).indices
    support = torch.zeros_like(teacher_logits, dtype=torch.bool)
    return support.scatter_(1, best, True).scatter_(1, target.long().unsqueeze(1), True)


def teacher_mass(
    teacher_logits: Tensor, support: Tensor, *, temperature: float, fill: Literal["minimum", "zero"] = "minimum"
) -> Tensor:
    """The teacher's probabilities on the support, with other classes held down rather than left out.

    Outside the support a logit is replaced by ``fill``, the softmax is taken over all classes, and only the support is
    kept: rows sum to 1 or less. ``minimum`` is the sample's smallest logit as it is, not divided by the temperature;
    so, as in the released code, a shift of all logits changes the mass. With the whole set of classes as support the
    mass is the teacher's softmax.

    Args:
        teacher_logits: Class scores, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
        support: Boolean, shape ``(N, C)``.
        temperature: ``T_t``, above 0.
        fill: ``minimum``, or ``zero`` as in an earlier form of the released code, which leaves less on the support.

    Returns:
        Shape ``(N, C)``, 0 outside the support.

    Raises:
        ConfigurationError: ``temperature`` is not above 0, or another ``fill``.

    Example:
        >>> teacher_mass(torch.tensor([[2.0, 0.0, -2.0]]), torch.tensor([[True, True, False]]), temperature=2.0)
        tensor([[0.7054, 0.2595, 0.0000]])

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023; released code.
    """
    check_positive("teacher_temperature", temperature)
    check_choice("fill", fill, ("minimum", "zero"))
    logits = at_least_float32(teacher_logits)
    filler = logits.amin(1, keepdim=True) if fill == "minimum" else logits.new_zeros(())
    return torch.where(support, torch.where(support, logits / temperature, filler).softmax(1), 0.0)


def scaffolded_nll(
    student_logits: Tensor, mass: Tensor, support: Tensor, guide: Tensor, *, temperature: float
) -> Tensor:
    """Negative log-likelihood of the helped student, ``-Σ mass · log(softmax(z^s / T_s) + g)`` over the support.

    Help turns the logarithm into a bounded loss: the gradient of class ``c`` shrinks by ``s_c / (s_c + g)``, so that a
    sample far out of reach no longer pulls. Without help it is the cross-entropy with ``mass``. The sum ``s + g`` is
    formed in log space, where a probability that rounds to 0 is still exact. Help below about 1e-31 (1e-292 in
    float64) counts as that much and gets no gradient, which keeps values and gradients finite.

    Args:
        student_logits: Class scores, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
        mass: What the teacher asks for, shape ``(N, C)``, as :func:`teacher_mass` gives it.
        support: Boolean, shape ``(N, C)``; other classes are not counted.
        guide: Help, shape ``(N,)``, in ``[0, 1]``.
        temperature: ``T_s``, above 0.

    Returns:
        Shape ``(N,)``, nats; not times the temperatures. Negative where ``s + g`` exceeds 1.

    Raises:
        ConfigurationError: ``temperature`` is not above 0, or ``guide`` has another shape.

    Example:
        >>> logits, mass, support = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]])
        >>> scaffolded_nll(logits, mass, support, torch.tensor([0.0]), temperature=1.0)
        tensor([0.6931])
        >>> scaffolded_nll(logits, mass, support, torch.tensor([0.25]), temperature=1.0)
        tensor([0.2877])

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """
    check_positive("student_temperature", temperature)
    check_help(student_logits, guide)
    log_probs = log_probabilities(at_least_float32(student_logits) / temperature)
    added = at_least_float32(guide)
    precision = torch.finfo(added.dtype)
    # above the smallest number by 1 / eps, so that 1 / g times temperatures and a loss scale does not overflow
    log_help = added.clamp(min=precision.tiny / precision.eps).log().unsqueeze(1)
    return -torch.where(support, mass * torch.logaddexp(log_probs, log_help), 0.0).sum(1)


def help_normalizer(guide: Tensor, top_k: int) -> Tensor:
    """The logarithm of the mass that help adds to a distribution, ``log(1 + K g)``.

    Args:
        guide: Help, shape ``(N,)``, in ``[0, 1]``, any float dtype (computed in float32; float64 stays).
        top_k: ``K``, how many classes are helped.

    Returns:
        Shape ``(N,)``, nats.

    Example:
        >>> help_normalizer(torch.tensor([0.0, 0.5]), top_k=2)
        tensor([0.0000, 0.6931])

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """
    return (top_k * at_least_float32(guide)).log1p()


def help_cost(student_logits: Tensor, guide: Tensor, label: Tensor, *, max_cost: float) -> Tensor:
    """What the help of each sample costs: ``g`` times the student's own loss, at most ``max_cost``.

    Args:
        student_logits: Class scores, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
        guide: Help, shape ``(N,)``, in ``[0, 1]``.
        label: Classes, integers of shape ``(N,)``: the teacher's choice in the released code, the true label in the
            paper's formula.
        max_cost: Largest loss that counts, nats, above 0; ``inf`` for none. Beyond it the student gets no gradient.

    Returns:
        Shape ``(N,)``, nats.

    Raises:
        ConfigurationError: ``max_cost`` is not above 0, ``guide`` has another shape, or ``label`` holds no class
            indices.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
        >>> help_cost(logits, torch.tensor([0.5, 0.5]), torch.tensor([1, 1]), max_cost=5.0)
        tensor([0.3466, 2.5000])

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """
    check_max_cost(max_cost)
    check_help(student_logits, guide)
    check_class_indices(student_logits, label)
    own_loss = F.cross_entropy(at_least_float32(student_logits), label.long(), reduction="none")
    return at_least_float32(guide) * own_loss.clamp(max=max_cost)


def mean_help_cost(cost: Tensor, wrong: Tensor | None = None) -> Tensor:
    """Average the cost of help over all samples, or over as many as the student gets wrong.

    Args:
        cost: Cost of each sample, shape ``(N,)``.
        wrong: Boolean, shape ``(N,)``: where the student's best class is not the label. The sum over *all* samples is
            divided by how many of these there are, or by 1; the released code divides by 0 where there are none.

    Returns:
        Scalar, nats.

    Example:
        >>> cost = torch.tensor([1.0, 2.0, 3.0])
        >>> mean_help_cost(cost), mean_help_cost(cost, torch.tensor([True, False, True]))
        (tensor(2.), tensor(3.))

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """
    return cost.mean() if wrong is None else cost.sum() / wrong.sum().clamp(min=1)


def check_help(logits: Tensor, guide: Tensor) -> None:
    """Raise ``ConfigurationError`` unless ``guide`` has one floating-point number for each row of ``logits``."""
    if not guide.is_floating_point() or guide.shape != logits.shape[:1]:
        raise ConfigurationError(
            f"guide has dtype {guide.dtype} and shape {tuple(guide.shape)}; give the help of each sample, floats of "
            f"shape {tuple(logits.shape[:1])}."
        )


def check_max_cost(max_cost: float) -> None:
    """Raise ``ConfigurationError`` unless the largest cost is above 0; infinity is allowed."""
    if not max_cost > 0:
        raise ConfigurationError(f"max_cost={max_cost!r} must be above 0; use inf for no limit.")
