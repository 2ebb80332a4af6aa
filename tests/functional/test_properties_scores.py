"""What holds for any logits: confidences and the losses that imitate, in both precisions and at their limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lightning_efficient.functional as LF

SCORES = ("msp", "margin", "entropy", "energy", "max_logit")
seeds = st.integers(0, 2**32 - 1)
temperatures = st.floats(0.05, 20)


@st.composite
def logits(draw, least: int = 0, classes: tuple[int, int] = (2, 6), largest: float = 1e4) -> Tensor:
    """Of no, one or several samples, in both precisions, with ties, tiny differences and large values."""
    shape = draw(st.integers(least, 5)), draw(st.integers(*classes))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(seeds)), dtype=torch.float64)
    values = values * draw(st.sampled_from([0.0, 1e-6, 1.0, 30.0, largest]))
    values = values.round() if draw(st.booleans()) else values
    return values.to(draw(st.sampled_from([torch.float32, torch.float64])))


def close(one: Tensor, other: Tensor, slack: float = 50.0) -> None:
    eps = torch.finfo(one.dtype).eps
    torch.testing.assert_close(one, other, rtol=slack * eps, atol=slack * eps)


@pytest.mark.parametrize("score", SCORES)
@given(values=logits(), temperature=temperatures, seed=seeds)
def test_a_confidence_follows_its_sample_and_ignores_the_order_of_classes(
    score: str, values: Tensor, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(size, generator=generator) for size in values.shape)
    found = LF.confidence(values, score, temperature)
    assert found.dtype == values.dtype
    assert found.shape == values.shape[:1]
    assert torch.equal(LF.confidence(values[rows], score, temperature), found[rows])
    close(LF.confidence(values[:, columns], score, temperature), found)


@given(values=logits(), temperature=temperatures)
def test_confidences_keep_their_bounds(values: Tensor, temperature: float) -> None:
    classes, slip = values.shape[1], 1e-5
    sure, ahead = LF.msp(values, temperature), LF.margin(values, temperature)
    assert ((1 / classes - slip <= sure) & (sure <= 1)).all()
    assert ((ahead >= 0) & (ahead <= sure + slip)).all()
    known = LF.entropy(values, temperature)
    assert ((-math.log(classes) - slip <= known) & (known <= slip)).all()
    # a logsumexp is at least the largest, and at most the logarithm of their number above it
    least, free = values.amax(1), LF.energy(values, temperature)
    room = 10 * torch.finfo(values.dtype).eps * (values.abs().amax() if values.numel() else 0) + slip
    assert ((least - room <= free) & (free <= least + temperature * math.log(classes) + room)).all()
    close(LF.max_logit(values, temperature) * temperature, least)


@given(values=logits(largest=30.0), shift=st.floats(-50, 50))
def test_a_common_shift_of_the_logits_changes_only_the_scores_that_have_units(values: Tensor, shift: float) -> None:
    values = values.double()
    for score in (LF.msp, LF.margin, LF.entropy):
        torch.testing.assert_close(score(values + shift), score(values), rtol=0, atol=1e-11)
    for score in (LF.energy, LF.max_logit):
        torch.testing.assert_close(score(values + shift), score(values) + shift, rtol=0, atol=1e-11)


@given(values=logits(largest=300.0), temperature=temperatures)
def test_energy_and_largest_logit_meet_as_the_temperature_falls(values: Tensor, temperature: float) -> None:
    values = values.double()
    colder, warmer = LF.energy(values, temperature / 2), LF.energy(values, temperature)
    assert (LF.max_logit(values) <= colder + 1e-9).all()
    assert (colder <= warmer + 1e-9).all()


@given(values=logits(largest=300.0), temperature=temperatures)
def test_a_lower_temperature_makes_every_answer_surer(values: Tensor, temperature: float) -> None:
    for score in ("msp", "entropy"):
        colder, warmer = (LF.confidence(values.double(), score, scale) for scale in (temperature / 2, temperature))
        assert (colder >= warmer - 1e-12).all()


@given(values=logits(largest=30.0))
def test_probabilities_say_what_their_logits_say(values: Tensor) -> None:
    values = values.double()
    for score in ("msp", "margin", "entropy"):
        found = LF.confidence_from_probs(values.softmax(1), score)
        torch.testing.assert_close(found, LF.confidence(values, score), rtol=0, atol=1e-12)


@given(values=logits(largest=100.0), ruled_out=st.integers(1, 3))
def test_classes_ruled_out_by_minus_infinity_do_not_count(values: Tensor, ruled_out: int) -> None:
    more = torch.cat([values, values.new_full((len(values), ruled_out), -torch.inf)], 1)
    for score in SCORES:
        close(LF.confidence(more, score), LF.confidence(values, score))
    if len(values):
        close(LF.entropy_penalty(more), LF.entropy_penalty(values), slack=200)


@given(values=logits(least=1, classes=(2, 5)), seed=seeds, temperature=temperatures)
def test_a_divergence_from_a_teacher_is_no_less_than_nothing_and_nothing_from_itself(
    values: Tensor, seed: int, temperature: float
) -> None:
    values = values.clamp(-300, 300).double()
    generator = torch.Generator().manual_seed(seed)
    other = torch.randn(values.shape, generator=generator, dtype=values.dtype) * 3
    target = torch.randint(values.shape[1], (len(values),), generator=generator)
    distance = LF.distillation_kl(values, other, student_temperature=temperature)
    about_target, others = LF.decoupled_kl(values, other, target, temperature=temperature)
    for part in (distance, about_target, others):
        assert part.isfinite().all()
        assert (part >= -1e-9 * (1 + temperature**2)).all()
    # the identity of the paper
    sure = (other / temperature).softmax(1).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(about_target + (1 - sure) * others, distance, rtol=1e-8, atol=1e-9)
    same = LF.distillation_kl(values, values + 7, student_temperature=temperature)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-9 * (1 + temperature**2))


@given(seed=seeds, rows=st.integers(0, 4), width=st.integers(1, 6), factor=st.floats(0.1, 10))
def test_distances_of_features_are_symmetric_and_scale_as_their_kind_says(
    seed: int, rows: int, width: int, factor: float
) -> None:
    one, other = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for kind in ("mse", "cosine"):
        distance = LF.feature_distance(one, other, kind=kind)
        torch.testing.assert_close(LF.feature_distance(other, one, kind=kind), distance)
        torch.testing.assert_close(LF.feature_distance(one, one, kind=kind), torch.zeros(rows).double())
        assert (distance >= 0).all()
        power = 2 if kind == "mse" else 0
        scaled = LF.feature_distance(factor * one, factor * other, kind=kind)
        torch.testing.assert_close(scaled, factor**power * distance, rtol=1e-6, atol=1e-6)
    assert (LF.feature_distance(one, other, kind="cosine") <= 2 + 1e-12).all()
    torch.testing.assert_close(
        LF.feature_distance(one, -one, kind="cosine"), torch.full((rows,), 2.0).double(), rtol=0, atol=1e-9
    )
