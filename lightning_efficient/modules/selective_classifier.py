"""A classifier that may abstain, trained with any of the published objectives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_efficient._lightning_compat import hyperparameters_are_given
from lightning_efficient._trainer import drop_gradients, is_rehearsal, refuse_shards, take_part
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.abstention import answer_score
from lightning_efficient.functional.confidence import ScoreName, confidence
from lightning_efficient.functional.entropy_penalty import EntropyForm, entropy_penalty
from lightning_efficient.inference.threshold_file import FUNCTION, score_name
from lightning_efficient.losses.selective_objectives import (
    SelectiveObjectiveName,
    build_selective_objective,
    check_selective_options,
)
from lightning_efficient.metrics import AUGRC, AURC
from lightning_efficient.modules._classifier import Classifier, number_of_classes
from lightning_efficient.nn.backbones import data_config
from lightning_efficient.nn.checkpoints import load_weights
from lightning_efficient.nn.networks import as_network
from lightning_efficient.nn.selective_heads import SelectiveHeads, SelectiveOutputs
from lightning_efficient.nn.views import ViewTap

SelectiveScore: TypeAlias = ScoreName | Literal["selector", "abstain_logit"] | Callable[[Tensor], Tensor]
"""How sure the classifier is: from its logits, by a learned head, or a function of the logits ``(N, C)``."""

_HEAD_OF = {"selector": "selection", "abstain_logit": "abstain"}
_KEPT = "selective_classifier"


class SelectiveClassifier(Classifier):
    """Train a classifier that knows when not to answer, with one option that names the objective.

    Steps take ``(inputs, labels)``, for ``sat`` with the index of each sample as third, and return ``{"loss", "logits",
    "target"}``, in validation and test with ``confidence``, higher for surer. Validation and test log loss, accuracy,
    calibration error (15 bins of ``msp``), AURC and AUGRC of the confidence (every sample, 5 bytes each).

    What an objective needs beside class scores is put beside the network's own classifier and sees the same features,
    so that the network stays what it is: an abstention logit is one more row of the last linear layer, a selector and
    an auxiliary classifier are heads. Costs what the network costs, and those heads.

    Args:
        backbone: Name of a timm model (or of a ``cifar_resnet``), or a module whose last linear layer is its
            classifier.
        num_classes: Number of classes; by default what the backbone has.
        in_chans: Channels of the images; ``null`` for inputs that are no images.
        objective: ``ce`` (cross-entropy, the baseline), ``osp`` (one-sided prediction: Gangrade et al. 2021),
            ``selectivenet`` (Geifman and El-Yaniv 2019), ``gamblers`` (Liu et al. 2019), or ``sat`` (self-adaptive
            training: Huang et al. 2020).
        objective_kwargs: Options of the objective, such as ``{payoff: 2.2}``; see ``lightning_efficient.losses``.
        score: Confidence: ``msp``, ``margin``, ``entropy``, ``energy``, ``max_logit``, ``selector`` (for
            ``selectivenet``), ``abstain_logit`` (for ``gamblers`` and ``sat``), or a function of the logits ``(N, C)``
            or its import path. By default what the objective was published with.
        warmup_epochs: Epochs of cross-entropy before the objective. By default the share of the Trainer's
            ``max_epochs`` that the authors took: half of it for ``sat``, a third for ``gamblers`` with a payoff below
            6.1, else none. A run that is resumed keeps the length that it began with.
        entropy_weight: Weight of the mean entropy of the class probabilities, added to any objective and to the
            cross-entropy of the warm-up (Feng et al. 2023); 0 for none.
        entropy_form: ``true`` entropy, or the ``released`` one, with logits in the place of log-probabilities.
        pretrained: Whether the backbone starts from timm's weights.
        backbone_kwargs: Further arguments of ``timm.create_model``.
        backbone_checkpoint: File with weights that the backbone starts from.
        optimizer: From parameters to an optimiser; AdamW as torch has it when not given. The multipliers of ``osp``
            need one that knows ``maximize``, as those of torch do.
        lr_scheduler: From an optimiser to a learning rate scheduler.
        lr_interval: Whether the scheduler counts epochs or steps.

    Raises:
        ConfigurationError: an unknown name, a score that the objective has no head for, or a value that cannot work.

    Reference:
        Gangrade, Kag, Saligrama. Selective Classification via One-Sided Prediction. AISTATS 2021. Feng, Ahmed,
        Hajimirsadeghi, Abdi. Towards Better Selective Classification. ICLR 2023: entropy term, and softmax response as
        the score of networks that were trained with other heads.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int | None = None,
        in_chans: int | None = 3,
        objective: SelectiveObjectiveName = "ce",
        objective_kwargs: dict[str, Any] | None = None,
        score: str | Callable[[Tensor], Tensor] | None = None,
        warmup_epochs: int | None = None,
        entropy_weight: float = 0.0,
        entropy_form: EntropyForm = "true",
        pretrained: bool = False,
        backbone_kwargs: dict[str, Any] | None = None,
        backbone_checkpoint: str | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        check_selective_options(objective, objective_kwargs or {})
        check_choice("model.entropy_form", entropy_form, get_args(EntropyForm))
        if not 0 <= entropy_weight < float("inf"):
            raise ConfigurationError(f"model.entropy_weight is {entropy_weight}; it must be 0 or more")
        if warmup_epochs is not None and warmup_epochs < 0:
            raise ConfigurationError(f"model.warmup_epochs is {warmup_epochs}; it must be 0 or more, or null")
        # given as Python objects they could not be loaded from a checkpoint; from a config they are plain values
        objects = [name for name, value in {"backbone": backbone, "score": score}.items() if not _is_plain(value)]
        ignored = () if hyperparameters_are_given() else ("optimizer", "lr_scheduler", *objects)
        self.save_hyperparameters(ignore=ignored)
        self.backbone = as_network(
            backbone,
            "backbone",
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            options=backbone_kwargs,
        )
        self.in_chans = in_chans
        self.data_config = data_config(self.backbone, in_chans or 3) if isinstance(backbone, str) else {}
        self.num_classes = number_of_classes(num_classes, ViewTap(self.backbone).num_classes, "backbone")
        self.objective = build_selective_objective(objective, objective_kwargs or {}, self.num_classes)
        self._tap = ViewTap(self.backbone, features=bool(self.objective.needs))
        self.heads = SelectiveHeads(self._tap.feature_dim or 0, self.num_classes, self.objective.needs)
        self.score = self._checked_score(objective, score)
        self.warmup_epochs = warmup_epochs
        self.entropy_weight, self.entropy_form = entropy_weight, entropy_form
        # no default in the signature: a config that names another class would inherit AdamW's weight decay
        self.optimizer: OptimizerCallable = torch.optim.AdamW if optimizer is None else optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self._backbone_checkpoint = backbone_checkpoint
        self._rows: int | None = None
        self._keyed: Any = None
        self._warmup = 0
        self.add_metrics()

    def _checked_score(self, objective: str, score: str | Callable[[Tensor], Tensor] | None) -> SelectiveScore:
        if score is None:
            return cast(SelectiveScore, self.objective.default_score)
        if callable(score):
            return score
        if "." in score:
            return _imported(score)
        heads = [name for name, head in _HEAD_OF.items() if head in self.objective.needs]
        if score in _HEAD_OF and score not in heads:
            allowed = [*get_args(ScoreName), *heads]
            raise ConfigurationError(
                f"model.score is {score!r}, and objective {objective!r} trains no such head; it must be one of "
                f"{', '.join(allowed)}"
            )
        check_choice("model.score", score, [*get_args(ScoreName), *heads])
        return cast(SelectiveScore, score)

    def ranking_metrics(self) -> dict[str, Metric]:
        """Return metrics of every sample: bins would need to know the range of each score."""
        return {"aurc": AURC(), "augrc": AUGRC()}

    def setup(self, stage: str) -> None:
        """Load the backbone's weights, and ask the data module for the index of each sample where it is needed."""
        super().setup(stage)
        if stage != "fit":
            return
        refuse_shards(self.trainer, "SelectiveClassifier")
        if self._backbone_checkpoint is not None and self.trainer.ckpt_path is None:
            load_weights(self.backbone, self._backbone_checkpoint, option="model.backbone_checkpoint")
        self._backbone_checkpoint = None  # a second fit goes on with the weights that the first one left
        data: Any = getattr(self.trainer, "datamodule", None)
        self._rows = None
        if self.objective.needs_index and hasattr(data, "sample_keys"):
            if not data.sample_keys:
                data.sample_keys, self._keyed = True, data
            self._rows = data.train_size
        self._warmup = self._warmup_epochs()

    def teardown(self, stage: str) -> None:
        """Leave the data module as it was."""
        if self._keyed is not None:
            self._keyed.sample_keys, self._keyed = False, None

    def _warmup_epochs(self) -> int:
        epochs, share = self.trainer.max_epochs, self.objective.warmup_share()
        ends = epochs is not None and epochs >= 0
        by_default = self.warmup_epochs is None and share and not is_rehearsal(self.trainer)
        if by_default and (not ends or self.trainer.max_steps >= 0):
            raise ConfigurationError(
                "model.warmup_epochs is not given, and by default is a share of trainer.max_epochs, which is not "
                "given alone; give model.warmup_epochs"
            )
        length = int(share * (epochs or 0)) if self.warmup_epochs is None else self.warmup_epochs
        if ends and length and length >= cast(int, epochs) and not is_rehearsal(self.trainer):
            rank_zero_warn(
                f"the warm-up of {length} epochs lasts as long as the run: nothing is trained with the objective, and "
                "its heads stay as they are"
            )
        return length

    @property
    def warming_up(self) -> bool:
        """Whether this epoch trains with cross-entropy, and leaves heads and multipliers alone."""
        return self.current_epoch < self._warmup

    def configure_optimizers(self) -> Any:
        """Build one optimiser: a group for the network with its heads, and groups for the objective's multipliers."""
        network = [*self.backbone.parameters(), *self.heads.parameters()]
        own = [dict(group) for group in self.objective.parameter_groups()]
        optimizer = self._with_multipliers(network, own) if own else self.optimizer(network)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval}}

    def _with_multipliers(self, network: list[nn.Parameter], own: list[dict[str, Any]]) -> Optimizer:
        scales = [group.pop("lr_scale", 1.0) for group in own]
        groups = [{"params": network, "name": "network"}, *own]
        try:
            optimizer = self.optimizer(groups)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"model.optimizer cannot take groups of parameters ({error}), which the multipliers need; take one of "
                "torch.optim, or set dual: fixed in model.objective_kwargs"
            ) from error
        if len(optimizer.param_groups) != len(groups) or "maximize" not in optimizer.defaults:
            raise ConfigurationError(
                f"model.optimizer: {type(optimizer).__name__} has no option 'maximize', or makes other groups, and the "
                "multipliers need both; take one of torch.optim, or set dual: fixed in model.objective_kwargs"
            )

        def set_rates(*_: Any) -> None:
            # before each step, as some schedulers give all groups one rate; tensors must not be changed in place
            for group, scale in zip(optimizer.param_groups[1:], scales, strict=True):
                group["lr"] = optimizer.param_groups[0]["lr"] * scale

        set_rates()
        optimizer.register_step_pre_hook(set_rates)
        # not in a hook of the module: a checkpoint may be saved between the step and that hook
        optimizer.register_step_post_hook(lambda *_: self.objective.project())
        return optimizer

    def forward(self, inputs: Tensor) -> Tensor:
        """Return class scores ``(N, num_classes)``, without an abstention logit."""
        return self.backbone(inputs)

    def outputs(self, inputs: Tensor) -> SelectiveOutputs:
        """Return class scores and what the heads of the objective say, from one pass through the network."""
        if not self.objective.needs:
            return SelectiveOutputs(self.backbone(inputs))
        views = self._tap(inputs)
        assert views.features is not None
        return self.heads(views.logits, views.features)

    def confidence(self, outputs: SelectiveOutputs) -> Tensor:
        """Return how sure the classifier is, shape ``(N,)``, float32 or wider, higher for surer."""
        if self.score == "selector":
            assert outputs.selection_logit is not None
            return at_least_float32(outputs.selection_logit).sigmoid()
        if self.score == "abstain_logit":
            assert outputs.abstain_logit is not None
            return answer_score(outputs.logits, outputs.abstain_logit)
        return confidence(outputs.logits, self.score)

    def scored(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores and confidence."""
        outputs = self.outputs(inputs)
        return outputs.logits, self.confidence(outputs)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` of a batch."""
        inputs, target, *rest = batch
        self.check(inputs, target)
        outputs = self.outputs(inputs)
        if self.warming_up:
            loss = nn.functional.cross_entropy(at_least_float32(outputs.logits), target.long())
            loss = take_part(self.trainer, loss, self._resting())
            terms = {}
        else:
            terms = self.objective(outputs, target, self._index(rest))
            loss = terms["loss"]
        if self.entropy_weight:
            terms["entropy"] = entropy_penalty(outputs.logits, self.entropy_form)
            loss = loss + self.entropy_weight * terms["entropy"]
        self.log("train/loss", loss, prog_bar=True, batch_size=len(inputs))
        self.log_dict(
            {f"train/{name}": value.detach() for name, value in terms.items() if name != "loss"},
            batch_size=len(inputs),
        )
        return {"loss": loss, "logits": outputs.logits, "target": target}

    def _index(self, rest: list[Tensor]) -> Tensor | None:
        if not self.objective.needs_index or not rest:
            return None
        # a key of our data modules names the augmented image, stream * rows + index
        return rest[0] if self._rows is None else rest[0] % self._rows

    def _resting(self) -> list[nn.Parameter]:
        """Return the parameters that take no part in the steps of the warm-up."""
        return [*self.heads.parameters(), *self.objective.parameters()]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave heads and multipliers alone in the warm-up."""
        if self.warming_up:
            drop_gradients(self._resting())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how long the warm-up is, which a longer run would have longer, and whether the score is a function."""
        checkpoint[_KEPT] = {"warmup_epochs": self._warmup, "score": score_name(self)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the same warm-up; a file of first weights has no part in it any more.

        Raises:
            ConfigurationError: the score of the checkpoint is a function, and none is given.
        """
        self._backbone_checkpoint = None
        kept = checkpoint.get(_KEPT, {})
        if self.warmup_epochs is None:
            self._warmup = kept.get("warmup_epochs", self._warmup)
        score = kept.get("score", "")
        if score.startswith(FUNCTION) and not callable(self.score):
            raise ConfigurationError(
                f"model.score of the checkpoint is the {score}, which it cannot hold, and {self.score!r} is given; "
                "give the function as score"
            )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _imported(path: str) -> Callable[[Tensor], Tensor]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"model.score: there is no function {path!r} ({error})") from error
    if not callable(found):
        raise ConfigurationError(f"model.score: {path!r} is a {type(found).__name__}, not a function of the logits")
    return found
