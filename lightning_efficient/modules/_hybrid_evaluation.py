"""What a hybrid of two models reports in validation and test, and how it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from lightning_efficient._trainer import is_rehearsal
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.confidence import msp
from lightning_efficient.functional.routing import (
    HybridCurve,
    accuracy_at_coverage,
    gap_to_oracle,
    hybrid_area,
    query_threshold,
)
from lightning_efficient.inference.routed import SOURCES, RoutedPredictor
from lightning_efficient.inference.routing_thresholds import CalibratedRouting
from lightning_efficient.metrics.routing import RoutingCurve
from lightning_efficient.modules._classifier import Classifier
from lightning_efficient.modules._routing_costs import RoutingCosts, routing_costs
from lightning_efficient.nn.routers import Router
from lightning_efficient.reporting import log_curve, log_figure, log_table
from lightning_efficient.reporting.hybrid import CostPoint, hybrid_figure

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.0)
"""Shares answered by the base for which a test reports accuracy and cost."""


class HybridEvaluation(Classifier):
    """Validation, test and prediction of a module with ``base_outputs``, ``global_logits`` and a ``router``."""

    router: Router
    threshold: Tensor
    threshold_path: Tensor
    routing: CalibratedRouting | None
    target_coverage: float
    latency_batch_size: int

    def base_outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return class scores and features of the base."""
        raise NotImplementedError

    def global_logits(self, inputs: Tensor) -> Tensor:
        """Return class scores of the global model."""
        raise NotImplementedError

    def edge_graph(self) -> nn.Module:
        """Return what runs at the edge: from inputs to class scores ``(N, C)`` and query score ``(N,)``."""
        raise NotImplementedError

    def global_graph(self) -> nn.Module:
        """Return what runs in the cloud: from the same inputs to class scores ``(N, C)``."""
        raise NotImplementedError

    def add_metrics(self) -> None:
        """Create the means and metrics of validation and test."""
        self.eval_loss = nn.CrossEntropyLoss(reduction="none")
        self.val_loss, self.test_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.val_curve, self.test_curve = RoutingCurve(), RoutingCurve()
        # the same samples in the order of the plain confidence, which a learned router has to beat
        self.val_plain, self.test_plain = RoutingCurve(), RoutingCurve()
        self._example: Tensor | None = None
        self._predictor: list[RoutedPredictor] = []  # a list, as it holds this module and must not be part of it

    def _evaluate(self, batch: Any, stage: str, metrics: Any = None) -> dict[str, Tensor]:
        inputs, target, *_ = batch
        self.check(inputs, target)
        logits, features = self.base_outputs(inputs)
        query_score = self.router(logits, features)
        asked = self.global_logits(inputs)
        predictions = torch.stack([logits.argmax(1), asked.argmax(1)], 1)
        correct = predictions == target.unsqueeze(1)
        curve, plain, mean = (getattr(self, f"{stage}_{name}") for name in ("curve", "plain", "loss"))
        curve.update(query_score, correct[:, 0], correct[:, 1])
        plain.update(-msp(logits), correct[:, 0], correct[:, 1])
        losses = self.eval_loss(logits.float(), target.long())
        mean.update(losses)
        self.log(f"{stage}/loss", mean)
        if stage == "test" and self._example is None:
            self._example = inputs.detach()
        return {
            "loss": losses.mean(),
            "logits": logits,
            "target": target,
            "confidence": -query_score,
            "query_score": query_score,
            "stage_predictions": predictions,
        }

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return what base, router and global model say of a batch."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return what base, router and global model say of a batch."""
        return self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log accuracies, area and gap under ``val/``, and the curve."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Log the same under ``test/``, with a table of costs and a picture."""
        self._report("test")

    def _report(self, stage: str) -> None:
        curve_of, plain_of = getattr(self, f"{stage}_curve"), getattr(self, f"{stage}_plain")
        curve: HybridCurve = curve_of.compute()
        oracle: HybridCurve = curve_of.oracle()
        plain: HybridCurve = plain_of.compute()
        scores, *samples = curve_of.samples
        curve_of.reset()
        plain_of.reset()
        values = {
            "accuracy": accuracy_at_coverage(curve, self.target_coverage),
            "base_accuracy": accuracy_at_coverage(curve, 1.0),
            "global_accuracy": accuracy_at_coverage(curve, 0.0),
            "hybrid_area": hybrid_area(curve),
            "msp_area": hybrid_area(plain),
            "gap_to_oracle": gap_to_oracle(curve, oracle),
        }
        threshold = self._threshold()
        if threshold is not None:
            base_correct, global_correct = samples
            kept = (scores <= threshold) & scores.isfinite()
            values["coverage"] = float(kept.double().mean())
            values["routed_accuracy"] = float(torch.where(kept, base_correct, global_correct).double().mean())
        for name, value in values.items():
            self.log(f"{stage}/{name}", float(value), prog_bar=name == "accuracy", sync_dist=True)
        rows = list(zip(curve.coverage.tolist(), curve.accuracy.tolist(), curve.threshold.tolist(), strict=True))
        log_curve(self.trainer, f"hybrid/{stage}_accuracy_coverage", ["coverage", "accuracy", "threshold"], rows)
        if stage == "test" and not is_rehearsal(self.trainer):
            self._report_costs(curve, oracle, plain, scores)

    def _report_costs(self, curve: HybridCurve, oracle: HybridCurve, plain: HybridCurve, scores: Tensor) -> None:
        example, self._example = self._example, None
        costs = None
        if self.trainer.is_global_zero and example is not None:
            costs = routing_costs(self, example, COVERAGES, self.latency_batch_size)
        columns = ["coverage", "threshold", "accuracy", "msp_accuracy", "oracle_accuracy", *RoutingCosts.columns]
        rows = []
        for coverage in COVERAGES:
            threshold = float("-inf") if coverage == 0 else query_threshold(scores, coverage)
            accuracies = [accuracy_at_coverage(each, coverage) for each in (curve, plain, oracle)]
            rows.append([coverage, threshold, *map(float, accuracies), *(costs.at(coverage) if costs else ())])
        if costs is not None:
            log_table(self.trainer, "hybrid/coverage", columns, rows)
        points = [
            CostPoint(row[0], row[2], costs.batch_ms[row[0]] / costs.batch_size)
            for row in rows
            if costs is not None and row[0] in costs.batch_ms
        ]
        target = self.target_coverage
        log_figure(
            self.trainer, "hybrid/accuracy_coverage", lambda: hybrid_figure(curve, oracle, plain, target, points)
        )

    # ------------------------------------------------------------------ prediction

    def _threshold(self) -> float | None:
        """Return the threshold in force: the calibrated one, else that of the training scores, if there is any."""
        if self.routing is not None:
            return self.routing.thresholds[0]
        return None if self.threshold.isnan() else float(self.threshold)

    def use_routing(self, routing: CalibratedRouting) -> None:
        """Route by what was calibrated for these weights from now on."""
        self.routing, self._predictor = routing, []

    def routed(self, threshold: float | CalibratedRouting | None = None, **options: Any) -> RoutedPredictor:
        """Return the predictor that asks the global model about hard inputs only.

        Args:
            threshold: Query where the query score is above it; by default the calibrated one, else that of the target
                coverage on the training scores.
            options: Of ``RoutedPredictor``, such as ``budget``.

        Raises:
            ConfigurationError: no threshold is given, calibrated or learned.
        """
        chosen: float | CalibratedRouting | None = self.routing if threshold is None else threshold
        chosen = self._threshold() if chosen is None else chosen
        if chosen is None:
            raise ConfigurationError(
                f"{type(self).__name__} has no threshold: train its router, calibrate one (lightning-efficient "
                "calibrate --max_drop 0.01 --confidence 0.9), or give a number"
            )
        return RoutedPredictor(self.base_outputs, self.router, self.global_logits, chosen, **options)

    def on_predict_start(self) -> None:
        """Build the predictor once."""
        self._predictor = [self.routed()]

    def on_predict_end(self) -> None:
        """Forget it: the threshold may change."""
        self._predictor = []

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | Sequence[str]]:
        """Return ``prediction``, ``confidence``, ``source`` (base, global, fallback) and ``query_score`` per input."""
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        (predictor,) = self._predictor or [self.routed()]
        answer = predictor(inputs)
        return {
            "prediction": answer.prediction,
            "confidence": answer.confidence,
            "source": [SOURCES[number] for number in answer.source.tolist()],
            "query_score": answer.query_score,
        }

    def ranking_metrics(self) -> dict[str, Metric]:
        """Return none: the curves of this class take their place."""
        return {}
