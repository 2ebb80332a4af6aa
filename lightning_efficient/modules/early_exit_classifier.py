"""A network that answers easy images at classifiers on its inner layers."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_efficient._lightning_compat import hyperparameters_are_given
from lightning_efficient._trainer import refuse_shards
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.routing import QueryScore
from lightning_efficient.modules._cascading import CascadingClassifier
from lightning_efficient.nn._exit_heads import HIDDEN_WIDTH, ExitHeadName
from lightning_efficient.nn.backbones import data_config
from lightning_efficient.nn.checkpoints import load_weights
from lightning_efficient.nn.early_exits import EarlyExitNetwork
from lightning_efficient.nn.networks import as_network

ExitTraining: TypeAlias = Literal["joint", "heads"]


class EarlyExitClassifier(CascadingClassifier):
    """Train a network with exits, and measure what leaving early saves.

    Steps take ``(inputs, labels)`` and return ``{"loss", "logits", "target"}``, the logits those of the whole network;
    in validation and test also ``confidence`` of the last stage, ``query_score`` ``(N, M - 1)`` of the exits, larger
    for less sure, and ``stage_predictions`` ``(N, M)``. Validation logs loss, accuracy, calibration error and AURC of
    the whole network, ``accuracy_stage1`` and so on of the exits, and ``cascade_area``: the mean accuracy over the MACs
    that one threshold for all exits can be set to, from the first exit's to the whole network's. Test adds tables of
    share per exit, accuracy, MACs and measured latency along the thresholds, and a picture. Training costs what the
    network and the heads cost; ``predict`` with thresholds computes, for each input, no layer after its exit.

    Args:
        backbone: Name of a timm model (or of a ``cifar_resnet``), or a module.
        num_classes: Number of classes; by default what the backbone has.
        in_chans: Channels of the images; ``null`` for inputs that are no images.
        exits: Where inputs may leave: ``null`` for every feature stage that timm declares but the last, a number of
            them, or a list of indices into the stages and names of modules; see ``nn.early_exits``.
        head: Classifier of an exit: ``norm`` (layer normalisation, linear), ``linear``, or ``hidden`` (linear, batch
            normalisation, ReLU, linear).
        head_width: Units in the middle of ``hidden`` heads.
        training: ``joint``: everything learns from the weighted sum of all cross-entropies; ``heads``: the backbone is
            trained already, stays as it is in evaluation mode, and the heads learn alone.
        exit_weights: Weights of the cross-entropies, one per exit and one for the whole network; 1 by default.
        distill: Weight of the divergence of the exits from the whole network, which they then also learn from.
        score: How unsure an exit is: ``msp``, ``margin``, ``logit_margin``, ``entropy``, ``gini``, ``energy``,
            ``energy_softmax``, ``max_logit``, or a function from class scores ``(N, C)`` to confidence ``(N,)``.
        thresholds: What ``predict`` routes by where nothing is calibrated: a row leaves at the first exit whose query
            score, the negative of the confidence, is at most this; one number, or one per exit.
        latency_batch_size: Batch size of the latencies that ``test`` measures beside that of one; 0 for none.
        pretrained: Whether the backbone starts from timm's weights.
        backbone_kwargs: Further arguments of ``timm.create_model``.
        backbone_checkpoint: File with weights that the backbone starts from.
        optimizer: From parameters to an optimiser; AdamW as torch has it when not given.
        lr_scheduler: From an optimiser to a learning rate scheduler.
        lr_interval: Whether the scheduler counts epochs or steps.

    Raises:
        ConfigurationError: an unknown name or place, or a value that cannot work.

    Reference:
        Teerapittayanon, McDanel, Kung. BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks. ICPR
        2016: ``joint``. Berestizshevsky, Even. Dynamically Sacrificing Accuracy for Reduced Computation: Cascaded
        Inference Based on Softmax Confidence. ICANN 2019: ``heads``.
    """

    network: EarlyExitNetwork

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int | None = None,
        in_chans: int | None = 3,
        exits: int | list[int | str] | None = None,
        head: ExitHeadName = "norm",
        head_width: int = HIDDEN_WIDTH,
        training: ExitTraining = "joint",
        exit_weights: list[float] | None = None,
        distill: float = 0.0,
        score: QueryScore = "msp",
        thresholds: float | list[float] | None = None,
        latency_batch_size: int = 64,
        pretrained: bool = False,
        backbone_kwargs: dict[str, Any] | None = None,
        backbone_checkpoint: str | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        check_choice("model.training", training, get_args(ExitTraining))
        if training == "heads" and isinstance(backbone, str) and not pretrained and backbone_checkpoint is None:
            raise ConfigurationError(
                "model.training is heads, which leaves the backbone as it is, and it would be untrained; give "
                "model.backbone_checkpoint or model.pretrained, or train jointly"
            )
        # given as Python objects they could not be loaded from a checkpoint; from a config they are plain values
        objects = [name for name, value in {"backbone": backbone, "score": score}.items() if not isinstance(value, str)]
        ignored = () if hyperparameters_are_given() else ("optimizer", "lr_scheduler", *objects)
        self.save_hyperparameters(ignore=ignored)
        made = as_network(
            backbone,
            "backbone",
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            options=backbone_kwargs,
        )
        self.in_chans = in_chans
        self.data_config = data_config(made, in_chans or 3) if isinstance(backbone, str) else {}
        self.network = EarlyExitNetwork(made, exits, head, num_classes, hidden_width=head_width)
        self.training_mode = training
        if training == "heads":
            made.requires_grad_(False)
        # no default in the signature: a config that names another class would inherit AdamW's weight decay
        self.optimizer: OptimizerCallable = torch.optim.AdamW if optimizer is None else optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self._backbone_checkpoint = backbone_checkpoint
        self.set_up(
            score=score,
            weights=exit_weights,
            weights_option="model.exit_weights",
            distill=distill,
            thresholds=thresholds,
            latency_batch_size=latency_batch_size,
        )
        self.train(self.training)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The modules of the exits, and ``full``."""
        return (*self.network.exits, "full")

    def train(self, mode: bool = True) -> EarlyExitClassifier:
        """Set the mode; a backbone that does not learn stays in evaluation mode."""
        super().train(mode)
        if mode and getattr(self, "training_mode", "joint") == "heads":
            self.network.backbone.eval()
        return self

    def setup(self, stage: str) -> None:
        """Compare the data with the network, and load the backbone's first weights."""
        super().setup(stage)
        if stage != "fit":
            return
        refuse_shards(self.trainer, "EarlyExitClassifier")
        if self._backbone_checkpoint is not None and self.trainer.ckpt_path is None:
            load_weights(self.network.backbone, self._backbone_checkpoint, option="model.backbone_checkpoint")
        self._backbone_checkpoint = None  # a second fit goes on with the weights that the first one left

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what was kept; a file of first weights has no part in it any more."""
        super().on_load_checkpoint(checkpoint)
        self._backbone_checkpoint = None
