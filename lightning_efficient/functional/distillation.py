"""What a student is asked to imitate of its teacher: class probabilities, whole or decoupled, and features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_positive
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.part_losses import log_probabilities


def distillation_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    student_temperature: float = 4.0,
    teacher_temperature: float | None = None,
) -> Tensor:
    """Divergence of the student from its teacher, ``T_s T_t KL(teacher ‖ student)``, of each sample.

    The factor keeps the size of the gradient about the same for every temperature.

    Args:
        student_logits: Class scores, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
        teacher_logits: Class scores, shape ``(N, C)``; detach them where the teacher is not trained.
        student_temperature: ``T_s``, above 0.
        teacher_temperature: ``T_t``; None takes that of the student.

    Returns:
        Values of 0 or more in nats, shape ``(N,)``.

    Raises:
        ConfigurationError: a temperature is not above 0, or the shapes differ.

    Example:
        >>> teacher = torch.tensor([[0.0, 0.0]])
        >>> distillation_kl(torch.tensor([[0.0, 2.0]]), teacher, student_temperature=1.0)
        tensor([0.4338])

    Reference:
        Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. 2015.
    """
    teacher_temperature = student_temperature if teacher_temperature is None else teacher_temperature
    check_positive("student_temperature", student_temperature)
    check_positive("teacher_temperature", teacher_temperature)
    check_same_classes(student_logits, teacher_logits)
    student = log_probabilities(at_least_float32(student_logits) / student_temperature)
    teacher = log_probabilities(at_least_float32(teacher_logits) / teacher_temperature)
    return student_temperature * teacher_temperature * _divergence(teacher, student)


def decoupled_kl(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, *, temperature: float = 4.0
) -> tuple[Tensor, Tensor]:
    """The two parts of the divergence from a teacher: about the target class, and among the other classes.

    With the teacher's probability ``p`` of the target class at this temperature, :func:`distillation_kl` is the first
    plus ``1 - p`` times the second; a sure teacher thus hides what it knows of the other classes.

    Args:
        student_logits: Class scores, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
        teacher_logits: Class scores, shape ``(N, C)``.
        target: Classes, integers of shape ``(N,)``.
        temperature: Of both, above 0.

    Returns:
        ``(target_term, other_term)``, each ``T²`` times a divergence in nats, of shape ``(N,)``.

    Raises:
        ConfigurationError: ``temperature`` is not above 0, the shapes differ, there is one class only, or ``target``
            holds no class indices.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[0.0, 2.0, 2.0]])
        >>> decoupled_kl(student, teacher, torch.tensor([0]), temperature=1.0)
        (tensor([0.0049]), tensor([0.4338]))

    Reference:
        Zhao, Cui, Song, Qiu, Liang. Decoupled Knowledge Distillation. CVPR 2022.
    """
    check_positive("temperature", temperature)
    check_same_classes(student_logits, teacher_logits)
    check_class_indices(student_logits, target)
    classes = student_logits.shape[-1]
    if classes < 2:
        raise ConfigurationError("logits of one class have no other class to compare; give those of 2 or more classes.")
    column = target.long().unsqueeze(1)
    others = torch.arange(classes - 1, device=target.device).expand(len(target), -1)
    others = others + (others >= column)
    student = log_probabilities(at_least_float32(student_logits) / temperature)
    teacher = log_probabilities(at_least_float32(teacher_logits) / temperature)
    rest_of_student, rest_of_teacher = student.gather(1, others), teacher.gather(1, others)
    # log(1 - p) as a sum over the other classes: exact where p rounds to 1
    binary_student = torch.cat((student.gather(1, column), rest_of_student.logsumexp(1, keepdim=True)), 1)
    binary_teacher = torch.cat((teacher.gather(1, column), rest_of_teacher.logsumexp(1, keepdim=True)), 1)
    target_term = _divergence(binary_teacher, binary_student)
    other_term = _divergence(rest_of_teacher.log_softmax(1), rest_of_student.log_softmax(1))
    return temperature**2 * target_term, temperature**2 * other_term


def feature_distance(
    student_features: Tensor, teacher_features: Tensor, *, kind: Literal["mse", "cosine"] = "mse"
) -> Tensor:
    """Distance between features of student and teacher, of each sample.

    Args:
        student_features: Shape ``(N, ...)``, any float dtype (computed in float32; float64 stays).
        teacher_features: The same shape.
        kind: ``mse``, the mean of squared differences, or ``cosine``, 1 minus the cosine of the angle, which ignores
            lengths. For ``cosine`` a vector shorter than 1e-4 counts as one of that length, which bounds the gradient
            where features are all zero.

    Returns:
        Shape ``(N,)``; ``cosine`` lies in ``[0, 2]``.

    Raises:
        ConfigurationError: another ``kind``, or the shapes differ.

    Example:
        >>> ones, other = torch.ones(1, 2), torch.tensor([[3.0, 0.0]])
        >>> feature_distance(ones, other), feature_distance(ones, other, kind="cosine")
        (tensor([2.5000]), tensor([0.2929]))

    Reference:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio. FitNets: Hints for Thin Deep Nets. ICLR 2015.
    """
    check_choice("kind", kind, ("mse", "cosine"))
    if student_features.shape != teacher_features.shape:
        raise ConfigurationError(
            f"student_features has shape {tuple(student_features.shape)} and teacher_features "
            f"{tuple(teacher_features.shape)}; they must be equal, so put a linear projector behind the student's."
        )
    student, teacher = at_least_float32(student_features).flatten(1), at_least_float32(teacher_features).flatten(1)
    if kind == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(student, teacher, dim=1, eps=1e-4)
    return (student - teacher).square().mean(1)


def check_same_classes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise ``ConfigurationError`` unless both are class scores of one shape ``(N, C)``."""
    student, teacher = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if len(student) == len(teacher) == 2 and student[1] != teacher[1]:
        raise ConfigurationError(
            f"the student has {student[1]} classes and the teacher {teacher[1]}; distillation needs the same classes "
            "in the same order."
        )
    if len(student) != 2 or student != teacher:
        raise ConfigurationError(
            f"student_logits has shape {student} and teacher_logits {teacher}; both must be (samples, classes)."
        )


def check_class_indices(logits: Tensor, target: Tensor) -> None:
    """Raise ``ConfigurationError`` unless ``target`` has one integer for each row of ``logits``."""
    if target.is_floating_point():
        raise ConfigurationError(
            f"target has dtype {target.dtype} and shape {tuple(target.shape)}; soft targets, as mixup and CutMix make "
            "them, do not work here, so give one class index per sample."
        )
    if target.dtype == torch.bool or target.shape != logits.shape[:1]:
        raise ConfigurationError(
            f"target has dtype {target.dtype} and shape {tuple(target.shape)}; give one class index per sample, "
            f"integers of shape {tuple(logits.shape[:1])}."
        )


def _divergence(log_reference: Tensor, log_probs: Tensor) -> Tensor:
    return (log_reference.exp() * (log_reference - log_probs)).sum(-1)
