"""What holds for any cascade: who answers, what that costs, areas of curves, and what routers learn from."""

from __future__ import annotations

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import lightning_efficient.functional as LF
from lightning_efficient.functional.cascade import as_stages
from lightning_efficient.functional.routing import number_kept

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 12)


def drawn(seed: int, *shape: int, ties: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((2 * values).round() / 2 if ties else values).to(dtype)


def outcomes(seed: int, size: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.rand(2, size, generator=torch.Generator().manual_seed(seed)) < 0.5)


@given(seed=seeds, size=sizes, stages=st.integers(1, 3), ties=st.booleans(), gone=st.integers(0, 3))
def test_each_sample_is_answered_by_the_first_stage_that_keeps_it(
    seed: int, size: int, stages: int, ties: bool, gone: int
) -> None:
    scores, limits = drawn(seed, size, stages, ties=ties), drawn(seed + 1, stages, ties=ties)
    scores[: min(gone, size), 0] = (torch.nan, torch.inf, -torch.inf)[gone % 3]
    assert torch.equal(as_stages(scores[:, 0])[:, 0].nan_to_num(7), scores[:, 0].nan_to_num(7))
    choice = LF.cascade_choice(scores, limits)
    for row, chosen in zip(scores.tolist(), choice.tolist(), strict=True):
        pairs = zip(row, limits.tolist(), strict=True)
        kept = [math.isfinite(score) and score <= limit for score, limit in pairs] + [True]
        assert chosen == kept.index(True)
    # what is asked later where every threshold is lower, and costs no less
    stricter = LF.cascade_choice(scores, limits - 0.5)
    assert (stricter >= choice).all()
    costs = torch.arange(1.0, stages + 2).square().tolist()
    assert LF.expected_cost(stricter, costs) >= LF.expected_cost(choice, costs)


@given(seed=seeds, size=sizes, factor=st.floats(0, 100))
def test_an_expected_cost_is_a_mean_that_lies_within_its_costs_and_scales_with_them(
    seed: int, size: int, factor: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    choice, costs = torch.randint(3, (size,), generator=generator), torch.rand(3, generator=generator).cumsum(0)
    found = LF.expected_cost(choice, costs.tolist())
    assert math.isclose(found, float(costs.double()[choice].mean()), rel_tol=1e-12)
    assert float(costs[0]) - 1e-12 <= found <= float(costs[-1]) + 1e-12
    assert math.isclose(LF.expected_cost(choice, (factor * costs.double()).tolist()), factor * found, abs_tol=1e-12)
    shuffled = choice[torch.randperm(size, generator=generator)]
    assert LF.expected_cost(shuffled, costs.tolist()) == found


@given(seed=seeds, size=sizes, stages=st.integers(1, 4), ties=st.booleans(), parameter=st.floats(0.01, 100))
def test_budgeted_thresholds_let_their_share_end_at_each_stage(
    seed: int, size: int, stages: int, ties: bool, parameter: float
) -> None:
    confidences = drawn(seed, stages, size, ties=ties)
    thresholds = LF.budgeted_thresholds(confidences, parameter)
    assert thresholds[-1] == -math.inf
    total = sum(parameter ** (k + 1) for k in range(stages))
    left = torch.ones(size, dtype=torch.bool)
    for stage in range(stages - 1):
        share = parameter ** (stage + 1) / total
        ends = left & (confidences[stage] >= thresholds[stage])
        wanted = math.floor(size * share + 1e-9)
        if thresholds[stage] == math.inf:
            assert wanted == 0 or wanted > int(left.sum())
        else:
            # no fewer end than wanted, and without the last group of ties fewer would
            assert int(ends.sum()) >= wanted > int((left & (confidences[stage] > thresholds[stage])).sum())
        left &= ~ends


@given(seed=seeds, size=sizes, stages=st.integers(1, 3), coverage=st.floats(0.01, 1), ties=st.booleans())
def test_query_thresholds_keep_no_fewer_than_their_share_of_what_reaches_them(
    seed: int, size: int, stages: int, coverage: float, ties: bool
) -> None:
    scores = drawn(seed, size, stages, ties=ties)
    scores[0, 0] = torch.nan
    thresholds = LF.query_thresholds(scores, coverage)
    left = torch.ones(size, dtype=torch.bool)
    for column, limit in zip(scores.unbind(1), thresholds, strict=True):
        kept = left & column.isfinite() & (column <= limit)
        if limit < math.inf:
            wanted = max(number_kept(coverage, int(left.sum())), 1)
            assert int(kept.sum()) >= wanted > int((kept & (column < limit)).sum())
        left &= ~kept
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(LF.query_thresholds(scores[order], coverage), thresholds)


@given(seed=seeds, size=sizes, ties=st.booleans())
def test_an_area_lies_between_the_worst_and_the_best_accuracy_and_below_that_of_the_oracle(
    seed: int, size: int, ties: bool
) -> None:
    base, best = outcomes(seed, size)
    scores = drawn(seed, size, ties=ties)
    curve, oracle = LF.hybrid_curve(scores, base, best), LF.oracle_curve(base, best)
    area = LF.hybrid_area(curve)
    assert float(curve.accuracy.min()) - 1e-12 <= area <= float(curve.accuracy.max()) + 1e-12
    assert LF.gap_to_oracle(curve, oracle) >= -1e-12
    # asking in the reverse order mirrors the gain over a random order, as long as ties stay together
    reverse = LF.hybrid_area(LF.hybrid_curve(-scores, base, best))
    middle = (float(base.double().mean()) + float(best.double().mean())) / 2
    assert math.isclose(area + reverse, 2 * middle, abs_tol=1e-12)
    assert LF.gap_to_oracle(oracle, oracle) == 0


@given(seed=seeds, size=sizes, coverage=st.floats(0, 1))
def test_the_accuracy_at_a_coverage_is_that_of_the_samples_with_the_smallest_scores(
    seed: int, size: int, coverage: float
) -> None:
    base, best = outcomes(seed, size)
    scores = drawn(seed, size)
    assume(len(scores.unique()) == size)
    kept = torch.zeros(size, dtype=torch.bool)
    kept[scores.argsort()[: number_kept(coverage, size)]] = True
    expected = float(torch.where(kept, base, best).double().mean())
    assert math.isclose(LF.accuracy_at_coverage(LF.hybrid_curve(scores, base, best), coverage), expected, abs_tol=1e-12)


@given(seed=seeds, size=st.integers(0, 8))
def test_labels_of_routers_ask_where_it_helps_and_weights_count_each_sample_for_one_model_more(
    seed: int, size: int
) -> None:
    base, best = outcomes(seed, size)
    ask = LF.proxy_label(base, best)
    assert torch.equal(ask, best > base)
    assert not (ask & LF.proxy_label(best, base)).any()
    weights = LF.alternation_weights(ask)
    assert torch.equal(weights.base + weights.global_model, torch.full((size,), 3.0))
    assert torch.equal(weights.global_model == 2, ask)
    assert torch.equal(LF.alternation_weights(~ask).base, weights.global_model)


@given(seed=seeds, size=st.integers(0, 8), scale=st.sampled_from([0.0, 1.0, 1e3]), factor=st.floats(0.1, 10))
def test_losses_of_routers_are_means_that_ignore_order_and_the_scale_of_weights(
    seed: int, size: int, scale: float, factor: float
) -> None:
    base, best = outcomes(seed, size)
    generator = torch.Generator().manual_seed(seed)
    one, other = scale * torch.randn(2, size, generator=generator, dtype=torch.float64)
    weight = torch.rand(size, generator=generator, dtype=torch.float64)
    order = torch.randperm(size, generator=generator)
    for loss, arguments in ((LF.gain_loss, (one, other, base, best)), (LF.proxy_loss, (one, base, best))):
        found = loss(*arguments, weight)
        assert found.isfinite()
        assert found >= 0
        close = torch.testing.assert_close
        close(loss(*(each[order] for each in arguments), weight[order]), found)
        close(loss(*arguments, factor * weight), found)
        close(loss(*arguments, torch.ones_like(weight)), loss(*arguments))
        # a sample without weight may as well be left out
        if size > 1:
            first = torch.arange(size) == 0
            close(loss(*arguments, weight.masked_fill(first, 0)), loss(*(each[1:] for each in arguments), weight[1:]))
    turned = LF.gain_loss(other, one, best, base, weight)
    torch.testing.assert_close(turned, LF.gain_loss(one, other, base, best, weight))


@given(seed=seeds, size=st.integers(0, 8), experts=st.integers(1, 5))
def test_a_load_balance_is_least_where_shares_and_probabilities_are_even(seed: int, size: int, experts: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gates = torch.randn(size, experts, generator=generator, dtype=torch.float64).softmax(1)
    chosen = torch.randint(experts, (size,), generator=generator)
    found = LF.load_balance_loss(gates, chosen)
    assert 0 <= found <= experts + 1e-9
    names = torch.randperm(experts, generator=generator)
    torch.testing.assert_close(LF.load_balance_loss(gates[:, names], names.argsort()[chosen]), found)
    even = torch.full_like(gates, 1 / experts)
    torch.testing.assert_close(LF.load_balance_loss(even, chosen), torch.tensor(float(size > 0)).double())
    if size:
        certain = torch.eye(experts, dtype=torch.float64)[chosen]
        shares = chosen.bincount(minlength=experts).double() / size
        expected = experts * shares.square().sum()
        torch.testing.assert_close(LF.load_balance_loss(certain, chosen), expected)
        assert expected >= 1 - 1e-12
