"""Forward propagation through time: steps on parts of a sequence, held together by a running regulariser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_efficient._trainer import callbacks_of
from lightning_efficient.callbacks._part_loop import PartWeights
from lightning_efficient.callbacks.chunked_backprop import ChunkedBackprop
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.parts import Key
from lightning_efficient.losses.fptt_regularizer import FPTTRegularizer, check_fptt_options
from lightning_efficient.typing import Batch

Reset = Literal["epoch", "weights", "never"]
STABLE = 0.5
"""Largest alpha times learning rate at which plain SGD is safely stable; from the linearised recursion."""


class FPTT(ChunkedBackprop):
    """Train on parts of a sequence as ``ChunkedBackprop`` does, with the regulariser of FPTT between the steps.

    Each step also pulls the parameters towards a running mean of theirs and follows a running estimate of the gradient.
    The regulariser's gradient is added before clipping, in closed form; state is kept in float32 or better, two copies
    of the parameters, and is part of checkpoints. After each epoch of training, and so before evaluation and
    checkpoints, the parameters become the mean and the estimate is forgotten, as in the released code.

    Logged, at each step that is logged: ``fptt/updates``, the optimiser steps taken; ``fptt/distance``, the norm of
    parameters minus means; ``fptt/gradient_ratio``, the norm of the regulariser's gradient over that of the loss.

    Without the regulariser this is ``ChunkedBackprop`` (or ``regularize=False``), which is often as good: compare.

    Args:
        parts: Number of parts; the paper advises about the square root of the number of time steps.
        alpha: Strength. The released code uses 0.1 for pixels (Adam) and 0.5 for words (SGD).
        beta: Share of the new parameters in the mean, in ``(0, 1)``.
        proximal_weight: Weight of the quadratic term; 2 in the released language models.
        dual_weight: Weight of the linear term; ½ gives the formula as the paper prints it.
        reset: ``epoch``: parameters become means and duals zero after each epoch; ``weights``: the duals stay;
            ``never``: evaluation uses the live parameters.
        regularize: False leaves the regulariser out and nothing else.
        parameters: Regular expression that picks the parameters to regularise by name; by default all. Several of these
            callbacks may share a Trainer if they pick different ones, and cut batches alike.
        part_length: See ``ChunkedBackprop``, as for all further options.
        time_dim: See ``ChunkedBackprop``.
        sequences: See ``ChunkedBackprop``.
        part_weights: See ``ChunkedBackprop``.
        carry: See ``ChunkedBackprop``.
        check_finite: See ``ChunkedBackprop``.
        name: First part of the logged names.

    Attributes:
        updates: Optimiser steps taken so far.
        regularizer: The running means and duals; None before training and without a regulariser.

    Raises:
        ConfigurationError: as ``ChunkedBackprop``; an option outside its range; a pattern that fits no parameter, or a
            parameter that another FPTT has; a checkpoint of another model.

    Example:
        >>> FPTT(parts=10, alpha=0.5).updates
        0

    Reference:
        Kag, Saligrama. Training Recurrent Neural Networks via Forward Propagation Through Time. ICML 2021.
    """

    default_name = "fptt"

    def __init__(
        self,
        parts: int | None = None,
        alpha: float = 0.1,
        beta: float = 0.5,
        proximal_weight: float = 1.0,
        dual_weight: float = 1.0,
        reset: Reset = "epoch",
        regularize: bool = True,
        parameters: str | None = None,
        part_length: int | None = None,
        time_dim: int = 1,
        sequences: Sequence[Key] | None = None,
        part_weights: PartWeights = "equal",
        carry: bool = False,
        check_finite: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(parts, part_length, time_dim, sequences, part_weights, carry, check_finite, name)
        check_fptt_options(alpha, beta, proximal_weight, dual_weight)
        check_choice("FPTT: reset", reset, get_args(Reset))
        self.reset = reset
        self.regularize = regularize
        self.parameters = parameters
        self.options = {
            "alpha": alpha,
            "beta": beta,
            "proximal_weight": proximal_weight,
            "dual_weight": dual_weight,
        }
        self.regularizer: FPTTRegularizer | None = None
        self._measured: dict[str, torch.Tensor] = {}
        self._epoch_is_closed = False
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last run; refuse what cannot work."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self.regularizer = None
        self._warned = False
        mine = self._chosen(pl_module)
        if self.regularize and not mine:
            names = [name for name, _ in pl_module.named_parameters()]
            raise ConfigurationError(
                f"FPTT: parameters={self.parameters!r} fits none of the names that train; they look like {names[:3]}"
            )
        for other in callbacks_of(trainer, FPTT):
            if other is not self and self.regularize and other.regularize and (both := mine & other._chosen(pl_module)):
                raise ConfigurationError(
                    f"two FPTT callbacks ({self.name!r} and {other.name!r}) regularise {sorted(both)[0]!r}; give each "
                    "its own parameters="
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start means and duals, or continue those of a checkpoint."""
        super().on_train_start(trainer, pl_module)
        if not self.regularize:
            return
        chosen = self._chosen(pl_module)
        named = ((name, parameter) for name, parameter in pl_module.named_parameters() if name in chosen)
        self.regularizer = FPTTRegularizer(named, **self.options)
        if self._restored is not None and "means" in self._restored:
            self.regularizer.load_state_dict(self._restored)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Open an epoch with its first batch, and look at the learning rate, which a schedule may have moved."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._epoch_is_closed = False
        if batch_idx == 0 and self.regularize and not self._warned:
            self._warn_of_large_steps(max(float(group["lr"]) for group in trainer.optimizers[0].param_groups))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the regulariser's gradient: after gradients are averaged and unscaled, before they are clipped."""
        if self.regularizer is None:
            return
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        watched = bool(every) and (trainer.global_step + 1) % every == 0
        if watched:
            before = [param.grad for param in self.regularizer.params if param.grad is not None]
            data = torch.nn.utils.get_total_norm(before)
        _, added = self.regularizer.add_gradient()
        if watched:
            self._measured = {
                "distance": self.regularizer.distance(),
                "gradient_ratio": torch.nn.utils.get_total_norm(added) / data.clamp(min=torch.finfo(data.dtype).tiny),
            }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log; after the last batch put the means into the parameters."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        for key, value in self._measured.items():
            pl_module.log(f"{self.name}/{key}", value)
        self._measured = {}
        if trainer.is_last_batch:
            self._close_epoch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the means into the parameters where ``max_steps`` has cut the epoch short."""
        self._close_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the means and duals, by the names of their parameters."""
        regularizer = {} if self.regularizer is None else self.regularizer.state_dict()
        return {**regularizer, **super().state_dict(), "epoch_is_closed": self._epoch_is_closed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the means and duals until the parameters are on their device."""
        super().load_state_dict(state_dict)
        self._epoch_is_closed = state_dict["epoch_is_closed"]

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        super()._after_step(optimizer, args, kwargs)
        if self.regularizer is not None:
            self.regularizer.update()

    def _warn_of_large_steps(self, rate: float) -> None:
        alpha = self.options["alpha"]
        self._warned = alpha * rate > STABLE
        if self._warned:
            rank_zero_warn(
                f"FPTT: alpha ({alpha:g}) times the learning rate ({rate:g}) is above {STABLE}, where plain SGD may "
                "become unstable; lower one of the two if the loss grows"
            )

    def _close_epoch(self) -> None:
        if self.regularizer is not None and self.reset != "never" and not self._epoch_is_closed:
            self.regularizer.restart(keep_duals=self.reset == "weights")
        self._epoch_is_closed = True

    def _chosen(self, module: LightningModule) -> set[str]:
        pattern = re.compile(self.parameters or "")
        return {name for name, param in module.named_parameters() if param.requires_grad and pattern.search(name)}
