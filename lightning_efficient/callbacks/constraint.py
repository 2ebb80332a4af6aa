"""A constraint on any scalar that a module logs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_efficient._trainer import callbacks_of
from lightning_efficient.callbacks._step_tap import Every, StepTap, bound_of, check_options, find, holder_of, value_of
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.primal_dual import PrimalDual
from lightning_efficient.reporting import log_scalars
from lightning_efficient.typing import Batch


class Constraint(Callback):
    """Train under the constraint that a logged scalar is at most, or at least, a given value.

    A multiplier rises while the constraint is violated and falls, down to zero, while it is met with room. By default
    the scalar is one that ``training_step`` logs with its graph (``self.log(monitor, value)``), and the multiplier
    times the violation is added to the loss that it returns. With ``attribute`` the scalar needs no gradient (a
    validation metric, a latency): the multiplier is written into a number of the module, which weighs something that
    moves the scalar, and nothing is added to the loss.

    Logged: ``constraint/<monitor>_multiplier`` and ``constraint/<monitor>_residual`` (by how much the constraint is
    violated; negative where it is met), with slashes in the monitor's name replaced by underscores. Costs one wait for
    the device and, in several processes, one reduction of a number per optimiser step.

    With callbacks that train in parts, each part counts as a batch. With ``DiSK``, list the constraint after it to add
    the penalty to the whole loss of distillation, or before it to the module's own loss, which ``DiSK`` then multiplies
    by ``supervised_weight``; steps of the guide's phase, in which the module rests, do not count.

    Args:
        monitor: Name of the logged scalar.
        at_most: Largest allowed value; or
        at_least: smallest allowed value. Give one of the two.
        rate: Step of the multiplier per unit of violation, above 0.
        initial: Multiplier at the beginning.
        maximum: Largest multiplier. A constraint that is still violated there is warned of, once.
        augmentation: Weight of the quadratic term of an augmented Lagrangian, which damps oscillation.
        every: When the multiplier moves: after each ``step`` of the optimiser, with the mean over accumulated batches
            and processes; or after each ``epoch``, with the mean over its steps, or the last new value where the scalar
            comes with ``attribute``.
        attribute: Dotted name of a number on the module, such as ``network.price``, that receives the multiplier. The
            scalar is then read from ``trainer.callback_metrics``, and only values that are new since the last reading
            move the multiplier; what a module logs in ``on_train_epoch_end`` counts in the next epoch. The number keeps
            its last value after training. A checkpoint of the last batch of an epoch, before validation, is resumed by
            Lightning without that validation, and so without its value.
        relax_every: Length, in updates, of a cycle at whose beginning the multiplier falls back.
        relax_for: How many updates of each cycle do so.
        name: First part of the logged names; two constraints on one scalar need two names.

    Attributes:
        dual: The ``PrimalDual``, with ``multiplier`` and ``updates``.
        residual: The last residual that moved it; None before.

    Raises:
        ConfigurationError: an option outside its range; manual optimisation without ``attribute``; a scalar that is
            never logged, or logged without a gradient; an ``attribute`` that is no number.

    Example:
        >>> Constraint("train/help", at_most=0.4).dual.multiplier
        0.0

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023: a budget kept by
        primal-dual training. Here the residual is signed, so that the multiplier can fall again.
    """

    def __init__(
        self,
        monitor: str,
        at_most: float | None = None,
        at_least: float | None = None,
        rate: float = 0.1,
        initial: float = 0.0,
        maximum: float = 100.0,
        augmentation: float = 0.0,
        every: Every = "step",
        attribute: str | None = None,
        relax_every: int | None = None,
        relax_for: int = 0,
        name: str = "constraint",
    ) -> None:
        check_options(every, attribute, augmentation, relax_every, relax_for)
        self.bound, self._sign = bound_of(at_most, at_least)
        self.monitor = monitor
        self.every = every
        self.attribute = attribute
        self.relax_every, self.relax_for = relax_every, relax_for
        self.name = name
        self.dual = PrimalDual(rate, initial, maximum=maximum, augmentation=augmentation)
        self._tap: StepTap | None = None
        self._hooks: list[Any] = []
        self._forget()

    def _forget(self) -> None:
        self.residual: float | None = None
        self._window: list[Tensor] = []
        self._total, self._count, self._epochs = 0.0, 0, 0
        self._stepped = self._validated = self._warned = False
        self._last_read: Tensor | None = None

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: one for each name and monitor."""
        return f"{type(self).__qualname__}[{self.name}/{self.monitor}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last run; refuse what cannot work; listen to ``training_step``."""
        if stage != "fit":
            return
        self._clean_up()
        self._forget()
        self.dual.reset()
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise ConfigurationError("Constraint counts the steps of the optimiser, which DeepSpeed takes out of sight")
        if self.attribute is not None:
            holder_of(self.attribute, pl_module)
            return
        together = [other for other in callbacks_of(trainer, Constraint) if other.attribute is None]
        # now, so that a loop over parts of a batch, which others install when training starts, lies outside
        if together[0] is self:
            self._tap = StepTap(pl_module, [other._with_penalty for other in together])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the optimiser's steps from now on, and hand over the multiplier."""
        after_step = functools.partial(self._after_step, trainer)
        self._hooks = [optimizer.register_step_post_hook(after_step) for optimizer in trainer.optimizers]
        self._publish(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to go on without the scalar, once an epoch could have brought it."""
        if self._epochs:
            self._check_seen(trainer)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Forget the residuals whose gradients are dropped; the batch under way has its own already."""
        if self.attribute is None:
            self._window = self._window[-1:]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move the multiplier of an attribute, if the optimiser stepped, or close the epoch; log."""
        if self.every == "epoch":
            # a run that resumes from a checkpoint of the last batch does not come to the end of that epoch
            if self.attribute is None and trainer.is_last_batch:
                self._close_epoch(pl_module)
            return
        if self.attribute is not None:
            self._window.extend(self._new_residuals(trainer))
            if self._stepped and self._window:
                self._move(self._close_window(trainer))
                self._publish(pl_module)
            self._stepped = False
        for key, value in self._values().items():
            pl_module.log(key, value)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read a value of the validation now, so that a checkpoint of this moment has it."""
        if not trainer.sanity_checking:
            self._validated = True
            self._read_epoch(trainer)
            if self.attribute is not None and self.every == "step":
                self._window.extend(self._new_residuals(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the multiplier and log, if that happens once an epoch; warn of a constraint that cannot be met."""
        self._epochs += 1
        self._read_epoch(trainer)
        if self.every == "epoch":
            self._close_epoch(pl_module)
            log_scalars(trainer, self._values(), pl_module)
        if not self._warned and self.dual.at_maximum and self.residual is not None and self.residual > 0:
            self._warned = True
            rank_zero_warn(
                f"Constraint: {self.monitor!r} still misses its bound of {self.bound:g} by {self.residual:.3g} with "
                f"the multiplier at its maximum of {self.dual.maximum:g}; it cannot be met, or maximum= is too low"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to end without the scalar; leave module and optimiser alone again."""
        self._check_seen(trainer)
        self._clean_up()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its own methods back."""
        self._clean_up()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its own methods back."""
        self._clean_up()

    def state_dict(self) -> dict[str, Any]:
        """Return the multiplier, and the sums of an epoch under way; plain numbers."""
        # batches that were accumulated without a step are not resumed, and neither are their residuals
        window = [] if self.attribute is None else [float(residual) for residual in self._window]
        sums = {"total": self._total, "count": self._count, "window": window}
        return {**self.dual.state_dict(), "residual": self.residual, **sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        self.dual.load_state_dict(state_dict)
        self.residual = state_dict["residual"]
        self._total, self._count = state_dict["total"], state_dict["count"]
        self._window = [torch.tensor(residual) for residual in state_dict["window"]]

    def _clean_up(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._tap is not None:
            self._tap.remove()
            self._tap = None

    def _residual_of(self, value: Tensor) -> Tensor:
        precise = at_least_float32(value).squeeze()
        return self._sign * (precise - self.bound)

    def _with_penalty(self, outputs: Any, logged: Mapping[str, Any]) -> Any:
        value = value_of(self.monitor, logged, outputs)
        if value is None:
            return outputs
        residual = self._residual_of(value)
        self._window.append(residual.detach())
        penalty = self.dual.penalty(residual)
        if isinstance(outputs, Mapping):
            return {**outputs, "loss": outputs["loss"] + penalty}
        return outputs + penalty

    def _after_step(self, trainer: Trainer, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._stepped = True
        if self.attribute is not None or not self._window:
            return
        residual = self._close_window(trainer)
        if self.every == "step":
            self._move(residual)
        elif math.isfinite(residual):
            self._total, self._count = self._total + residual, self._count + 1

    def _close_window(self, trainer: Trainer) -> float:
        """Return the mean residual of the batches of a step, and of all processes."""
        device = trainer.strategy.root_device
        mean, self._window = torch.stack([residual.to(device) for residual in self._window]).mean(), []
        return float(trainer.strategy.reduce(mean, reduce_op="mean"))

    def _new_residuals(self, trainer: Trainer) -> list[Tensor]:
        """Return the residual of the value that Lightning has, unless it was read before."""
        value = trainer.callback_metrics.get(self.monitor)
        # Lightning keeps the last value, the same tensor, until there is another
        if value is None or value is self._last_read:
            return []
        self._last_read = value
        return [self._residual_of(value.detach())]

    def _read_epoch(self, trainer: Trainer) -> None:
        if self.attribute is not None and self.every == "epoch" and (new := self._new_residuals(trainer)):
            self._window = new
            self._total, self._count = self._close_window(trainer), 1

    def _close_epoch(self, module: LightningModule) -> None:
        if self._count:
            self._move(self._total / self._count)
            self._publish(module)
        self._total, self._count = 0.0, 0

    def _move(self, residual: float) -> None:
        relaxes = self.relax_every is not None and self.dual.updates % self.relax_every < self.relax_for
        (self.dual.relax if relaxes else self.dual.step)(residual)
        self.residual = residual

    def _publish(self, module: LightningModule) -> None:
        if self.attribute is not None:
            setattr(*holder_of(self.attribute, module), self.dual.multiplier)

    def _values(self) -> dict[str, float]:
        stem = f"{self.name}/{self.monitor.replace('/', '_')}"
        residual = {} if self.residual is None else {f"{stem}_residual": self.residual}
        return {f"{stem}_multiplier": self.dual.multiplier, **residual}

    def _check_seen(self, trainer: Trainer) -> None:
        found = self.attribute is None or self._last_read is not None or self._count or self.dual.updates
        if not found and (self._validated or not trainer.enable_validation):
            find(self.monitor, "a whole epoch", trainer.callback_metrics)
