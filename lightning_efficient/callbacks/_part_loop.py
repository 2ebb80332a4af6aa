"""One whole optimiser step for each part of a batch, inside Lightning's automatic optimisation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_efficient.callbacks._borrowed_step import BorrowedMethods
from lightning_efficient.callbacks._moment import cause_of_bad_loss, last_good_checkpoint, moment, returned
from lightning_efficient.errors import ConfigurationError, NonFiniteLossError
from lightning_efficient.functional.parts import Key, SplitBatch
from lightning_efficient.typing import Batch, Part

PartWeights = Literal["equal", "linear"]


@dataclass(frozen=True)
class SplitOptions:
    """How batches are cut and what a part counts; callbacks of one Trainer must agree on all of it."""

    parts: int | None
    part_length: int | None
    time_dim: int
    sequences: Collection[Key] | None
    part_weights: PartWeights
    carry: bool
    check_finite: bool


class PartLoop:
    """Replace two methods of a LightningModule *instance*, while it trains, by ones that go part by part.

    Lightning calls ``optimizer_step`` once per batch with a closure that runs ``training_step`` and ``backward``. Here
    that is repeated for each part, so precision plugins, clipping, and ``on_before_optimizer_step`` of all callbacks
    take part in each of the steps, while schedulers, loggers and ``global_step`` go on counting batches.

    Args:
        name: What to call it in messages.
        trainer: The Trainer that runs.
        module: The module to work on.
        options: How to cut.
    """

    def __init__(self, name: str, trainer: Trainer, module: LightningModule, options: SplitOptions) -> None:
        self.name = name
        self.trainer = trainer
        self.module = module
        self.options = options
        self.hiddens: Any = None
        self.carried_size: int | None = None
        self._step: Callable[..., Any] = module.training_step
        self._optimizer_step: Callable[..., Any] = module.optimizer_step
        self._accepts = set(inspect.signature(self._step).parameters)
        self._borrowed = BorrowedMethods(module)
        self._batch: SplitBatch | None = None
        self._index: int | None = None
        self._after_part: Any = None
        self._told = False

    def install(self) -> None:
        """Put the methods in place."""
        self._borrowed.replace("training_step", lambda _: self.training_step, keeps_signature=False)
        self._borrowed.replace("optimizer_step", lambda _: self.optimizer_step)

    def remove(self) -> None:
        """Put back what was there."""
        self._borrowed.give_back()

    def forget(self) -> None:
        """Let the next batch start without a state."""
        self.hiddens, self.carried_size = None, None

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Run the module's own ``optimizer_step`` once per part."""
        self._batch, self._index = None, 0
        try:
            # how many parts there are is known once the first closure has seen the batch
            while self._index == 0 or (self._batch is not None and self._index < len(self._batch)):
                self._optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
                self.hiddens = self._after_part
                self._index += 1
            if self.options.carry and self._batch is not None:
                self.carried_size = self._batch.size
            else:
                self.hiddens = None
        finally:
            self._batch, self._index, self._after_part = None, None, None

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Run the module's own ``training_step`` on the part that is due, with the state that the last one left."""
        if self._index is None:
            raise ConfigurationError(
                f"{self.name} takes an optimiser step for each part, so gradients cannot be accumulated over batches; "
                "set accumulate_grad_batches=1"
            )
        if self._batch is None:
            self._batch = self._begin(batch, batch_idx)
        part = self._batch.parts[self._index]
        piece = self._batch[self._index]
        known = {"batch_idx": batch_idx, "hiddens": self.hiddens, "part": part}
        outputs = self._step(piece, **{name: value for name, value in known.items() if name in self._accepts})
        loss = self._checked(outputs)["loss"]
        if self.options.check_finite:
            self._check_finite(loss, part, piece)
        self._after_part = detached(outputs["hiddens"])
        weight = (part.index + 1) / part.count if self.options.part_weights == "linear" else 1.0
        return {**outputs, "loss": loss if weight == 1 else weight * loss, "hiddens": self._after_part}

    def _begin(self, batch: Batch, batch_idx: int) -> SplitBatch:
        options = self.options
        try:
            split = SplitBatch.of(batch, options.parts, options.part_length, options.time_dim, options.sequences)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.name}: batch {batch_idx}: {error}") from error
        if options.part_length is not None and self.trainer.world_size > 1:
            self._check_counts(len(split))
        if self.carried_size not in (None, split.size):
            raise ConfigurationError(
                f"{self.name}(carry=True): batch {batch_idx} has {split.size} sequences, and the state carried over "
                f"belongs to {self.carried_size}; give batches of one size, with drop_last=True for instance"
            )
        if not self._told:
            self._told = True
            rank_zero_info(f"{self.name}: {split}")
        return split

    def _checked(self, outputs: Any) -> Mapping[str, Any]:
        if isinstance(outputs, Mapping) and "loss" in outputs and "hiddens" in outputs:
            return outputs
        raise ConfigurationError(f"{needs_hiddens(self.name, self.module)}; it returned {returned(outputs)}")

    def _check_finite(self, loss: Tensor, part: Part, piece: Batch) -> None:
        value = float(loss.detach())
        # a gradient scaler deals with infinities by skipping the step and lowering the scale
        if math.isfinite(value) or (math.isinf(value) and has_scaler(self.trainer)):
            return
        raise NonFiniteLossError(
            f"the training loss is {value} in part {part.index + 1} of {part.count} (time steps {part.start} to "
            f"{part.stop - 1}) at {moment(self.trainer)}; {cause_of_bad_loss(piece, self.module)}; "
            f"{last_good_checkpoint(self.trainer)}"
        )

    def _check_counts(self, count: int) -> None:
        counts = self.trainer.strategy.all_gather(torch.tensor(count, device=self.module.device))
        if int(counts.min()) != int(counts.max()):
            raise ConfigurationError(
                f"{self.name}(part_length={self.options.part_length}): the processes have sequences of different "
                "length and would take different numbers of steps; use parts= instead, or sequences of one length"
            )


def needs_hiddens(name: str, module: LightningModule) -> str:
    """Say what a module has to do to be trained in parts: the lines to add."""
    return (
        f"{name} passes the recurrent state from part to part: {type(module).__name__} needs\n"
        "    def training_step(self, batch, batch_idx, hiddens=None):\n"
        "        output, hiddens = self.rnn(inputs, hiddens)\n"
        '        return {"loss": loss, "hiddens": hiddens}'
    )


def detached(hiddens: Any) -> Any:
    """Cut a state, any nest of tensors, from the graph that made it."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, hiddens)


def has_scaler(trainer: Trainer) -> bool:
    """Tell whether a gradient scaler may skip steps."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None
