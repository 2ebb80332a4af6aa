"""Gradients of every loss equal finite differences, and order and dtype change no value that they should not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

import lightning_efficient.functional as LF
from lightning_efficient.functional.part_losses import counted_mean, divergence, log_probabilities
from lightning_efficient.functional.recurrent import near_identity
from lightning_efficient.functional.released_hybrid import (
    released_base_loss,
    released_gate_loss,
    released_global_loss,
)

seeds = st.integers(0, 2**32 - 1)
ROWS, CLASSES = 3, 4


class Batch:
    """Random float64 inputs, away from ties, so that kinks are not where differences are taken."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        one, other = torch.randn(2, ROWS, CLASSES, generator=generator, dtype=torch.float64)
        apart = torch.stack([torch.randperm(CLASSES, generator=generator) for _ in range(ROWS)]).double()
        self.student, self.teacher = one.tanh() * 0.1 + apart, other
        self.column, self.second = torch.randn(2, ROWS, generator=generator, dtype=torch.float64)
        self.share = 0.05 + 0.9 * torch.rand(ROWS, generator=generator, dtype=torch.float64)
        self.target = torch.randint(CLASSES, (ROWS,), generator=generator)
        self.wrong, self.right = torch.rand(2, ROWS, generator=generator) < 0.5
        self.order = torch.randperm(ROWS, generator=generator)
        self.per_class = 0.1 + torch.rand(2, CLASSES, generator=generator, dtype=torch.float64)

    def shuffled(self) -> Batch:
        """The same batch in another order of the samples."""
        other = Batch.__new__(Batch)
        for name, value in vars(self).items():
            setattr(other, name, value if name in ("order", "per_class") else value[self.order])
        return other


def helped(batch: Batch, student: Tensor, guide: Tensor) -> Tensor:
    support = LF.support_mask(batch.teacher, batch.target, 2)
    mass = LF.teacher_mass(batch.teacher, support, temperature=2.0)
    return LF.scaffolded_nll(student, mass, support, guide, temperature=3.0)


def one_sided(batch: Batch, logits: Tensor, constants: str = "exact") -> Tensor:
    costs = LF.one_sided_costs(logits, batch.target, constants)
    return LF.one_sided_lagrangian(costs, *batch.per_class, price=0.7)


def saddle(batch: Batch, multipliers: Tensor, allowances: Tensor) -> Tensor:
    costs = LF.one_sided_costs(batch.student, batch.target)
    return LF.one_sided_lagrangian(costs, multipliers, allowances, price=0.7)


def released_saddle(batch: Batch, logits: Tensor) -> Tensor:
    costs = LF.one_sided_costs(logits, batch.target, "released")
    return LF.one_sided_released(costs, *batch.per_class, price=0.7)


def joint(batch: Batch, logits: Tensor, query: Tensor, guide: Tensor) -> Tensor:
    return LF.joint_head_loss(logits, batch.teacher, query, batch.target, guide, top_k=2, max_cost=1e3).total


LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "distillation_kl": (lambda b, s: LF.distillation_kl(s, b.teacher), ("student",)),
    "decoupled_kl": (lambda b, s: sum(LF.decoupled_kl(s, b.teacher, b.target)), ("student",)),
    "feature_distance": (lambda b, s: LF.feature_distance(s, b.teacher, kind="cosine"), ("student",)),
    "scaffolded_nll": (helped, ("student", "share")),
    "help_cost": (lambda b, s, g: LF.help_cost(s, g, b.target, max_cost=1e3), ("student", "share")),
    "mean_help_cost": (lambda b, c: LF.mean_help_cost(c, b.wrong), ("column",)),
    "help_normalizer": (lambda b, g: LF.help_normalizer(g, 3), ("share",)),
    "gamblers_loss": (lambda b, s, a: LF.gamblers_loss(s, a, b.target, 2.2), ("student", "column")),
    "self_adaptive_loss": (lambda b, s, a: LF.self_adaptive_loss(s, a, b.target, b.share), ("student", "column")),
    "answer_score": (lambda b, s, a: LF.answer_score(s, a), ("student", "column")),
    "entropy_penalty": (lambda b, s: LF.entropy_penalty(s), ("student",)),
    "one_sided_lagrangian": (one_sided, ("student",)),
    "one_sided_lagrangian at the dual": (saddle, ("per_class",)),
    "one_sided_released": (released_saddle, ("student",)),
    "selective_risk_loss": (lambda b, c, g: LF.selective_risk_loss(c, g, 0.8), ("column", "share")),
    "gain_loss": (lambda b, o, s: LF.gain_loss(o, s, b.wrong, b.right), ("column", "second")),
    "proxy_loss": (lambda b, o: LF.proxy_loss(o, b.wrong, b.right), ("column",)),
    "query_rate_penalty": (lambda b, g: LF.query_rate_penalty(g, 1.0, 2.0), ("share",)),
    "load_balance_loss": (lambda b, s: LF.load_balance_loss(s.softmax(1), b.target), ("student",)),
    "joint_head_loss": (joint, ("student", "column", "share")),
    "released_base_loss": (lambda b, s: released_base_loss(s, b.target, b.teacher[:, :2]), ("student",)),
    "released_global_loss": (lambda b, s: released_global_loss(s, b.target, b.teacher[:, :2]), ("student",)),
    "released_gate_loss": (
        lambda b, s: released_gate_loss(s[:, :2], b.wrong, b.right, generation="second", max_query_rate=1.0),
        ("student",),
    ),
    "divergence": (lambda b, s: divergence(log_probabilities(s), b.teacher.softmax(1)), ("student",)),
    "counted_mean": (lambda b, c: counted_mean(c, b.wrong), ("column",)),
    "near_identity": (lambda b, s: near_identity(s.T, s), ("student",)),
    "energy": (lambda b, s: LF.energy(s, 0.7), ("student",)),
    "entropy": (lambda b, s: LF.entropy(s, 0.7), ("student",)),
    "margin": (lambda b, s: LF.margin(s, 0.7), ("student",)),
    "msp": (lambda b, s: LF.msp(s, 0.7), ("student",)),
}
MEANS = ("near_identity", "one_sided_lagrangian at the dual")
"""Not functions of samples."""


def inputs_of(name: str, batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    for each in LOSSES[name][1]:
        value = getattr(batch, each)
        found += [row.clone() for row in value] if each == "per_class" else [value.clone()]
    return found


@pytest.mark.parametrize("name", LOSSES)
@given(seed=seeds)
def test_the_gradient_of_a_loss_is_its_finite_difference(name: str, seed: int) -> None:
    batch = Batch(seed)
    inputs = [each.requires_grad_() for each in inputs_of(name, batch)]
    kinks = {"released_gate_loss": 1e-3, "joint_head_loss": 1e-3}.get(name, 1e-5)
    # a random direction instead of every entry: one difference for each input
    assert gradcheck(lambda *given: LOSSES[name][0](batch, *given), inputs, atol=kinks, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in MEANS])
@given(seed=seeds)
def test_a_loss_does_not_depend_on_the_order_of_samples_and_float32_is_close_to_float64(name: str, seed: int) -> None:
    loss, batch = LOSSES[name][0], Batch(seed)
    found = loss(batch, *inputs_of(name, batch))
    shuffled = batch.shuffled()
    expected = found if found.ndim == 0 else found[batch.order]
    torch.testing.assert_close(loss(shuffled, *inputs_of(name, shuffled)), expected)
    narrow = loss(batch, *(each.float() for each in inputs_of(name, batch)))
    torch.testing.assert_close(narrow.double(), found, rtol=1e-4, atol=1e-4)
