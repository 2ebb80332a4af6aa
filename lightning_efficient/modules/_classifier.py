"""What the classifiers share: checks against the data, metrics, prediction."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import confidence
from lightning_efficient.metrics import AURC


class Classifier(pl.LightningModule):
    """Base of modules whose ``forward`` gives class scores ``(N, num_classes)`` of inputs ``(N, ...)``.

    A subclass sets ``num_classes`` and ``in_chans`` (``None`` where inputs are no images) and calls ``add_metrics``.
    """

    num_classes: int
    in_chans: int | None

    def add_metrics(self) -> None:
        """Create the means and metrics of validation and test."""
        self.eval_loss = nn.CrossEntropyLoss(reduction="none")
        self.val_loss, self.test_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.val_metrics = self._metrics("val/")
        self.test_metrics = self._metrics("test/")

    def _metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(self.num_classes, average="micro"),
                "calibration_error": MulticlassCalibrationError(self.num_classes, n_bins=15),
                **self.ranking_metrics(),
            },
            prefix=prefix,
        )

    def ranking_metrics(self) -> dict[str, Metric]:
        """Return the metrics of how well the confidence ranks the answers, by name."""
        return {"aurc": AURC(bins=1000)}

    def setup(self, stage: str) -> None:
        """Compare classes and channels with the data module's, if it tells them."""
        if stage == "fit":
            for metric in self.modules():
                if isinstance(metric, Metric):
                    metric.reset()  # an evaluation in inference mode leaves states that training cannot change
        data = getattr(self.trainer, "datamodule", None)
        classes, channels = getattr(data, "num_classes", None), getattr(data, "in_chans", None)
        if isinstance(classes, int) and classes > self.num_classes:
            raise ConfigurationError(
                f"model.num_classes is {self.num_classes}, but {type(data).__name__} has {classes} classes; "
                f"set model.num_classes to {classes}"
            )
        if isinstance(channels, int) and self.in_chans not in (None, channels):
            raise ConfigurationError(_other_channels(self.in_chans, channels))

    def check(self, inputs: Tensor, labels: Tensor) -> None:
        """Raise for channels or labels that the model does not have."""
        if self.in_chans is not None and inputs.shape[1] != self.in_chans:
            raise ConfigurationError(_other_channels(self.in_chans, inputs.shape[1]))
        # reading a label waits for the device, so only the CPU looks at every batch
        if (
            labels.device.type == "cpu"
            and len(labels)
            and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes
        ):
            raise ConfigurationError(
                f"model.num_classes is {self.num_classes}, so labels must be 0 to {self.num_classes - 1}, but a batch "
                f"has labels from {int(labels.min())} to {int(labels.max())}"
            )

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` and the module's own ``confidence``, if any; log under ``val/``."""
        return self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` and the module's own ``confidence``, if any; log under ``test/``."""
        return self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, metrics: MetricCollection) -> dict[str, Tensor]:
        inputs, target, *_ = batch
        self.check(inputs, target)
        logits, own = self.scored(inputs)
        losses = self.eval_loss(logits.float(), target.long())
        mean = self.val_loss if stage == "val" else self.test_loss
        mean.update(losses)
        outputs = {"logits": logits, "target": target} | ({} if own is None else {"confidence": own})
        metrics.update(logits.float(), target, confidence=own)
        self.log(f"{stage}/loss", mean)
        self.log_dict(metrics, batch_size=len(inputs))
        return {"loss": losses.mean(), **outputs}

    def scored(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return class scores, and the module's own confidence, higher for surer, where it has one beside ``msp``."""
        return self(inputs), None

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"logits", "prediction", "confidence"}`` of a batch of inputs, with or without labels."""
        logits, own = self.scored(batch[0] if isinstance(batch, list | tuple) else batch)
        sureness = confidence(logits) if own is None else own
        return {"logits": logits, "prediction": logits.argmax(1), "confidence": sureness}


def number_of_classes(given: int | None, found: int | None, role: str) -> int:
    """Return how many classes a network has, as given or as its classifier tells.

    Raises:
        ConfigurationError: neither says it, or they differ.
    """
    if given is None:
        if found is None:
            raise ConfigurationError(f"model.num_classes is not given, and the {role} has no layer that tells it")
        return found
    if found not in (None, given):
        raise ConfigurationError(
            f"model.num_classes is {given}, but the {role} has {found} classes; set model.num_classes to {found}"
        )
    return given


def _other_channels(expected: int | None, given: int) -> str:
    return (
        f"model.in_chans is {expected}, but the images have {given} channels; "
        "set model.in_chans and data.in_chans to the same number"
    )
