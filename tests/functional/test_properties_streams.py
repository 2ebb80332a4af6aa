"""What holds on any stream: experts and their mistakes, limits of rates, drift, and drops of accuracy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lightning_efficient.functional as LF
from lightning_efficient.functional.drift import (
    clopper_pearson_lower,
    ks_distance,
    ks_limit,
    population_stability,
    rate_band,
    rate_change_p_value,
)
from lightning_efficient.functional.drop_control import DROP_RULES, DROP_RULES_WITH_LEVEL
from lightning_efficient.functional.online_abstention import (
    ABSTAIN,
    abstention_step,
    allowed_errors,
    expert_probabilities,
    exploration_rate,
)

seeds = st.integers(0, 2**32 - 1)
levels = st.sampled_from([1e-6, 0.01, 0.1, 0.5, 0.9])


@st.composite
def hits(draw, largest: int = 60) -> tuple[int, int]:
    size = draw(st.integers(1, largest))
    return draw(st.integers(0, size)), size


@given(seed=seeds, size=st.integers(0, 5), classifiers=st.integers(1, 3), thresholds=st.integers(1, 3))
def test_experts_say_the_best_class_or_nothing_and_a_higher_threshold_only_silences_them(
    seed: int, size: int, classifiers: int, thresholds: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(classifiers, 3, size, generator=generator).round(decimals=1)
    limits = torch.randn(thresholds, generator=generator).round(decimals=1).sort().values
    said = LF.expert_predictions(scores, limits)
    assert said.shape == (size, classifiers * thresholds)
    for sample in range(size):
        assert torch.equal(LF.expert_predictions(scores[..., sample], limits), said[sample])
    by_threshold = said.view(size, classifiers, thresholds)
    best = scores.argmax(1).T.unsqueeze(2).expand_as(by_threshold)
    answered = by_threshold != ABSTAIN
    assert torch.equal(by_threshold[answered], best[answered])
    assert torch.equal(answered, (scores.amax(1).T.unsqueeze(2) >= limits))
    assert not (answered[..., 1:] & ~answered[..., :-1]).any()


@given(seed=seeds, rounds=st.integers(0, 12), experts=st.integers(1, 4))
def test_hindsight_counts_what_a_loop_over_the_rounds_counts(seed: int, rounds: int, experts: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randint(-1, 3, (rounds,), generator=generator)
    said = torch.randint(-1, 3, (rounds, experts), generator=generator)
    labels = torch.randint(3, (rounds,), generator=generator)

    def outcome(column: Tensor) -> tuple[int, int]:
        pairs = list(zip(column.tolist(), labels.tolist(), strict=True))
        return sum(one not in (ABSTAIN, label) for one, label in pairs), sum(one == ABSTAIN for one, _ in pairs)

    found = LF.hindsight(actions, said, labels)
    own, others = outcome(actions), [outcome(column) for column in said.unbind(1)]
    assert (found.mistakes, found.abstentions) == own
    assert (found.best_mistakes, found.best_abstentions) == min(others)
    assert found.mistake_regret == own[0] - min(others)[0]
    quiet = [silent for wrong, silent in others if wrong <= own[0]]
    assert found.excess_abstentions == (own[1] - min(quiet) if quiet else None)
    # one of the experts played: it cannot be behind itself
    same = LF.hindsight(said[:, 0], said, labels)
    assert same.excess_abstentions >= 0
    assert same.excess_mistakes >= 0


@given(
    seed=seeds, streams=st.integers(1, 3), experts=st.integers(1, 5), eta=st.floats(0, 0.99), steps=st.integers(0, 5)
)
def test_weights_of_experts_are_a_distribution_that_ignores_their_scale_and_follows_the_abstentions(
    seed: int, streams: int, experts: int, eta: float, steps: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(streams, experts, dtype=torch.float64)
    counts = torch.zeros_like(weights)
    for _ in range(steps):
        abstained = torch.rand(streams, experts, generator=generator) < 0.5
        weights, counts = abstention_step(weights, abstained, eta), counts + abstained
    torch.testing.assert_close(weights.exp(), (1 - eta) ** counts, rtol=1e-9, atol=0)
    alive = torch.rand(streams, experts, generator=generator) < 0.6
    alive[:, 0] = True
    shares = expert_probabilities(weights, alive)
    torch.testing.assert_close(shares.sum(-1), torch.ones(streams, dtype=torch.float64))
    assert not shares[~alive].any()
    torch.testing.assert_close(expert_probabilities(weights + 5, alive), shares)


@given(count=st.integers(1, 10**6), more=st.integers(0, 10**6), share=st.floats(0, 1))
def test_exploration_fades_and_more_labels_forgive_more_errors_but_a_smaller_share(
    count: int, more: int, share: float
) -> None:
    assert 0 < exploration_rate(count + more, "sqrt") <= exploration_rate(count, "sqrt") <= 0.1
    assert exploration_rate(count, share) == share
    few, many = (float(allowed_errors(torch.tensor(each), share)) for each in (count, count + more))
    assert share * count <= few <= many
    assert many / (count + more) <= few / count * (1 + 1e-12) + 1e-12
    assert few >= float(allowed_errors(torch.tensor(count), share / 2))


@given(given_hits=hits(), delta=levels)
def test_limits_of_a_rate_enclose_it_and_mirror_each_other(given_hits: tuple[int, int], delta: float) -> None:
    found, size = given_hits
    low, high = clopper_pearson_lower(found, size, delta), float(LF.clopper_pearson_upper(found, size, delta))
    assert 0 <= low <= 1
    if delta <= 0.5:
        assert low <= found / size <= high
    assert low == pytest.approx(1 - float(LF.clopper_pearson_upper(size - found, size, delta)))
    if found < size:
        assert low <= clopper_pearson_lower(found + 1, size, delta)
    assert clopper_pearson_lower(found, size, delta / 2) <= low
    # the tail of the binomial distribution at the limit is delta itself
    if found:
        tail = sum(math.comb(size, k) * low**k * (1 - low) ** (size - k) for k in range(found, size + 1))
        assert tail == pytest.approx(delta, rel=1e-6, abs=1e-9)


@given(reference=hits(), size=st.integers(1, 40), delta=levels)
def test_a_band_of_rates_is_exactly_where_the_test_does_not_reject(
    reference: tuple[int, int], size: int, delta: float
) -> None:
    low, high = rate_band(*reference, size, delta)
    for found in range(size + 1):
        p_value = rate_change_p_value(*reference, found, size)
        if abs(p_value - delta) > 1e-9:
            assert (p_value > delta) == (low - 1e-12 <= found / size <= high + 1e-12)
        assert p_value == pytest.approx(rate_change_p_value(found, size, *reference), rel=1e-6, abs=1e-12)


@given(seed=seeds, bins=st.integers(1, 6), scale=st.integers(1, 50))
def test_the_population_stability_index_is_symmetric_and_0_for_equal_shares(seed: int, bins: int, scale: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randint(20, (2, bins), generator=generator)
    found = population_stability(one, other)
    assert found >= 0
    assert found == pytest.approx(population_stability(other, one))
    assert population_stability(one, one) == 0
    order = torch.randperm(bins, generator=generator)
    assert population_stability(one[order], other[order]) == pytest.approx(found)
    empty = torch.zeros(bins, dtype=torch.long)
    assert population_stability(empty, torch.full_like(empty, scale)) == pytest.approx(0, abs=1e-12)


@given(seed=seeds, sizes=st.tuples(st.integers(1, 8), st.integers(1, 8)), delta=levels)
def test_a_distance_of_distributions_is_that_of_a_loop_and_its_limit_falls_with_more_samples(
    seed: int, sizes: tuple[int, int], delta: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randint(-2, 3, (size,), generator=generator).float() for size in sizes)
    one[0] = torch.inf
    slow = max(abs(float((one <= at).double().mean() - (other <= at).double().mean())) for at in (*one, *other))
    assert ks_distance(one, other) == pytest.approx(slow)
    assert ks_distance(other, one) == ks_distance(one, other)
    assert ks_distance(one, one.flip(0)) == 0
    first, second = sizes
    assert 0 < ks_limit(first + 100, second, delta) <= ks_limit(first, second, delta) <= 1
    assert ks_limit(first, second, delta) <= ks_limit(first, second, delta / 2)
    assert ks_limit(first, second, delta) == ks_limit(second, first, delta)


@pytest.mark.parametrize("rule", DROP_RULES)
@given(drop=st.sampled_from([0.02, 0.05, 0.2, 0.5]), delta=st.sampled_from([0.01, 0.1, 0.5]))
def test_the_needed_samples_are_the_fewest_that_accept_a_point_without_a_loss(
    rule: str, drop: float, delta: float
) -> None:
    level = delta if rule in DROP_RULES_WITH_LEVEL else None
    needed = LF.needed_samples_for_drop(rule, drop, level)
    right = torch.ones(needed, dtype=torch.bool)
    assert LF.choose_drop_point(right[:, None], right, max_drop=drop, delta=level, rule=rule).index == 0
    assert needed <= LF.needed_samples_for_drop(rule, drop / 2, level)
    if level is not None:
        assert needed <= LF.needed_samples_for_drop(rule, drop, level / 2)
    if needed > 1:
        with pytest.raises(LF.drop_control.ConfigurationError, match=f"at least {needed} samples"):
            LF.choose_drop_point(right[1:, None], right[1:], max_drop=drop, delta=level, rule=rule)


@pytest.mark.parametrize("rule", DROP_RULES)
@given(seed=seeds, drop=st.sampled_from([0.2, 0.4]), points=st.integers(1, 4))
def test_a_larger_drop_is_met_by_a_point_no_closer_to_the_full_model(
    rule: str, seed: int, drop: float, points: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    full = torch.rand(60, generator=generator) < 0.9
    system = full[:, None] ^ (torch.rand(60, points, generator=generator) < torch.linspace(0, 0.5, points))
    level = 0.3 if rule in DROP_RULES_WITH_LEVEL else None
    strict, loose = (
        LF.choose_drop_point(system, full, max_drop=each, delta=level, rule=rule) for each in (drop, drop + 0.2)
    )
    assert strict.index <= loose.index
    if loose.index >= 0:
        column = system[:, loose.index]
        assert (loose.lost, loose.gained) == (int((full & ~column).sum()), int((column & ~full).sum()))
        assert loose.drop == pytest.approx((loose.lost - loose.gained) / 60)
        if loose.bound is not None:
            assert loose.drop - 1e-9 <= loose.bound <= drop + 0.2
