"""A timm model as a LightningModule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from lightning_efficient._lightning_compat import hyperparameters_are_given
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import confidence
from lightning_efficient.metrics import AURC
from lightning_efficient.modules._timm import create_backbone, data_config

if TYPE_CHECKING:
    from timm.data import Mixup


class ImageClassifier(pl.LightningModule):
    """Train and evaluate any timm model as an image classifier.

    Steps take ``(images, labels)``: float images ``(N, C, H, W)`` and integer labels ``(N,)``, and return
    ``{"loss", "logits", "target"}``. Validation and test log loss, accuracy, calibration error (15 bins) and the area
    under the risk-coverage curve (1,000 bins). Costs what the timm model costs.

    Args:
        backbone: Name of a timm model, such as ``mobilenetv3_small_050``.
        num_classes: Number of classes; ``None`` keeps the timm model's own.
        in_chans: Channels of the images: 3, or 1 for grey images.
        pretrained: Whether to start from timm's pretrained weights.
        backbone_kwargs: Further arguments of ``timm.create_model``, such as ``{drop_rate: 0.1}``.
        loss: ``cross_entropy``, or ``bce``: one binary problem per class, as in timm's newer recipes.
        label_smoothing: Share of the target spread over all classes, in ``[0, 1)``.
        mixup: Alpha of Mixup, 0 for none. Targets become soft in training.
        cutmix: Alpha of CutMix, 0 for none; with both, each batch takes one of them.
        optimizer: From parameters to an optimiser.
        lr_scheduler: From an optimiser to a learning rate scheduler.
        lr_interval: Whether the scheduler counts epochs or steps.
        channels_last: Whether to keep weights and images in channels-last memory order.
        compile: Whether to compile the backbone with ``torch.compile``.
        ema_decay: Decay of an exponential moving average of the weights, which evaluation and checkpoints then use.

    Raises:
        ConfigurationError: an unknown backbone (with the closest names), or a value outside its range.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int | None = None,
        in_chans: int = 3,
        pretrained: bool = False,
        backbone_kwargs: dict[str, Any] | None = None,
        loss: Literal["cross_entropy", "bce"] = "cross_entropy",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        channels_last: bool = False,
        compile: bool = False,
        ema_decay: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigurationError(f"model.label_smoothing is {label_smoothing}; it must be in [0, 1)")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ConfigurationError(f"model.ema_decay is {ema_decay}; it must be between 0 and 1, or null")
        # given as Python callables they could not be loaded from a checkpoint; from a config they are plain values
        self.save_hyperparameters(ignore=() if hyperparameters_are_given() else ("optimizer", "lr_scheduler"))
        self.backbone = create_backbone(backbone, pretrained, num_classes, in_chans, backbone_kwargs)
        self.num_classes = cast(int, self.backbone.num_classes if num_classes is None else num_classes)
        self.in_chans = in_chans
        self.data_config = data_config(self.backbone, in_chans)
        self.mixing = self._mixing(mixup, cutmix, label_smoothing)
        self.train_loss = self._train_loss(loss, label_smoothing)
        self.eval_loss = nn.CrossEntropyLoss(reduction="none")
        self.val_loss, self.test_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.val_metrics = self._metrics("val/")
        self.test_metrics = self._metrics("test/")
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.ema_decay = ema_decay
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self.memory_format)
        if compile:
            self.backbone.compile()

    def _mixing(self, mixup: float, cutmix: float, label_smoothing: float) -> Mixup | None:
        if min(mixup, cutmix) < 0:
            raise ConfigurationError(f"model.mixup is {mixup} and model.cutmix is {cutmix}; neither may be negative")
        if max(mixup, cutmix) == 0:
            return None
        from timm.data import Mixup

        return Mixup(
            mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=label_smoothing, num_classes=self.num_classes
        )

    def _train_loss(self, loss: str, label_smoothing: float) -> nn.Module:
        from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

        if loss == "bce":
            # with mixed targets the smoothing is in the targets already
            return BinaryCrossEntropy(smoothing=0.0 if self.mixing else label_smoothing)
        if self.mixing:
            return SoftTargetCrossEntropy()
        return LabelSmoothingCrossEntropy(label_smoothing) if label_smoothing else nn.CrossEntropyLoss()

    def _metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(self.num_classes, average="micro"),
                "calibration_error": MulticlassCalibrationError(self.num_classes, n_bins=15),
                "aurc": AURC(bins=1000),
            },
            prefix=prefix,
        )

    def setup(self, stage: str) -> None:
        """Compare classes and channels with the data module's, if it tells them."""
        data = getattr(self.trainer, "datamodule", None)
        classes, channels = getattr(data, "num_classes", None), getattr(data, "in_chans", None)
        if isinstance(classes, int) and classes > self.num_classes:
            raise ConfigurationError(
                f"model.num_classes is {self.num_classes}, but {type(data).__name__} has {classes} classes; "
                f"set model.num_classes to {classes}"
            )
        if isinstance(channels, int) and channels != self.in_chans:
            raise ConfigurationError(_other_channels(self.in_chans, channels))

    def configure_callbacks(self) -> list[Callback]:
        """Add the moving average, if it is asked for."""
        return [EMAWeightAveraging(decay=self.ema_decay)] if self.ema_decay else []

    def configure_optimizers(self) -> Any:
        """Build the optimiser and the scheduler from the given callables."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval}}

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores ``(N, num_classes)`` of images ``(N, C, H, W)``."""
        return self.backbone(images.contiguous(memory_format=self.memory_format))

    def _check(self, images: Tensor, labels: Tensor) -> None:
        if images.shape[1] != self.in_chans:
            raise ConfigurationError(_other_channels(self.in_chans, images.shape[1]))
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

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` of a batch; with Mixup or CutMix the targets are soft."""
        self._check(*batch)
        images, target = _mix(self.mixing, *batch) if self.mixing else batch
        logits = self(images)
        loss = self.train_loss(logits, target)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return {"loss": loss, "logits": logits.detach(), "target": target}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` and log the metrics under ``val/``."""
        return self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` and log the metrics under ``test/``."""
        return self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, metrics: MetricCollection) -> dict[str, Tensor]:
        self._check(*batch)
        images, target = batch
        logits = self(images)
        losses = self.eval_loss(logits.float(), target)
        mean = self.val_loss if stage == "val" else self.test_loss
        mean.update(losses)
        metrics.update(logits.float(), target)
        self.log(f"{stage}/loss", mean)
        self.log_dict(metrics, batch_size=len(images))
        return {"loss": losses.mean(), "logits": logits, "target": target}

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"logits", "prediction", "confidence"}`` of a batch of images, with or without labels."""
        logits = self(batch[0] if isinstance(batch, list | tuple) else batch)
        return {"logits": logits, "prediction": logits.argmax(1), "confidence": confidence(logits)}


def _other_channels(expected: int, given: int) -> str:
    return (
        f"model.in_chans is {expected}, but the images have {given} channels; "
        "set model.in_chans and data.in_chans to the same number"
    )


def _mix(mixing: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    even = len(images) - len(images) % 2  # timm pairs the batch with its mirror image
    mixed, targets = mixing(images[:even], labels[:even])
    rest = nn.functional.one_hot(labels[even:], mixing.num_classes).to(targets.dtype)
    return torch.cat([mixed, images[even:]]), torch.cat([targets, rest])
