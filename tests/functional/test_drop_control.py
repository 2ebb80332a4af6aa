"""Rules for a bounded accuracy drop: against plain recursions, and their promises by enumeration and simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.drop_control import (
    DROP_RULES,
    DROP_RULES_WITH_LEVEL,
    DropChoice,
    DropRule,
    betting_p_values,
    choose_drop_point,
    label_free_drop_bound,
    needed_samples_for_drop,
)

every_rule = pytest.mark.parametrize("rule", DROP_RULES)


def options(rule: DropRule, delta: float = 0.1) -> dict[str, object]:
    return {"rule": rule, "delta": delta if rule in DROP_RULES_WITH_LEVEL else None}


def hybrid(samples: int, lost: list[int], gained: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Outcomes with so many lost and gained samples at each point, in random order."""
    full = torch.arange(samples) < samples // 2
    place = torch.arange(samples).unsqueeze(1)
    loses, gains = place < torch.tensor(lost), place >= samples - torch.tensor(gained)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(1))
    return ((full.unsqueeze(1) & ~loses) | gains)[order], full[order]


# ---- what is chosen


@every_rule
def test_a_path_without_a_loss_is_walked_to_its_end(rule: DropRule) -> None:
    found = choose_drop_point(*hybrid(600, [0] * 40, [0] * 40), max_drop=0.01, **options(rule))
    assert (found.index, found.drop, found.lost, found.gained, found.samples) == (39, 0.0, 0, 0, 600)


@every_rule
def test_a_path_that_begins_too_bold_has_no_point(rule: DropRule) -> None:
    found = choose_drop_point(*hybrid(600, [200, 250], [0, 0]), max_drop=0.01, **options(rule))
    assert found == DropChoice(-1, 0.0, 0, 0, 600, None, None)


@pytest.mark.parametrize("rule", [rule for rule in DROP_RULES if rule != "empirical"])
def test_a_rule_that_promises_something_stops_at_the_first_point_that_fails(rule: DropRule) -> None:
    found = choose_drop_point(*hybrid(600, [0, 300, 0], [0, 0, 0]), max_drop=0.01, **options(rule))
    assert found.index == 0


def test_the_empirical_rule_takes_the_last_point_that_is_within_the_target_on_the_samples() -> None:
    outcomes = hybrid(100, [0, 9, 7, 8], [0, 0, 2, 2])
    found = choose_drop_point(*outcomes, max_drop=0.05, rule="empirical")
    assert (found.index, found.drop, found.lost, found.gained) == (2, 0.05, 7, 2)


def test_a_share_that_a_product_of_floats_misses_is_within_the_target() -> None:
    assert 0.57 * 100 < 57
    assert choose_drop_point(*hybrid(200, [100], [0]), max_drop=0.5, rule="empirical").index == 0
    assert choose_drop_point(*hybrid(100, [29], [0]), max_drop=0.29, rule="empirical").index == 0


@pytest.mark.parametrize(("samples", "allowed"), [(1000, 5), (2000, 13), (5000, 40)])
def test_binomial_allows_as_many_losses_as_the_exact_tail(samples: int, allowed: int) -> None:
    assert stats.binom.cdf(allowed, samples, 0.01) <= 0.1 < stats.binom.cdf(allowed + 1, samples, 0.01)
    outcomes = hybrid(samples, [0, allowed, allowed + 1], [0, 0, 400])
    found = choose_drop_point(*outcomes, max_drop=0.01, **options("binomial"))
    assert (found.index, found.lost) == (1, allowed)
    assert found.bound == pytest.approx(stats.beta.ppf(0.9, allowed + 1, samples - allowed), abs=1e-12)


def test_conformal_corrects_the_count_by_one() -> None:
    outcomes = hybrid(999, [0, 9, 10], [0, 0, 0])
    found = choose_drop_point(*outcomes, max_drop=0.01, rule="conformal")
    assert (found.index, found.bound) == (1, 0.01)


def test_conformal_counts_a_sample_that_was_lost_before_as_lost() -> None:
    system, full = torch.ones(100, 3, dtype=torch.bool), torch.ones(100, dtype=torch.bool)
    system[:3, 1] = False
    system[3:6, 2] = False
    assert choose_drop_point(system, full, max_drop=0.05, rule="conformal").index == 1
    assert choose_drop_point(system, full, max_drop=0.07, rule="conformal").bound == pytest.approx(7 / 101)


def test_difference_sets_limits_on_both_shares_off_against_each_other() -> None:
    found = choose_drop_point(*hybrid(1000, [0, 40], [0, 60]), max_drop=0.01, **options("difference"))
    expected = stats.beta.ppf(0.95, 41, 960) - stats.beta.ppf(0.05, 60, 941)
    assert found.index == 1
    assert found.drop == -0.02
    assert found.bound == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rule", ["betting", "difference"])
def test_what_is_gained_makes_up_for_what_is_lost(rule: DropRule) -> None:
    lost = hybrid(1000, [0, 40], [0, 0])
    both = hybrid(1000, [0, 40], [0, 60])
    assert choose_drop_point(*lost, max_drop=0.01, **options(rule)).index == 0
    assert choose_drop_point(*both, max_drop=0.01, **options(rule)).index == 1
    assert choose_drop_point(*both, max_drop=0.01, **options("binomial")).index == 0


# ---- betting


def slow_p_value(losses: list[int], max_drop: float, delta: float) -> float:
    """The recursion sample by sample; ``losses`` are 1 for lost, -1 for gained and 0 else."""
    count, bar = len(losses), (1 + max_drop) / 2
    total, squares, variance, capital, most = 0.5, 0.25, 0.25, 0.0, -math.inf
    for index, loss in enumerate(losses, start=1):
        value = (loss + 1) / 2
        stake = min(math.sqrt(2 * math.log(1 / delta) / (count * variance)), 0.95 / (1 - bar))
        capital += math.log1p(stake * (bar - value))
        most = max(most, capital)
        total += value
        squares += (value - total / (index + 1)) ** 2
        variance = squares / (index + 1)
    return min(1.0, math.exp(-most))


@given(
    losses=st.lists(st.sampled_from([0, 0, 0, 0, 1, -1]), min_size=1, max_size=60),
    max_drop=st.sampled_from([0.01, 0.1, 0.5]),
    delta=st.sampled_from([0.05, 0.1, 0.5]),
)
def test_p_values_are_those_of_the_recursion(losses: list[int], max_drop: float, delta: float) -> None:
    signs = torch.tensor(losses).unsqueeze(1)
    found = betting_p_values(signs == 1, signs == -1, max_drop, delta)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(slow_p_value(losses, max_drop, delta), rel=1e-9)


def test_the_stake_does_not_look_at_the_sample_it_is_on() -> None:
    # a first sample that is gained: the stake is that of the variance 1/4
    gained, delta, max_drop = torch.tensor([[True]]), 0.5, 0.1
    stake = min(math.sqrt(2 * math.log(2) / 0.25), 0.95 / 0.45)
    expected = 1 / (1 + stake * 0.55)
    assert betting_p_values(~gained, gained, max_drop, delta).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("max_drop", "delta", "samples"), [(0.1, 0.2, 8), (0.3, 0.3, 7)])
def test_p_values_below_delta_are_no_more_likely_than_delta_at_the_target(
    max_drop: float, delta: float, samples: int
) -> None:
    """All sequences of samples, at three populations whose drop is exactly the target."""
    signs = torch.tensor(list(product([0, 1, -1], repeat=samples))).T
    rejected = betting_p_values(signs == 1, signs == -1, max_drop, delta) <= delta
    assert rejected.any()
    for gained in (0.0, 0.1, 0.3):
        shares = torch.tensor([1 - max_drop - 2 * gained, max_drop + gained, gained], dtype=torch.float64)
        chances = shares[signs].prod(0)
        assert chances.sum().item() == pytest.approx(1)
        assert chances[rejected].sum() <= delta


def test_chunks_of_the_path_change_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    signs = torch.randint(0, 20, (400, 1), generator=generator) + torch.arange(50)
    lost, gained = signs == 50, signs == 51
    full = lost.any(1) | (torch.rand(400, generator=generator) < 0.5)
    lost &= full.unsqueeze(1)
    gained &= ~full.unsqueeze(1)
    found = choose_drop_point((full.unsqueeze(1) & ~lost) | gained, full, max_drop=0.05, delta=0.1)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    p_values = betting_p_values(lost[order], gained[order], 0.05, 0.1)
    assert 16 < found.index < 49
    assert (p_values[: found.index + 1] <= 0.1).all()
    assert p_values[found.index + 1] > 0.1
    assert found.p_value == pytest.approx(p_values[found.index].item(), rel=1e-12)


def test_the_order_of_the_samples_is_drawn_by_the_seed() -> None:
    outcomes = hybrid(600, [0, 3], [0, 3])
    p_values = [choose_drop_point(*outcomes, max_drop=0.03, delta=0.1, seed=seed).p_value for seed in (0, 0, 1, 2)]
    assert p_values[0] == p_values[1]
    assert len(set(p_values)) == 3


# ---- the promises


@pytest.mark.parametrize("rule", DROP_RULES_WITH_LEVEL)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**20), gained=st.sampled_from([0.0, 0.02, 0.1]))
def test_the_true_drop_exceeds_the_target_rarely(rule: DropRule, seed: int, gained: float) -> None:
    """A population whose drop rises from 0 to 0.12 along the path, the target 0.05 between two points."""
    draws, samples, target, delta = 150, 200, 0.05, 0.2
    generator = np.random.default_rng(seed)
    drops = np.linspace(0, 0.12, 13)
    violated = 0
    for _ in range(draws):
        place, full = generator.random(samples), generator.random(samples) < 0.5
        # lost below, gained above, both more often along the path
        lost = (place[:, None] < 2 * (drops + gained * drops / 0.12)) & full[:, None]
        gains = (place[:, None] < 2 * gained * drops / 0.12) & ~full[:, None]
        system = (full[:, None] & ~lost) | gains
        found = choose_drop_point(
            torch.tensor(system), torch.tensor(full), max_drop=target, delta=delta, rule=rule, seed=seed
        )
        violated += found.index >= 0 and drops[found.index] > target
    assert violated <= stats.binom.isf(1e-6, draws, delta)


def test_conformal_keeps_the_mean_of_the_share_lost() -> None:
    generator = np.random.default_rng(0)
    rates, losses = np.linspace(0, 0.2, 41), []
    for _ in range(600):
        place = generator.random(100)
        lost = torch.tensor(place[:, None] < rates)
        found = choose_drop_point(~lost, torch.ones(100, dtype=torch.bool), max_drop=0.05, rule="conformal")
        losses.append(rates[found.index] if found.index >= 0 else 0.0)
    mean, error = np.mean(losses), np.std(losses) / math.sqrt(len(losses))
    assert 0.03 < mean < 0.05 + 4 * error


# ---- how many samples


@pytest.mark.parametrize(
    ("max_drop", "delta", "binomial"), [(0.01, 0.1, 230), (0.01, 0.05, 299), (0.005, 0.1, 460), (0.02, 0.05, 149)]
)
def test_binomial_needs_as_many_samples_as_the_tail_without_a_loss(
    max_drop: float, delta: float, binomial: int
) -> None:
    assert needed_samples_for_drop("binomial", max_drop, delta) == binomial
    assert (1 - max_drop) ** binomial <= delta < (1 - max_drop) ** (binomial - 1)


@pytest.mark.parametrize("max_drop", [0.005, 0.02, 0.1, 0.9])
@every_rule
def test_the_needed_number_is_the_smallest_that_can_succeed(rule: DropRule, max_drop: float) -> None:
    given = options(rule)
    needed = needed_samples_for_drop(rule, max_drop, given["delta"])
    assert choose_drop_point(*hybrid(needed, [0], [0]), max_drop=max_drop, **given).index == 0
    if needed > 1:
        with pytest.raises(ConfigurationError, match=rf"needs at least {needed} samples by the rule '{rule}'"):
            choose_drop_point(*hybrid(needed - 1, [0], [0]), max_drop=max_drop, **given)


def test_betting_with_one_sample_too_few_would_have_failed() -> None:
    needed = needed_samples_for_drop("betting", 0.02, 0.1)
    nothing = torch.zeros(needed, 1, dtype=torch.bool)
    assert betting_p_values(nothing, nothing, 0.02, 0.1) <= 0.1 < betting_p_values(nothing[1:], nothing[1:], 0.02, 0.1)


@pytest.mark.parametrize("max_drop", [0.01, 0.05, 0.3])
def test_conformal_needs_one_over_the_target_less_one(max_drop: float) -> None:
    assert needed_samples_for_drop("conformal", max_drop) == math.ceil(1 / max_drop - 1 - 1e-9)


# ---- without labels


def test_disagreement_bounds_the_drop_by_the_exact_limit() -> None:
    assert label_free_drop_bound(3, 500, 0.1) == pytest.approx(stats.beta.ppf(0.9, 4, 497), abs=1e-12)
    assert label_free_drop_bound(500, 500, 0.1) == 1.0


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.booleans()), min_size=1),
)
def test_what_is_lost_is_never_more_than_what_is_kept_and_differs(rows: list[tuple[int, int, int, bool]]) -> None:
    lost = sum(kept and full == target != base for base, full, target, kept in rows)
    differs = sum(kept and base != full for base, full, _, kept in rows)
    assert label_free_drop_bound(differs, len(rows), 0.5) >= label_free_drop_bound(lost, len(rows), 0.5)


# ---- what is refused


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"max_drop": 0.0}, r"max_drop=0.0 is outside \(0, 1\)"),
        ({"max_drop": 1}, r"max_drop=1 is outside \(0, 1\)"),
        ({"max_drop": -0.01}, r"max_drop=-0.01 is outside"),
        ({"max_drop": math.nan}, r"max_drop=nan is outside"),
        ({"delta": 0.0}, r"delta=0.0 is outside \(0, 1\)"),
        ({"delta": None}, r"rule='betting' needs a delta"),
        ({"rule": "conformal"}, r"rule='conformal' promises nothing with a probability; leave delta=0.1 out"),
        ({"rule": "beting"}, r"rule='beting' is not one of .*Did you mean 'betting'\?"),
        ({"system_correct": torch.ones(500, 3)}, r"system_correct has dtype torch.float32; give booleans"),
        ({"full_correct": torch.ones(500)}, r"full_correct has dtype torch.float32; give booleans"),
        ({"full_correct": torch.ones(4).bool()}, r"shape \(500, 3\) and full_correct \(4,\); give \(N, T\) and \(N,\)"),
        ({"system_correct": torch.ones(500, 0).bool()}, r"at least one sample and one point"),
    ],
)
def test_what_cannot_be_is_named(given: dict[str, object], match: str) -> None:
    usual = {"max_drop": 0.01, "delta": 0.1, "rule": "betting"}
    usual |= {"system_correct": torch.ones(500, 3).bool(), "full_correct": torch.ones(500).bool()}
    with pytest.raises(ConfigurationError, match=match) as caught:
        choose_drop_point(**(usual | given))
    assert "\n" not in str(caught.value)


def test_a_bound_without_samples_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="n=0 must be at least 1"):
        label_free_drop_bound(0, 0, 0.1)
