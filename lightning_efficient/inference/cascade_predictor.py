"""Models from the cheapest to the most expensive, each asked only about what those before it did not answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.routing import QueryScore, query_score
from lightning_efficient.inference._weights_guard import WeightsGuard
from lightning_efficient.inference.events import EventLog, GlobalUnavailable, RoutingEvent
from lightning_efficient.inference.routing_thresholds import CalibratedRouting

NO_ANSWER = -1
"""The prediction where no stage had a probability."""


class CascadePrediction(NamedTuple):
    """What a cascade of ``M`` models answers, and which of them did.

    Attributes:
        prediction: The most probable class, int64 ``(N,)``; -1 where no stage had a probability.
        source: The stage that answered, from 0, int64 ``(N,)``.
        query_score: What each stage but the last said, larger to ask the next one; float32 or wider ``(N, M - 1)``, NaN
            where it was not asked.
        confidence: Probability of the answer, float32 or wider ``(N,)``; 0 where there is none.
        probabilities: Of the classes, by the stage that answered, float32 or wider ``(N, C)``.
        fell_back: Whether a later stage was asked in vain, so that an earlier one answers; bool ``(N,)``.
    """

    prediction: Tensor
    source: Tensor
    query_score: Tensor
    confidence: Tensor
    probabilities: Tensor
    fell_back: Tensor


class CascadePredictor(nn.Module):
    """Let the first of several models answer that is sure enough.

    A stage answers where its query score is at most its threshold; the last one answers what is left. Each model is
    called at most once per batch, with only those inputs, as they came, that are still undecided, and not at all where
    there are none. A score or probability that is not finite is never sure. Where a stage raises
    ``GlobalUnavailable``, or the last one has no finite probability, the answer of the last stage that had one stands,
    and ``fell_back`` says so; such answers are outside the promise of calibrated thresholds. All of it runs in
    inference mode.

    With calibrated thresholds, a call after the models' weights changed is refused; see ``WeightsGuard``.

    Args:
        models: From a batch to logits ``(n, C)`` of the same classes, any callables, the cheapest first; at least two.
        thresholds: Of each stage but the last, ``M - 1`` numbers, or what ``calibrate_routing`` returned; ``inf``
            always answers, ``-inf`` never.
        score: How little sure a stage is, by name, or a function from logits to confidence; or one for each stage but
            the last. It must be the one that was calibrated.
        on_event: Called with every ``RoutingEvent``.

    Attributes:
        events: The log, with ``counts`` of each kind.
        calls: Inputs that each model was asked about, ``M`` numbers.

    Raises:
        ConfigurationError: fewer than two models, or another number of thresholds or scores than stages; while it runs,
            logits of a wrong shape, or weights that changed.

    Example:
        >>> predictor = CascadePredictor([nn.Identity(), lambda rows: -rows], thresholds=[-0.8])
        >>> answer = predictor(torch.tensor([[4.0, 0.0], [0.1, 0.0], [0.0, 3.0]]))
        >>> answer.prediction.tolist(), answer.source.tolist(), predictor.calls
        ([0, 1, 1], [0, 1, 0], [3, 1])

    Reference:
        Berestizshevsky, Even. Dynamically Sacrificing Accuracy for Reduced Computation: Cascaded Inference Based on
        Softmax Confidence. ICANN 2019.
    """

    def __init__(
        self,
        models: Sequence[Callable[[Tensor], Tensor]],
        thresholds: Sequence[float] | CalibratedRouting,
        score: QueryScore | Sequence[QueryScore] = "msp",
        *,
        on_event: Callable[[RoutingEvent], object] | None = None,
    ) -> None:
        super().__init__()
        if len(models) < 2:
            raise ConfigurationError(f"models has {len(models)} entries; a cascade needs two or more.")
        self.models = list(models)
        # those that are modules move with this one
        self.stages = nn.ModuleDict({str(i): each for i, each in enumerate(models) if isinstance(each, nn.Module)})
        single = isinstance(score, str) or callable(score)
        self.scores: list[QueryScore] = [score] * (len(models) - 1) if single else list(score)  # type: ignore[arg-type, list-item]
        if len(self.scores) != len(models) - 1:
            raise ConfigurationError(
                f"score has {len(self.scores)} entries for {len(models)} models; give one, or {len(models) - 1}."
            )
        for each in self.scores:
            query_score(torch.zeros(1, 2), each)  # an unknown name fails here and not in the first call
        self.events, self.calls = EventLog(on_event), [0] * len(models)
        self.eval()
        self.set_thresholds(thresholds)

    def set_thresholds(self, thresholds: Sequence[float] | CalibratedRouting) -> None:
        """Use other thresholds from the next call on; plain numbers leave the promise behind.

        Raises:
            ConfigurationError: another number of them than stages, or one that is no number.
        """
        self.calibrated = thresholds if isinstance(thresholds, CalibratedRouting) else None
        values = thresholds.thresholds if isinstance(thresholds, CalibratedRouting) else thresholds
        limits = tuple(float(value) for value in values)
        if len(limits) != len(self.models) - 1 or any(value != value for value in limits):
            raise ConfigurationError(
                f"thresholds={list(limits)} must be {len(self.models) - 1} numbers, one for each model but the last."
            )
        self.thresholds = limits
        self._guard = WeightsGuard(self.stages.values()) if self.calibrated is not None else None

    @torch.inference_mode()
    def forward(self, inputs: Tensor) -> CascadePrediction:
        """Answer a batch, whose first dimension counts the inputs; the first model sees an empty one too."""
        if self._guard is not None and self._guard.changed():
            raise ConfigurationError(
                "the weights of a model changed after the thresholds were calibrated, which voids their promise; "
                "calibrate again and set_thresholds"
            )
        rows = torch.arange(len(inputs), device=inputs.device)
        answer = None
        for stage in range(len(self.models)):
            try:
                logits = self._ask(stage, inputs if len(rows) == len(inputs) else inputs.index_select(0, rows))
            except GlobalUnavailable as error:
                if answer is None:
                    raise
                answer.fell_back[rows] = True
                message = f"stage {stage} is not available ({error}); {len(rows)} inputs fall back"
                details = {"rows": len(rows), "stage": stage, "reason": str(error)}
                self.events(RoutingEvent("global_unavailable", message, details))
                break
            answer = self._unanswered(logits) if answer is None else answer
            rows = self._take(answer, stage, rows, logits)
            if not len(rows):
                break
        assert answer is not None
        return answer

    def _ask(self, stage: int, inputs: Tensor) -> Tensor:
        self.calls[stage] += len(inputs)
        output = self.models[stage](inputs)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
            what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ConfigurationError(
                f"models[{stage}] returns {what} for {len(inputs)} inputs; it must return logits (N, C)"
            )
        return at_least_float32(logits)

    def _unanswered(self, logits: Tensor) -> CascadePrediction:
        count, nobody = len(logits), logits.new_zeros(len(logits), dtype=torch.int64)
        return CascadePrediction(
            prediction=nobody + NO_ANSWER,
            source=nobody,
            query_score=logits.new_full((count, len(self.models) - 1), torch.nan),
            confidence=logits.new_zeros(count),
            probabilities=torch.zeros_like(logits),
            fell_back=nobody.bool(),
        )

    def _take(self, answer: CascadePrediction, stage: int, rows: Tensor, logits: Tensor) -> Tensor:
        """Write down what a stage answers, and return the rows that are left for the next one."""
        if logits.shape[1] != answer.probabilities.shape[1]:
            raise ConfigurationError(
                f"models[{stage}] has {logits.shape[1]} classes and models[0] has {answer.probabilities.shape[1]}; all "
                "must have the same classes in the same order"
            )
        probabilities = logits.softmax(-1).to(answer.probabilities)
        confidence, prediction = probabilities.max(-1)
        known = confidence.isfinite()
        if known.all():
            answered = rows
        else:
            answered, prediction = rows[known], prediction[known]
            confidence, probabilities = confidence[known], probabilities[known]
        answer.prediction[answered] = prediction
        answer.source[answered] = stage
        answer.confidence[answered] = confidence
        answer.probabilities[answered] = probabilities
        if stage < len(self.scores):
            score = query_score(logits, self.scores[stage])
            answer.query_score[rows, stage] = score.to(answer.query_score)
            return rows[~((score.double() <= self.thresholds[stage]) & score.isfinite() & known)]
        if lost := len(rows) - len(answered):
            answer.fell_back[rows[~known]] = True
            message = f"{lost} of {len(rows)} rows of the last model's logits are not finite and fall back"
            self.events(RoutingEvent("global_not_finite", message, {"rows": lost, "stage": stage}))
        return rows[:0]
