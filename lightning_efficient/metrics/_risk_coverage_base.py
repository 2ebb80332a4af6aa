"""The state that all risk-coverage metrics share, so that a MetricCollection updates and sorts it once."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import Module
from torch.utils.weak import WeakTensorKeyDictionary
from torchmetrics import Metric

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_positive
from lightning_efficient.functional.bootstrap import bootstrap_interval
from lightning_efficient.functional.confidence import Score, confidence_from_probs
from lightning_efficient.functional.confidence import confidence as confidence_from_logits
from lightning_efficient.functional.operating_points import RiskKind, risks_at
from lightning_efficient.functional.risk_coverage import (
    RiskCoverage,
    are_errors,
    bin_edges,
    bin_indices,
    cast_samples,
    checked_samples,
    risk_coverage_summary,
)
from lightning_efficient.functional.risk_coverage_area import augrc, aurc
from lightning_efficient.metrics._gather import gather_promoted
from lightning_efficient.metrics._plot import OperatingPoint, RiskBand, band_grid, draw_risk_coverage, new_axes

Input: TypeAlias = Literal["logits", "probs"]


class RiskCoverageMetric(Metric):
    """Base of the metrics that are read from one risk-coverage summary.

    A subclass says what to read from the summary, in ``_evaluate``, and what to write on the plot of the curve.

    Args:
        score: Confidence of a prediction, by name or as a function; see ``functional.confidence``.
        temperature: Divides the logits before the score.
        input: Whether ``preds`` are ``"logits"`` or ``"probs"``.
        bins: Number of equal-width bins of the confidence, for a state of constant size (16 bytes per bin); the default
            keeps every sample (5 bytes each) and is exact. The edges, and so the thresholds, are rounded to the dtype
            of the confidence, which all batches should share.
        bin_range: Lowest and highest confidence of the bins; values outside are counted in the end bins. Default
            ``(0, 1)``, which only ``"msp"`` and ``"margin"`` are known to keep to.
        validate_args: Whether ``update`` looks for values that are not finite or out of range, which waits for the
            device each time.
        kwargs: What every ``torchmetrics.Metric`` takes.
    """

    is_differentiable: bool = False
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0

    confidence: list[Tensor]
    loss: list[Tensor]
    weight: list[Tensor]
    bin_count: Tensor
    bin_loss: Tensor
    bin_float32: Tensor
    bin_mixed: Tensor
    settings: Tensor

    # Keyed by the merged state, which the members of a compute group share; an entry dies with the state.
    _summaries: ClassVar[WeakTensorKeyDictionary] = WeakTensorKeyDictionary()

    def __init__(
        self,
        *,
        score: Score = "msp",
        temperature: float = 1.0,
        input: Input = "logits",
        bins: int | None = None,
        bin_range: tuple[float, float] | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dist_sync_fn", gather_promoted)
        super().__init__(**kwargs)
        _check_options(score, temperature, input, bins, bin_range)
        self.score = score
        self.temperature = temperature
        self.input = input
        self.bins = bins
        self.bin_range = bin_range or (0.0, 1.0)
        self.validate_args = validate_args
        self._edges: Tensor | None = None
        self._marked: Tensor | None = None
        if bins is None:
            for name in ("confidence", "loss", "weight"):
                self.add_state(name, [], dist_reduce_fx="cat")
        else:
            for name in ("bin_count", "bin_loss"):
                self.add_state(name, torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")
            # Whether a confidence was float32, and whether the sums are of other than single samples and errors.
            for name in ("bin_float32", "bin_mixed"):
                self.add_state(name, torch.zeros(1, dtype=torch.uint8), dist_reduce_fx="max")
        # torchmetrics shares states that agree after the first batch, and two scores may agree on it by chance.
        self.add_state("settings", _digest(score, temperature, input, bins, self.bin_range), dist_reduce_fx="max")

    def update(
        self,
        preds: Tensor | None = None,
        target: Tensor | None = None,
        *,
        confidence: Tensor | None = None,
        loss: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            preds: Logits or probabilities, as ``input`` says, shape ``(N, C)``, any float dtype.
            target: True classes, shape ``(N,)``, integer.
            confidence: Own confidence, higher means surer, shape ``(N,)``; replaces the score of ``preds``.
            loss: Own loss in ``[0, 1]``, shape ``(N,)``; replaces the error of ``preds`` against ``target``.
            weight: How many samples each one stands for, shape ``(N,)``; default 1. Given for all batches or for none.

        Raises:
            ConfigurationError: missing or misshapen tensors, losses outside ``[0, 1]``, or confidences that are not
                finite, of which the first is named by its index in this batch.
        """
        if confidence is None or loss is None:
            score, predicted = self._predict(preds)
            confidence = score if confidence is None else confidence
            loss = _errors(predicted, target) if loss is None else loss
        confidence, loss = confidence.detach(), loss.detach()
        if self.validate_args:
            confidence, loss, weight = checked_samples(confidence, loss, weight, within=" of the batch")
        else:
            confidence, loss, weight = cast_samples(confidence, loss, weight)
        if self.bins is None:
            self._append(confidence, loss, weight)
        else:
            self._count(confidence, loss, weight, self.bins)

    def update_scores(self, confidence: Tensor, loss: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch of own confidences and losses; the same as ``update`` with these keywords."""
        self.update(confidence=confidence, loss=loss, weight=weight)

    def compute(self) -> Any:
        """Return the value over all batches and ranks."""
        return self._evaluate(self._summarise())

    def summary(self) -> RiskCoverage:
        """Return the sorted summary over all batches and ranks, for any function of ``functional``."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._summarise()

    def samples(self) -> tuple[Tensor, Tensor]:
        """Return confidence and loss of every sample of all ranks, each of shape ``(N,)``, on the metric's device.

        Raises:
            ConfigurationError: the state is binned, and keeps no samples.
        """
        if self.bins is not None:
            raise ConfigurationError(f"bins={self.bins} keeps no samples; leave bins out.")
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            confidence, loss = _merge(self.confidence), _merge(self.loss)
            if confidence is None or loss is None:
                empty = torch.zeros(0, device=self.device)
                return empty, empty
            return confidence, loss

    def confidence_interval(self, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return the bootstrap interval of the value over all batches and ranks; not of the threshold beside it.

        It says how much the value would vary with the samples, not with the training. Samples are drawn by themselves:
        where they come in groups, such as frames of one video, it is too narrow.

        Args:
            level: Share of the resamples inside the interval, in ``(0, 1)``.
            resamples: How many to draw, each at the cost of one ``compute`` without the sort.
            seed: Of the draws; the same one gives the same interval.

        Returns:
            Low and high end, float64 scalars; see :func:`lightning_efficient.functional.bootstrap.bootstrap_interval`.

        Raises:
            ConfigurationError: a level outside ``(0, 1)``, no resamples, or bins that hold weighted samples or losses
                other than 0 and 1; weights that are all 1 are none.
        """
        return self._interval(self._scalar, level, resamples, seed)

    def plot(
        self,
        val: Any = None,
        ax: Axes | None = None,
        *,
        interval: float | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> tuple[Figure, Axes]:
        """Draw the curve this metric is read from, with the perfect and the random ranking.

        Args:
            val: What ``compute`` returned; computed if not given.
            ax: Where to draw; a new figure, unknown to pyplot, if not given.
            interval: Level of a band around the curve, such as 0.95: the bootstrap interval of the risk at each
                coverage by itself, not of the curve as a whole.
            resamples: See :meth:`confidence_interval`.
            seed: See :meth:`confidence_interval`.
        """
        ax = new_axes() if ax is None else ax
        value, summary = self.compute() if val is None else val, self.summary()
        label, mark = self._legend(summary, value), self._operating_point(summary, value)
        band = None
        if interval is not None and not summary.is_empty:
            coverage = band_grid(summary)

            def risks(resample: RiskCoverage) -> Tensor:
                return risks_at(resample, coverage, self._drawn_risk)

            band = RiskBand(interval, coverage, *self._interval(risks, interval, resamples, seed))
        points = [mark] if mark else []
        draw_risk_coverage(ax, summary, kind=self._drawn_risk, label=label, points=points, band=band)
        return cast("Figure", ax.figure), ax

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        """Move the states and never cast them with a module that goes to bfloat16, where a count stops at 256."""
        return super()._apply(lambda state: state.to(fn(state).device), exclude_state)

    @abstractmethod
    def _evaluate(self, summary: RiskCoverage) -> Any:
        """Read the value of the metric from the summary of all samples."""

    @property
    def _drawn_risk(self) -> RiskKind:
        return "selective"

    def _legend(self, summary: RiskCoverage, value: Any) -> str:
        if self._drawn_risk == "generalized":
            return f"model, AUGRC {float(augrc(summary)):.4g}"
        return f"model, AURC {float(aurc(summary)):.4g}"

    def _operating_point(self, summary: RiskCoverage, value: Any) -> OperatingPoint | None:
        return None

    def _predict(self, preds: Tensor | None) -> tuple[Tensor, Tensor]:
        if preds is None:
            raise ConfigurationError("update needs preds and target, or confidence= and loss= of each sample.")
        if preds.ndim != 2:
            raise ConfigurationError(f"preds must have shape (N, C), got {tuple(preds.shape)}; reshape them first.")
        if self.input == "logits":
            return confidence_from_logits(preds, self.score, self.temperature), preds.argmax(-1)
        # The largest probability comes with its class in one pass, and is most often all that is wanted.
        top, predicted = preds.max(-1)
        if self.validate_args and top.numel() > 0 and top.max() > 1.001:
            raise ConfigurationError('preds hold values above 1 and input="probs" was given; use input="logits".')
        return (top if self.score == "msp" else confidence_from_probs(preds, self.score)), predicted

    def _append(self, confidence: Tensor, loss: Tensor, weight: Tensor | None) -> None:
        self.confidence.append(confidence)
        self.loss.append(loss)
        if weight is not None:
            self.weight.append(weight.detach())

    def _count(self, confidence: Tensor, loss: Tensor, weight: Tensor | None, bins: int) -> None:
        edges = self._edges
        if edges is None or (edges.dtype, edges.device) != (confidence.dtype, confidence.device):
            edges = bin_edges(bins, *self.bin_range, dtype=confidence.dtype, device=confidence.device)
            edges[0] = -torch.inf
            self._edges = edges
        index = bin_indices(confidence, edges, *self.bin_range)
        mass = torch.ones_like(loss, dtype=torch.float64) if weight is None else weight.double()
        # Not in place: a state that was reset under inference mode cannot be written to outside it.
        self.bin_count = self.bin_count.index_add(0, index, mass)
        self.bin_loss = self.bin_loss.index_add(0, index, loss.double() if weight is None else mass * loss)
        if confidence.dtype == torch.float32 and self.bin_float32 is not self._marked:
            self.bin_float32 = self._marked = torch.ones_like(self.bin_float32)
        # On the device: to branch on what the samples hold would wait for it.
        if weight is not None:
            self.bin_mixed = self.bin_mixed.maximum((weight != 1).any())
        if loss.is_floating_point():
            self.bin_mixed = self.bin_mixed.maximum(((loss != 0) & (loss != 1)).any())

    def _scalar(self, summary: RiskCoverage) -> Tensor:
        """Read what the interval is of: the value without its threshold."""
        value = self._evaluate(summary)
        return value[0] if isinstance(value, tuple) else value

    def _interval(
        self, statistic: Callable[[RiskCoverage], Tensor], level: float, resamples: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            samples: tuple[Any, ...] = (self._summarise(),)
            mixed = self.bins is not None and bool(self.bin_mixed.any())
            if self.bins is None:
                confidence, loss, weight = _merge(self.confidence), _merge(self.loss), _merge(self.weight)
                if loss is not None and (weight is not None or not are_errors(loss)):
                    samples = (confidence, loss, weight)
        if mixed:  # raised here, as the context would leave the metric synchronised
            raise ConfigurationError(
                f"bins={self.bins} hold weighted samples or losses other than 0 and 1, whose sums do not say what to "
                "draw; leave bins out for an interval."
            )
        return bootstrap_interval(statistic, *samples, level=level, resamples=resamples, seed=seed)

    def _summarise(self) -> RiskCoverage:
        if self.bins is not None:
            dtype = torch.float32 if self.bin_float32.any() else torch.float64
            return RiskCoverage.from_histogram(self.bin_count, self.bin_loss, *self.bin_range, dtype=dtype)
        confidence, loss, weight = _merge(self.confidence), _merge(self.loss), _merge(self.weight)
        if confidence is None or loss is None:
            return risk_coverage_summary(*torch.zeros(2, 0, device=self.device))
        if weight is not None and weight.shape != confidence.shape:
            raise ConfigurationError("Some batches had weights and others had none; give weight= to all or to none.")
        if confidence not in self._summaries:
            self._summaries[confidence] = risk_coverage_summary(confidence, loss, weight)
        return self._summaries[confidence]


def _merge(state: list[Tensor] | Tensor) -> Tensor | None:
    """Replace the batches of a list, in place, by one tensor, which all metrics that share the list then share."""
    if isinstance(state, list):
        if len(state) > 1:
            state[:] = [torch.cat(state)]
        state = state[0] if state else torch.zeros(0)
    return state if state.numel() > 0 else None


def _errors(predicted: Tensor, target: Tensor | None) -> Tensor:
    if target is None:
        raise ConfigurationError("update needs the target of each sample, or its loss as loss=.")
    if target.is_floating_point() or target.shape != predicted.shape:
        given = f"{target.dtype} of shape {tuple(target.shape)}"
        raise ConfigurationError(f"target must hold one class index per sample of preds, got {given}.")
    return predicted != target


def _check_options(
    score: Score, temperature: float, input: str, bins: int | None, bin_range: tuple[float, float] | None
) -> None:
    check_choice("input", input, ("logits", "probs"))
    check_positive("temperature", temperature)
    if not callable(score):
        check_choice("score", score, ("msp", "margin", "entropy", "energy", "max_logit"))
    if input == "probs" and (score in ("energy", "max_logit") or temperature != 1):
        raise ConfigurationError(f'score={score!r} at temperature={temperature} needs logits; use input="logits".')
    if bins is not None and bins < 1:
        raise ConfigurationError(f"bins={bins} must be at least 1, such as 1000, or None to keep every sample.")
    if bins is not None and bin_range is None and score not in ("msp", "margin"):
        raise ConfigurationError(f"score={score!r} has no fixed range; give bin_range=(low, high) with bins.")
    if bin_range is not None and not bin_range[0] < bin_range[1]:
        raise ConfigurationError(f"bin_range={bin_range} must be (low, high) with low < high.")


def _digest(*settings: object) -> Tensor:
    text = repr([getattr(value, "__qualname__", value) for value in settings])
    return torch.tensor(list(hashlib.blake2s(text.encode(), digest_size=8).digest()), dtype=torch.uint8)
