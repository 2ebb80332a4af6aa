"""A network that answers only where it is sure enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.confidence import Score, ScoreName
from lightning_efficient.functional.confidence import confidence as confidence_of
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.inference.thresholds import CalibratedThreshold
from lightning_efficient.nn.checkpoints import load_weights

OwnOrScore: TypeAlias = Score | Literal["confidence"]

CONFIDENT = "confident"
BELOW = "confidence below threshold"
NOT_FINITE = "confidence is not finite"
NO_THRESHOLD = "no threshold keeps the promise"


class AbstainingPrediction(NamedTuple):
    """What a network answers, and whether it stands by it.

    Attributes:
        prediction: The most probable class, also where it is not accepted; int64 ``(N,)``.
        accepted: Whether to answer; bool ``(N,)``.
        confidence: How sure the network is, higher for surer; float32 or wider ``(N,)``.
        reason: Why it is accepted or not, ``N`` phrases.
    """

    prediction: Tensor
    accepted: Tensor
    confidence: Tensor
    reason: list[str]


class AbstainingPredictor(nn.Module):
    """Answer where the confidence reaches a threshold, and say why where it does not.

    A confidence that is not finite is never accepted. A threshold of infinity, which calibration gives where none keeps
    its promise, accepts nothing. Costs what the network costs, and one comparison per sample.

    ``state_dict`` holds the threshold beside the network's weights, as a float64 number; the score it does not hold.

    Args:
        network: From inputs to logits ``(N, C)``, or to a mapping with ``logits`` and perhaps ``confidence`` ``(N,)``.
            One with a method ``scored``, as our classifiers have it, is asked by that: it returns logits, and a
            confidence or ``None``.
        threshold: Lowest confidence accepted, or what ``calibrate_threshold`` returned.
        score: How sure the network is: ``confidence``, the network's own; or of the logits ``msp``, ``margin``,
            ``entropy``, ``energy``, ``max_logit``, or a function. By default the network's own if it returns one, else
            ``msp``. It must be the one that was calibrated.

    Raises:
        ConfigurationError: the threshold is no number, the score unknown, or the network returns something else.

    Example:
        >>> import torch
        >>> predictor = AbstainingPredictor(nn.Identity(), threshold=0.8)
        >>> answer = predictor(torch.tensor([[4.0, 0.0], [0.1, 0.0], [0.0, 3.0]]))
        >>> answer.prediction.tolist(), answer.accepted.tolist()
        ([0, 0, 1], [True, False, True])
        >>> answer.reason[1]
        'confidence below threshold'
    """

    def __init__(
        self, network: nn.Module, threshold: CalibratedThreshold | float, score: OwnOrScore | None = None
    ) -> None:
        super().__init__()
        if score is not None and not callable(score):
            check_choice("score", score, ("confidence", *get_args(ScoreName)))
        self.network = network
        self.calibrated = threshold if isinstance(threshold, CalibratedThreshold) else None
        self.threshold = float(threshold.threshold if isinstance(threshold, CalibratedThreshold) else threshold)
        self.score = score
        _refuse_nan(self.threshold)

    @classmethod
    def from_checkpoint(cls, network: nn.Module, ckpt_path: str | Path) -> AbstainingPredictor:
        """Return a network with the weights of a checkpoint and the threshold that was calibrated for them.

        Args:
            network: Of the checkpoint's architecture, or the part of it that gives the logits; loaded in place, and put
                into evaluation mode.
            ckpt_path: Checkpoint with a ``.threshold.json`` beside it, as ``lightning-efficient calibrate`` writes it.

        Raises:
            ConfigurationError: no checkpoint or no threshold file, a damaged one, one of other weights or of another
                score than the network's, or weights of another architecture.
        """
        path = ThresholdFile.find(ckpt_path)
        file = ThresholdFile.read(path)
        file.check_score(network, path)
        file.check_weights(ckpt_path, path)
        load_weights(network, ckpt_path, option="ckpt_path")
        return cls(network.eval(), file.calibrated, score=file.score)

    def get_extra_state(self) -> Tensor:
        """Return the threshold, a float64 tensor of shape ``()``, for ``state_dict``."""
        return torch.tensor(self.threshold, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the threshold of a ``state_dict``; ``calibrated`` becomes ``None`` where it is of another threshold.

        Raises:
            ConfigurationError: it is no number.
        """
        if not isinstance(state, Tensor) or state.numel() != 1:
            raise ConfigurationError(f"the threshold of the state_dict is a {type(state).__name__}, not one number")
        self.threshold = _refuse_nan(float(state))
        if self.calibrated is not None and self.calibrated.threshold != self.threshold:
            self.calibrated = None

    def forward(self, inputs: Any) -> AbstainingPrediction:
        """Return what the network answers to inputs, each of the first dimension."""
        scored = getattr(self.network, "scored", None)
        logits, own = scored(inputs) if callable(scored) else _outputs(self.network(inputs))
        if self.score == "confidence" or (self.score is None and own is not None):
            if own is None:
                raise ConfigurationError(
                    f"score is 'confidence', but {type(self.network).__name__} returns no confidence of its own; let "
                    "it return {'logits', 'confidence'}, or give the score that was calibrated"
                )
            confidence = own
        else:
            confidence = confidence_of(logits, self.score or "msp")
        return self.decide(logits.argmax(-1), confidence)

    def decide(self, prediction: Tensor, confidence: Tensor) -> AbstainingPrediction:
        """Compare confidences ``(N,)`` of predictions ``(N,)`` with the threshold; see :func:`decide`."""
        return decide(prediction, confidence, self.threshold)


def decide(prediction: Tensor, confidence: Tensor, threshold: float) -> AbstainingPrediction:
    """Accept what has at least a confidence, and give the reason for each sample.

    Args:
        prediction: Classes, shape ``(N,)``, any dtype.
        confidence: Higher for surer, shape ``(N,)``, any float dtype; compared in float32 or wider.
        threshold: Lowest confidence accepted; infinity accepts nothing.

    Raises:
        ConfigurationError: shapes that differ, or are not ``(N,)``.

    Example:
        >>> import torch
        >>> answer = decide(torch.tensor([3, 1, 4]), torch.tensor([0.9, float("nan"), 0.5]), 0.5)
        >>> answer.accepted.tolist(), answer.reason[1]
        ([True, False, True], 'confidence is not finite')
    """
    if prediction.shape != confidence.shape or prediction.ndim != 1:
        raise ConfigurationError(
            f"prediction has shape {tuple(prediction.shape)}, confidence {tuple(confidence.shape)}; both must be (N,)"
        )
    confidence = at_least_float32(confidence)
    finite = confidence.isfinite()
    accepted = finite & (confidence >= threshold)
    refusal = NO_THRESHOLD if threshold == math.inf else BELOW
    reason = [
        CONFIDENT if sure else refusal if number else NOT_FINITE
        for sure, number in zip(accepted.tolist(), finite.tolist(), strict=True)
    ]
    return AbstainingPrediction(prediction, accepted, confidence, reason)


def _refuse_nan(threshold: float) -> float:
    if math.isnan(threshold):
        raise ConfigurationError("threshold is nan; it must be a number, or inf to accept nothing")
    return threshold


def _outputs(outputs: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(outputs, Tensor):
        return outputs, None
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"], outputs.get("confidence")
    held = f"a mapping with {sorted(map(str, outputs))}" if isinstance(outputs, Mapping) else type(outputs).__name__
    raise ConfigurationError(f"the network returns {held}; it must return logits, or a mapping with 'logits'")
