"""The loss of the released code that trains base and router together, beside a frozen global model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_count, check_flag
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.disk import (
    help_cost,
    mean_help_cost,
    scaffolded_nll,
    support_mask,
    teacher_mass,
)
from lightning_efficient.functional.distillation import check_class_indices
from lightning_efficient.functional.one_sided import one_sided_costs
from lightning_efficient.functional.router_losses import query_rate_penalty
from lightning_efficient.functional.routing import proxy_label


class JointLoss(NamedTuple):
    """The terms of :func:`joint_head_loss`, scalars; ``total`` is their weighted sum."""

    total: Tensor
    classification: Tensor
    """Label-smoothed cross-entropy of the base."""
    one_sided: Tensor
    """Cost of missing each class and of claiming others', mean over classes."""
    scaffold: Tensor
    """What the helped base lacks to the global model on its likeliest classes."""
    help_budget: Tensor
    """Price of more help than allowed."""
    router: Tensor
    """Cross-entropy of the router with the published label."""
    coverage: Tensor
    """Price of asking about more samples than wanted."""


def joint_head_loss(
    base_logits: Tensor,
    global_logits: Tensor,
    query_logit: Tensor,
    target: Tensor,
    guide: Tensor | None = None,
    *,
    target_coverage: float = 0.7,
    label_smoothing: float = 0.1,
    one_sided_weight: float = 1.0,
    scaffold_weight: float = 1.0,
    router_weight: float = 1.0,
    coverage_weight: float = 1.0,
    top_k: int = 20,
    student_temperature: float = 4.0,
    teacher_temperature: float = 4.0,
    max_cost: float = 2.0,
    help_budget: float = 0.2,
    help_weight: float = 0.5,
    released: bool = False,
) -> JointLoss:
    """Loss that trains base, router and guide in one step, with the global model as a frozen teacher.

    Samples that the base shall keep (it is right, or the global model wrong) count twice in the classification terms.
    The released code differs in what ``released`` brings back: its classification term multiplies the mean weight with
    the mean loss, so that no sample counts more; it adds constants to counts and probabilities; its coverage term is
    the excess of the mean *logit of keeping* over ``target_coverage``, which punishes keeping and is no rate; and a
    batch in which the base makes no mistake costs infinitely much help.

    Args:
        base_logits: Class scores of the base, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
        global_logits: Class scores of the global model, shape ``(N, C)``; no gradient flows into it.
        query_logit: Log-odds of asking, shape ``(N,)``: the negative of the released router's output.
        target: Classes, integers of shape ``(N,)``.
        guide: Help that the base gets from a guide, shape ``(N,)``, in ``(0, 1)``; by default none.
        target_coverage: Share that the base shall answer at least, in ``[0, 1]``.
        label_smoothing: In ``[0, 1)``.
        one_sided_weight: Factor on the one-sided term, 0 or more.
        scaffold_weight: Factor on both terms with the global model's logits, 0 or more.
        router_weight: Factor on the router's cross-entropy, 0 or more.
        coverage_weight: Factor on the coverage term, 0 or more.
        top_k: On how many of the global model's likeliest classes it is imitated; all where there are fewer.
        student_temperature: Divides the base's logits there.
        teacher_temperature: Divides the global model's logits there.
        max_cost: Largest cross-entropy that the help of a sample is priced with, nats.
        help_budget: Mean help per mistake of the base that costs nothing.
        help_weight: Factor on help beyond it.
        released: Whether to compute it as the released code does.

    Returns:
        The terms and their weighted sum.

    Raises:
        ConfigurationError: an option outside its range, or shapes that do not belong together.

    Example:
        >>> base, large = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 3.0]])
        >>> loss = joint_head_loss(base, large, query_logit=torch.tensor([-1.0, 1.0]), target=torch.tensor([0, 1]))
        >>> loss.router, loss.coverage
        (tensor(0.3133), tensor(0.2000))

    Reference:
        Released code of: Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query.
        ICLR 2023; Gangrade, Kag, Saligrama. Selective Classification via One-Sided Prediction. AISTATS 2021; Kag, Acar,
        Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """
    check_flag("released", released)
    check_count("top_k", top_k)
    if not 0 <= label_smoothing < 1:
        raise ConfigurationError(f"label_smoothing={label_smoothing!r} must be a number from 0 to below 1.")
    weights = {
        "one_sided_weight": one_sided_weight,
        "scaffold_weight": scaffold_weight,
        "router_weight": router_weight,
        "coverage_weight": coverage_weight,
        "help_budget": help_budget,
        "help_weight": help_weight,
    }
    for option, given in weights.items():
        if not 0 <= given < float("inf"):
            raise ConfigurationError(f"{option}={given!r} must be a finite number, 0 or more.")
    check_class_indices(base_logits, target)
    if base_logits.shape != global_logits.shape or query_logit.shape != target.shape:
        raise ConfigurationError(
            f"base_logits, global_logits and query_logit have shapes {tuple(base_logits.shape)}, "
            f"{tuple(global_logits.shape)} and {tuple(query_logit.shape)}; give (N, C), (N, C) and (N,)."
        )
    base_logits, query_logit = at_least_float32(base_logits), at_least_float32(query_logit)
    global_logits = at_least_float32(global_logits.detach())
    wrong = base_logits.argmax(1) != target
    ask = proxy_label(~wrong, global_logits.argmax(1) == target)

    losses = F.cross_entropy(base_logits, target.long(), reduction="none", label_smoothing=label_smoothing)
    sample_weight = 2 - ask.to(losses.dtype)
    classification = sample_weight.mean() * losses.mean() if released else (sample_weight * losses).mean()
    # what counts twice is there twice
    twice, its_target = torch.cat([base_logits, base_logits[~ask]]), torch.cat([target, target[~ask]])
    costs = one_sided_costs(twice, its_target, "released" if released else "exact")
    one_sided = (costs.miss + costs.false_positive).mean()

    support = support_mask(global_logits, target, min(top_k, global_logits.shape[1]))
    mass = teacher_mass(global_logits, support, temperature=teacher_temperature)
    given_help = torch.zeros_like(query_logit) if guide is None else guide
    missing = scaffolded_nll(base_logits, mass, support, given_help, temperature=student_temperature)
    scaffold = student_temperature * teacher_temperature * missing.mean()
    cost = help_cost(base_logits, given_help, global_logits.argmax(1), max_cost=max_cost)
    mean_cost = cost.sum() / wrong.sum() if released else mean_help_cost(cost, wrong)
    budget = help_weight * (mean_cost - help_budget).clamp(min=0)

    router = F.binary_cross_entropy_with_logits(query_logit, ask.to(query_logit.dtype))
    if released:
        coverage = (-query_logit.mean() - target_coverage).clamp(min=0)
    else:
        coverage = query_rate_penalty(query_logit.sigmoid(), target_coverage)
    total = classification + one_sided_weight * one_sided + scaffold_weight * (scaffold + budget)
    total = total + router_weight * router + coverage_weight * coverage
    return JointLoss(total, classification, one_sided, scaffold, budget, router, coverage)
