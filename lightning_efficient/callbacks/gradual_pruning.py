"""Remove weights or channels of a network step by step while it trains."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_efficient._trainer import (
    callbacks_of,
    is_rehearsal,
    refuse_manual_optimization,
    refuse_shards,
    sample_shape,
)
from lightning_efficient.callbacks._pruner import Pruner, Target
from lightning_efficient.callbacks._pruning_plan import (
    PruningPlan,
    PruningSchedule,
    Saliency,
    Scope,
    Structure,
    check_pruning_options,
    shares_of,
)
from lightning_efficient.callbacks._pruning_report import channel_costs, report, without_channels
from lightning_efficient.callbacks._pruning_units import ChannelUnits, Units, WeightUnits, said
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.main_network import main_network
from lightning_efficient.profiling.inputs import random_example
from lightning_efficient.reporting import log_scalars
from lightning_efficient.typing import Batch


class GradualPruning(Callback):
    """Prune the network of a module in rounds while it trains; what is removed stays at zero.

    ``unstructured`` sets single weights of convolutions and linear layers to zero, the first layer and the classifier
    among them; biases and normalisation stay. ``channels`` sets whole channels to zero in all layers they pass
    through, and after the fit ``pruned`` is a smaller network without them that computes the same. Only channels make
    a network faster on ordinary hardware.

    Masks are applied to the weights themselves after each optimiser step: checkpoints, validation and averaged weights
    (``EMAWeightAveraging``) are sparse, and no key is added to a state dict. Costs one byte per weight, and with
    ``first_order`` four more. Works with DDP, where all processes remove the same.

    Logged in each round: ``pruning/sparsity``, the share of the weights or channels that is gone,
    ``pruning/parameters``, those of the network that are left, and ``pruning/channels`` and ``pruning/macs`` for
    channels. At the end a table by layer, ``pruning.png`` and ``pruning.json`` go to the run folder.

    Args:
        sparsity: Share of the weights, or of the channels, that is gone in the end, in ``[0, 1)``.
        structure: ``"unstructured"`` or ``"channels"`` (needs the extra ``prune``).
        saliency: What is kept: the largest ``"magnitude"``; ``"first_order"``, the largest sum of ``|w ∂L/∂w|`` over
            the steps since the last round; or ``"random"`` draws, to compare with.
        scope: ``"global"``: the sparsity holds for all layers together. ``"layer"``: for each.
        schedule: ``"cubic"``: fast at first, slowly at the end. ``"iterative"``: the same share of what is left in each
            round. ``"one_shot"``: everything at ``begin``.
        begin: Share of the training, in optimiser steps, at which pruning starts.
        end: Share of the training at which the sparsity is reached; the rest is fine-tuning.
        rounds: Number of rounds, evenly spaced.
        layers: Sparsities of layers of their own, by regular expressions that are searched for in their names; 0 leaves
            a layer alone. ``sparsity`` then holds for the others. For channels, the layers that write them.
        regrowth: Share of the weights kept that is removed in addition in each round, lowest saliency first, and
            brought back, at zero, where the gradient is largest. With ``"one_shot"`` there are ``rounds`` rounds of it.
        max_layer_sparsity: Largest sparsity of any one layer.
        network: Dotted name of the part to prune; by default the one that looks like the network.
        input_shape: Shape of one sample, for channels and for the measurement, where data and module do not tell it.
        measure: Whether to count MACs in each round of channels, and to measure the latency after the fit.
        seed: Of the random saliency.
        name: First part of the logged names, ``pruning`` by default. Several of these callbacks may share a Trainer if
            they prune different parts under different names.

    Attributes:
        masks: By the name of a parameter of the module, its entries that are kept; empty before the first round.
        pruned: After the fit with ``channels``, the smaller network, on the CPU and in eval mode.

    Raises:
        ConfigurationError: an option outside its range; a layer that would be removed whole; a sparsity that cannot be
            reached; a pattern that fits no layer; a network without layers to prune; manual optimisation; a strategy
            that shards the parameters; a run without an end; a checkpoint whose masks do not fit.

    Example:
        >>> pruning = GradualPruning(sparsity=0.9, schedule="cubic", layers={"^conv_stem$": 0.0})
        >>> pruning.pruned is None
        True

    Reference:
        Menghani. Efficient Deep Learning: A Survey on Making Deep Learning Models Smaller, Faster, and Better. ACM
        Computing Surveys 2023: Algorithm 1. Zhu, Gupta. To Prune, or Not to Prune. ICLR 2018 workshop: cubic. Evci,
        Gale, Menick, Castro, Elsen. Rigging the Lottery. ICML 2020: regrowth.
    """

    def __init__(
        self,
        sparsity: float = 0.8,
        structure: Structure = "unstructured",
        saliency: Saliency = "magnitude",
        scope: Scope = "global",
        schedule: PruningSchedule = "cubic",
        begin: float = 0.0,
        end: float = 0.75,
        rounds: int = 10,
        layers: dict[str, float] | None = None,
        regrowth: float = 0.0,
        max_layer_sparsity: float = 0.95,
        network: str | None = None,
        input_shape: Sequence[int] | None = None,
        measure: bool = True,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        self.name = name or "pruning"
        try:
            check_pruning_options(
                sparsity, structure, saliency, scope, layers, regrowth, max_layer_sparsity, measure, seed
            )
            self.plan = PruningPlan(schedule, begin, end, rounds, regrowth)
        except ConfigurationError as error:
            raise ConfigurationError(f"GradualPruning: {error}") from error
        self.sparsity = sparsity
        self.structure = structure
        self.saliency = saliency
        self.scope = scope
        self.layers = layers
        self.max_layer_sparsity = max_layer_sparsity
        self.network = network
        self.input_shape = input_shape
        self.measure = measure
        self.seed = seed
        self.pruned: nn.Module | None = None
        self._pruner: Pruner | None = None
        self._example: Tensor | None = None
        self._steps: list[int] = []
        self._total: float = 0
        self._history: list[dict[str, float]] = []
        self._logged = 0
        self._hooks: list[RemovableHandle] = []

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: two callbacks of one Trainer have two names."""
        return f"{type(self).__qualname__}[{self.name}]"

    @property
    def masks(self) -> dict[str, Tensor]:
        """Which entries of each parameter are kept, by the parameter's name in the module."""
        return {} if self._pruner is None else self._pruner.named_masks()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find what can be pruned, and refuse what cannot work."""
        if stage != "fit":
            return
        self._forget()
        refuse_shards(trainer, "GradualPruning")
        refuse_manual_optimization(pl_module, "GradualPruning")
        try:
            self._pruner = self._make(trainer, pl_module)
        except ConfigurationError as error:
            raise ConfigurationError(f"GradualPruning: {error}") from error
        self._pruner.bind(pl_module)
        self._refuse_overlap(trainer, self._pruner)
        if skipped := self._pruner.units.skipped:
            rank_zero_info(f"GradualPruning leaves alone: {said(skipped)}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the parameters, which a checkpoint may have replaced, and listen to the optimiser's steps."""
        self._remove_hooks()
        self._bound(pl_module).apply()
        after = partial(self._after_step, trainer, pl_module)
        self._hooks = [optimizer.register_step_post_hook(after) for optimizer in trainer.optimizers]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Place the rounds in the training, once its length is known."""
        if not self._steps:
            self._total = trainer.estimated_stepping_batches
            if self._total == math.inf:
                raise ConfigurationError(
                    "GradualPruning: the schedule needs the length of the run; set trainer.max_epochs or max_steps"
                )
            self._steps = self.plan.steps(int(self._total))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read the gradients, whole and unscaled, and take those of what is removed out before they are clipped."""
        if (pruner := self._pruner) is None:
            return
        step = trainer.global_step + 1
        # what regrows after the last step would stay at zero
        regrows = bool(self.plan.regrowth) and self._due(step) > pruner.round and step < self._total
        pruner.read_gradients(accumulate=pruner.round < self.plan.length, dense=regrows)
        pruner.mask_gradients()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log what a round has left."""
        if self._logged < len(self._history):
            self._logged = len(self._history)
            entry = self._history[-1]
            if self._writes(trainer):
                entry |= channel_costs(self._bound(pl_module), pl_module, self._example if self.measure else None)
            log_scalars(trainer, {f"{self.name}/{key}": value for key, value in entry.items() if key != "step"})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the masks, should something else than the optimiser have written to the weights."""
        self._apply()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Apply the masks; the checkpoint holds the very tensors."""
        self._apply()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening, and say so if the schedule has not come to its end."""
        self._apply()
        self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening, and say how far the schedule has come."""
        self._stop(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the channels, measure and report; averaged weights are in the module by now."""
        pruner = self._bound(pl_module)
        pruner.apply()
        self.pruned = without_channels(pruner, pl_module)
        if self._writes(trainer):
            example = self._example if self.measure else None
            report(trainer, pl_module, pruner, self.pruned, example, self._history, self.name)
        pruner.let_go()

    def state_dict(self) -> dict[str, Any]:
        """Return the masks as bits, and all that the next round depends on."""
        if self._pruner is None:
            return {}
        history = [dict(entry) for entry in self._history]
        return {"structure": self.structure, "history": history, **self._pruner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the masks of a checkpoint."""
        if self._pruner is None or not state_dict:
            return
        if state_dict["structure"] != self.structure:
            raise ConfigurationError(
                f"GradualPruning: structure={self.structure!r}, and the checkpoint's masks are for "
                f"{state_dict['structure']!r}; resume with that"
            )
        try:
            self._pruner.load_state_dict(state_dict)
        except ConfigurationError as error:
            raise ConfigurationError(f"GradualPruning: {error}") from error
        self._history = [dict(entry) for entry in state_dict["history"]]
        self._logged = len(self._history)

    def _forget(self) -> None:
        self._remove_hooks()
        self.pruned = self._pruner = self._example = None
        self._steps, self._total, self._history, self._logged = [], 0, [], 0

    def _make(self, trainer: Trainer, module: LightningModule) -> Pruner:
        path = main_network(module, self.network)
        network = module.get_submodule(path)
        units: Units
        try:
            shape = sample_shape(module, getattr(trainer, "datamodule", None), self.input_shape, "input_shape=")
            self._example = random_example(network, shape)
        except ConfigurationError:
            if self.structure == "channels":
                raise
        if self.structure == "channels" and self._example is not None:
            units = ChannelUnits(network, self._example)
        else:
            units = WeightUnits(network)
        own = shares_of(self.layers, units.aliases)
        target = Target(self.sparsity, own, self.scope, self.max_layer_sparsity)
        target.check(units.shapes)
        return Pruner(units, path, self.plan, target, self.saliency, self.seed)

    def _bound(self, module: LightningModule) -> Pruner:
        assert self._pruner is not None
        self._pruner.bind(module)
        return self._pruner

    def _refuse_overlap(self, trainer: Trainer, pruner: Pruner) -> None:
        for other in callbacks_of(trainer, GradualPruning):
            if other is self:
                return
            mine, theirs = pruner.touched(), {} if other._pruner is None else other._pruner.touched()
            if both := sorted(mine[each] for each in mine.keys() & theirs.keys()):
                raise ConfigurationError(
                    f"two GradualPruning callbacks ({other.name!r} and {self.name!r}) prune {both[0]!r}; give each its "
                    "own network="
                )

    def _after_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer, *args: Any) -> None:
        # where a gradient scaler leaves a step out this is not called, and the round comes with the next one
        pruner, step = self._pruner, trainer.global_step + 1
        assert pruner is not None
        if (number := self._due(step)) > pruner.round:
            pruner.prune(number, optimizer)
            pruner.apply(_averages(trainer, module))
            self._history.append({"step": step, "sparsity": pruner.sparsity, "parameters": pruner.entries})
        else:
            pruner.apply()

    def _due(self, step: int) -> int:
        return bisect_right(self._steps, step)

    def _apply(self) -> None:
        if self._pruner is not None and self._pruner.parameters:
            self._pruner.apply()

    def _writes(self, trainer: Trainer) -> bool:
        return trainer.is_global_zero and not is_rehearsal(trainer)

    def _stop(self, trainer: Trainer) -> None:
        self._remove_hooks()
        if self._pruner is not None and self._steps and self._pruner.round < self.plan.length:
            rank_zero_info(
                f"GradualPruning: training ended at step {trainer.global_step} of {self._total:.0f}, after "
                f"{self._pruner.round} of {self.plan.length} rounds: the sparsity is {self._pruner.sparsity:.3g}, not "
                f"{self.sparsity:g}"
            )
        self._steps = []

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _averages(trainer: Trainer, module: LightningModule) -> list[dict[str, Tensor]]:
    """Return the averaged weights of the callbacks that average: what they would save, which are the very tensors."""
    averages = []
    for callback in callbacks_of(trainer, WeightAveraging):
        checkpoint: dict[str, Any] = {"state_dict": {}}
        callback.on_save_checkpoint(trainer, module, checkpoint)
        averages.append(checkpoint["state_dict"])
    return averages
