"""A network answers where it is sure enough, and gives its reason for every sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lightning_efficient.functional as LF
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.abstaining import AbstainingPredictor, decide
from lightning_efficient.inference.calibration_file import hash_checkpoint
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.inference.thresholds import calibrate_threshold

LOGITS = torch.tensor([[4.0, 0.0], [0.1, 0.0], [0.0, 3.0], [0.0, 0.0]])


class Returns(nn.Module):
    """A network that returns what it is told to."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs: Tensor) -> Any:
        return self.outputs


# ---- the decision


@given(
    st.lists(st.floats(width=32), max_size=30),
    st.one_of(st.floats(width=32, allow_nan=False), st.just(math.inf)),
)
def test_accepted_are_the_finite_confidences_of_at_least_the_threshold(values: list[float], threshold: float) -> None:
    confidence = torch.tensor(values, dtype=torch.float32)
    answer = decide(torch.arange(len(values)), confidence, threshold)
    expected = [math.isfinite(value) and value >= threshold for value in values]
    assert answer.accepted.tolist() == expected
    assert [reason == "confident" for reason in answer.reason] == expected
    assert answer.accepted.dtype is torch.bool
    assert answer.prediction.tolist() == list(range(len(values)))


@pytest.mark.parametrize(
    ("value", "threshold", "reason"),
    [
        (0.5, 0.5, "confident"),
        (0.4, 0.5, "confidence below threshold"),
        (-math.inf, 0.5, "confidence is not finite"),
        (math.inf, 0.5, "confidence is not finite"),
        (math.nan, math.inf, "confidence is not finite"),
        (0.9, math.inf, "no threshold keeps the promise"),
        (-3.0, -math.inf, "confident"),
    ],
)
def test_each_sample_has_its_reason(value: float, threshold: float, reason: str) -> None:
    assert decide(torch.tensor([1]), torch.tensor([value]), threshold).reason == [reason]


def test_half_precision_is_compared_as_float32() -> None:
    confidence = torch.tensor([0.7, 0.9], dtype=torch.bfloat16)
    answer = decide(torch.tensor([0, 1]), confidence, float(confidence[1]))
    assert answer.accepted.tolist() == [False, True]
    assert answer.confidence.dtype is torch.float32


@pytest.mark.parametrize(("first", "second"), [((2,), (3,)), ((2, 1), (2, 1)), ((), ())])
def test_shapes_that_are_not_one_number_per_sample_are_refused(first: tuple, second: tuple) -> None:
    with pytest.raises(ConfigurationError, match=r"both must be \(N,\)"):
        decide(torch.zeros(first), torch.zeros(second), 0.5)


# ---- the predictor


@pytest.mark.parametrize("score", [None, "msp", "margin", "entropy", "energy", "max_logit", lambda z: z.amax(-1)])
def test_logits_become_a_confidence_by_the_score(score: Any) -> None:
    confidence = LF.confidence(LOGITS, score or "msp")
    threshold = float(confidence.sort().values[2])
    answer = AbstainingPredictor(Returns(LOGITS), threshold, score)(torch.zeros(4))
    assert torch.equal(answer.confidence, confidence)
    assert answer.accepted.tolist() == (confidence >= threshold).tolist()
    assert answer.prediction.tolist() == [0, 0, 1, 0]


OWN = torch.tensor([0.1, 0.9, 0.2, 0.8])


@pytest.mark.parametrize(
    ("score", "expected"), [(None, OWN), ("confidence", OWN), ("msp", LF.msp(LOGITS)), ("margin", LF.margin(LOGITS))]
)
def test_the_own_confidence_of_a_network_goes_first_unless_a_score_is_named(score: Any, expected: Tensor) -> None:
    answer = AbstainingPredictor(Returns({"logits": LOGITS, "confidence": OWN}), 0.5, score)(torch.zeros(4))
    assert torch.equal(answer.confidence, expected)
    assert answer.accepted.tolist() == (expected >= 0.5).tolist()


def test_a_network_is_asked_by_its_method_that_scores() -> None:
    class Classifier(Returns):
        def scored(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
            return inputs, self.outputs

    for own, expected in ((OWN, OWN), (None, LF.msp(LOGITS))):
        assert torch.equal(AbstainingPredictor(Classifier(own), 0.5)(LOGITS).confidence, expected)


def test_a_calibrated_threshold_is_applied_as_it_was_chosen() -> None:
    confidence, wrong = LF.msp(LOGITS), torch.tensor([0, 1, 0, 1])
    found = calibrate_threshold(confidence, wrong, risk=0.0)
    predictor = AbstainingPredictor(Returns(LOGITS), found)
    assert predictor.calibrated is found
    assert int(predictor(torch.zeros(4)).accepted.sum()) == 4 * found.coverage == 2


def test_a_threshold_that_was_not_found_answers_nothing() -> None:
    found = calibrate_threshold(LF.msp(LOGITS), torch.ones(4), risk=0.1)
    answer = AbstainingPredictor(Returns(LOGITS), found)(torch.zeros(4))
    assert answer.reason == ["no threshold keeps the promise"] * 4
    assert not answer.accepted.any()


@pytest.mark.parametrize(
    ("outputs", "score", "message"),
    [
        (LOGITS, "confidence", "Returns returns no confidence of its own"),
        ({"logits": LOGITS}, "confidence", "Returns returns no confidence of its own"),
        ({"scores": LOGITS}, None, r"a mapping with \['scores'\]; it must return logits"),
        ((LOGITS,), None, "the network returns tuple"),
        (LOGITS[0], None, r"class scores of shape \(N, C\)"),
    ],
)
def test_a_network_that_returns_something_else_is_told_what_to_return(outputs: Any, score: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AbstainingPredictor(Returns(outputs), 0.5, score)(torch.zeros(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": math.nan}, "threshold is nan"), ({"threshold": 0.5, "score": "marginn"}, "Did you mean 'margin'")],
)
def test_an_option_that_cannot_work_is_told_at_once(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AbstainingPredictor(nn.Identity(), **options)


# ---- its state


@pytest.mark.parametrize("threshold", [0.1, 1 / 3, -2.5, math.inf])
def test_the_threshold_is_part_of_the_state(tmp_path: Path, threshold: float) -> None:
    first, second = AbstainingPredictor(nn.Linear(3, 4), threshold), AbstainingPredictor(nn.Linear(3, 4), 0.5)
    torch.save(first.half().state_dict(), tmp_path / "predictor.pt")
    second.load_state_dict(torch.load(tmp_path / "predictor.pt", weights_only=True))
    assert second.threshold == threshold


def test_a_promise_is_kept_only_with_its_threshold() -> None:
    found = calibrate_threshold(LF.msp(LOGITS), torch.tensor([0, 1, 0, 1]), risk=0.0)
    predictor = AbstainingPredictor(Returns(LOGITS), found)
    predictor.load_state_dict(AbstainingPredictor(Returns(LOGITS), found).state_dict())
    assert predictor.calibrated is found
    predictor.load_state_dict(AbstainingPredictor(Returns(LOGITS), 0.25).state_dict())
    assert (predictor.threshold, predictor.calibrated) == (0.25, None)


@pytest.mark.parametrize(
    ("state", "message"),
    [(torch.tensor(math.nan), "threshold is nan"), (torch.zeros(2), "not one number"), ("0.5", "is a str, not one")],
)
def test_a_state_without_a_threshold_is_refused(state: Any, message: str) -> None:
    predictor = AbstainingPredictor(nn.Identity(), 0.5)
    with pytest.raises(ConfigurationError, match=message):
        predictor.load_state_dict({"_extra_state": state})


# ---- from a checkpoint


def checkpoint(tmp_path: Path, network: nn.Module, score: Any = "msp", module_score: str | None = None) -> Path:
    path = tmp_path / "best.ckpt"
    wrapped = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": wrapped}, path)
    found = calibrate_threshold(torch.tensor([0.9, 0.6, 0.4]), torch.tensor([0, 0, 1]), risk=0.0)
    file = ThresholdFile(found, "val", "0" * 64, hash_checkpoint(path), module_score, score=score)
    file.write(ThresholdFile.beside(path))
    return path


def test_weights_and_threshold_come_from_the_checkpoint(tmp_path: Path) -> None:
    trained, fresh = nn.Linear(3, 4), nn.Linear(3, 4).train()
    predictor = AbstainingPredictor.from_checkpoint(fresh, checkpoint(tmp_path, trained))
    assert torch.equal(fresh.weight, trained.weight)
    assert not fresh.training
    assert predictor.threshold == pytest.approx(0.6)
    assert predictor.score == "msp"


def test_a_threshold_of_the_own_confidence_wants_a_network_that_has_one(tmp_path: Path) -> None:
    predictor = AbstainingPredictor.from_checkpoint(
        network := nn.Linear(3, 4), checkpoint(tmp_path, network, "confidence")
    )
    with pytest.raises(ConfigurationError, match="Linear returns no confidence of its own"):
        predictor(torch.zeros(2, 3))


class Scores(nn.Linear):
    """A network with a confidence of its own, by a score that has a name."""

    def __init__(self, score: Any) -> None:
        super().__init__(3, 4)
        self.score = score

    def scored(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        logits = self(inputs)
        return logits, LF.confidence(logits, self.score)


@pytest.mark.parametrize("given", ["msp", LF.msp, None])
def test_a_threshold_of_one_score_is_not_applied_to_another(tmp_path: Path, given: Any) -> None:
    path = checkpoint(tmp_path, nn.Linear(3, 4), "confidence", "energy")
    before = (network := Scores(given) if given else nn.Linear(3, 4)).weight.clone()
    with pytest.raises(ConfigurationError, match=r"is of the score 'energy', and \w+ has .*calibrate again") as refused:
        AbstainingPredictor.from_checkpoint(network, path)
    assert "\n" not in str(refused.value)
    assert torch.equal(network.weight, before)
    assert AbstainingPredictor.from_checkpoint(Scores("energy"), path).score == "confidence"


def test_a_threshold_of_msp_fits_whatever_a_network_scores_with(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, network := nn.Linear(3, 4), "msp", "energy")
    answer = AbstainingPredictor.from_checkpoint(Scores("margin"), path)(inputs := torch.eye(3))
    assert torch.equal(answer.confidence, LF.msp(network(inputs).detach()))


def test_a_link_to_a_checkpoint_has_its_threshold(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, nn.Linear(3, 4))
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "last.ckpt"
    link.symlink_to(path)
    assert AbstainingPredictor.from_checkpoint(nn.Linear(3, 4), link).threshold == pytest.approx(0.6)


def test_a_checkpoint_that_was_trained_further_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, nn.Linear(3, 4))
    torch.save({"state_dict": nn.Linear(3, 4).state_dict()}, path)
    with pytest.raises(ConfigurationError, match="belongs to other weights"):
        AbstainingPredictor.from_checkpoint(nn.Linear(3, 4), path)


def test_a_checkpoint_that_was_not_calibrated_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(3, 4).state_dict()}, tmp_path / "x.ckpt")
    with pytest.raises(ConfigurationError, match=r"x\.threshold\.json cannot be read"):
        AbstainingPredictor.from_checkpoint(nn.Linear(3, 4), tmp_path / "x.ckpt")
