"""What classifiers share whose answers come from one of several stages: evaluation along thresholds, prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_efficient._trainer import gather_objects, is_rehearsal
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, is_integer
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.cascade import cascade_choice
from lightning_efficient.functional.distillation import distillation_kl
from lightning_efficient.functional.routing import QUERY_SCORES, QueryScore, query_score
from lightning_efficient.functional.threshold_path import threshold_path
from lightning_efficient.metrics import AURC
from lightning_efficient.modules._cascade_costs import CascadeNetwork, count_last, count_stages, time_cascade
from lightning_efficient.modules._cascade_counts import BOUNDED, CascadeCounts, CascadeResult, shared_path
from lightning_efficient.modules._classifier import Classifier
from lightning_efficient.nn._stage_answers import StageAnswers
from lightning_efficient.reporting import log_curve, log_figure, log_table
from lightning_efficient.reporting.cascade import CostCurve, CostMark, cascade_figure

if TYPE_CHECKING:
    from lightning_efficient.inference.routing_thresholds import CalibratedRouting

COST_POINTS = 6
"""Points of the path, evenly spaced by cost, for the table of a test."""

_KEPT = "cascade"


class CascadingClassifier(Classifier):
    """Base of classifiers with a ``network`` of several stages.

    A subclass sets ``network``, ``in_chans``, optimiser and scheduler, calls ``set_up``, and names its stages.
    """

    network: CascadeNetwork
    threshold_path: Tensor
    optimizer: Any
    lr_scheduler: Any
    lr_interval: str

    def set_up(
        self,
        *,
        score: QueryScore,
        weights: Sequence[float] | None,
        weights_option: str,
        distill: float,
        thresholds: Sequence[float] | float | None,
        latency_batch_size: int,
    ) -> None:
        """Check the common options and create metrics and the path.

        Raises:
            ConfigurationError: a value that cannot work.
        """
        if not callable(score):
            check_choice("model.score", score, QUERY_SCORES)
        if not 0 <= distill < math.inf:
            raise ConfigurationError(f"model.distill is {distill}; it must be 0 or more")
        if not is_integer(latency_batch_size) or latency_batch_size < 0:
            raise ConfigurationError(f"model.latency_batch_size is {latency_batch_size}; it must be 0 or more")
        self.num_classes = self.network.num_classes
        self.score: QueryScore = score
        self.distill = distill
        self.latency_batch_size = latency_batch_size
        self.stage_weights = _weights(weights, self.network.stages, weights_option)
        self.stage_costs: tuple[float, ...] | None = None
        self.routing: CalibratedRouting | None = None
        self.thresholds: tuple[float, ...] | None = None
        self.set_thresholds(thresholds)
        self.router_name = score if isinstance(score, str) else "function"
        self.register_buffer("threshold_path", shared_path(self.router_name, self.num_classes, self.network.stages))
        self._example: Tensor | None = None
        self._scores: list[Tensor] = []
        self.add_metrics()

    @property
    def stage_names(self) -> tuple[str, ...]:
        """What the stages are called in tables and pictures."""
        raise NotImplementedError

    def set_thresholds(self, thresholds: Sequence[float] | float | None) -> None:
        """Set what ``predict`` routes by: one query score per stage but the last, or one for all; ``None`` for none.

        Raises:
            ConfigurationError: another number of thresholds, or NaN.
        """
        wanted = self.network.stages - 1
        given = [thresholds] * wanted if isinstance(thresholds, int | float) else thresholds
        if given is not None and (len(given) != wanted or any(math.isnan(each) for each in given)):
            raise ConfigurationError(
                f"model.thresholds is {list(given)}; give {wanted} numbers, one for each stage but the last, or one"
            )
        self.thresholds = None if given is None else tuple(float(each) for each in given)

    def use_routing(self, routing: CalibratedRouting) -> None:
        """Route by what was calibrated for these weights from now on.

        Raises:
            ConfigurationError: it is for another number of stages.
        """
        if len(routing.thresholds) != self.network.stages - 1:
            raise ConfigurationError(
                f"the routing has {len(routing.thresholds)} thresholds, and {type(self).__name__} has "
                f"{self.network.stages} stages; calibrate again"
            )
        self.routing = routing

    def active_thresholds(self) -> tuple[float, ...] | None:
        """Return the calibrated thresholds, if there are any, else those that were set."""
        return self.thresholds if self.routing is None else tuple(self.routing.thresholds)

    def add_metrics(self) -> None:
        """Create the means and metrics of validation and test."""
        super().add_metrics()
        self.val_cascade, self.test_cascade = CascadeCounts(self.threshold_path), CascadeCounts(self.threshold_path)

    def ranking_metrics(self) -> dict[str, Metric]:
        """Return the metric of the last stage's confidence; of every sample, as not every score has a range."""
        return {"aurc": AURC()}

    # ------------------------------------------------------------------ training

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the class scores ``(N, C)`` of the last stage, as it is without the others."""
        return self.network.last(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}``; the loss is the weighted sum over the stages."""
        inputs, target, *_ = batch
        self.check(inputs, target)
        logits = self.network(inputs)
        self._gather(logits.detach())
        losses = self._stage_losses(logits, target)
        loss = sum(weight * each for weight, each in zip(self.stage_weights, losses, strict=True) if weight)
        assert isinstance(loss, Tensor)
        if self.distill:
            pull = distillation_kl_to_last(logits)
            self.log("train/distillation", pull.detach(), batch_size=len(inputs))
            loss = loss + self.distill * pull
        self.log("train/loss", loss, prog_bar=True, batch_size=len(inputs))
        return {"loss": loss, "logits": logits[:, -1], "target": target}

    def _gather(self, logits: Tensor) -> None:
        """Note the scores of a batch, where nothing but they tells their range."""
        if self.router_name not in BOUNDED:
            scores = [query_score(each, self.score) for each in logits[:, :-1].unbind(1)]
            self._scores.append(torch.stack(scores, 1).float().cpu())

    def on_validation_epoch_start(self) -> None:
        """Settle the path of a score without bounds on the training scores, before anything is counted along it."""
        if not self.trainer.sanity_checking:
            self._settle_path()

    def on_train_epoch_end(self) -> None:
        """Settle it where no validation did."""
        self._settle_path()

    def _settle_path(self) -> None:
        gathered = [each for own in gather_objects(self.trainer, self._scores) for each in own]
        self._scores = []
        if gathered:
            path = threshold_path(torch.cat(gathered), len(self.threshold_path)).float()
            self._take_path(path)

    def _take_path(self, path: Tensor) -> None:
        self.threshold_path.copy_(path)
        for counts in (self.val_cascade, self.test_cascade):
            cast(Tensor, counts.path).copy_(path)

    def _stage_losses(self, logits: Tensor, target: Tensor) -> list[Tensor]:
        scores = at_least_float32(logits)
        return [nn.functional.cross_entropy(each, target.long()) for each in scores.unbind(1)]

    def configure_optimizers(self) -> Any:
        """Build the optimiser of what learns, and the scheduler."""
        optimizer = self.optimizer([each for each in self.parameters() if each.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval}}

    # ------------------------------------------------------------------ evaluation

    def _evaluate(self, batch: Any, stage: str, metrics: Any) -> dict[str, Tensor]:
        inputs, target, *_ = batch
        self.check(inputs, target)
        if self._example is None or (stage == "test" and len(self._example) < self.latency_batch_size):
            known = [] if self._example is None else [self._example]
            wanted = self.latency_batch_size if stage == "test" else 1
            self._example = torch.cat([*known, inputs.detach()[: max(wanted, 1)]])
        logits = self.network(inputs)
        last = logits[:, -1]
        scores = torch.stack([query_score(each, self.score) for each in logits.unbind(1)], 1)
        predictions = logits.argmax(2)
        losses = self.eval_loss(last.float(), target.long())
        mean, counts = getattr(self, f"{stage}_loss"), getattr(self, f"{stage}_cascade")
        mean.update(losses)
        counts.update(scores[:, :-1], predictions == target.unsqueeze(1))
        metrics.update(last.float(), target, confidence=-scores[:, -1])
        self._count_routed(stage, scores[:, :-1], predictions == target.unsqueeze(1))
        self.log(f"{stage}/loss", mean)
        self.log_dict(metrics, batch_size=len(inputs))
        return {
            "loss": losses.mean(),
            "logits": last,
            "target": target,
            "confidence": -scores[:, -1],
            "query_score": scores[:, :-1],
            "stage_predictions": predictions,
        }

    def _count_routed(self, stage: str, scores: Tensor, correct: Tensor) -> None:
        """Log what the thresholds in force do, if there are any."""
        thresholds = self.active_thresholds()
        if thresholds is None or not len(scores):
            return
        choice = cascade_choice(scores, torch.tensor(thresholds, dtype=torch.float64)).to(correct.device)
        right = correct.gather(1, choice.unsqueeze(1)).float().mean()
        values = {"routed_accuracy": right, "coverage": (choice == 0).float().mean()}
        self.log_dict(
            {f"{stage}/{name}": value for name, value in values.items()}, batch_size=len(scores), sync_dist=True
        )

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy of each stage and the area under accuracy over cost."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Log the same, and what the thresholds cost, as tables and a picture."""
        self._report("test")

    def _report(self, stage: str) -> None:
        counts: CascadeCounts = getattr(self, f"{stage}_cascade")
        result = counts.compute()
        counts.reset()
        example, self._example = self._example, None
        assert example is not None
        if self.stage_costs is None:
            self.stage_costs = count_stages(self.network, example)
        values = {f"accuracy_stage{k + 1}": float(each) for k, each in enumerate(result.stage_accuracy[:-1])}
        values["cascade_area"] = result.area(self.stage_costs)
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)
        columns = ("macs", "accuracy", "threshold")
        thresholds = self.threshold_path[:, 0].tolist()
        rows = zip(result.costs(self.stage_costs).tolist(), result.accuracy.tolist(), thresholds, strict=True)
        log_curve(self.trainer, f"cascade/{stage}_accuracy_macs", columns, list(rows))
        if stage == "test" and not is_rehearsal(self.trainer):
            if self.trainer.is_global_zero:
                self._report_costs(result, example)
            self.trainer.strategy.barrier("CascadingClassifier")

    def _report_costs(self, result: CascadeResult, example: Tensor) -> None:
        assert self.stage_costs is not None
        macs, names = result.costs(self.stage_costs), self.stage_names
        goals = torch.linspace(float(macs.max()), float(macs.min()), COST_POINTS, dtype=macs.dtype)
        chosen = sorted({int((macs - goal).abs().argmin()) for goal in goals})
        points = [self.threshold_path[index].tolist() for index in chosen]
        times = None
        if self.latency_batch_size:
            with self.trainer.precision_plugin.forward_context():
                times = time_cascade(self.network, example[: self.latency_batch_size], points, self.score)
        rows = []
        for number, index in enumerate(chosen):
            shares = result.shares[index].tolist()
            row = [points[number][0], *shares, float(result.accuracy[index]), float(macs[index])]
            if times is not None:
                single = sum(share * each for share, each in zip(shares, times.single, strict=False))
                row += [single, times.batch_size, times.points[number]]
            rows.append(row)
        timed = ("latency_ms_mean_b1", "batch_size", "latency_ms_p50_batch")[: 3 if times else 0]
        columns = ("threshold", *(f"share_{name}" for name in names), "accuracy", "macs", *timed)
        log_table(self.trainer, "cascade/costs", columns, rows)
        accuracies = result.stage_accuracy.tolist()
        stages = [
            [*row, *((times.single[number], times.batch_size, times.batch[number]) if times else ())]
            for number, row in enumerate(
                [
                    *zip(names, accuracies, self.stage_costs, strict=True),
                    (f"{names[-1]} alone", accuracies[-1], count_last(self.network, example)),
                ]
            )
        ]
        timed = ("latency_ms_p50_b1", *timed[1:])[: 3 if times else 0]
        log_table(self.trainer, "cascade/stages", ("stage", "accuracy", "macs", *timed), stages)
        curve = CostCurve("cascade, one threshold for all stages", macs.tolist(), result.accuracy.tolist())
        marks = [CostMark(name, cost, accuracy) for name, accuracy, cost, *_ in stages[:-1]]
        log_figure(self.trainer, "cascade/accuracy_macs", lambda: cascade_figure([curve], marks, title="test"))

    # ------------------------------------------------------------------ prediction

    def route(self, inputs: Tensor, thresholds: Sequence[float] | None = None) -> StageAnswers:
        """Answer each input at the first stage that is sure enough, and compute nothing more for it.

        Args:
            inputs: Shape ``(N, ...)``.
            thresholds: One query score per stage but the last; by default the calibrated ones, else those set.

        Raises:
            ConfigurationError: there are no thresholds, or another number of them.
        """
        chosen = self.active_thresholds() if thresholds is None else thresholds
        if chosen is None:
            raise ConfigurationError(
                f"{type(self).__name__} has no thresholds: calibrate them (lightning-efficient calibrate --max_drop "
                "0.01 --confidence 0.9), or set model.thresholds"
            )
        return self.network.route(inputs, chosen, self.score)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return ``prediction``, ``confidence``, ``source`` (name of the stage) and ``query_score`` of each input.

        Without thresholds the last stage answers all; ``logits`` are those of the stage that answered.
        """
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        if self.active_thresholds() is None:
            logits = self.network.last(inputs)
            last = torch.full((len(inputs),), self.network.stages - 1, device=inputs.device)
            answers = StageAnswers(logits, last, query_score(logits, self.score))
        else:
            answers = self.route(inputs)
        return {
            "logits": answers.logits,
            "prediction": answers.logits.argmax(1),
            "confidence": -answers.query_score,
            "source": [self.stage_names[stage] for stage in answers.source.tolist()],
            "query_score": answers.query_score,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the stages cost."""
        scores = torch.cat(self._scores) if self._scores else None
        checkpoint[_KEPT] = {"stage_costs": self.stage_costs, "scores": scores}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        kept = checkpoint.get(_KEPT, {})
        self.stage_costs = kept.get("stage_costs")
        self._scores = [] if kept.get("scores") is None else [kept["scores"]]
        path = checkpoint["state_dict"].get("threshold_path")
        if path is not None and path.shape == self.threshold_path.shape:
            self._take_path(path)


def distillation_kl_to_last(logits: Tensor) -> Tensor:
    """Return the mean divergence of the earlier stages from the last, of which none moves the last; a scalar."""
    last = logits[:, -1].detach()
    early = [distillation_kl(each, last, student_temperature=1.0) for each in logits[:, :-1].unbind(1)]
    return torch.stack(early).mean()


def _weights(given: Sequence[float] | None, stages: int, option: str) -> tuple[float, ...]:
    if given is None:
        return (1.0,) * stages
    if len(given) != stages or not all(0 <= each < math.inf for each in given) or not any(given):
        raise ConfigurationError(
            f"{option} is {list(given)}; give {stages} numbers of 0 or more, one for each stage, not all 0"
        )
    return tuple(float(each) for each in given)
