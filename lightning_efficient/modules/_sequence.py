"""What the modules for sequences share: the network with its read-out, batches in all their forms, optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.part_losses import part_weight
from lightning_efficient.modules._recurrent_network import RecurrentNetwork
from lightning_efficient.typing import Batch, Part, SequenceBatch

LrInterval = Literal["epoch", "step"]


@dataclass(frozen=True)
class Sequences:
    """A batch with all that it may hold.

    Attributes:
        inputs: Features ``(N, T, F)``, or tokens ``(N, T)``.
        target: What is asked for.
        lengths: Valid steps of each sequence within this part, int64 ``(N,)``, if they differ.
        index: Position of each sample in its data set, int64 ``(N,)``, if it is known.
    """

    inputs: Tensor
    target: Tensor
    lengths: Tensor | None = None
    index: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch) -> Sequences:
        """Read ``(inputs, target)``, a ``SequenceBatch``, or a mapping with the names of these attributes as keys.

        Raises:
            ConfigurationError: the batch is something else.
        """
        if isinstance(batch, Mapping) and {"inputs", "target"} <= set(batch):
            return cls(**{name: batch[name] for name in (field.name for field in fields(cls)) if name in batch})
        if isinstance(batch, SequenceBatch):
            return cls(batch.inputs, batch.target, index=batch.index)
        if isinstance(batch, tuple | list) and len(batch) == 2:
            return cls(*batch)
        form = f"keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ConfigurationError(
            f"a batch of sequences is (inputs, target), a SequenceBatch, or a mapping with 'inputs' and 'target'; "
            f"this one is {form}"
        )


def terminal_weight(part: Part) -> float | Tensor:
    """How much a label of the whole sequence weighs at the end of a part, per sequence where that differs."""
    return part_weight(part.index, part.count if part.counts is None else part.counts)


def whole(inputs: Tensor) -> Part:
    """Return the only part of sequences that are not cut."""
    steps = inputs.shape[1]
    return Part(index=0, count=1, start=0, stop=steps, length=steps)


class SequenceModule(pl.LightningModule):
    """A recurrent network with a linear read-out of its last valid step, or of every step."""

    def __init__(
        self,
        network: RecurrentNetwork,
        outputs: int,
        *,
        every_step: bool,
        head_size: int | None,
        dropout: float,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_interval: LrInterval,
        compile: bool,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"model.dropout is {dropout}; it must be in [0, 1)")
        self.network = network
        self.dropout = nn.Dropout(dropout)
        self.head: nn.Module = (
            nn.Linear(network.output_size, outputs)
            if head_size is None
            else nn.Sequential(nn.Linear(network.output_size, head_size), nn.Linear(head_size, outputs))
        )
        self.every_step = every_step
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        if compile:
            self.network.compile()
            self.head.compile()

    def configure_optimizers(self) -> Any:
        """Build the optimiser and the scheduler from the given callables."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval}}

    def read(
        self, inputs: Tensor, hiddens: Any = None, lengths: Tensor | None = None, start: int = 0
    ) -> tuple[Tensor, Any]:
        """Run the network over a part and read it out.

        Returns:
            The read-out, ``(N, outputs)`` or ``(N, T, outputs)``, and the state for the next part, detached: what a
            step returns is kept by Lightning for a while, and should not keep a graph.
        """
        output, last, hiddens = self.network(inputs, hiddens, lengths, start)
        read = self.head(self.dropout(output if self.every_step else last))
        return read, tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, hiddens)

    def expect_features(self, inputs: Tensor, input_size: int) -> None:
        """Raise unless inputs are ``(N, T, input_size)``."""
        if inputs.ndim != 3 or inputs.shape[-1] != input_size:
            raise ConfigurationError(
                f"model.input_size is {input_size}, so inputs must have the shape (N, T, {input_size}) of sequences "
                f"along dimension 1, but a batch has {tuple(inputs.shape)}"
            )

    def expect_of_data(self, own: Mapping[str, int], *, at_least: bool = False) -> None:
        """Raise unless the data module, if it tells these numbers, tells the model's own, or at most them."""
        data = getattr(self.trainer, "datamodule", None)
        for name, mine in own.items():
            theirs = getattr(data, name, None)
            if isinstance(theirs, int) and (theirs > mine if at_least else theirs != mine):
                raise ConfigurationError(
                    f"model.{name} is {mine}, but {type(data).__name__} has {theirs}; set model.{name} to {theirs}"
                )
