"""A recurrent network that predicts numbers from sequences, or at every step of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_efficient._lightning_compat import hyperparameters_are_given
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.part_losses import counted_mean, valid_steps
from lightning_efficient.modules._counted_average import CountedAverage
from lightning_efficient.modules._recurrent_network import RecurrentNetwork
from lightning_efficient.modules._rnn_factory import rnn_name
from lightning_efficient.modules._sequence import LrInterval, SequenceModule, Sequences, terminal_weight, whole
from lightning_efficient.typing import Batch, Part


class SequenceRegressor(SequenceModule):
    """Train and evaluate a recurrent network by the mean squared error, on whole sequences or in parts.

    Steps take ``(inputs, target)`` or a mapping with ``inputs``, ``target`` and optionally ``lengths``: float inputs
    ``(N, T, F)``, and one target ``(N, O)`` per sequence or ``(N, T, O)`` for every step, where ``O = 1`` may be left
    out. They return ``{"loss", "prediction", "target"}``, and in training ``hiddens``, the state for the next part.
    Validation and test log the error as ``mse``.

    Alone it is trained by back-propagation through time. With the callbacks ``ChunkedBackprop`` and ``FPTT`` each batch
    is trained in ``K`` parts. A target of the whole sequence is then asked for at the end of every part ``p = 0..K-1``,
    with weight ``(p + 1) / K``; where sequences differ in length, ``K`` is the number of parts in which a sequence has
    steps, and ended sequences do not count. Targets per step are not
    weighted.

    Args:
        input_size: Features per time step, ``F``.
        out_features: Numbers to predict, ``O``.
        rnn: ``lstm``, ``gru``, ``rnn``, ``irnn``, ``tarnn``, or a class that is constructed and called like
            ``torch.nn.GRU``, by import path or itself.
        hidden_size: Width of the state.
        num_layers: How many networks are stacked.
        rnn_kwargs: Further arguments of the network.
        target: Whether there is a target for the ``last`` step only, read from the last valid state, or for ``every``
            step.
        head_size: Width of a second linear layer in between, without non-linearity. ``None`` leaves it out.
        dropout: Share of dropped outputs between layers and before the read-out, in ``[0, 1)``.
        optimizer: From parameters to an optimiser.
        lr_scheduler: From an optimiser to a learning rate scheduler.
        lr_interval: Whether the scheduler counts epochs or steps.
        compile: Whether to compile the network and the read-out with ``torch.compile``.

    Raises:
        ConfigurationError: an unknown network (with the closest names), or a value outside its range.

    Example:
        >>> module = SequenceRegressor(input_size=2, rnn="gru", hidden_size=8)
        >>> module(torch.randn(3, 10, 2)).shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        input_size: int,
        out_features: int = 1,
        rnn: str | type[nn.Module] = "lstm",
        hidden_size: int = 128,
        num_layers: int = 1,
        rnn_kwargs: dict[str, Any] | None = None,
        target: Literal["last", "every"] = "last",
        head_size: int | None = None,
        dropout: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: LrInterval = "epoch",
        compile: bool = False,
    ) -> None:
        check_choice("model.target", target, ("last", "every"))
        network = RecurrentNetwork(rnn, input_size, hidden_size, num_layers, dropout, rnn_kwargs)
        super().__init__(
            network,
            out_features,
            every_step=target == "every",
            head_size=head_size,
            dropout=dropout,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            compile=compile,
        )
        rnn = rnn_name(rnn)  # a class cannot be loaded from a checkpoint, and neither can callables
        self.save_hyperparameters(ignore=() if hyperparameters_are_given() else ("optimizer", "lr_scheduler"))
        self.input_size = input_size
        self.out_features = out_features
        self.val_mse, self.test_mse = CountedAverage(), CountedAverage()

    def setup(self, stage: str) -> None:
        """Compare features with the data module's, if it tells them."""
        self.expect_of_data({"input_size": self.input_size, "out_features": self.out_features})

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return predictions of whole sequences.

        Args:
            inputs: Features ``(N, T, F)``.
            lengths: Valid steps of each sequence, int64 ``(N,)``.

        Returns:
            ``(N, O)``, or ``(N, T, O)`` with targets for every step.
        """
        self.expect_features(inputs, self.input_size)
        return self.read(inputs, None, lengths)[0]

    def training_step(
        self, batch: Batch, batch_idx: int, hiddens: Any = None, part: Part | None = None
    ) -> dict[str, Any]:
        """Return ``{"loss", "prediction", "target", "hiddens"}`` of a batch, or of a part of it.

        Args:
            batch: The batch, cut to the part.
            batch_idx: Its number.
            hiddens: What the step on the part before returned; ``None`` at the start of a sequence.
            part: Which part it is; ``None`` for whole sequences.
        """
        data = Sequences.of(batch)
        self.expect_features(data.inputs, self.input_size)
        part = part or whole(data.inputs)
        read, hiddens = self.read(data.inputs, hiddens, data.lengths, part.start)
        losses, counted = self._losses(read, data)
        if not self.every_step:
            losses = terminal_weight(part) * losses
        loss = counted_mean(losses, counted)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(data.inputs))
        prediction = read.detach().view(data.target.shape)
        return {"loss": loss, "prediction": prediction, "target": data.target, "hiddens": hiddens}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "prediction", "target"}`` and log ``val/mse``."""
        return self._evaluate(batch, "val", self.val_mse)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "prediction", "target"}`` and log ``test/mse``."""
        return self._evaluate(batch, "test", self.test_mse)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"prediction"}`` of a batch of sequences, with or without targets; a single number is ``(N,)``."""
        if isinstance(batch, Tensor):
            read = self(batch)
        else:
            data = Sequences.of(batch)
            read = self(data.inputs, data.lengths)
        return {"prediction": read.squeeze(-1) if self.out_features == 1 else read}

    def _evaluate(self, batch: Batch, stage: str, mean: CountedAverage) -> dict[str, Tensor]:
        data = Sequences.of(batch)
        read = self(data.inputs, data.lengths)
        losses, counted = self._losses(read, data)
        mean.update(losses, counted)
        self.log(f"{stage}/mse", mean)
        return {
            "loss": counted_mean(losses, counted),
            "prediction": read.view(data.target.shape),
            "target": data.target,
        }

    def _losses(self, read: Tensor, data: Sequences) -> tuple[Tensor, Tensor | None]:
        """Squared errors, averaged over ``O``: ``(N,)`` or ``(N, T)``, and which of them count."""
        short = read.shape[:-1] if self.out_features == 1 else None
        if data.target.shape not in (read.shape, short):
            raise ConfigurationError(
                f"model.target is {'every' if self.every_step else 'last'!r} and model.out_features is "
                f"{self.out_features}, so targets must have the shape {tuple(read.shape)}, but a batch has "
                f"{tuple(data.target.shape)}"
            )
        read = read if read.dtype == torch.float64 else read.float()
        losses = (read - data.target.view(read.shape)).square().mean(-1)
        if data.lengths is None:
            return losses, None
        lengths = data.lengths.to(losses.device)
        counted = valid_steps(lengths, losses.shape[1]) if self.every_step else lengths > 0
        return losses.masked_fill(~counted, 0.0), counted
