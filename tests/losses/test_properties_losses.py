"""Objectives of a batch: their gradient is the finite difference, and the order of samples changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from lightning_efficient.losses import (
    CrossEntropyObjective,
    DecoupledDistillation,
    DiSKLoss,
    FeatureDistillation,
    GuidedDistillation,
    KnowledgeDistillation,
    build_selective_objective,
)
from lightning_efficient.nn import ConstantGuide, ModelViews, SelectiveOutputs

ROWS, CLASSES = 4, 3
seeds = st.integers(0, 2**32 - 1)
SELECTIVE = {"ce": {}, "osp": {}, "selectivenet": {"coverage": 0.7}, "gamblers": {"payoff": 2.2}, "sat": {}}
DISTILLING = {
    "CrossEntropyObjective": lambda: CrossEntropyObjective(0.1),
    "KnowledgeDistillation": KnowledgeDistillation,
    "DecoupledDistillation": DecoupledDistillation,
    "FeatureDistillation": lambda: FeatureDistillation(2, 2).double(),
    "GuidedDistillation": lambda: GuidedDistillation(ConstantGuide(0.3), DiSKLoss(top_k=2, max_cost=1e3)),
}


def drawn(seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return logits, two columns, further logits and features, then the target and an order of the samples."""
    generator = torch.Generator().manual_seed(seed)
    widths = (CLASSES, 1, 1, CLASSES, 2)
    values = [torch.randn(ROWS, width, generator=generator, dtype=torch.float64) for width in widths]
    # the largest logit stands out: which class is answered does not change within a finite difference
    values[0] = 0.1 * values[0].tanh() + torch.stack(
        [torch.randperm(CLASSES, generator=generator) for _ in range(ROWS)]
    )
    return values, torch.randint(CLASSES, (ROWS,), generator=generator), torch.randperm(ROWS, generator=generator)


def selective_loss(name: str, values: list[Tensor], target: Tensor, index: Tensor) -> Tensor:
    torch.manual_seed(0)
    objective = build_selective_objective(name, SELECTIVE[name], CLASSES).double()
    logits, abstain, selection, auxiliary, _ = values
    return objective(SelectiveOutputs(logits, abstain[:, 0], selection[:, 0], auxiliary), target, index)["loss"]


def distilling_loss(name: str, values: list[Tensor], target: Tensor, index: Tensor) -> Tensor:
    torch.manual_seed(0)
    logits, _, _, teacher, features = values
    return DISTILLING[name]()(ModelViews(logits, features), ModelViews(teacher, teacher[:, :2]), target).loss


LOSSES = dict.fromkeys(SELECTIVE, selective_loss) | dict.fromkeys(DISTILLING, distilling_loss)


@pytest.mark.parametrize("name", LOSSES)
@given(seed=seeds)
def test_an_objective_has_the_gradient_of_its_value_whatever_the_order_of_samples(name: str, seed: int) -> None:
    values, target, order = drawn(seed)
    index = torch.arange(ROWS)
    # a teacher gets no gradient, and beliefs are probabilities of the logits without one
    moving = [0, 4] if name in DISTILLING else [1, 2, 3] if name == "sat" else [0, 1, 2, 3]

    def of(*given_values: Tensor) -> Tensor:
        moved = dict(zip(moving, given_values, strict=True))
        return LOSSES[name](name, [moved.get(number, value) for number, value in enumerate(values)], target, index)

    assert gradcheck(
        of, [values[each].clone().requires_grad_() for each in moving], atol=1e-5, rtol=1e-3, fast_mode=True
    )
    found = LOSSES[name](name, values, target, index)
    shuffled = LOSSES[name](name, [each[order] for each in values], target[order], index[order])
    torch.testing.assert_close(shuffled, found)


@pytest.mark.parametrize("name", DISTILLING)
@given(seed=seeds)
def test_no_gradient_reaches_a_teacher(name: str, seed: int) -> None:
    values, target, _ = drawn(seed)
    student, teacher = ([values[k].clone().requires_grad_() for k in of] for of in ((0, 4), (3, 4)))
    torch.manual_seed(0)
    DISTILLING[name]()(ModelViews(*student), ModelViews(*teacher), target).loss.backward()
    assert student[0].grad is not None
    assert all(each.grad is None for each in teacher)
