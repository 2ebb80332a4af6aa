"""Truncated back-propagation through time on the Trainer, as Lightning 1.x had it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lightning_efficient._trainer import callbacks_of, gather_objects, refuse_manual_optimization, refuse_shards
from lightning_efficient.callbacks._part_loop import PartLoop, PartWeights, SplitOptions, has_scaler, needs_hiddens
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.parts import Key, sequence_parts
from lightning_efficient.typing import Batch


class ChunkedBackprop(Callback):
    """Cut each batch along time into parts, and take one whole optimiser step on each, in automatic optimisation.

    The activations of one part are in memory at a time, so memory does not grow with the length of the sequences. The
    module is asked for ``training_step(batch, batch_idx, hiddens)`` that returns ``{"loss", "hiddens"}``, as Lightning
    1.x did for ``truncated_bptt_steps``; ``hiddens`` is None at the start of a sequence and comes detached after that.
    A ``training_step`` that also takes ``part`` gets a ``lightning_efficient.typing.Part`` and weighs its loss itself.

    Clipping, precision plugins and ``on_before_optimizer_step`` act on each part; schedulers, ``global_step``, loggers
    and checkpoints count batches, and ``<name>/updates`` counts the steps. Costs one optimiser step per part.

    Args:
        parts: Number of parts, whose lengths differ by at most one step.
        part_length: Or the number of time steps in each part, the last one being shorter (``truncated_bptt_steps``).
        time_dim: 1 for sequences of shape ``(N, T, ...)``, 0 for ``(T, N, ...)``.
        sequences: Positions or keys of the elements of a batch to cut. By default the first tensor with a time axis
            and all others with as many time steps and samples; the rest goes whole into each part.
        part_weights: ``equal``, or ``linear`` for a target that belongs to the end of the sequence: part ``p`` of ``K``
            then counts ``p / K``. Leave it if ``training_step`` takes ``part``.
        carry: Whether a batch starts from the state in which the last one ended, for batches that are windows of
            ordered streams; each epoch starts anew.
        check_finite: Whether to stop at the first part with a NaN loss. Waits for the device once a part, which is free
            on CPU.
        name: First part of the logged names.

    Attributes:
        updates: Optimiser steps taken so far; steps that a gradient scaler skipped do not count.

    Raises:
        ConfigurationError: an option outside its range; a module with manual optimisation or a ``training_step``
            without ``hiddens``; accumulated gradients; a sharded strategy; a fused optimiser with a gradient scaler; a
            batch without sequences, or with sequences shorter than ``parts``.
        NonFiniteLossError: the loss of a part is NaN or infinite.

    Example:
        >>> ChunkedBackprop(part_length=35).updates
        0
    """

    default_name = "chunked"

    def __init__(
        self,
        parts: int | None = None,
        part_length: int | None = None,
        time_dim: int = 1,
        sequences: Sequence[Key] | None = None,
        part_weights: PartWeights = "equal",
        carry: bool = False,
        check_finite: bool = True,
        name: str | None = None,
    ) -> None:
        try:
            sequence_parts(parts if isinstance(parts, int) and parts > 0 else 1, parts, part_length)
        except ConfigurationError as error:
            raise ConfigurationError(f"{type(self).__name__}: {error}") from error
        if time_dim not in (0, 1):
            raise ConfigurationError(f"{type(self).__name__}: time_dim is {time_dim}; it must be 0 or 1")
        check_choice(f"{type(self).__name__}: part_weights", part_weights, get_args(PartWeights))
        chosen = None if sequences is None else tuple(sequences)
        self.split = SplitOptions(parts, part_length, time_dim, chosen, part_weights, carry, check_finite)
        self.name = name or self.default_name
        self.updates = 0
        self._loop: PartLoop | None = None
        self._hook: Any = None
        self._restored: Any = None
        self._carried: Any = None

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: two callbacks of one Trainer have two names."""
        return f"{type(self).__qualname__}[{self.name}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last run; refuse what cannot work."""
        if stage != "fit":
            return
        self.updates, self._restored, self._carried = 0, None, None
        self._check_trainer(trainer)
        self._check_module(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the loop over the parts, unless another callback has done so, and count the steps."""
        self._clean_up()
        optimizer = trainer.optimizers[0]
        if has_scaler(trainer) and any(group.get("fused") for group in optimizer.param_groups):
            raise ConfigurationError(
                f"{type(self).__name__}: a fused optimiser hides from a gradient scaler which steps it skips; set "
                "fused=False, or train with precision='bf16-mixed'"
            )
        if callbacks_of(trainer, ChunkedBackprop)[0] is self:
            self._loop = PartLoop(type(self).__name__, trainer, pl_module, self.split)
            if self._restored is not None:
                self._resume(self._loop, self._restored, trainer)
            self._loop.install()
        self._hook = optimizer.register_step_post_hook(self._after_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Start the streams anew with each epoch."""
        # not in on_train_epoch_start, which Lightning leaves out when it resumes from a checkpoint of the last batch
        if batch_idx == 0 and self._loop is not None:
            self._loop.forget()
            self._carried = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log how many steps were really taken, and keep what the next batch starts with."""
        if self._loop is not None and self.split.carry:
            self._carried = {"hiddens": self._loop.hiddens, "carried_size": self._loop.carried_size}
        pl_module.log(f"{self.name}/updates", float(self.updates))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its own methods back."""
        self._clean_up()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its own methods back."""
        self._clean_up()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting, and keep the rest until training starts."""
        self.updates = state_dict["updates"]
        self._restored = state_dict

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state that is carried to the next batch, of every process."""
        if self._carried is not None and self.state_key in checkpoint.get("callbacks", {}):
            checkpoint["callbacks"][self.state_key]["carried"] = gather_objects(trainer, moved(self._carried, "cpu"))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.updates += 1

    def _resume(self, loop: PartLoop, state: dict[str, Any], trainer: Trainer) -> None:
        per_rank = state.get("carried", [])
        if not self.split.carry or not per_rank:
            return
        if len(per_rank) != trainer.world_size:
            raise ConfigurationError(
                f"{type(self).__name__}(carry=True): the checkpoint holds the state of {len(per_rank)} process(es) and "
                f"this run has {trainer.world_size}; resume with as many, or from a checkpoint at the end of an epoch"
            )
        self._carried = moved(per_rank[trainer.global_rank], trainer.strategy.root_device)
        loop.hiddens, loop.carried_size = self._carried["hiddens"], self._carried["carried_size"]

    def _clean_up(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._loop is not None:
            self._loop.remove()
            self._loop = None

    def _check_trainer(self, trainer: Trainer) -> None:
        name = type(self).__name__
        found = f"accumulate_grad_batches={trainer.accumulate_grad_batches}"
        if callbacks_of(trainer, GradientAccumulationScheduler):
            found = "a GradientAccumulationScheduler"
        if found != "accumulate_grad_batches=1":
            raise ConfigurationError(
                f"{name} takes an optimiser step for each part, so gradients cannot be accumulated over batches; got "
                f"{found}, set accumulate_grad_batches=1"
            )
        refuse_shards(trainer, name)
        if others := [other for other in callbacks_of(trainer, ChunkedBackprop) if other.split != self.split]:
            raise ConfigurationError(
                f"a batch can be cut in one way only, and {name} ({self.name!r}) and {type(others[0]).__name__} "
                f"({others[0].name!r}) differ in {_difference(self.split, others[0].split)}"
            )

    def _check_module(self, module: LightningModule) -> None:
        name = type(self).__name__
        refuse_manual_optimization(module, name)
        accepted = inspect.signature(module.training_step).parameters
        if "hiddens" not in accepted:
            raise ConfigurationError(needs_hiddens(name, module))
        if "part" in accepted and self.split.part_weights != "equal":
            raise ConfigurationError(
                f"{name}: part_weights is {self.split.part_weights!r}, but {type(module).__name__} weighs its parts "
                "itself; leave part_weights out"
            )


def moved(state: Any, device: torch.device | str) -> Any:
    """Return a nest of tensors on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, state)


def _difference(one: SplitOptions, other: SplitOptions) -> str:
    pairs = {name: (value, getattr(other, name)) for name, value in vars(one).items()}
    return ", ".join(f"{name} ({mine} and {theirs})" for name, (mine, theirs) in pairs.items() if mine != theirs)
