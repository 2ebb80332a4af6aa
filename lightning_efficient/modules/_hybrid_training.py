"""How a hybrid of two models learns: whose turn it is, from which samples, and what the router is told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_efficient._trainer import drop_gradients, gather_objects, is_rehearsal, take_part
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.released_hybrid import joint_head_loss
from lightning_efficient.functional.router_losses import alternation_weights
from lightning_efficient.functional.routing import query_threshold
from lightning_efficient.functional.schedules import Schedule
from lightning_efficient.functional.threshold_path import threshold_path
from lightning_efficient.inference.sample_hashes import hash_samples
from lightning_efficient.modules._hybrid_evaluation import HybridEvaluation
from lightning_efficient.modules._router_samples import RouterData, RouterSamples
from lightning_efficient.modules._stages import Stage, StagePlan
from lightning_efficient.modules._stored_outputs import StoredOutputs
from lightning_efficient.nn.checkpoints import hash_weights
from lightning_efficient.nn.guides import LogitsGuide
from lightning_efficient.nn.input_fit import InputFit
from lightning_efficient.nn.views import ModelViews, ViewTap

PATH_POINTS = 101
MOST_NOTED = 100_000
"""Largest number of augmented training samples that are loaded once more, as evaluation sees them."""


class HybridTraining(HybridEvaluation):
    """The training steps of a module with ``base``, ``global_model``, ``router`` and a plan of stages."""

    base: nn.Module
    global_model: nn.Module
    base_fit: InputFit
    global_fit: InputFit
    folds: nn.ModuleDict
    plan: StagePlan
    schedule: Schedule
    router_data: RouterData
    reweight: bool
    joint_guide: LogitsGuide | None
    idle: nn.Parameter | None
    joint_kwargs: dict[str, Any]
    _follows_run: bool
    _split: tuple[float, int]
    _outputs_folder: str | None

    def begin_training(self) -> None:
        """Forget what an earlier run gathered."""
        self._samples: RouterSamples | None = None
        self._stored: StoredOutputs | None = None
        self._scores: list[Tensor] = []
        self._scores_epoch = self._begun = -1
        self._settled: dict[str, Tensor] = {}
        self._seen: list[Tensor] = getattr(self, "_seen", [])

    def _network(self, name: str) -> nn.Module:
        return {"base": self.base, "global": self.global_model, "router": self.router}[name]

    def _stage(self, batch_idx: int = 0) -> Stage:
        if is_rehearsal(self.trainer):  # one epoch has to show them all
            return self.plan.stages[batch_idx % len(self.plan.stages)]
        return self.plan.at(self.current_epoch)

    def _learners(self, stage: Stage) -> list[nn.Module]:
        """Return the parts that learn in a stage."""
        if stage.name == "joint":
            return [self.base, self.router, *([] if self.joint_guide is None else [self.joint_guide])]
        copies = [self.folds[stage.name]] if stage.name in self.folds else []
        return [self._network(stage.name), *copies]

    def _resting(self, stage: Stage) -> list[nn.Parameter]:
        learning = {id(each) for module in self._learners(stage) for each in module.parameters()}
        learning |= {id(self.idle)} if stage.name == "router" else set()
        return [each for each in self.parameters() if each.requires_grad and id(each) not in learning]

    def _begin_epoch(self, stage: Stage) -> None:
        """Begin to gather anew what the router says, and forget stored outputs of networks that learn again."""
        # no hook of the epoch's start: Lightning leaves it out where a run goes on after the last batch of another,
        # and that one's end with it
        if self._begun == self.current_epoch:
            return
        self._begun = self.current_epoch
        if self._scores_epoch != self.current_epoch:
            self._settle_thresholds()
            if stage.name in ("router", "joint"):
                self._scores, self._scores_epoch = [], self.current_epoch
        if self.current_epoch == stage.start:
            self._stored = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let those learn whose turn it is, at the rate that the schedule of their stage gives."""
        self._now = stage = self._stage(batch_idx)
        self._begin_epoch(stage)
        learning = self._learners(stage)
        beside = [] if self.joint_guide is None else [self.joint_guide]
        for part in (self.base, self.global_model, self.router, *beside, *self.folds.values()):
            part.train(any(part is each for each in learning))
        last, end = stage.number == len(self.plan.stages) - 1, self.trainer.max_epochs
        if last and end is not None and end > stage.start:  # the last one lasts as long as the run
            stage = replace(stage, epochs=end - stage.start)
        factor = self.schedule(stage.progress(self.current_epoch, batch_idx, self.trainer.num_training_batches))
        for group in cast(Optimizer, self.optimizers()).param_groups:
            group["lr"] = group["initial_lr"] * factor

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` of those samples of a batch that the stage learns from."""
        inputs, target, *rest = batch
        self.check(inputs, target)
        assert self._samples is not None
        stage = self._now
        keys = rest[0] if rest else None
        self._note_samples(inputs, keys)
        rows = self._rows(stage, keys)
        if rows is not None:
            inputs, target, keys = inputs[rows], target[rows], None if keys is None else keys[rows]
        if stage.name in ("base", "global"):
            loss, logits = self._network_loss(stage, inputs, target, keys)
        else:
            loss, logits = self._router_loss(stage, inputs, target, keys)
        self.log(f"train/{stage.name}_loss", loss, prog_bar=True, batch_size=max(len(target), 1))
        loss = take_part(self.trainer, loss, self._resting(stage))
        return {"loss": loss, "logits": logits, "target": target}

    def _note_samples(self, inputs: Tensor, keys: Tensor | None) -> None:
        """Note which samples are learned from, in a stage's first epoch: calibration must not use them."""
        if self.current_epoch != self._now.start:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if not getattr(data, "augments_training", False):
            self._seen.append(hash_samples(inputs))
        elif keys is not None and hasattr(data, "plain_samples") and data.train_size <= MOST_NOTED:
            self._seen.append(hash_samples(data.plain_samples(keys)))  # as they are when calibration sees them

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave the weights and the momentum of those alone whose turn it is not."""
        drop_gradients(self._resting(self._now))

    def _rows(self, stage: Stage, keys: Tensor | None) -> Tensor | None:
        assert self._samples is not None
        if not self._samples.splits:
            return None
        if keys is None:
            raise ConfigurationError(
                f"model.router_data {self.router_data} needs the key of each sample as the third of a batch, and it "
                "has none; train on a data module of this package, or set model.router_data to all"
            )
        return self._samples.networks(keys) if stage.name in ("base", "global") else self._samples.router(keys)

    def _network_loss(self, stage: Stage, inputs: Tensor, target: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        network, fit = self._network(stage.name), self.base_fit if stage.name == "base" else self.global_fit
        if len(target) < 2:  # batch normalisation needs two
            return _nothing(*self._learners(stage)), inputs.new_zeros(len(target), self.num_classes)
        weight = self._weight(stage, inputs)
        seen = fit(inputs)
        logits = network(seen)
        loss = _cross_entropy(logits, target, weight)
        if stage.name in self.folds:
            assert self._samples is not None
            assert keys is not None
            fold = self._samples.fold(keys)
            for number, copy in enumerate(cast(nn.ModuleList, self.folds[stage.name])):
                own = fold != number
                if int(own.sum()) < 2:
                    loss = loss + _nothing(copy)
                    continue
                loss = loss + _cross_entropy(copy(seen[own]), target[own], None if weight is None else weight[own])
        return loss, logits

    def _weight(self, stage: Stage, inputs: Tensor) -> Tensor | None:
        """Return twice the weight for the inputs that this network gets, once a router says which they are."""
        routed = any(earlier.name == "router" for earlier in self.plan.stages[: stage.number])
        if not (self.reweight and routed and self.threshold.isfinite()):
            return None
        learning = self.base.training
        self.base.eval()
        with torch.no_grad():
            queried = ~(self.router(*self.base_outputs(inputs)) <= self.threshold)  # also what is not a number
        self.base.train(learning)
        return alternation_weights(queried)[0 if stage.name == "base" else 1]

    def _router_loss(self, stage: Stage, inputs: Tensor, target: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        if len(target) < (2 if stage.name == "joint" else 1):  # batch normalisation needs two
            return self._no_loss(*self._learners(stage)), inputs.new_zeros(len(target), self.num_classes)
        if stage.name == "joint":
            return self._joint_loss(inputs, target)
        said = self._frozen_outputs(inputs, keys)
        logits, features = said["logits"], said.get("features")
        base_correct, global_correct = (each.argmax(1) == target for each in (logits, said["global_logits"]))
        self._gather(logits, features, inputs)
        if not self.router.learns or len(target) < 2:
            return self._no_loss(self.router), logits
        return self.router.loss(logits, features, base_correct, global_correct), logits

    def _joint_loss(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            global_logits = self.global_logits(inputs)
        logits, features = self.base_outputs(inputs)
        self._gather(logits, features, inputs)
        guide = None if self.joint_guide is None else self.joint_guide(ModelViews(global_logits))
        query = self.router.query_logit(logits, features)
        terms = joint_head_loss(
            logits, global_logits, query, target, guide, target_coverage=self.target_coverage, **self.joint_kwargs
        )
        for name, value in terms._asdict().items():
            if name != "total":
                self.log(f"train/joint_{name}", value.detach(), batch_size=len(target))
        return terms.total, logits

    @torch.no_grad()
    def _gather(self, logits: Tensor, features: Tensor | None, inputs: Tensor) -> None:
        """Note what the router says as it is."""
        learning = self.router.training
        self.router.eval()
        self._scores.append(self.router(logits, features).float().cpu())
        self.router.train(learning)

    @torch.no_grad()
    def _frozen_outputs(self, inputs: Tensor, keys: Tensor | None) -> dict[str, Tensor]:
        """Return what both networks say of samples that they did not learn, from the disk if it is there."""
        store = self._store() if keys is not None and self._now.name == "router" else None
        if store is None:
            return self._ask(inputs, keys)
        assert keys is not None
        return store(keys, inputs.device, lambda: self._ask(inputs, keys))

    def _ask(self, inputs: Tensor, keys: Tensor | None) -> dict[str, Tensor]:
        learning = self.base.training
        self.base.eval()
        logits, features = self.base_outputs(inputs)
        self.base.train(learning)
        said = {"logits": logits, "global_logits": self.global_logits(inputs)}
        if features is not None:
            said["features"] = features
        if not self.folds:
            return said
        assert self._samples is not None
        assert keys is not None
        fold = self._samples.fold(keys)
        for name, copies in self.folds.items():
            for number, copy in enumerate(cast(nn.ModuleList, copies)):
                own = fold == number
                if not own.any():
                    continue
                if name == "base":
                    views = ViewTap(copy, features=self.router.needs_features)(self.base_fit(inputs[own]))
                    said["logits"][own] = views.logits
                    if views.features is not None:
                        said["features"][own] = views.features
                else:
                    said["global_logits"][own] = copy(self.global_fit(inputs[own]))
        return said

    def _store(self) -> StoredOutputs | None:
        data: Any = getattr(self.trainer, "datamodule", None)
        repeats = hasattr(data, "train_fingerprint") and not data.augments_training
        if self._outputs_folder is None or not repeats or is_rehearsal(self.trainer):
            return None
        if self._stored is None:
            digest = hashlib.sha256(f"{data.train_fingerprint()} {self.trainer.precision} {self.router_data}".encode())
            for part in (self.base, self.global_model, self.base_fit, self.global_fit, self.folds):
                hash_weights(digest, part.state_dict())
            sizes = (self.base_fit.image_size, self.global_fit.image_size, self._split, self.router.needs_features)
            digest.update(repr(sizes).encode())
            self._stored = StoredOutputs(Path(self._outputs_folder) / digest.hexdigest()[:16], data.train_size)
        return self._stored

    def on_validation_epoch_start(self) -> None:
        """Settle the thresholds on what the router said of its training samples, before a checkpoint is written."""
        if not self.trainer.sanity_checking:
            self._settle_thresholds()

    def on_train_epoch_end(self) -> None:
        """Settle the thresholds, where no validation did."""
        self._settle_thresholds()

    def on_train_end(self) -> None:
        """Settle them once more, where weights were averaged: an average of thresholds is none."""
        self._settle_thresholds()
        left = [stage.name for stage in self.plan.stages[self._now.number + 1 :]]
        if left and not is_rehearsal(self.trainer) and not self.trainer.interrupted:
            rank_zero_warn(
                f"the run ended in the stage {self._now.name}; those left are {', '.join(left)}, without which the "
                "hybrid is not trained"
            )

    def _settle_thresholds(self) -> None:
        gathered = [each for own in gather_objects(self.trainer, self._scores) for each in own]
        if not gathered:
            return
        scores = torch.cat(gathered)
        scores = scores[scores.isfinite()]
        if len(scores):
            self.threshold.fill_(query_threshold(scores, self.target_coverage))
            self.threshold_path.copy_(threshold_path(scores, PATH_POINTS))
            self._settled = {"threshold": self.threshold.clone(), "threshold_path": self.threshold_path.clone()}

    def _no_loss(self, *parts: nn.Module) -> Tensor:
        loss = _nothing(*parts)
        return loss if self.idle is None else loss + 0.0 * self.idle


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    losses = nn.functional.cross_entropy(at_least_float32(logits), target.long(), reduction="none")
    return (losses if weight is None else losses * weight).mean()


def _nothing(*parts: nn.Module) -> Tensor:
    """Return a loss of zero that these parts take part in."""
    parameters: Iterable[nn.Parameter] = (each for part in parts for each in part.parameters())
    zeros = [0.0 * each.sum() for each in parameters if each.requires_grad]
    return torch.stack(zeros).sum() if zeros else torch.zeros((), requires_grad=True)
