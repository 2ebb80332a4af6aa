"""What a classifier would achieve if it were allowed not to answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DistributedSampler

from lightning_efficient import functional as LF
from lightning_efficient._trainer import callbacks_of
from lightning_efficient.callbacks._moment import returned
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import RiskCoverage, RiskKind, Score
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.operating_points import RISK_KINDS
from lightning_efficient.metrics import RiskCoverageCurve
from lightning_efficient.reporting import log_curve, log_figure, log_scalars, risk_coverage_figure
from lightning_efficient.typing import Batch, Predictions

CURVE_POINTS = 1000
DEFAULT_NAME = "selective"


class SelectiveCoverage(Callback):
    """Gather confidence and correctness in validation and test, and log the risk-coverage trade.

    Logged for each stage, here ``val``: ``selective/val_aurc``, ``selective/val_augrc``, and for each asked value
    ``selective/val_coverage_at_risk_0.01``, ``selective/val_threshold_at_risk_0.01`` (answer when the confidence is at
    least this; left out where no threshold reaches the risk), ``selective/val_risk_at_coverage_0.9``. They can be
    monitored. The curve is logged each epoch as ``selective/risk_coverage`` (``selective/test_risk_coverage`` in test)
    and drawn at the end into ``<run folder>/risk_coverage.png``. Samples that a distributed sampler repeats to fill the
    last batch are counted once. Costs one confidence per sample, 5 bytes each, and a sort per epoch; nothing in
    training steps.

    Args:
        risks: Risks for which to log the coverage and the threshold, each in ``[0, 1]``.
        coverages: Coverages for which to log the risk, each in ``(0, 1]``.
        score: Confidence: ``msp``, ``margin``, ``entropy``, ``energy``, ``max_logit``, or a function of the logits. By
            default the ``confidence`` that a step returns beside its logits, or else ``msp``.
        kind: ``selective`` risk (share of errors among the answered), or ``generalized`` (errors among all samples).
        predictions: ``(module, batch, step_output) -> (logits, target)``, for modules whose steps do not return
            ``{"logits", "target"}``; ``lightning_efficient.callbacks.from_forward`` runs the module once more.
        bins: Number of bins of the confidence, for a state of constant size; default: every sample, exact.
        bin_range: Lowest and highest confidence of the bins; by default 0 and 1.
        name: First part of the logged names; give each its own to use several of these callbacks together.

    Raises:
        ConfigurationError: a value outside its range, two callbacks of one name, or steps that return no predictions.
    """

    def __init__(
        self,
        risks: Sequence[float] = (0.01,),
        coverages: Sequence[float] = (0.9,),
        score: Score | None = None,
        kind: RiskKind = "selective",
        predictions: Predictions | None = None,
        bins: int | None = None,
        bin_range: tuple[float, float] | None = None,
        name: str = DEFAULT_NAME,
    ) -> None:
        _check_values("risks", risks, lambda value: 0 <= value <= 1, "[0, 1]")
        _check_values("coverages", coverages, lambda value: 0 < value <= 1, "(0, 1]")
        check_choice("SelectiveCoverage: kind", kind, RISK_KINDS)
        self.risks = tuple(risks)
        self.coverages = tuple(coverages)
        self.kind = kind
        self.predictions = predictions
        self.name = name
        # one metric per loader; an impossible score or number of bins is told here, not after an epoch
        self._empty = RiskCoverageCurve(score=score or "msp", bins=bins, bin_range=bin_range)
        self._ask_step = score is None and predictions is None
        self._metrics: list[RiskCoverageCurve] = []
        self._samples: list[int] = []
        self._last: tuple[str, RiskCoverage] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second callback of the same name, and shards that leave it wrong or without logits."""
        names = [callback.name for callback in callbacks_of(trainer, SelectiveCoverage)]
        if names.count(self.name) > 1:
            raise ConfigurationError(f"two SelectiveCoverage callbacks are named {self.name!r}; give each its own name")
        self._check_strategy(trainer)

    def _check_strategy(self, trainer: Trainer) -> None:
        if isinstance(trainer.strategy, FSDPStrategy) and self.predictions is from_forward:
            raise ConfigurationError(
                "SelectiveCoverage: from_forward runs the module outside of FSDPStrategy, which then has no whole "
                "weights; let the steps return {'logits', 'target'}"
            )
        if isinstance(trainer.strategy, ModelParallelStrategy):
            replicas = trainer.strategy.distributed_sampler_kwargs["num_replicas"]
            if replicas != trainer.world_size:
                raise ConfigurationError(
                    f"SelectiveCoverage would count each sample {trainer.world_size // replicas} times; give "
                    "ModelParallelStrategy tensor_parallel_size=1"
                )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._reset(pl_module, trainer.val_dataloaders)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._reset(pl_module, trainer.test_dataloaders)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self._update(pl_module, trainer.val_dataloaders, outputs, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self._update(pl_module, trainer.test_dataloaders, outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the values and the curve."""
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the values and the curve, and draw it."""
        self._log(trainer, pl_module, "test")
        self._draw(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curve, unless an epoch of training follows."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last curve."""
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the last curve of a run that was stopped."""
        self._draw(trainer)

    def confidence_and_loss(self, index: int = 0) -> tuple[Tensor, Tensor]:
        """Return what the last epoch gathered, of all processes: confidence and error, each of shape ``(N,)``.

        Args:
            index: Which data loader.

        Raises:
            ConfigurationError: with ``bins`` no samples are kept.
        """
        return self._metrics[index].samples()

    def _reset(self, module: LightningModule, loaders: Any) -> None:
        self._samples = [0 for _ in tree_leaves(loaders)]
        self._metrics = [deepcopy(self._empty).to(module.device) for _ in self._samples]

    def _update(self, module: LightningModule, loaders: Any, outputs: Any, batch: Batch, index: int) -> None:
        logits, target = (self.predictions or _from_outputs)(module, batch, outputs)
        keep = self._first_time_seen(tree_leaves(loaders)[index], index, len(target))
        confidence = outputs.get("confidence") if self._ask_step else None
        if confidence is not None:
            confidence = confidence[keep]
            self._check_range(module, confidence)
        self._metrics[index].update(logits[keep], target[keep], confidence=confidence)

    def _check_range(self, module: LightningModule, confidence: Tensor) -> None:
        """Raise where bins cannot tell the confidences of a module apart; those of ``msp`` always fit."""
        low, high = self._empty.bin_range
        if self._empty.bins is not None and len(confidence) and not low <= confidence.min() <= confidence.max() <= high:
            raise ConfigurationError(
                f"SelectiveCoverage: the confidence of {type(module).__name__} goes from {confidence.min():.4g} to "
                f"{confidence.max():.4g}, and bins from {low:g} to {high:g}; give bin_range, or leave bins out"
            )

    def _first_time_seen(self, loader: Any, index: int, count: int) -> slice:
        """Return the samples of a batch that are no repetition; repetitions are the last ones of a rank."""
        start = self._samples[index]
        self._samples[index] += count
        sampler = getattr(loader, "sampler", None)
        if not isinstance(sampler, DistributedSampler):
            return slice(count)
        own = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
        return slice(max(0, min(count, own - start)))

    def _log(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        prefix = "" if stage == "val" else f"{stage}_"
        for index, metric in enumerate(self._metrics):
            suffix = f"/dataloader_idx_{index}" if len(self._metrics) > 1 else ""
            summary = metric.summary()
            values = self._values(summary)
            log_scalars(trainer, {f"{self.name}/{stage}_{key}{suffix}": x for key, x in values.items()}, module)
            key = f"{self.name}/{prefix}{self._stem}{suffix.replace('/', '_')}"
            log_curve(trainer, key, ("coverage", f"{self.kind} risk", "threshold"), _curve_rows(summary, self.kind))
            if index == 0:
                self._last = (key, summary)

    def _values(self, summary: RiskCoverage) -> dict[str, float]:
        values = {"aurc": float(LF.aurc(summary)), "augrc": float(LF.augrc(summary))}
        for risk in self.risks:
            coverage, threshold = LF.coverage_at_risk(summary, risk=risk, kind=self.kind)
            values[f"coverage_at_risk_{risk:g}"] = float(coverage)
            if math.isfinite(threshold):
                values[f"threshold_at_risk_{risk:g}"] = float(threshold)
        for share in self.coverages:
            values[f"risk_at_coverage_{share:g}"] = float(
                LF.risk_at_coverage(summary, coverage=share, kind=self.kind)[0]
            )
        return values

    @property
    def _stem(self) -> str:
        return "risk_coverage" if self.name == DEFAULT_NAME else f"{self.name}_risk_coverage"

    def _draw(self, trainer: Trainer) -> None:
        if self._last is not None:
            (key, summary), self._last = self._last, None
            stage = "test" if "/test_" in key else "validation"
            log_figure(trainer, key, lambda: risk_coverage_figure(summary, stage, self.risks, self.kind))


def from_forward(module: LightningModule, batch: Batch, outputs: Any) -> tuple[Tensor, Tensor]:
    """Run ``module(batch[0])`` again for the logits and take ``batch[1]`` as target; costs one more forward pass."""
    with torch.no_grad():
        return module(batch[0]), batch[1]


def _from_outputs(module: LightningModule, batch: Batch, outputs: Any) -> tuple[Tensor, Tensor]:
    if isinstance(outputs, Mapping) and "logits" in outputs and "target" in outputs:
        return outputs["logits"], outputs["target"]
    raise ConfigurationError(
        f"SelectiveCoverage: the step of {type(module).__name__} returns {returned(outputs)}; return {{'logits', "
        "'target'}, or pass predictions=(a function of module, batch and step output that returns logits and target)"
    )


def _curve_rows(summary: RiskCoverage, kind: RiskKind) -> list[tuple[float, ...]]:
    points = LF.risk_coverage_curve(summary)
    risk = points.selective_risk if kind == "selective" else points.generalized_risk
    picked = torch.linspace(0, len(points.coverage) - 1, min(len(points.coverage), CURVE_POINTS)).round().long()
    columns = (points.coverage, risk, points.threshold)
    return list(zip(*(column.cpu()[picked].tolist() for column in columns), strict=True))


def _check_values(option: str, values: Sequence[float], fits: Any, allowed: str) -> None:
    if wrong := [value for value in values if not fits(value)]:
        raise ConfigurationError(f"SelectiveCoverage: {option} holds {wrong[0]}; values must be in {allowed}")
