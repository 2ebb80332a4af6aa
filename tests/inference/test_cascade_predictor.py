"""Models from cheap to expensive, each asked only about what is still undecided."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.cascade import cascade_choice
from lightning_efficient.functional.routing import query_score
from lightning_efficient.inference.cascade_predictor import NO_ANSWER, CascadePredictor
from lightning_efficient.inference.events import GlobalUnavailable, RoutingEvent
from lightning_efficient.inference.routing_thresholds import calibrate_routing

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(40, 6, generator=GENERATOR)
WEIGHTS = [torch.randn(6, 4, generator=GENERATOR) for _ in range(3)]
LOGITS = [INPUTS @ weight for weight in WEIGHTS]


class Records:
    """A linear model that keeps what it was asked about."""

    def __init__(self, weight: Tensor, fails: Exception | None = None) -> None:
        self.weight, self.fails, self.seen = weight, fails, []

    def __call__(self, rows: Tensor) -> Tensor:
        self.seen.append(rows)
        if self.fails is not None:
            raise self.fails
        return rows @ self.weight


def cascade(thresholds: Any, **options: Any) -> tuple[CascadePredictor, list[Records]]:
    models = [Records(weight) for weight in WEIGHTS]
    return CascadePredictor(models, thresholds, **options), models


@settings(deadline=None)
@given(st.floats(-1, -0.2), st.floats(-1, -0.2), st.sampled_from(["msp", "margin", "entropy"]))
def test_it_answers_as_if_every_model_had_seen_everything(first, second, score):
    predictor, models = cascade([first, second], score=score)
    answer = predictor(INPUTS)
    scores = torch.stack([query_score(logits, score) for logits in LOGITS[:2]], 1)
    choice = cascade_choice(scores, [first, second])
    assert answer.source.tolist() == choice.tolist()
    expected = torch.stack(LOGITS, 1)[torch.arange(40), choice].softmax(1)
    torch.testing.assert_close(answer.probabilities, expected)
    assert answer.prediction.tolist() == expected.argmax(1).tolist()
    assert not answer.fell_back.any()
    asked = [40, int((choice > 0).sum()), int((choice > 1).sum())]
    assert predictor.calls == asked
    assert [len(rows) for model in models for rows in model.seen] == [count for count in asked if count]


def test_each_model_is_called_once_with_the_undecided_inputs_as_they_came():
    predictor, models = cascade([-0.9, -0.7])
    answer = predictor(INPUTS)
    assert torch.equal(models[1].seen[0], INPUTS[answer.source > 0])
    assert torch.equal(models[2].seen[0], INPUTS[answer.source > 1])
    assert answer.query_score[:, 0].isfinite().all()
    assert answer.query_score[:, 1].isnan().tolist() == (answer.source == 0).tolist()


@pytest.mark.parametrize(("thresholds", "calls"), [([math.inf, 0.0], [40, 0, 0]), ([-math.inf, math.inf], [40, 40, 0])])
def test_a_model_is_not_called_where_nothing_is_left_for_it(thresholds, calls):
    predictor, models = cascade(thresholds)
    predictor(INPUTS)
    assert predictor.calls == calls
    assert [len(model.seen) for model in models] == [min(count, 1) for count in calls]
    assert all(rows is INPUTS for model in models for rows in model.seen)


def test_an_empty_batch_has_an_empty_answer():
    predictor, models = cascade([-0.9, -0.7])
    answer = predictor(INPUTS[:0])
    assert (answer.prediction.shape, answer.probabilities.shape) == ((0,), (0, 4))
    assert [len(model.seen) for model in models] == [1, 0, 0]


def test_each_stage_may_have_its_own_score():
    predictor, _ = cascade([-0.5, -0.5], score=["margin", lambda logits: logits.softmax(1)[:, 0]])
    answer = predictor(INPUTS)
    torch.testing.assert_close(answer.query_score[:, 0], query_score(LOGITS[0], "margin"))
    later = answer.source > 0
    torch.testing.assert_close(answer.query_score[later, 1], -LOGITS[1].softmax(1)[later, 0])


def test_calibrated_thresholds_do_in_use_what_they_did_in_calibration():
    scores = torch.stack([query_score(logits) for logits in LOGITS[:2]], 1)
    stages = torch.stack([logits.argmax(1) for logits in LOGITS], 1)
    found = calibrate_routing(scores, stages, stages[:, 2], coverage=0.5)
    predictor, _ = cascade(found)
    answer = predictor(INPUTS)
    shares = [(answer.source == stage).float().mean().item() for stage in range(3)]
    assert shares == pytest.approx(list(found.shares))
    assert predictor.calibrated is found
    predictor.set_thresholds([0.0, 0.0])
    assert predictor.calibrated is None


def test_a_change_of_weights_after_calibration_is_refused():
    networks = [nn.Linear(6, 4) for _ in range(2)]
    found = calibrate_routing(torch.zeros(4), torch.zeros(4, 2).long(), torch.zeros(4).long(), coverage=0.5)
    predictor = CascadePredictor(networks, found)
    predictor(INPUTS)
    with torch.no_grad():
        networks[1].bias.add_(1)
    with pytest.raises(ConfigurationError, match="changed after the thresholds were calibrated"):
        predictor(INPUTS)


# ---- stages that cannot answer


def test_where_a_stage_is_away_the_one_before_it_stands():
    events: list[RoutingEvent] = []
    models = [Records(WEIGHTS[0]), Records(WEIGHTS[1]), Records(WEIGHTS[2], GlobalUnavailable("no link"))]
    answer = CascadePredictor(models, [-0.9, -0.7], on_event=events.append)(INPUTS)
    whole = cascade([-0.9, -0.7])[0](INPUTS)
    left = whole.source == 2
    assert left.any()
    assert answer.fell_back.tolist() == left.tolist()
    assert answer.source.tolist() == whole.source.clamp(max=1).tolist()
    assert answer.prediction[left].tolist() == LOGITS[1].argmax(1)[left].tolist()
    assert events[0].details == {"rows": int(left.sum()), "stage": 2, "reason": "no link"}


def test_the_first_stage_has_nothing_to_fall_back_to():
    with pytest.raises(GlobalUnavailable):
        CascadePredictor([Records(WEIGHTS[0], GlobalUnavailable("off")), Records(WEIGHTS[1])], [0.0])(INPUTS)


def test_rows_that_are_not_finite_go_on_and_at_the_end_fall_back():
    logits = [
        torch.tensor([[9.0, 0.0], [math.nan, 0.0], [0.1, 0.0], [math.nan, 0.0]]),
        torch.tensor([[0.0, 5.0], [math.nan, 0.0], [math.inf, 0.0]]),
    ]
    events: list[RoutingEvent] = []
    predictor = CascadePredictor([lambda _: logits[0], lambda _: logits[1]], [-0.9], on_event=events.append)
    answer = predictor(torch.zeros(4, 1))
    assert answer.prediction.tolist() == [0, 1, 0, NO_ANSWER]
    assert answer.source.tolist() == [0, 1, 0, 0]
    assert answer.fell_back.tolist() == [False, False, True, True]
    assert answer.confidence[3].item() == 0.0
    assert answer.probabilities.isfinite().all()
    assert (events[0].kind, events[0].details["rows"]) == ("global_not_finite", 2)


# ---- what does not fit


@pytest.mark.parametrize(
    ("models", "thresholds", "score", "match"),
    [
        (1, [], "msp", "models has 1 entries; a cascade needs two or more"),
        (3, [0.1], "msp", r"thresholds=\[0.1\] must be 2 numbers"),
        (2, [math.nan], "msp", "must be 1 numbers"),
        (3, [0.1, 0.2], ["msp"], "score has 1 entries for 3 models; give one, or 2"),
        (2, [0.1], "mps", "score='mps' is not one of .* Did you mean 'msp'"),
    ],
)
def test_unusable_options_are_refused(models, thresholds, score, match):
    with pytest.raises(ConfigurationError, match=match):
        CascadePredictor([Records(WEIGHTS[0])] * models, thresholds, score)


@pytest.mark.parametrize(
    ("second", "match"),
    [
        (lambda rows: rows[:, :2], r"models\[1\] has 2 classes and models\[0\] has 4"),
        (lambda rows: rows[:1], r"models\[1\] returns shape \(1, 6\) for 40 inputs"),
        (lambda rows: None, r"models\[1\] returns a NoneType for 40 inputs"),
    ],
)
def test_unusable_logits_are_refused(second, match):
    with pytest.raises(ConfigurationError, match=match):
        CascadePredictor([Records(WEIGHTS[0]), second], [-math.inf])(INPUTS)
