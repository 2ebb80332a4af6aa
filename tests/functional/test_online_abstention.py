"""Updates of the online rule against the released code's runs, plain loops and their definitions."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.online_abstention import (
    ABSTAIN,
    abstention_step,
    allowed_errors,
    check_exploration,
    draw_expert,
    expert_predictions,
    expert_probabilities,
    exploration_rate,
    hindsight,
    observe,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "online_abstention.npz")
CASES = sorted({key.split("__")[0] for key in GOLDEN.files} - {"onl"})


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def test_experts_say_what_the_released_code_lets_them_say() -> None:
    said = expert_predictions(array("onl__scores"), array("onl__thresholds"))
    assert torch.equal(said, array("onl__expert_pred"))


def test_one_sample_needs_no_batch_dimension() -> None:
    scores, thresholds = array("onl__scores"), array("onl__thresholds").tolist()
    assert torch.equal(expert_predictions(scores[..., 7], thresholds), array("onl__expert_pred")[7])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_score_that_equals_its_threshold_is_an_answer(dtype: torch.dtype) -> None:
    assert expert_predictions(torch.tensor([[0.25, 0.5]], dtype=dtype), [0.5]).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.9, 0.7, 0.6, 0.55])
def test_a_score_that_was_rounded_like_its_threshold_is_an_answer(dtype: torch.dtype, threshold: float) -> None:
    scores = torch.tensor([[threshold, 1 - threshold]], dtype=dtype)
    for limits in ([threshold], torch.tensor([threshold], dtype=torch.float64)):
        assert expert_predictions(scores, limits).tolist() == [0]
        assert expert_predictions(torch.nextafter(scores, torch.zeros_like(scores)), limits).tolist() == [-1]


def test_half_precision_is_compared_in_float32() -> None:
    # the nearest float16 number to 0.9 is 0.89990234375
    assert expert_predictions(torch.tensor([[0.9, 0.1]], dtype=torch.float16), [0.9, 0.8999]).tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("scores", "thresholds", "message"),
    [
        (torch.zeros(3), [0.5], "scores has the shape (3,); give (M, K) or (M, K, N)."),
        (torch.zeros(3, 2), [], "thresholds has the shape (0,)"),
        (torch.zeros(3, 2), torch.zeros(1, 1), "thresholds has the shape (1, 1)"),
    ],
)
def test_shapes_that_cannot_be_experts_are_refused(scores: Tensor, thresholds: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        expert_predictions(scores, thresholds)


@pytest.mark.parametrize("case", CASES)
def test_exploration_is_that_of_the_released_code(case: str) -> None:
    rates = array(f"{case}__p").tolist()
    explore = "sqrt" if "_Ts_" in case else rates[0]
    assert [exploration_rate(number, explore) for number in range(1, 1 + len(rates))] == pytest.approx(rates, rel=1e-15)


@pytest.mark.parametrize(
    ("explore", "eta", "message"),
    [
        ("root", None, "explore='root' is not one of ['sqrt']"),
        (1.5, None, "explore=1.5 is outside [0, 1]"),
        (5, 0.1, "explore=5 is outside [0, 1]"),
        (1.0, None, "explore=1 leaves no rate for the weights; give eta"),
        (0.1, 1.0, "eta=1.0 is outside [0, 1)"),
        (0.1, -0.1, "eta=-0.1 is outside [0, 1)"),
        ("sqrt", math.nan, "eta=nan is outside [0, 1)"),
    ],
)
def test_rates_out_of_range_are_refused(explore: float | str, eta: float | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        check_exploration(explore, eta)


def test_rates_at_the_ends_of_their_ranges_are_taken() -> None:
    check_exploration(0.0, 0.0)
    check_exploration(1.0, 0.5)
    check_exploration("sqrt", None)


masses = st.lists(st.sampled_from([0.0, 1e-300, 1e-9, 0.1, 0.7, 3.0]), min_size=1, max_size=9)


@given(masses, st.floats(0, 1, exclude_max=True))
def test_a_draw_is_never_of_an_expert_without_weight(weights: list[float], uniform: float) -> None:
    assume(max(weights) > 0)
    index = draw_expert(torch.tensor(weights, dtype=torch.float64), torch.tensor(uniform, dtype=torch.float64))
    assert weights[int(index)] > 0


def test_the_largest_and_smallest_uniform_numbers_pick_the_outermost_experts_with_weight() -> None:
    weights = torch.tensor([0.0, 0.1, 0.2, 0.0], dtype=torch.float64).expand(2, -1)
    assert draw_expert(weights, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 2]


def test_draws_come_as_often_as_their_probability() -> None:
    weights = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert draw_expert(weights.expand(1000, -1), uniform).bincount(minlength=4).tolist() == [500, 0, 200, 300]


def test_erased_experts_have_no_probability_and_weights_far_apart_do_not_overflow() -> None:
    found = expert_probabilities(torch.tensor([900.0, 0.0, -2000.0]), torch.tensor([False, True, True]))
    assert found.tolist() == [0.0, 1.0, 0.0]


def test_weights_lose_the_rate_of_each_round_in_which_they_abstained() -> None:
    log_weights = torch.zeros(3, dtype=torch.float64)
    for abstained, eta in (([True, False, True], 0.1), ([True, False, False], 0.5)):
        log_weights = abstention_step(log_weights, torch.tensor(abstained), eta)
    torch.testing.assert_close(log_weights.exp(), torch.tensor([0.45, 1.0, 0.9], dtype=torch.float64))


def test_each_stream_may_have_its_own_rate() -> None:
    stepped = abstention_step(torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool), torch.tensor([[0.5], [0.75]]))
    assert stepped.exp().tolist() == [[0.5], [0.25]]


streams = st.integers(2, 5).flatmap(
    lambda experts: st.lists(st.lists(st.booleans(), min_size=experts, max_size=experts), min_size=1, max_size=12)
)


@given(streams, st.sampled_from([0.0, 0.1, 0.4]))
def test_versions_are_kept_as_by_a_plain_loop(rounds: list[list[bool]], tolerance: float) -> None:
    experts = len(rounds[0])
    alive, errors, count = [True] * experts, [0] * experts, 0
    state = (torch.ones(experts, dtype=torch.bool), torch.zeros(experts, dtype=torch.int64), torch.tensor(0))
    for wrong in rounds:
        emptied, *state = _observe(*state, torch.tensor(wrong), tolerance)
        more = [error + one for error, one in zip(errors, wrong, strict=True)]
        limit = tolerance * (count + 1) + math.sqrt(2 * tolerance * (count + 1))
        left = [old and not (one and error > limit) for old, one, error in zip(alive, wrong, more, strict=True)]
        assert emptied == (not any(left))
        if any(left):
            alive, errors, count = left, more, count + 1
        assert [state[0].tolist(), state[1].tolist(), state[2].item()] == [alive, errors, count]


def _observe(alive: Tensor, errors: Tensor, count: Tensor, wrong: Tensor, tolerance: float) -> list:
    found = observe(alive, errors, count, wrong, tolerance)
    return [found.emptied.item(), found.alive, found.observed_errors, found.feedback_count]


def test_a_label_that_leaves_nobody_changes_only_its_own_stream() -> None:
    alive, errors = torch.tensor([[True, False], [True, True]]), torch.tensor([[1, 4], [0, 0]])
    found = observe(alive, errors, torch.tensor([7, 7]), torch.tensor([[True, True], [True, False]]), tolerance=0.0)
    assert found.emptied.tolist() == [True, False]
    assert found.alive.tolist() == [[True, False], [False, True]]
    assert found.observed_errors.tolist() == [[1, 4], [1, 0]]
    assert found.feedback_count.tolist() == [7, 8]


def test_an_expert_above_its_allowance_stays_until_it_errs_again() -> None:
    # the allowance grows with every label, so whoever was below it can only be caught by an error
    alive, errors = torch.tensor([True, True]), torch.tensor([5, 0])
    right = observe(alive, errors, torch.tensor(0), torch.tensor([False, False]), tolerance=0.0)
    assert right.alive.tolist() == [True, True]
    wrong = observe(alive, errors, torch.tensor(0), torch.tensor([True, False]), tolerance=0.0)
    assert wrong.alive.tolist() == [False, True]


def test_allowance_is_the_expected_errors_and_a_margin() -> None:
    counts = torch.tensor([0, 1, 400])
    expected = [0.0, 0.02 + math.sqrt(0.04), 8 + 4]
    assert allowed_errors(counts, 0.02).tolist() == pytest.approx(expected, rel=1e-14)
    assert allowed_errors(counts, 0.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("case", CASES)
def test_hindsight_equals_the_released_statistics(case: str) -> None:
    order = array(f"{case}__order")
    found = hindsight(array(f"{case}__pred"), array("onl__expert_pred")[order], array("onl__labels")[order])
    mistakes, abstentions, *best = array(f"{case}__stats").tolist()[:8]
    assert (found.mistakes, found.abstentions) == (mistakes, abstentions)
    assert (found.best_mistakes, found.best_abstentions) == tuple(best[:2])
    assert found.mistake_regret == mistakes - best[0]
    # the released code prints the two experts that it compares with
    assert found.excess_abstentions == abstentions - best[3]
    assert found.excess_mistakes == mistakes - best[4]


def test_hindsight_has_no_excess_where_no_expert_qualifies() -> None:
    experts = torch.tensor([[0, 0], [ABSTAIN, 0]])
    found = hindsight(torch.tensor([1, 1]), experts, torch.tensor([1, 1]))
    assert (found.mistakes, found.excess_abstentions, found.excess_mistakes) == (0, None, 0 - 2)
    found = hindsight(torch.tensor([0, 0]), torch.tensor([[ABSTAIN], [0]]), torch.tensor([1, 1]))
    assert (found.abstentions, found.excess_abstentions, found.excess_mistakes) == (0, 0 - 1, None)
