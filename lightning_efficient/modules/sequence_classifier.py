"""A recurrent network that classifies sequences, or every step of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import nll_loss
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from lightning_efficient._lightning_compat import hyperparameters_are_given
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import confidence
from lightning_efficient.functional._checks import check_choice, check_count
from lightning_efficient.functional.part_losses import counted_mean, log_probabilities, valid_steps
from lightning_efficient.losses import PreviousPredictions, WrongPredictions
from lightning_efficient.modules._counted_average import CountedAverage
from lightning_efficient.modules._recurrent_network import RecurrentNetwork
from lightning_efficient.modules._rnn_factory import rnn_name
from lightning_efficient.modules._sequence import LrInterval, SequenceModule, Sequences, terminal_weight, whole
from lightning_efficient.typing import Batch, Part

Divergence = Literal["paper", "released"]


class SequenceClassifier(SequenceModule):
    """Train and evaluate a recurrent network as a classifier of sequences, whole or in parts.

    Steps take ``(inputs, labels)``, a ``SequenceBatch`` or a mapping with ``inputs``, ``target`` and optionally
    ``lengths`` and ``index``: float inputs ``(N, T, F)`` and integer labels ``(N,)`` or ``(N, T)``; they return
    ``{"loss", "logits", "target"}``, and in training ``hiddens``, the state for the next part. Validation and test log
    loss and accuracy.

    Alone it is trained by back-propagation through time. With the callbacks ``ChunkedBackprop`` and ``FPTT`` each batch
    is trained in ``K`` parts. A label of the whole sequence is then asked for at the end of every part ``p = 0..K-1``,
    with weight ``(p + 1) / K``; where sequences differ in length, ``K`` is the number of parts in which a sequence has
    steps, and ended sequences do not count. Labels per step are not weighted.

    Args:
        input_size: Features per time step, ``F``.
        num_classes: Number of classes, ``C``.
        rnn: ``lstm``, ``gru``, ``rnn``, ``irnn``, ``tarnn``, or a class that is constructed and called like
            ``torch.nn.GRU``, by import path or itself. If its ``forward`` takes ``lengths``, ``start`` (time index of
            the part) or ``previous_input`` (last step of the part before), it is given them.
        hidden_size: Width of the state.
        num_layers: How many networks are stacked.
        rnn_kwargs: Further arguments of the network.
        target: Whether there is a label for the ``last`` step only, read from the last valid state, or for ``every``
            step.
        head_size: Width of a second linear layer in between, as in the released code of FPTT; there is no
            non-linearity. ``None`` leaves it out.
        dropout: Share of dropped outputs between layers and before the read-out, in ``[0, 1)``.
        divergence: For labels of the whole sequence trained in parts, what is asked for with the remaining weight
            ``1 - (p + 1) / K``: nothing, the model's own prediction of the epoch before (``paper``; needs ``index``),
            or what the authors' code does (``released``). One process only.
        ignore_index: Label that does not count.
        optimizer: From parameters to an optimiser.
        lr_scheduler: From an optimiser to a learning rate scheduler.
        lr_interval: Whether the scheduler counts epochs or steps.
        compile: Whether to compile the network and the read-out with ``torch.compile``.

    Raises:
        ConfigurationError: an unknown network (with the closest names), or a value outside its range.

    Example:
        >>> module = SequenceClassifier(input_size=3, num_classes=5, rnn="gru", hidden_size=8)
        >>> module(torch.randn(2, 10, 3)).shape
        torch.Size([2, 5])

    Reference:
        Kag, Saligrama. Training Recurrent Neural Networks via Forward Propagation Through Time. ICML 2021.
    """

    def __init__(
        self,
        input_size: int,
        num_classes: int,
        rnn: str | type[nn.Module] = "lstm",
        hidden_size: int = 128,
        num_layers: int = 1,
        rnn_kwargs: dict[str, Any] | None = None,
        target: Literal["last", "every"] = "last",
        head_size: int | None = None,
        dropout: float = 0.0,
        divergence: Divergence | None = None,
        ignore_index: int = -100,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: LrInterval = "epoch",
        compile: bool = False,
    ) -> None:
        check_choice("model.target", target, ("last", "every"))
        check_count("model.num_classes", num_classes)
        if divergence is not None:
            check_choice("model.divergence", divergence, ("paper", "released"))
        network = RecurrentNetwork(rnn, input_size, hidden_size, num_layers, dropout, rnn_kwargs)
        super().__init__(
            network,
            num_classes,
            every_step=target == "every",
            head_size=head_size,
            dropout=dropout,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            compile=compile,
        )
        if divergence and self.every_step:
            raise ConfigurationError(
                f"model.divergence is {divergence!r}, for one label per sequence, but model.target is 'every'; "
                "set model.divergence to null"
            )
        rnn = rnn_name(rnn)  # a class cannot be loaded from a checkpoint, and neither can callables
        self.save_hyperparameters(ignore=() if hyperparameters_are_given() else ("optimizer", "lr_scheduler"))
        self.input_size = input_size
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.divergence = _DIVERGENCES[divergence](num_classes) if divergence else None
        self.val_loss, self.test_loss = CountedAverage(), CountedAverage()
        self.val_accuracy, self.test_accuracy = self._accuracy(), self._accuracy()

    def _accuracy(self) -> MulticlassAccuracy:
        return MulticlassAccuracy(self.num_classes, average="micro", ignore_index=self.ignore_index)

    def setup(self, stage: str) -> None:
        """Compare classes and features with the data module's, if it tells them."""
        self.expect_of_data({"num_classes": self.num_classes}, at_least=True)
        self.expect_of_data({"input_size": self.input_size})
        if self.divergence is not None and stage == "fit" and self.trainer.world_size > 1:
            raise ConfigurationError(
                f"model.divergence keeps predictions from epoch to epoch, but each of {self.trainer.world_size} "
                "processes sees other samples every epoch; train on one device, or set model.divergence to null"
            )

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return class scores of whole sequences.

        Args:
            inputs: Features ``(N, T, F)``.
            lengths: Valid steps of each sequence, int64 ``(N,)``.

        Returns:
            ``(N, C)``, or ``(N, T, C)`` with labels for every step.
        """
        self.expect_features(inputs, self.input_size)
        return self.read(inputs, None, lengths)[0]

    def training_step(
        self, batch: Batch, batch_idx: int, hiddens: Any = None, part: Part | None = None
    ) -> dict[str, Any]:
        """Return ``{"loss", "logits", "target", "hiddens"}`` of a batch, or of a part of it.

        Args:
            batch: The batch, cut to the part.
            batch_idx: Its number.
            hiddens: What the step on the part before returned; ``None`` at the start of a sequence.
            part: Which part it is; ``None`` for whole sequences.
        """
        data = self._checked(batch)
        part = part or whole(data.inputs)
        logits, hiddens = self.read(data.inputs, hiddens, data.lengths, part.start)
        target = self._target(data)
        losses, counted = self._losses(logits, target)
        if not self.every_step:
            weight = terminal_weight(part)
            losses = weight * losses
            if self.divergence is not None and part.count > 1:
                term = self.divergence(
                    logits, target, part, index=data.index, epoch=self.current_epoch + 1, counted=counted
                )
                losses = losses + (1 - weight) * term
        loss = counted_mean(losses, counted)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(data.inputs))
        return {"loss": loss, "logits": logits.detach(), "target": data.target, "hiddens": hiddens}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` and log the metrics under ``val/``."""
        return self._evaluate(batch, "val", self.val_loss, self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` and log the metrics under ``test/``."""
        return self._evaluate(batch, "test", self.test_loss, self.test_accuracy)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"logits", "prediction", "confidence"}`` of a batch of sequences, with or without labels."""
        logits = self(batch) if isinstance(batch, Tensor) else self._logits(Sequences.of(batch))
        scores = confidence(logits.flatten(0, -2)).view(logits.shape[:-1])
        return {"logits": logits, "prediction": logits.argmax(-1), "confidence": scores}

    def _logits(self, data: Sequences) -> Tensor:
        return self(data.inputs, data.lengths)

    def _evaluate(self, batch: Batch, stage: str, mean: CountedAverage, accuracy: Metric) -> dict[str, Tensor]:
        data = self._checked(batch)
        logits = self._logits(data)
        target = self._target(data)
        losses, counted = self._losses(logits, target)
        mean.update(losses, counted)
        accuracy.update(logits.float().flatten(0, -2), target.flatten())
        self.log(f"{stage}/loss", mean)
        self.log(f"{stage}/accuracy", accuracy)
        return {"loss": counted_mean(losses, counted), "logits": logits, "target": data.target}

    def _losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = log_probabilities(logits).flatten(0, -2)
        losses = nll_loss(log_probs, target.flatten(), ignore_index=self.ignore_index, reduction="none")
        return losses.view(target.shape), target != self.ignore_index

    def _target(self, data: Sequences) -> Tensor:
        """Labels, and ``ignore_index`` for steps and sequences that this part does not have."""
        if data.lengths is None:
            return data.target
        lengths = data.lengths.to(data.target.device)
        there = valid_steps(lengths, data.target.shape[1]) if self.every_step else lengths > 0
        return torch.where(there, data.target, self.ignore_index)

    def _checked(self, batch: Batch) -> Sequences:
        data = Sequences.of(batch)
        self.expect_features(data.inputs, self.input_size)
        wanted = data.inputs.shape[: 2 if self.every_step else 1]
        if data.target.shape != wanted or data.target.dtype.is_floating_point:
            given, other = ("every", "last") if self.every_step else ("last", "every")
            raise ConfigurationError(
                f"model.target is {given!r}, so labels must be integers of shape {tuple(wanted)}, but a batch has "
                f"{str(data.target.dtype).removeprefix('torch.')} of shape {tuple(data.target.shape)}; "
                f"model.target can also be {other!r}"
            )
        # reading a label waits for the device, so only the CPU looks at every batch
        if data.target.device.type == "cpu" and len(labels := data.target[data.target != self.ignore_index]):
            low, high = (int(value) for value in labels.aminmax())
            if low < 0 or high >= self.num_classes:
                raise ConfigurationError(
                    f"model.num_classes is {self.num_classes}, so labels must be 0 to {self.num_classes - 1}, but a "
                    f"batch has labels from {low} to {high}"
                )
        return data


_DIVERGENCES: dict[str, type[PreviousPredictions] | type[WrongPredictions]] = {
    "paper": PreviousPredictions,
    "released": WrongPredictions,
}
