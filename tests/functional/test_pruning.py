"""Saliency, rounds and schedules, and masks whose counts are exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.pruning import (
    check_sparsity,
    cubic_sparsity,
    keep_masks,
    regrow,
    round_fraction,
    saliency,
    sparsity_after_round,
    sparsity_of,
)

shares = st.floats(0, 0.99)
layers = st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 4), min_size=1, max_size=30), min_size=1).map(
    lambda drawn: {name: torch.tensor(values, dtype=torch.float32) for name, values in drawn.items()}
)


def test_saliency_is_the_size_of_a_weight_or_of_its_product_with_the_gradient() -> None:
    weight, gradient = torch.tensor([[-3.0, 1.0]]), torch.tensor([[0.5, -4.0]])
    assert saliency(weight).tolist() == [[3.0, 1.0]]
    assert saliency(weight, gradient, "first_order").tolist() == [[1.5, 4.0]]


def test_random_saliency_is_that_of_its_generator() -> None:
    first, second = (
        saliency(torch.zeros(3, 4), None, "random", torch.Generator().manual_seed(seed)) for seed in (1, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, saliency(torch.zeros(3, 4), None, "random", torch.Generator().manual_seed(2)))
    assert first.shape == (3, 4)
    assert ((first >= 0) & (first < 1)).all()


def test_saliency_of_half_precision_does_not_vanish() -> None:
    small = torch.full((2,), 1e-4, dtype=torch.float16, requires_grad=True)
    scores = saliency(small, small, "first_order")
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert scores[0] == pytest.approx(1e-8, rel=1e-2)


@pytest.mark.parametrize(
    ("gradient", "kind", "says"),
    [
        (None, "magnitudes", r"saliency='magnitudes' is not one of .* Did you mean 'magnitude'"),
        (None, "first_order", r"needs a gradient of the weight's shape \(2,\), got none"),
        (torch.zeros(3), "first_order", r"got shape \(3,\)"),
    ],
)
def test_saliency_says_what_it_needs(gradient: torch.Tensor | None, kind: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        saliency(torch.zeros(2), gradient, kind)


@given(shares, st.integers(1, 40))
def test_after_all_rounds_the_kept_share_is_what_the_sparsity_leaves(sparsity: float, rounds: int) -> None:
    fraction = round_fraction(sparsity, rounds)
    assert (1 - fraction) ** rounds == pytest.approx(1 - sparsity, rel=1e-9)
    kept = 1.0
    for number in range(1, rounds + 1):
        kept *= 1 - fraction
        assert sparsity_after_round(sparsity, number, rounds) == pytest.approx(1 - kept, abs=1e-9)
    assert sparsity_after_round(sparsity, rounds, rounds) == sparsity
    assert sparsity_after_round(sparsity, 0, rounds) == 0


@given(shares, shares, st.floats(0, 1))
def test_the_cubic_starts_and_ends_exactly_and_stays_between(initial: float, final: float, progress: float) -> None:
    assert cubic_sparsity(0, final, initial) == initial
    assert cubic_sparsity(1, final, initial) == final
    value = cubic_sparsity(progress, final, initial)
    assert min(initial, final) - 1e-12 <= value <= max(initial, final) + 1e-12
    assert value == pytest.approx(final + (initial - final) * (1 - progress) ** 3, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: sparsity_after_round(0.5, 3, 2), "round=3 must be an integer from 0 to the 2 rounds"),
        (lambda: sparsity_after_round(50, 1, 2), "sparsity=50 is outside"),
        (lambda: round_fraction(0.5, 0), "rounds=0 must be an integer of at least 1"),
        (lambda: cubic_sparsity(1.1, 0.5), r"progress=1.1 is outside \[0, 1\]"),
        (lambda: cubic_sparsity(0.5, 1.5), "final=1.5 is outside"),
    ],
    ids=["round", "percent", "rounds", "progress", "final"],
)
def test_numbers_out_of_range_are_refused(call, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        call()


@given(layers, shares, st.sampled_from(["global", "layer"]))
@settings(deadline=None)
def test_counts_are_exact_and_the_lowest_go_in_order_of_position(scores, sparsity: float, scope: str) -> None:
    sizes = [len(each) for each in scores.values()]
    if scope == "global" and sparsity * sum(sizes) > sum(sizes) - len(sizes) + 0.5:  # it would empty a layer
        with pytest.raises(ConfigurationError, match="largest possible"):
            keep_masks(scores, sparsity, scope=scope, max_layer_sparsity=1.0)
        return
    masks = keep_masks(scores, sparsity, scope=scope, max_layer_sparsity=1.0)
    groups = [list(scores)] if scope == "global" else [[name] for name in scores]
    for group in groups:
        values = torch.cat([scores[name] for name in group])
        kept = torch.cat([masks[name] for name in group])
        wanted = round(sparsity * len(values))
        assert int((~kept).sum()) == min(wanted, len(values) - len(group))
    for name, mask in masks.items():
        assert mask.any()
        assert mask.dtype == torch.bool
        for value in scores[name].unique():
            ties = mask[scores[name] == value].int()
            assert (ties.diff() >= 0).all()  # of equal scores the first go
        if not mask.all():
            assert scores[name][~mask].max() <= scores[name][mask].max()


@given(layers, shares, shares, st.sampled_from(["global", "layer"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_higher_sparsity_removes_all_that_a_lower_one_does(
    scores, first: float, second: float, scope: str, weighted: bool
) -> None:
    low, high = sorted((first, second))
    costs = {name: number + 1.5 for number, name in enumerate(scores)} if weighted else None
    try:
        more = keep_masks(scores, high, scope=scope, max_layer_sparsity=1.0, costs=costs)
    except ConfigurationError:
        return
    less = keep_masks(scores, low, scope=scope, max_layer_sparsity=1.0, costs=costs)
    assert all((less[name] | ~more[name]).all() for name in scores)


def test_each_layer_keeps_what_its_limit_says_even_where_all_its_scores_are_low() -> None:
    scores = {"thin": torch.full((4, 5), 0.01), "wide": torch.arange(1.0, 181.0)}
    masks = keep_masks(scores, 0.5, max_layer_sparsity=0.95)
    assert int(masks["thin"].sum()) == 1
    assert int(masks["wide"].sum()) == 99
    assert sparsity_of(masks) == 0.5
    assert int(keep_masks(scores, 0.5, max_layer_sparsity=0.5)["thin"].sum()) == 10


def test_infinite_scores_are_kept_and_scores_below_zero_go_first() -> None:
    masks = keep_masks({"a": torch.tensor([math.inf, 0.0, -1.0, 5.0])}, 0.5)
    assert masks["a"].tolist() == [True, False, False, True]


def test_a_mapping_gives_each_layer_its_own_sparsity_and_none_to_the_others() -> None:
    scores = {name: torch.rand(20, generator=torch.Generator().manual_seed(0)) for name in "abc"}
    masks = keep_masks(scores, {"a": 0.95, "b": 0.0})
    assert [int(mask.sum()) for mask in masks.values()] == [1, 20, 20]


def test_a_sparsity_of_parameters_counts_what_lies_behind_each_entry() -> None:
    scores = {"cheap": torch.tensor([1.0, 2.0, 3.0, 4.0]), "dear": torch.tensor([2.5, 9.0])}
    # 4 entries of 1 and 2 of 10 parameters: half of the 24 is what 1.0, 2.0 and 2.5 hold
    masks = keep_masks(scores, 0.5, costs={"dear": 10})
    assert [mask.tolist() for mask in masks.values()] == [[False, False, True, True], [False, True]]


@pytest.mark.parametrize(
    ("sparsity", "options", "says"),
    [
        (1.0, {}, "the largest possible is 0.9461: max_layer_sparsity=0.95 leaves layer 'head' 1 of 10."),
        (0.96, {"scope": "layer"}, "sparsity=0.96 of layer 'conv' is above max_layer_sparsity=0.95"),
        (1.0, {"scope": "layer", "max_layer_sparsity": 1.0}, "of layer 'conv' is above the largest possible 0.9916"),
        ({"head": 0.99}, {}, "sparsity=0.99 of layer 'head' is above max_layer_sparsity=0.95"),
        ({"hed": 0.5}, {}, "layer 'hed' that is not there. Did you mean 'head'"),
        (80, {}, "sparsity=80 is outside .* not a percent"),
        ("half", {}, "sparsity='half' must be a number"),
        (0.5, {"scope": "globally"}, "scope='globally' is not one of"),
        (0.5, {"max_layer_sparsity": 0}, "max_layer_sparsity=0 is outside"),
    ],
    ids=["whole", "layer", "whole_layer", "own", "unknown", "percent", "text", "scope", "limit"],
)
def test_what_would_remove_a_layer_or_cannot_be_reached_is_refused(sparsity, options, says: str) -> None:
    sizes = {"conv": 120, "head": 10}
    with pytest.raises(ConfigurationError, match=says) as caught:
        check_sparsity(sizes, sparsity, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        keep_masks({name: torch.rand(size) for name, size in sizes.items()}, sparsity, **options)


@given(st.dictionaries(st.sampled_from("abc"), st.integers(1, 500), min_size=1), st.floats(0.5, 1))
def test_the_largest_possible_value_that_is_named_is_possible(sizes: dict[str, int], most: float) -> None:
    with pytest.raises(ConfigurationError, match="largest possible is") as caught:
        check_sparsity(sizes, 1.0, max_layer_sparsity=most)
    largest = float(str(caught.value).split("largest possible is ")[1].split(":")[0])
    check_sparsity(sizes, largest, max_layer_sparsity=most)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="scores of layer 'a' have NaN"):
        keep_masks({"a": torch.tensor([1.0, math.nan])}, 0.5)
    with pytest.raises(ConfigurationError, match="there is no layer to prune"):
        keep_masks({}, 0.5)
    with pytest.raises(ConfigurationError, match="layer 'a' has no entries"):
        keep_masks({"a": torch.zeros(0)}, 0.5)


@given(st.integers(0, 2**16), st.integers(2, 40), st.integers(0, 50))
@settings(deadline=None)
def test_regrowth_swaps_the_lowest_for_the_steepest(seed: int, size: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=generator) < 0.5
    scores = torch.randint(0, 4, (size,), generator=generator).float()
    gradient = torch.randn(size, generator=generator)
    new = regrow(mask, scores, gradient, count)
    swapped = min(count, int(mask.sum()), int((~mask).sum()))
    dropped, grown = mask & ~new, new & ~mask
    assert int(dropped.sum()) == int(grown.sum()) == swapped
    if swapped:
        assert scores[dropped].max() <= scores[mask & new].min() if (mask & new).any() else True
        rest = ~mask & ~new
        assert not rest.any() or gradient[grown].abs().min() >= gradient[rest].abs().max()


def test_regrowth_survives_gradients_that_are_no_numbers() -> None:
    mask = torch.tensor([True, False, False, False])
    new = regrow(mask, torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.0, math.nan, 0.5, math.inf]), 1)
    assert new.tolist() == [False, False, False, True]


def test_regrowth_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigurationError, match="must be the same"):
        regrow(torch.ones(2, dtype=torch.bool), torch.zeros(3), torch.zeros(2), 1)
    with pytest.raises(ConfigurationError, match="count=-1 must be"):
        regrow(torch.ones(2, dtype=torch.bool), torch.zeros(2), torch.zeros(2), -1)
