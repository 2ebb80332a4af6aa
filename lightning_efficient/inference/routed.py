"""Answer a batch with a small model, and ask a large one in a single call about the inputs that need it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.inference._fresh_lock import FreshLock
from lightning_efficient.inference._query_budget import check_budget, drawn, most_sent, most_urgent
from lightning_efficient.inference._routed_batch import Monitor, RoutedBatch
from lightning_efficient.inference._routing_statistics import BatchNotes, RoutingStatistics
from lightning_efficient.inference._weights_guard import WeightsGuard
from lightning_efficient.inference.events import EventKind, EventLog, GlobalUnavailable, RoutingEvent
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.routing_thresholds import CalibratedRouting
from lightning_efficient.nn.checkpoints import load_module
from lightning_efficient.nn.views import ViewTap

SOURCES = ("base", "global", "fallback")
"""What the numbers of ``RoutedPrediction.source`` mean."""
BASE, GLOBAL, FALLBACK = range(3)

NO_ANSWER = -1
"""The prediction where nobody answers."""

Fallback: TypeAlias = Literal["base", "abstain"]
Base: TypeAlias = Callable[[Tensor], Any]
"""From a batch to logits ``(N, C)``, or to logits and what else the router wants."""


class RoutedPrediction(NamedTuple):
    """What a pair of models answers, and who answered.

    Logits of two models are no common scale, so there are only probabilities.

    Attributes:
        prediction: The most probable class, int64 ``(N,)``; -1 where nobody answers.
        source: Who answered, int64 ``(N,)``, as an index into ``SOURCES``: 0 the base model, 1 the global one, 2 the
            base model in place of a global one that was asked in vain.
        query_score: What the router said, larger to ask the global model; float32 or wider ``(N,)``.
        confidence: Probability of the answer, float32 or wider ``(N,)``; 0 where there is none.
        probabilities: Of the classes, by the one who answered; float32 or wider ``(N, C)``; zeros where neither model
            had any.
    """

    prediction: Tensor
    source: Tensor
    query_score: Tensor
    confidence: Tensor
    probabilities: Tensor


class RoutedPredictor(nn.Module):
    """Answer with the base model where the query score is at most a threshold, and ask the global model elsewhere.

    The base model sees the whole batch once. The inputs that are asked about, as they came, go to the global model in
    one call; where there are none it is not called. A query score or a base probability that is not finite is always
    asked about. Where the global model raises ``GlobalUnavailable``, or a row of its logits gives no probabilities, the
    base answers and the source says ``fallback``; such answers are outside the promise of a calibrated threshold. All
    of it runs in inference mode. Costs the base and the router on N inputs, the global model on those asked about, and
    a copy of these.

    With a calibrated threshold the models are remembered, and a call after they changed, or in training mode, is
    refused; see ``WeightsGuard`` for what goes unseen. It may be called from several threads; a base that is watched
    for its features runs in one of them at a time.

    Args:
        base: From a batch to logits ``(N, C)``, any callable. For a router with ``needs_features`` it returns a pair
            ``(logits, features)``; a module that returns logits alone is watched for the input of its classifier.
        router: From ``(logits, features)`` to query scores ``(N,)``, larger to ask; from logits alone where it has no
            ``needs_features``.
        global_model: From a batch to logits ``(m, C)`` of the same classes in the same order, any callable.
        threshold: Largest query score that is kept, or what ``calibrate_routing`` returned. ``inf`` always keeps,
            ``-inf`` always asks. It may be set at any time, such as to a larger one while the link is bad.
        budget: Most inputs that are sent per call, a number (0 sends none), or a share of the batch in ``(0, 1]``,
            rounded down but at least one. Those with the largest scores are sent; the base answers the others, with an
            event.
        features: Whether to watch a module for the router; ``False`` where it returns pairs itself.
        monitor: Sees each batch, and may have kept inputs sent along for comparison; see ``DriftMonitor``. A batch of
            which inputs are compared waits for the global model, though it asks nothing else, up to its deadline.
        on_event: Called with every ``RoutingEvent``, by one thread at a time; they are also written to the log,
            at most one of a kind a minute.
        fallback: What to do where the global model was asked in vain: ``base`` answers with the base, ``abstain`` gives
            -1.
        fallback_floor: With ``abstain``, the probability from which on the base answers all the same.

    Attributes:
        statistics: Counters and latencies.
        calibrated: What ``threshold`` was given as, or ``None`` for a number.
        events: The log, with ``counts`` of each kind.

    Raises:
        ConfigurationError: a threshold, budget or floor that cannot be, or models with other classes; while it runs,
            logits of a wrong shape, or weights that changed.

    Example:
        >>> from lightning_efficient.functional.routing import query_score
        >>> images = torch.tensor([[4.0, 0.0], [0.1, 0.0], [0.0, 3.0]])
        >>> predictor = RoutedPredictor(nn.Identity(), query_score, lambda rows: -rows, threshold=-0.8)
        >>> answer = predictor(images)
        >>> answer.prediction.tolist(), [SOURCES[source] for source in answer.source]
        ([0, 1, 1], ['base', 'global', 'base'])

    Reference:
        Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query. ICLR 2023.
    """

    def __init__(
        self,
        base: Base,
        router: Callable[..., Tensor],
        global_model: Callable[[Tensor], Tensor],
        threshold: float | CalibratedRouting,
        *,
        budget: int | float | None = None,
        features: bool = True,
        monitor: Monitor | None = None,
        on_event: Callable[[RoutingEvent], object] | None = None,
        fallback: Fallback = "base",
        fallback_floor: float | None = None,
    ) -> None:
        super().__init__()
        check_budget(budget)
        check_choice("fallback", fallback, get_args(Fallback))
        if fallback_floor is not None:
            check_fraction("fallback_floor", fallback_floor, zero=True)
            if fallback != "abstain":
                raise ConfigurationError(f"fallback_floor={fallback_floor!r} needs fallback='abstain'.")
        self.base, self.router, self.global_model = base, router, global_model
        for name, part in (("base", base), ("global_model", global_model)):
            # a method of a module moves, and is watched, with its module
            if isinstance(owner := getattr(part, "__self__", None), nn.Module):
                self.add_module(f"{name}_owner", owner)
        self.budget, self.monitor = budget, monitor
        self.fallback, self.fallback_floor = fallback, fallback_floor
        self.events, self.statistics = EventLog(on_event), RoutingStatistics()
        # hooks see one forward at a time; the global model is asked outside of both
        self._base_lock, self._notes_lock = FreshLock(), FreshLock()
        self._generator = torch.Generator().manual_seed(0)
        self._needs_features = bool(getattr(router, "needs_features", False))
        self._takes_features = hasattr(router, "needs_features")
        watched = self._needs_features and features
        self._tap = ViewTap(base, features=True) if watched and isinstance(base, nn.Module) else None
        if isinstance(base, nn.Module) and isinstance(global_model, nn.Module) and watched == self._needs_features:
            classes = [ViewTap(each).num_classes for each in (base, global_model)]
            if classes[0] is not None and classes[1] is not None:
                _refuse_other_classes(classes[0], classes[1])
        self.eval()
        self._guard: WeightsGuard | None = None
        self.calibrated: CalibratedRouting | None = None
        self.set_threshold(threshold)

    @classmethod
    def from_checkpoint(cls, module: nn.Module, ckpt_path: str | Path, **options: Any) -> RoutedPredictor:
        """Return a hybrid with the weights of a checkpoint and the threshold that was calibrated for them.

        Args:
            module: With methods ``base_outputs``, from inputs to ``(logits, features)``, and ``global_logits``, and an
                attribute ``router``, as ``HybridClassifier`` has them; loaded in place and put into evaluation mode.
            ckpt_path: Checkpoint with a ``.routing.json`` beside it, as ``lightning-efficient calibrate`` writes it.
            options: Of the constructor, such as ``budget``.

        Raises:
            ConfigurationError: no checkpoint or no routing file, a damaged one, one of other weights, or a module that
                is no hybrid.
        """
        names = ("base_outputs", "router", "global_logits")
        if missing := [name for name in names if not hasattr(module, name)]:
            message = f"module: {type(module).__name__} is no hybrid, as it has no {missing[0]!r}"
            raise ConfigurationError(message)
        path = RoutingFile.find(ckpt_path)
        file = RoutingFile.read(path)
        file.check_weights(ckpt_path, path)
        load_module(module, ckpt_path)
        parts: Any = module
        options = {"features": False, **options}
        return cls(parts.base_outputs, parts.router, parts.global_logits, file.calibrated, **options)

    @property
    def threshold(self) -> float:
        """Largest query score that is kept."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: float | CalibratedRouting) -> None:
        self.set_threshold(threshold)

    def set_threshold(self, threshold: float | CalibratedRouting) -> None:
        """Use another threshold from the next call on.

        A number leaves the promise behind, and ``calibrated`` becomes ``None`` unless it is the calibrated number. What
        was calibrated anew holds for the models as they are now, in evaluation mode.

        Raises:
            ConfigurationError: it is no number, or of a cascade of more than two models.
        """
        value = _single(threshold) if isinstance(threshold, CalibratedRouting) else threshold
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ConfigurationError(
                f"threshold={value!r} must be a number; inf to keep every input and -inf to ask about every one"
            )
        if isinstance(threshold, CalibratedRouting):
            self.calibrated = threshold
            self.eval()
            self._guard = WeightsGuard(self.children(), (self.base, self.router, self.global_model))
        elif self.calibrated is not None and value != self.calibrated.thresholds[0]:
            self.calibrated = None
        self._threshold = float(value)

    def check_weights(self) -> None:
        """Compare all weights with those that were calibrated, whatever it costs.

        Raises:
            ConfigurationError: they changed.
        """
        self._refuse_changed_weights(thorough=True)

    @torch.inference_mode()
    def forward(self, inputs: Tensor) -> RoutedPrediction:
        """Answer a batch, whose first dimension counts the inputs; it may be empty."""
        self._refuse_changed_weights()
        start = perf_counter()
        logits, score = self._ask_base(inputs)
        probabilities = at_least_float32(logits).softmax(-1)
        confidence, prediction = probabilities.max(-1)
        known = confidence.isfinite()
        asked = ~((score.double() <= self._threshold) & score.isfinite() & known)
        rows = self._within_budget(asked, score, known)
        audited = self._draw_audit(asked, len(rows))
        answer = RoutedPrediction(prediction, torch.zeros_like(prediction), score, confidence, probabilities)
        own = prediction if self.monitor is None else prediction.clone()
        compared, agrees = rows[:0], asked[:0]
        base_seconds, global_seconds = perf_counter() - start, None
        if len(rows) or len(audited):
            start = perf_counter()
            found = self._ask_global(inputs, rows, audited, probabilities)
            answer = answer._replace(source=answer.source.index_fill(0, rows, FALLBACK))
            if found is not None:
                answer, compared, agrees = self._merged(answer, found, rows, audited, own)
            global_seconds = perf_counter() - start
        answer = self._fallen_back(answer, known)
        notes = BatchNotes(answer.source, asked, len(rows), len(audited), base_seconds, global_seconds)
        with self._notes_lock:
            notes.add_to(self.statistics)
            if self.monitor is not None:
                for event in self.monitor.observe(RoutedBatch(score, own, answer.source, compared, agrees)):
                    self.events(event)
        return answer

    def _ask_base(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self._tap is None:
            output = self.base(inputs)
        else:
            with self._base_lock:
                output = self._tap(inputs)
        logits, extra = (output[0], output[1]) if isinstance(output, tuple) else (output, None)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
            raise ConfigurationError(
                f"base returns {_described(logits)} for {len(inputs)} inputs; it must return logits (N, C)"
            )
        if self._needs_features and extra is None:
            raise ConfigurationError(
                f"router: {type(self.router).__name__} needs the features of the base, which returns logits alone; let "
                "it return (logits, features), or give it as a module"
            )
        score = self.router(logits, extra) if self._takes_features else self.router(logits)
        if not isinstance(score, Tensor) or score.shape != logits.shape[:1]:
            raise ConfigurationError(
                f"router returns {_described(score)} for {len(inputs)} inputs; it must return query scores (N,)"
            )
        return logits, at_least_float32(score)

    def _within_budget(self, asked: Tensor, score: Tensor, known: Tensor) -> Tensor:
        """Return the rows to send, upward: those of the largest scores where they are more than the budget."""
        rows = asked.nonzero().squeeze(1)
        limit = most_sent(self.budget, len(asked))
        if len(rows) <= limit:
            return rows
        urgency = score.where(score.isfinite() & known, math.inf)[rows]
        over = len(rows) - limit
        message = f"{over} of {len(rows)} inputs to ask about are over the budget of {limit}; the base answers them"
        self._tell("budget", message, rows=over, budget=limit)
        return most_urgent(rows, urgency, limit)

    def _draw_audit(self, asked: Tensor, sent: int) -> Tensor:
        room = most_sent(self.budget, len(asked)) - sent
        kept = (~asked).nonzero().squeeze(1) if self.monitor is not None and room > 0 else None
        if kept is None or self.monitor is None:
            return torch.empty(0, dtype=torch.int64, device=asked.device)
        with self._notes_lock:
            return drawn(self.monitor.draw_audit(kept), room, self._generator)

    def _ask_global(self, inputs: Tensor, rows: Tensor, audited: Tensor, like: Tensor) -> Tensor | None:
        """Return the global model's probabilities ``(m, C)`` of rows and audited rows, or nothing if it is away."""
        sent = torch.cat([rows, audited]) if len(audited) else rows
        try:
            # all rows in their order are the batch itself
            output = self.global_model(inputs if len(rows) == len(inputs) else inputs.index_select(0, sent))
        except GlobalUnavailable as error:
            lost = f"{len(rows)} inputs fall back" if len(rows) else f"{len(audited)} audited inputs go uncompared"
            message = f"the global model is not available ({error}); {lost}"
            self._tell("global_unavailable", message, rows=len(rows), audited=len(audited), reason=str(error))
            return None
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(sent):
            raise ConfigurationError(
                f"global_model returns {_described(logits)} for {len(sent)} inputs; it must return logits (N, C)"
            )
        _refuse_other_classes(like.shape[1], logits.shape[1])
        return at_least_float32(logits).softmax(-1).to(like)

    def _merged(
        self, answer: RoutedPrediction, found: Tensor, rows: Tensor, audited: Tensor, own: Tensor
    ) -> tuple[RoutedPrediction, Tensor, Tensor]:
        """Put the global model's probabilities in their places, and compare both models where they can be."""
        sure, best = found.max(-1)
        usable = sure.isfinite()
        compared = torch.cat([rows, audited]) if len(audited) else rows
        if not usable.all():
            lost = int((~usable[: len(rows)]).sum())
            message = f"{lost} of {len(rows)} rows of the global model's logits are not finite and fall back"
            if lost:
                self._tell("global_not_finite", message, rows=lost)
            rows, compared = rows[usable[: len(rows)]], compared[usable]
            sure, best, found = sure[usable], best[usable], found[usable]
        agrees = best == own[compared] if self.monitor is not None else usable[:0]
        count = len(rows)
        if count == len(own):
            answer = RoutedPrediction(best, torch.ones_like(best), answer.query_score, sure, found)
        else:
            answer.prediction.index_copy_(0, rows, best[:count])
            answer.source.index_fill_(0, rows, GLOBAL)
            answer.confidence.index_copy_(0, rows, sure[:count])
            answer.probabilities.index_copy_(0, rows, found[:count])
        return answer, compared, agrees

    def _fallen_back(self, answer: RoutedPrediction, known: Tensor) -> RoutedPrediction:
        """Say who answers for want of the global model, and where nobody does."""
        prediction, source, _, confidence, probabilities = answer
        if not known.all():
            lost = ~known & (source != GLOBAL)
            if count := int(lost.sum()):
                source[lost], prediction[lost] = FALLBACK, NO_ANSWER
                confidence[lost], probabilities[lost] = 0.0, 0.0
                message = f"the base's logits of {count} inputs are not finite, and nobody else answered them"
                self._tell("base_not_finite", message, rows=count)
        if self.fallback == "abstain":
            floor = math.inf if self.fallback_floor is None else self.fallback_floor
            prediction[(source == FALLBACK) & (confidence < floor)] = NO_ANSWER
        return answer

    def _tell(self, kind: EventKind, message: str, **details: Any) -> None:
        with self._notes_lock:
            self.events(RoutingEvent(kind, message, details))

    def _refuse_changed_weights(self, *, thorough: bool = False) -> None:
        parts = (self.base, self.router, self.global_model)
        if self._guard is not None and self._guard.changed(parts, thorough=thorough):
            raise ConfigurationError(
                "the weights of base, router or global model, or their layers, changed after the threshold was "
                "calibrated, which voids its promise; calibrate again and set_threshold"
            )


def _single(calibrated: CalibratedRouting) -> float:
    if len(calibrated.thresholds) != 1:
        raise ConfigurationError(
            f"threshold has {len(calibrated.thresholds)} thresholds, of a cascade; use CascadePredictor"
        )
    return calibrated.thresholds[0]


def _refuse_other_classes(base: int, other: int) -> None:
    if base != other:
        raise ConfigurationError(
            f"global_model has {other} classes and base has {base}; both must have the same classes in the same order"
        )


def _described(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
