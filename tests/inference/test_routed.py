"""A small model answers a batch, and a large one is asked once about the inputs that need it."""

from __future__ import annotations

import logging
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.cascade import cascade_choice
from lightning_efficient.functional.routing import query_score
from lightning_efficient.inference.calibration_file import hash_checkpoint
from lightning_efficient.inference.drift_monitor import DriftMonitor, ReferenceRates
from lightning_efficient.inference.events import EventLog, GlobalUnavailable, RoutingEvent
from lightning_efficient.inference.routed import BASE, FALLBACK, GLOBAL, NO_ANSWER, SOURCES, RoutedPredictor
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.routing_thresholds import CalibratedRouting, calibrate_routing
from lightning_efficient.nn.routers import GainRouter, ScoreRouter
from lightning_efficient.nn.views import ViewTap

NAN = math.nan


class Scripted:
    """A global model that counts its calls and answers class 2 of three, or what it is told."""

    def __init__(self, answer: Any = None) -> None:
        self.answer, self.seen = answer, []

    def __call__(self, rows: Tensor) -> Tensor:
        self.seen.append(rows)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        return torch.tensor([0.0, 0.0, 5.0]).repeat(len(rows), 1)


def by_column(logits: Tensor) -> Tensor:
    """A router whose query score is the first logit."""
    return logits[:, 0]


def routed(scores: list[float], model: Any = None, threshold: Any = 0.5, **options: Any) -> tuple[Any, Scripted, Any]:
    """Route inputs whose first number is their query score; the base answers class 1."""
    model = model or Scripted()
    predictor = RoutedPredictor(lambda rows: rows, by_column, model, threshold, **options)
    inputs = torch.tensor([[score, 3.0, -3.0] for score in scores]).reshape(-1, 3)
    return predictor(inputs), model, predictor


def calibrated(threshold: float = 0.5, **changes: Any) -> CalibratedRouting:
    values: dict[str, Any] = {
        "thresholds": (threshold,),
        "rule": "coverage",
        "max_drop": None,
        "coverage_target": 0.7,
        "confidence": None,
        "samples": 1000,
        "coverage": 0.7,
        "shares": (0.7, 0.3),
        "accuracy": 0.9,
        "full_accuracy": 0.9,
        "base_accuracy": 0.8,
        "drop": 0.0,
        "bound": None,
        "kept_disagreement": 0.05,
        "promise": "none",
    }
    return CalibratedRouting(**{**values, **changes})


# ---- who answers


def test_inputs_above_the_threshold_are_answered_by_the_global_model_and_the_others_by_the_base():
    answer, model, _ = routed([0.1, 0.9, 0.5, 0.6])
    assert answer.prediction.tolist() == [1, 2, 1, 2]
    assert [SOURCES[source] for source in answer.source] == ["base", "global", "base", "global"]
    assert answer.query_score.tolist() == pytest.approx([0.1, 0.9, 0.5, 0.6])
    assert [len(rows) for rows in model.seen] == [2]


def test_the_global_model_gets_the_inputs_as_they_came():
    seen = []
    predictor = RoutedPredictor(
        lambda images: images.mean((2, 3)), by_column, lambda rows: seen.append(rows) or rows[:, :, 0, 0], 0.0
    )
    images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    answer = predictor(images)
    assert torch.equal(seen[0], images[images.mean((2, 3))[:, 0] > 0])
    assert 0 < len(seen[0]) < 6
    assert answer.probabilities.shape == (6, 3)


def test_an_empty_routed_set_never_calls_the_global():
    answer, model, predictor = routed([0.1, 0.2])
    assert model.seen == []
    assert answer.source.tolist() == [BASE, BASE]
    assert predictor.statistics.global_calls == 0


def test_a_full_routed_set_passes_the_batch_itself():
    inputs = torch.ones(3, 3)
    model = Scripted()
    answer = RoutedPredictor(lambda rows: rows, by_column, model, 0.5)(inputs)
    assert model.seen[0] is inputs
    assert answer.prediction.tolist() == [2, 2, 2]
    assert answer.source.tolist() == [GLOBAL] * 3


@pytest.mark.parametrize(("threshold", "source"), [(math.inf, BASE), (-math.inf, GLOBAL)])
def test_infinite_thresholds_always_keep_or_always_ask(threshold, source):
    answer, _, _ = routed([-1e30, 0.0, 1e30], threshold=threshold)
    assert answer.source.tolist() == [source] * 3


@pytest.mark.parametrize("score", [NAN, math.inf, -math.inf])
def test_a_query_score_that_is_not_finite_is_asked_about_at_any_threshold(score):
    model = Scripted()
    predictor = RoutedPredictor(torch.zeros_like, lambda logits: logits[:, 0] + score, model, math.inf)
    assert predictor(torch.zeros(2, 3)).source.tolist() == [GLOBAL, GLOBAL]


def test_base_logits_without_probabilities_are_asked_about_though_the_score_is_low():
    predictor = RoutedPredictor(lambda rows: rows, lambda logits: torch.zeros(len(logits)), Scripted(), 0.5)
    answer = predictor(torch.tensor([[NAN, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert answer.source.tolist() == [GLOBAL, BASE]
    assert answer.probabilities.isfinite().all()


def test_an_empty_batch_has_an_empty_answer():
    answer, model, _ = routed([])
    assert (answer.prediction.shape, answer.probabilities.shape, model.seen) == ((0,), (0, 3), [])


@settings(deadline=None)
@given(st.lists(st.floats(width=32), max_size=20), st.floats(allow_nan=False))
def test_it_decides_as_a_cascade_of_two_does(scores, threshold):
    values = torch.tensor(scores, dtype=torch.float32)
    predictor = RoutedPredictor(lambda rows: torch.zeros(len(rows), 3), lambda _: values, Scripted(), threshold)
    assert predictor(values).source.tolist() == cascade_choice(values, [threshold]).tolist()


@settings(deadline=None)
@given(st.integers(0, 2**20), st.floats(-1, 0))
def test_it_answers_as_if_both_models_had_seen_everything(seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    inputs, first, second = (torch.randn(*shape, generator=generator) for shape in ((9, 5), (5, 4), (5, 4)))
    answer = RoutedPredictor(lambda rows: rows @ first, query_score, lambda rows: rows @ second, threshold)(inputs)
    kept = query_score(inputs @ first) <= threshold
    expected = torch.where(kept[:, None], (inputs @ first).softmax(1), (inputs @ second).softmax(1))
    torch.testing.assert_close(answer.probabilities, expected)
    torch.testing.assert_close(answer.confidence, expected.amax(1))
    assert answer.prediction.tolist() == expected.argmax(1).tolist()
    assert (answer.source == BASE).tolist() == kept.tolist()


def test_confidence_and_probabilities_belong_to_the_one_who_answered():
    answer, _, _ = routed([0.0, 0.9])
    torch.testing.assert_close(answer.probabilities[0], torch.tensor([0.0, 3.0, -3.0]).softmax(0))
    torch.testing.assert_close(answer.probabilities[1], torch.tensor([0.0, 0.0, 5.0]).softmax(0))
    torch.testing.assert_close(answer.confidence, answer.probabilities.amax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_different_precision_mix(dtype):
    answer, _, _ = routed([0.0, 0.9], model=Scripted(torch.tensor([[0.0, 0.0, 5.0]], dtype=dtype)))
    assert answer.probabilities.dtype is torch.float32
    assert answer.prediction.tolist() == [1, 2]


def test_nothing_of_it_asks_for_a_gradient_and_modules_are_put_into_evaluation_mode():
    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    predictor = RoutedPredictor(network, query_score, nn.Linear(3, 3), -0.5)
    assert not network.training
    assert not predictor(torch.randn(4, 3)).probabilities.requires_grad


# ---- features for the router


def test_a_module_is_watched_for_the_features_that_the_router_needs():
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    router = GainRouter(4, feature_dim=8).eval()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    inputs = torch.randn(5, 3)
    answer = RoutedPredictor(network, router, nn.Linear(3, 4), 0.0)(inputs)
    features = network[:2](inputs)
    torch.testing.assert_close(answer.query_score, router(network[2](features), features).detach())


def test_a_base_may_return_pairs_itself():
    class Passes(nn.Module):
        needs_features = True

        def forward(self, logits: Tensor, features: Tensor) -> Tensor:
            return features

    predictor = RoutedPredictor(lambda rows: (rows, rows[:, 0]), Passes(), Scripted(), 0.5, features=False)
    assert predictor(torch.tensor([[0.9, 0.0, 0.0], [0.1, 0.0, 0.0]])).source.tolist() == [GLOBAL, BASE]


def test_a_router_that_needs_features_says_so_where_there_are_none():
    predictor = RoutedPredictor(lambda rows: rows, GainRouter(3, feature_dim=2), Scripted(), 0.5)
    with pytest.raises(ConfigurationError, match="GainRouter needs the features of the base"):
        predictor(torch.zeros(2, 3))


# ---- the budget


@pytest.mark.parametrize(
    ("budget", "sources"),
    [
        (None, [1, 1, 0, 1, 1]),
        (0, [0, 0, 0, 0, 0]),
        (1, [0, 0, 0, 1, 0]),
        (2, [0, 1, 0, 1, 0]),
        (4, [1, 1, 0, 1, 1]),
        (9, [1, 1, 0, 1, 1]),
        (0.1, [0, 0, 0, 1, 0]),
        (0.4, [0, 1, 0, 1, 0]),
        (0.79, [1, 1, 0, 1, 0]),
        (1.0, [1, 1, 0, 1, 1]),
    ],
)
def test_a_budget_sends_the_largest_scores_and_the_first_of_equal_ones(budget, sources):
    answer, model, predictor = routed([0.6, 0.7, 0.1, 0.9, 0.6], budget=budget)
    assert answer.source.tolist() == sources
    assert sum(len(rows) for rows in model.seen) == sum(sources)
    assert predictor.statistics.over_budget == 4 - sum(sources)


def test_inputs_over_the_budget_are_told_and_a_score_that_is_not_finite_goes_first():
    events: list[RoutingEvent] = []
    routed([0.9, 0.8], budget=1, on_event=events.append)
    assert [(event.kind, dict(event.details)) for event in events] == [("budget", {"rows": 1, "budget": 1})]
    predictor = RoutedPredictor(
        torch.zeros_like, lambda logits: torch.tensor([9.0, NAN, 8.0]), Scripted(), 0.5, budget=1
    )
    assert predictor(torch.zeros(3, 3)).source.tolist() == [BASE, GLOBAL, BASE]


@pytest.mark.parametrize("budget", [-1, 0.0, 1.5, -0.2, True, "3", NAN])
def test_other_budgets_are_refused(budget):
    with pytest.raises(ConfigurationError, match="must be an integer of at least 0, a share of the batch"):
        routed([0.1], budget=budget)


# ---- a global model that cannot answer


def test_where_the_global_model_is_away_the_base_answers_and_says_so():
    events: list[RoutingEvent] = []
    answer, _, predictor = routed([0.1, 0.9], Scripted(GlobalUnavailable("deadline of 50 ms")), on_event=events.append)
    assert answer.prediction.tolist() == [1, 1]
    assert answer.source.tolist() == [BASE, FALLBACK]
    torch.testing.assert_close(answer.probabilities[1], torch.tensor([0.9, 3.0, -3.0]).softmax(0))
    assert events[0].kind == "global_unavailable"
    assert events[0].details == {"rows": 1, "audited": 0, "reason": "deadline of 50 ms"}
    assert predictor.statistics.answered == {"base": 1, "global": 0, "fallback": 1}
    assert (predictor.statistics.fallback_rate, predictor.statistics.global_calls) == (0.5, 1)


def test_any_other_error_of_the_global_model_goes_on_to_the_caller():
    with pytest.raises(ZeroDivisionError):
        routed([0.9], Scripted(ZeroDivisionError()))


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_rows_of_the_global_model_that_are_not_finite_fall_back_and_the_others_do_not(bad):
    events: list[RoutingEvent] = []
    logits = torch.tensor([[0.0, 0.0, 5.0], [0.0, bad, 0.0], [5.0, 0.0, 0.0]])
    answer, _, _ = routed([0.9, 0.1, 0.8, 0.7], Scripted(logits), on_event=events.append)
    assert answer.prediction.tolist() == [2, 1, 1, 0]
    assert answer.source.tolist() == [GLOBAL, BASE, FALLBACK, GLOBAL]
    assert answer.probabilities.isfinite().all()
    assert [(event.kind, event.details["rows"]) for event in events] == [("global_not_finite", 1)]


def test_minus_infinity_rules_a_class_out_and_is_no_failure():
    answer, _, _ = routed([0.9], Scripted(torch.tensor([[0.0, -math.inf, 1.0]])))
    assert (answer.source.item(), answer.probabilities[0, 1].item()) == (GLOBAL, 0.0)


@pytest.mark.parametrize("model", [Scripted(GlobalUnavailable("away")), Scripted(torch.full((1, 3), NAN))])
def test_where_neither_model_has_an_answer_there_is_none(model):
    events: list[RoutingEvent] = []
    predictor = RoutedPredictor(lambda rows: rows, query_score, model, 0.5, on_event=events.append)
    answer = predictor(torch.tensor([[NAN, 0.0, 0.0], [9.0, 0.0, 0.0]]))
    assert answer.prediction.tolist() == [NO_ANSWER, 0]
    assert answer.source.tolist() == [FALLBACK, BASE]
    assert answer.confidence[0].item() == 0.0
    assert answer.probabilities[0].tolist() == [0.0, 0.0, 0.0]
    assert events[-1].kind == "base_not_finite"


@pytest.mark.parametrize(
    ("floor", "predictions"), [(None, [NO_ANSWER, NO_ANSWER, 1]), (0.9, [NO_ANSWER, 1, 1]), (0.0, [1, 1, 1])]
)
def test_a_fallback_may_abstain_below_a_floor(floor, predictions):
    predictor = RoutedPredictor(
        lambda rows: rows,
        lambda logits: torch.tensor([9.0, 9.0, 0.0]),
        Scripted(GlobalUnavailable("away")),
        0.5,
        fallback="abstain",
        fallback_floor=floor,
    )
    answer = predictor(torch.tensor([[0.0, 1.0, 0.0], [0.0, 9.0, 0.0], [0.0, 1.0, 0.0]]))
    assert answer.prediction.tolist() == predictions
    assert answer.source.tolist() == [FALLBACK, FALLBACK, BASE]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fallback": "abstian"}, "fallback='abstian' is not one of .* Did you mean 'abstain'"),
        ({"fallback_floor": 0.5}, "fallback_floor=0.5 needs fallback='abstain'"),
        ({"fallback": "abstain", "fallback_floor": 50}, "fallback_floor=50 is outside"),
    ],
)
def test_unusable_fallbacks_are_refused(options, match):
    with pytest.raises(ConfigurationError, match=match):
        routed([0.1], **options)


# ---- what does not fit


def test_other_classes_are_refused_before_the_first_call_where_both_models_tell():
    with pytest.raises(ConfigurationError, match="global_model has 5 classes and base has 4"):
        RoutedPredictor(nn.Linear(3, 4), query_score, nn.Linear(3, 5), 0.5)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (torch.zeros(1, 4), "global_model has 4 classes and base has 3"),
        (torch.zeros(2, 3), r"global_model returns shape \(2, 3\) for 1 inputs"),
        (torch.zeros(3), r"global_model returns shape \(3,\) for 1 inputs"),
        ("cat", "global_model returns a str for 1 inputs"),
    ],
)
def test_unusable_logits_of_the_global_model_are_refused(answer, match):
    with pytest.raises(ConfigurationError, match=match):
        routed([0.9, 0.1], Scripted(answer))


@pytest.mark.parametrize(
    ("base", "router", "match"),
    [
        (lambda rows: rows[0], by_column, r"base returns shape \(3,\) for 2 inputs"),
        (lambda rows: None, by_column, "base returns a NoneType for 2 inputs"),
        (lambda rows: rows, lambda logits: logits, r"router returns shape \(2, 3\) for 2 inputs"),
    ],
)
def test_unusable_outputs_of_base_and_router_are_refused(base, router, match):
    with pytest.raises(ConfigurationError, match=match):
        RoutedPredictor(base, router, Scripted(), 0.5)(torch.zeros(2, 3))


@pytest.mark.parametrize("threshold", [NAN, "0.5", None, True])
def test_a_threshold_that_is_no_number_is_refused(threshold):
    with pytest.raises(ConfigurationError, match="must be a number; inf to keep every input"):
        routed([0.1], threshold=threshold)


def test_thresholds_of_a_longer_cascade_are_refused():
    with pytest.raises(ConfigurationError, match="has 2 thresholds, of a cascade; use CascadePredictor"):
        routed([0.1], threshold=calibrated(thresholds=(0.1, 0.2), shares=(0.5, 0.3, 0.2)))


# ---- thresholds and weights


def test_the_threshold_may_change_between_calls_and_leaves_the_promise_behind():
    _, _, predictor = routed([], threshold=calibrated(0.5))
    inputs = torch.tensor([[0.4, 0.0, 0.0], [0.6, 0.0, 0.0]])
    assert predictor(inputs).source.tolist() == [BASE, GLOBAL]
    predictor.threshold = 0.5
    assert predictor.calibrated is not None
    predictor.threshold = 0.9
    assert predictor(inputs).source.tolist() == [BASE, BASE]
    assert (predictor.calibrated, predictor.threshold) == (None, 0.9)


def _in_place(predictor: RoutedPredictor) -> None:
    predictor.base.weight.data = predictor.base.weight.data + 1


def _by_optimizer(predictor: RoutedPredictor) -> None:
    with torch.no_grad():
        predictor.global_model.bias.add_(1)


def _by_loading(predictor: RoutedPredictor) -> None:
    predictor.router.load_state_dict({name: value + 1 for name, value in predictor.router.state_dict().items()})


def _by_replacement(predictor: RoutedPredictor) -> None:
    predictor.base.weight = nn.Parameter(torch.ones(3, 3))


def _by_another_module(predictor: RoutedPredictor) -> None:
    predictor.router.head = nn.Linear(3, 1)


def _by_a_cast(predictor: RoutedPredictor) -> None:
    predictor.half()


def _by_another_base(predictor: RoutedPredictor) -> None:
    predictor.base = deepcopy(predictor.base)


def _by_another_router(predictor: RoutedPredictor) -> None:
    predictor.router = deepcopy(predictor.router)


def _by_another_global_model(predictor: RoutedPredictor) -> None:
    predictor.global_model = deepcopy(predictor.global_model)


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, logits: Tensor) -> Tensor:
        return self.head(logits).squeeze(1)


@pytest.mark.parametrize(
    "change",
    [
        _in_place,
        _by_optimizer,
        _by_loading,
        _by_replacement,
        _by_another_module,
        _by_a_cast,
        _by_another_base,
        _by_another_router,
        _by_another_global_model,
    ],
)
def test_a_change_of_any_model_after_calibration_is_refused_until_it_is_calibrated_anew(change):
    predictor = RoutedPredictor(nn.Linear(3, 3), Learned(), nn.Linear(3, 3), calibrated(0.0))
    inputs = torch.randn(4, 3)
    predictor(inputs)
    change(predictor)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="changed after the threshold was calibrated"):
            predictor(inputs)
    predictor.set_threshold(calibrated(0.1))
    predictor(inputs.to(predictor.base.weight.dtype))


def _activation(predictor: RoutedPredictor) -> None:
    predictor.base[1] = nn.Tanh().eval()


def _one_layer_more(predictor: RoutedPredictor) -> None:
    predictor.base.append(nn.Softplus().eval())


def _hook(predictor: RoutedPredictor) -> None:
    predictor.base[0].register_forward_hook(lambda module, args, output: -output)


def _pre_hook(predictor: RoutedPredictor) -> None:
    predictor.base.register_forward_pre_hook(lambda module, args: (-args[0],))


def _temperature(predictor: RoutedPredictor) -> None:
    predictor.router.temperature = 9.0


def _score(predictor: RoutedPredictor) -> None:
    predictor.router.score = "entropy"


def _buffer(predictor: RoutedPredictor) -> None:
    predictor.base[0].register_buffer("more", torch.ones(1))


@pytest.mark.parametrize("change", [_activation, _one_layer_more, _hook, _pre_hook, _temperature, _score, _buffer])
def test_a_change_that_leaves_the_weights_is_refused_too(change):
    base = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    predictor = RoutedPredictor(base, ScoreRouter("msp"), nn.Linear(3, 3), calibrated(0.0))
    predictor(torch.randn(4, 3))
    change(predictor)
    for check in (predictor.check_weights, lambda: predictor(torch.randn(4, 3))):
        with pytest.raises(ConfigurationError, match="changed after the threshold was calibrated"):
            check()
    predictor.set_threshold(calibrated(0.1))
    predictor(torch.randn(4, 3))


def test_another_callable_in_the_place_of_one_is_refused():
    predictor = RoutedPredictor(lambda rows: rows, by_column, Scripted(), calibrated(0.0))
    predictor(torch.randn(4, 3))
    predictor.global_model = Scripted()
    with pytest.raises(ConfigurationError, match="changed after the threshold was calibrated"):
        predictor(torch.randn(4, 3))


def test_a_setting_that_its_module_shows_is_seen_by_a_thorough_check():
    base = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(0.1))
    predictor = RoutedPredictor(base, ScoreRouter("msp"), nn.Linear(3, 3), calibrated(0.0))
    base[1].negative_slope = 0.9
    with pytest.raises(ConfigurationError, match="changed after the threshold was calibrated"):
        predictor.check_weights()


def test_training_mode_is_refused_until_evaluation_mode_is_back():
    base = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    predictor = RoutedPredictor(base, ScoreRouter("msp"), nn.Linear(3, 3), calibrated(0.0))
    base[1].train()
    with pytest.raises(ConfigurationError, match=r"Dropout is in training mode; call eval\(\)"):
        predictor(torch.randn(4, 3))
    predictor.eval()
    predictor(torch.randn(4, 3))


def test_a_view_tap_on_a_watched_module_is_no_change():
    base = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    predictor = RoutedPredictor(base, ScoreRouter("msp"), nn.Linear(3, 3), calibrated(0.0))
    tap = ViewTap(base, features=True)
    tap.attach()
    assert len(predictor(torch.randn(4, 3)).prediction) == 4


def test_threads_share_a_watched_base_and_every_batch_counts_once():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    monitor = DriftMonitor(ReferenceRates(0.0, 1000, 0.5, 0.1), audit_share=0.5, window=10**6)
    options = {"monitor": monitor, "on_event": [].append}
    router = GainRouter(num_classes=3, feature_dim=8, hidden=4)
    predictor = RoutedPredictor(base, router, nn.Linear(3, 3), calibrated(-0.5), **options)
    batches = list(torch.randn(200, 5, 3))
    expected = [predictor(batch).prediction for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = [answer.prediction for answer in pool.map(predictor, batches)]
    assert all(map(torch.equal, found, expected))
    assert predictor.statistics.calls == 400
    assert predictor.statistics.rows == sum(predictor.statistics.answered.values()) == 2000
    assert monitor._counts["rows"] == 2000


def test_copies_and_pickles_answer_alike():
    base = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    router = GainRouter(num_classes=3, feature_dim=8, hidden=4)
    predictor = RoutedPredictor(base, router, nn.Linear(3, 3), calibrated(-0.5))
    inputs = torch.randn(6, 3)
    for other in (deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        assert torch.equal(other(inputs).probabilities, predictor(inputs).probabilities)


def test_the_same_weights_in_other_places_are_no_change():
    predictor = RoutedPredictor(nn.Linear(3, 3), Learned(), nn.Linear(3, 3), calibrated(0.0))
    predictor.load_state_dict(deepcopy(predictor.state_dict()))
    predictor.base.weight.data = predictor.base.weight.data.clone()
    other = deepcopy(predictor)
    inputs = torch.randn(4, 3)
    assert torch.equal(predictor(inputs).prediction, other(inputs).prediction)
    with torch.no_grad():
        other.base.weight.mul_(2)
    predictor(inputs)
    with pytest.raises(ConfigurationError, match="changed after"):
        other(inputs)


def test_what_is_written_past_the_version_counter_is_seen_by_a_thorough_check():
    predictor = RoutedPredictor(nn.Linear(3, 3), Learned(), nn.Linear(3, 3), calibrated(0.0))
    predictor.check_weights()
    predictor.base.weight.data.add_(1)
    with pytest.raises(ConfigurationError, match="changed after the threshold was calibrated"):
        predictor.check_weights()


def test_without_a_calibrated_threshold_weights_may_change():
    predictor = RoutedPredictor(nn.Linear(3, 3), query_score, nn.Linear(3, 3), -0.5)
    with torch.no_grad():
        predictor.base.weight.add_(1)
    assert len(predictor(torch.randn(4, 3)).prediction) == 4


# ---- from a checkpoint


class Hybrid(nn.Module):
    """What a hybrid module offers."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.large, self.router = nn.Linear(3, 4), nn.Linear(3, 4), ScoreRouter("msp")

    def base_outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.base(inputs), None

    def global_logits(self, inputs: Tensor) -> Tensor:
        return self.large(inputs)


def _write(folder: Any, module: nn.Module) -> Any:
    path = folder / "best.ckpt"
    torch.save({"state_dict": module.state_dict()}, path)
    routing = calibrated(-0.4)
    RoutingFile(routing, "val", "0" * 64, hash_checkpoint(path), "msp").write(RoutingFile.beside(path))
    return path


def test_a_checkpoint_brings_weights_and_threshold(tmp_path):
    trained, fresh = Hybrid(), Hybrid()
    path = _write(tmp_path, trained)
    predictor = RoutedPredictor.from_checkpoint(fresh, path, budget=3)
    inputs = torch.randn(16, 3)
    expected = RoutedPredictor(trained.base, query_score, trained.large, -0.4, budget=3)(inputs)
    assert torch.equal(predictor(inputs).prediction, expected.prediction)
    assert torch.equal(predictor(inputs).source, expected.source)
    assert (predictor.threshold, predictor.calibrated) == (-0.4, calibrated(-0.4))
    assert not fresh.training
    with torch.no_grad():
        fresh.large.weight.add_(1)
    with pytest.raises(ConfigurationError, match="changed after"):
        predictor(inputs)


def test_a_routing_file_of_other_weights_is_refused(tmp_path):
    path = _write(tmp_path, Hybrid())
    torch.save({"state_dict": Hybrid().state_dict()}, path)
    with pytest.raises(ConfigurationError, match="belongs to other weights"):
        RoutedPredictor.from_checkpoint(Hybrid(), path)


def test_a_checkpoint_without_routing_file_and_a_module_that_is_no_hybrid_are_refused(tmp_path):
    torch.save({"state_dict": Hybrid().state_dict()}, tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        RoutedPredictor.from_checkpoint(Hybrid(), tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match="module: Linear is no hybrid, as it has no 'base_outputs'"):
        RoutedPredictor.from_checkpoint(nn.Linear(3, 3), tmp_path / "a.ckpt")


def test_a_threshold_that_was_calibrated_on_outputs_keeps_as_many_in_use():
    generator = torch.Generator().manual_seed(0)
    inputs, first, second = (torch.randn(*shape, generator=generator) for shape in ((500, 5), (5, 4), (5, 4)))
    scores = query_score(inputs @ first)
    stages = torch.stack([(inputs @ first).argmax(1), (inputs @ second).argmax(1)], 1)
    found = calibrate_routing(scores, stages, stages[:, 1], coverage=0.7)
    answer = RoutedPredictor(lambda rows: rows @ first, query_score, lambda rows: rows @ second, found)(inputs)
    assert (answer.source == BASE).float().mean().item() == pytest.approx(found.coverage)
    assert (answer.prediction == stages[:, 1]).float().mean().item() == pytest.approx(found.accuracy)


# ---- the audit


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_audit_changes_no_answer_and_makes_no_second_call(share):
    inputs = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    plain = RoutedPredictor(lambda rows: rows, by_column, Scripted(), 0.5)(inputs)
    model = Scripted()
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.3, 0.1), audit_share=share, window=100)
    predictor = RoutedPredictor(lambda rows: rows, by_column, model, 0.5, monitor=monitor)
    answer = predictor(inputs)
    for name, value in plain._asdict().items():
        assert torch.equal(value, getattr(answer, name)), name
    asked = int((plain.source == GLOBAL).sum())
    assert len(model.seen) == 1
    assert len(model.seen[0]) == asked + predictor.statistics.audited
    assert predictor.statistics.audited == monitor.windows[0].audited
    if share == 1.0:
        kept = inputs[plain.source == BASE]
        assert monitor.windows[0].audited == len(kept)
        assert monitor.windows[0].disagreement == pytest.approx((kept.argmax(1) != 2).float().mean().item())


def test_an_audit_takes_what_the_budget_leaves():
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.3, 0.1), audit_share=1.0)
    _, model, predictor = routed([0.9, 0.1, 0.1, 0.1], budget=2, monitor=monitor)
    assert len(model.seen[0]) == 2
    assert (predictor.statistics.sent, predictor.statistics.audited) == (1, 1)


def test_a_budget_leaves_every_place_of_the_batch_its_chance_of_an_audit():
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.3, 0.1), audit_share=1.0)
    model = Scripted()
    predictor = RoutedPredictor(lambda rows: rows, by_column, model, 0.5, budget=2, monitor=monitor)
    inputs = torch.stack([torch.zeros(8), torch.arange(8.0), torch.zeros(8)], 1)
    for _ in range(200):
        predictor(inputs)
    counts = torch.cat(model.seen)[:, 1].long().bincount(minlength=8)
    assert counts.sum() == 400
    assert counts.min() > 20  # of 50 expected, with a standard deviation of 6


def test_an_audit_in_vain_is_no_fallback_and_says_so():
    events: list[RoutingEvent] = []
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.3, 0.1), audit_share=1.0, window=2)
    away = Scripted(GlobalUnavailable("deadline"))
    answer, _, predictor = routed([0.1, 0.2], away, monitor=monitor, on_event=events.append)
    assert answer.source.tolist() == [BASE, BASE]
    assert events[0].message == "the global model is not available (deadline); 2 audited inputs go uncompared"
    assert predictor.statistics.answered["fallback"] == 0
    assert monitor.windows[0].fallback_rate == 0


def test_an_audited_row_that_is_not_finite_keeps_its_answer_and_is_not_compared():
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.3, 0.1), audit_share=1.0, window=1)
    model = Scripted(torch.tensor([[0.0, 0.0, 5.0], [NAN, 0.0, 0.0]]))
    answer, _, predictor = routed([0.9, 0.1], model, monitor=monitor)
    assert answer.source.tolist() == [GLOBAL, BASE]
    assert answer.prediction.tolist() == [2, 1]
    assert monitor.windows[0].audited == 0
    assert predictor.events.counts["global_not_finite"] == 0


def test_alarms_of_the_monitor_reach_the_callback():
    events: list[RoutingEvent] = []
    monitor = DriftMonitor(ReferenceRates(0.5, 1000, 0.1, 0.1), window=200)
    routed([0.9] * 600, monitor=monitor, on_event=events.append)
    assert [event.kind for event in events] == ["query_rate_drift"]


# ---- events and statistics


def test_the_log_has_one_line_of_a_kind_and_period_and_says_what_it_left_out(caplog):
    now, seen = [0.0], []
    log = EventLog(seen.append, period_s=60, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING, "lightning_efficient.routing"):
        for second in (0, 1, 59, 61):
            now[0] = second
            log(RoutingEvent("budget", "over"))
        log(RoutingEvent("base_not_finite", "lost"))
    assert [record.getMessage() for record in caplog.records] == [
        "budget: over",
        "budget: over (2 more of this kind since the last line)",
        "base_not_finite: lost",
    ]
    assert (len(seen), log.counts["budget"]) == (5, 4)


def test_statistics_count_calls_rows_and_sources_and_start_anew():
    _, _, predictor = routed([0.1, 0.9, 0.8, 0.2], budget=1)
    predictor(torch.zeros(6, 3))
    statistics = predictor.statistics
    found = statistics.to_dict()
    assert {name: found[name] for name in ("calls", "global_calls", "rows", "queried", "sent", "over_budget")} == {
        "calls": 2,
        "global_calls": 1,
        "rows": 10,
        "queried": 2,
        "sent": 1,
        "over_budget": 1,
    }
    assert found["answered"] == {"base": 9, "global": 1, "fallback": 0}
    assert found["query_rate"] == 0.2
    assert 0 < found["base_p50_s"] <= found["base_p95_s"]
    assert len(statistics.seconds["base"]) == 2
    assert len(statistics.seconds["global"]) == 1
    statistics.reset()
    assert (statistics.rows, statistics.query_rate, statistics.latency("base", 0.5)) == (0, 0.0, None)


def test_a_method_of_a_module_moves_with_the_predictor():
    module = Hybrid()
    predictor = RoutedPredictor(module.base_outputs, module.router, module.global_logits, -0.4)
    predictor.double()
    assert module.base.weight.dtype is torch.float64
    assert predictor(torch.randn(3, 3, dtype=torch.float64)).probabilities.dtype is torch.float64
