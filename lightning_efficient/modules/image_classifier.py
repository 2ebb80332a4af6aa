"""A timm model as a LightningModule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_efficient._lightning_compat import hyperparameters_are_given
from lightning_efficient._trainer import average_anew, is_rehearsal
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules._classifier import Classifier
from lightning_efficient.modules._pruned import follow_checkpoint, has_other_widths, keep_notes, take_pruned
from lightning_efficient.modules._surgery import (
    follow_recipe,
    keep_recipe,
    lacking,
    load_first_weights,
    named,
    operate,
    told,
)
from lightning_efficient.nn.backbones import create_backbone, data_config
from lightning_efficient.nn.surgery import recipe_of

if TYPE_CHECKING:
    from timm.data import Mixup


class ImageClassifier(Classifier):
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
        backbone_checkpoint: File with weights that the backbone, as it is before any surgery, starts from. Or the
            ``pruned.pt`` of a backbone with the same surgery: this one is then made as small and has its weights at
            once.
        surgery: Policies that make the backbone cheaper, one after the other: a name such as ``SpatialInterpolation``,
            or ``{class_path: SpatialInterpolation, init_args: {factor: 2}}``; see ``lightning_efficient.nn.surgery``.
            With weights to start from, what is new begins without effect. Checkpoints hold the recipe.
        loss: ``cross_entropy``, or ``bce``: one binary problem per class, as in timm's newer recipes.
        label_smoothing: Share of the target spread over all classes, in ``[0, 1)``.
        mixup: Alpha of Mixup, 0 for none. Targets become soft in training.
        cutmix: Alpha of CutMix, 0 for none; with both, each batch takes one of them.
        optimizer: From parameters to an optimiser; AdamW as torch has it when not given.
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
        backbone_checkpoint: str | None = None,
        surgery: list[str | dict[str, Any]] | None = None,
        loss: Literal["cross_entropy", "bce"] = "cross_entropy",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        optimizer: OptimizerCallable | None = None,
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
        self._made_of = (backbone, False, num_classes, in_chans, backbone_kwargs)
        operate(self.backbone, surgery, pretrained=pretrained or backbone_checkpoint is not None)
        self._pruned = take_pruned(self.backbone, backbone_checkpoint)
        self._backbone_checkpoint = None if self._pruned else backbone_checkpoint
        self.num_classes = cast(int, self.backbone.num_classes if num_classes is None else num_classes)
        self.in_chans = in_chans
        self.data_config = data_config(self.backbone, in_chans)
        self.mixing = self._mixing(mixup, cutmix, label_smoothing)
        self.train_loss = self._train_loss(loss, label_smoothing)
        self.add_metrics()
        # no default in the signature: a config that names another class would inherit AdamW's weight decay
        self.optimizer: OptimizerCallable = torch.optim.AdamW if optimizer is None else optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.ema_decay = ema_decay
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._compile = compile
        self._arrange()

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

    def setup(self, stage: str) -> None:
        """Compare the data with the network, and load the backbone's first weights."""
        super().setup(stage)
        if stage != "fit":
            return
        if self._backbone_checkpoint is not None and self.trainer.ckpt_path is None:
            original, option = self.network_before_surgery(), "model.backbone_checkpoint"
            load_first_weights(self.backbone, original, self._backbone_checkpoint, option)
        self._backbone_checkpoint = None  # a second fit goes on with the weights that the first one left
        recipe = recipe_of(self.backbone)  # one that no checkpoint could hold is told now
        if recipe is not None and not is_rehearsal(self.trainer):
            data = getattr(self.trainer, "datamodule", None)
            shape = getattr(data, "input_shape", None) or self.data_config.get("input_size")
            if shape:
                rank_zero_info(told(recipe, self.network_before_surgery(), shape))

    def network_before_surgery(self) -> nn.Module:
        """Return the backbone as ``surgery`` finds it, newly made and with weights of its own."""
        with torch.random.fork_rng(devices=[]):  # what is made to be looked at does not move the run's numbers
            return create_backbone(*self._made_of)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how the backbone was changed, also by hand after it was built."""
        keep_recipe(checkpoint, self.backbone)
        if self._pruned:
            keep_notes(checkpoint, self.backbone)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Change the backbone as that of the checkpoint; a file of first weights has no part in it any more.

        Raises:
            ConfigurationError: ``surgery`` has changed it in another way, or it is pruned and the checkpoint's is not.
        """
        self._backbone_checkpoint = None
        self._follow_surgery(checkpoint)
        resized = has_other_widths(checkpoint, self.backbone, "backbone")
        if resized and self._pruned:  # the file of the pruned network may be another one by now
            self._build_anew(checkpoint)
        self._pruned = follow_checkpoint(checkpoint, self.backbone, "backbone", self._pruned)
        if resized and self._is_fitting():
            average_anew(self.trainer, self)

    def _follow_surgery(self, checkpoint: dict[str, Any]) -> None:
        steps = lacking(checkpoint, self.backbone)
        if steps is None and self._same_policies(checkpoint):
            # trained from weights or not, the same policies begin in other ways: the checkpoint's counts
            self._build_anew(checkpoint)
            return
        if steps and self.ema_decay and self._is_fitting():
            raise ConfigurationError(
                "the checkpoint's backbone was changed by hand, which model.ema_decay cannot follow as a run goes on; "
                "change the backbone in the same way before fit, or give the change as model.surgery"
            )
        follow_recipe(checkpoint, self.backbone)

    def _build_anew(self, checkpoint: dict[str, Any]) -> None:
        pattern = next(self.backbone.parameters())
        self.backbone = self.network_before_surgery().to(pattern.device, pattern.dtype)
        follow_recipe(checkpoint, self.backbone)
        self._arrange()

    def _is_fitting(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def _same_policies(self, checkpoint: dict[str, Any]) -> bool:
        theirs = checkpoint.get("hyper_parameters", {}).get("surgery")
        return bool(theirs) and named(theirs) == named(self.hparams.get("surgery"))

    def _arrange(self) -> None:
        self.backbone.to(memory_format=self.memory_format)
        if self._compile:
            self.backbone.compile()

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

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` of a batch; with Mixup or CutMix the targets are soft."""
        self.check(*batch)
        images, target = _mix(self.mixing, *batch) if self.mixing else batch
        logits = self(images)
        loss = self.train_loss(logits, target)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return {"loss": loss, "logits": logits, "target": target}


def _mix(mixing: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    even = len(images) - len(images) % 2  # timm pairs the batch with its mirror image
    mixed, targets = mixing(images[:even], labels[:even])
    rest = nn.functional.one_hot(labels[even:], mixing.num_classes).to(targets.dtype)
    return torch.cat([mixed, images[even:]]), torch.cat([targets, rest])
