"""A recurrent network that predicts the next token."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from lightning_efficient._lightning_compat import hyperparameters_are_given
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_count
from lightning_efficient.functional.part_losses import counted_mean, log_probabilities, valid_steps
from lightning_efficient.modules._counted_average import BitsPerCharacter, CountedAverage, Perplexity
from lightning_efficient.modules._recurrent_network import RecurrentNetwork
from lightning_efficient.modules._rnn_factory import rnn_name
from lightning_efficient.modules._sequence import LrInterval, SequenceModule, Sequences, whole
from lightning_efficient.typing import Batch, Part

IGNORED = -100
"""Next token that does not count, as in ``torch.nn.CrossEntropyLoss``."""


class LanguageModel(SequenceModule):
    """Train and evaluate a recurrent language model, on whole windows of a text or in parts.

    Steps take ``(tokens, next_tokens)``, both int64 ``(N, T)``: ``N`` streams of text, of which each batch is the next
    window. The loss is the mean negative log-likelihood per token, in nats. Training steps return
    ``{"loss", "logits", "target", "hiddens"}``, evaluation the first three. Validation and test log ``loss``, and
    ``perplexity`` of words or ``bits_per_character`` of characters, over all tokens on any number of processes.

    Evaluation carries the state from batch to batch of an epoch. Training does not: each batch starts from a state of
    zeros, unless the callback ``ChunkedBackprop(parts=1, carry=True)``, with more ``parts`` or ``FPTT``, carries it. A
    network that has seen states of short histories only can do badly in evaluation, ``irnn`` and ``tarnn`` above all.

    Args:
        vocabulary_size: Number of different tokens.
        embedding_size: Width of a token's vector.
        hidden_size: Width of the state.
        num_layers: How many networks are stacked.
        rnn: ``lstm``, ``gru``, ``rnn``, ``irnn``, ``tarnn``, or a class that is constructed and called like
            ``torch.nn.GRU``, by import path or itself.
        rnn_kwargs: Further arguments of the network.
        dropout: Share of dropped embeddings and outputs, in ``[0, 1)``.
        tie_weights: Whether tokens are read and predicted with the same vectors; needs one size for both.
        level: Whether tokens are words or characters, which decides what is logged.
        optimizer: From parameters to an optimiser.
        lr_scheduler: From an optimiser to a learning rate scheduler.
        lr_interval: Whether the scheduler counts epochs or steps.
        compile: Whether to compile the network and the read-out with ``torch.compile``.

    Raises:
        ConfigurationError: an unknown network (with the closest names), or a value outside its range.

    Example:
        >>> module = LanguageModel(vocabulary_size=10, embedding_size=4, hidden_size=8)
        >>> module(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 10])
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int = 256,
        hidden_size: int = 256,
        num_layers: int = 1,
        rnn: str | type[nn.Module] = "lstm",
        rnn_kwargs: dict[str, Any] | None = None,
        dropout: float = 0.2,
        tie_weights: bool = False,
        level: Literal["word", "character"] = "word",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: LrInterval = "epoch",
        compile: bool = False,
    ) -> None:
        check_choice("model.level", level, _MEASURES)
        for name, size in (("vocabulary_size", vocabulary_size), ("embedding_size", embedding_size)):
            check_count(f"model.{name}", size)
        network = RecurrentNetwork(rnn, embedding_size, hidden_size, num_layers, dropout, rnn_kwargs)
        super().__init__(
            network,
            vocabulary_size,
            every_step=True,
            head_size=None,
            dropout=dropout,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            compile=compile,
        )
        if tie_weights and network.output_size != embedding_size:
            raise ConfigurationError(
                f"model.tie_weights needs one size, but model.embedding_size is {embedding_size} and the network's "
                f"outputs are {network.output_size} wide"
            )
        rnn = rnn_name(rnn)  # a class cannot be loaded from a checkpoint, and neither can callables
        self.save_hyperparameters(ignore=() if hyperparameters_are_given() else ("optimizer", "lr_scheduler"))
        self.vocabulary_size = vocabulary_size
        self.level = level
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        if tie_weights:
            # the read-out's initial weights, since an embedding's are too large to predict with
            self.embedding.weight = cast(nn.Linear, self.head).weight
        self.measure, unit = _MEASURES[level]
        self.val_loss, self.test_loss = CountedAverage(), CountedAverage()
        self.val_measure, self.test_measure = unit(), unit()
        self._carried: Any = None

    def setup(self, stage: str) -> None:
        """Compare the vocabulary and the kind of tokens with the data module's, if it tells them."""
        self.expect_of_data({"vocabulary_size": self.vocabulary_size}, at_least=True)
        data = getattr(self.trainer, "datamodule", None)
        theirs = getattr(data, "level", self.level)
        if theirs != self.level:
            raise ConfigurationError(
                f"model.level is {self.level!r}, but {type(data).__name__} reads text by the {theirs}; "
                f"set model.level to {theirs!r}"
            )

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return scores ``(N, T, V)`` of every next token, for tokens ``(N, T)`` with the state zero at first."""
        return self._scores(tokens, None, lengths, 0)[0]

    def training_step(
        self, batch: Batch, batch_idx: int, hiddens: Any = None, part: Part | None = None
    ) -> dict[str, Any]:
        """Return ``{"loss", "logits", "target", "hiddens"}`` of a batch, or of a part of it.

        Args:
            batch: The batch, cut to the part.
            batch_idx: Its number.
            hiddens: What the step on the part or batch before returned; ``None`` for a state of zeros.
            part: Which part it is; ``None`` for whole windows.
        """
        data = self._checked(batch)
        part = part or whole(data.inputs)
        logits, hiddens = self._scores(data.inputs, hiddens, data.lengths, part.start)
        loss = counted_mean(*self._losses(logits, data))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(data.inputs))
        return {"loss": loss, "logits": logits.detach(), "target": data.target, "hiddens": hiddens}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` and log under ``val/``."""
        return self._evaluate(batch, batch_idx, "val", self.val_loss, self.val_measure)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"loss", "logits", "target"}`` and log under ``test/``."""
        return self._evaluate(batch, batch_idx, "test", self.test_loss, self.test_measure)

    def _evaluate(
        self, batch: Batch, batch_idx: int, stage: str, mean: CountedAverage, measure: CountedAverage
    ) -> dict[str, Tensor]:
        data = self._checked(batch)
        # an epoch begins with batch 0; the error for another number of streams comes from the network
        before = self._carried if batch_idx else None
        logits, self._carried = self._scores(data.inputs, before, data.lengths, 0)
        losses, counted = self._losses(logits, data)
        for metric in (mean, measure):
            metric.update(losses, counted)
        self.log(f"{stage}/loss", mean)
        self.log(f"{stage}/{self.measure}", measure)
        return {"loss": counted_mean(losses, counted), "logits": logits, "target": data.target}

    def on_validation_epoch_end(self) -> None:
        """Let go of the carried state."""
        self._carried = None

    def on_test_epoch_end(self) -> None:
        """Let go of the carried state."""
        self._carried = None

    def _scores(self, tokens: Tensor, hiddens: Any, lengths: Tensor | None, start: int) -> tuple[Tensor, Any]:
        return self.read(self.dropout(self.embedding(tokens)), hiddens, lengths, start)

    def _losses(self, logits: Tensor, data: Sequences) -> tuple[Tensor, Tensor]:
        target = data.target
        if data.lengths is not None:
            target = torch.where(valid_steps(data.lengths.to(target.device), target.shape[1]), target, IGNORED)
        losses = nll_loss(
            log_probabilities(logits).flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view(target.shape), target != IGNORED

    def _checked(self, batch: Batch) -> Sequences:
        data = Sequences.of(batch)
        tokens, target = data.inputs, data.target
        if tokens.ndim != 2 or tokens.dtype.is_floating_point or target.shape != tokens.shape:
            raise ConfigurationError(
                "a batch for a language model is tokens and next tokens, both integers of shape (N, T), but one has "
                f"{str(tokens.dtype).removeprefix('torch.')} of shape {tuple(tokens.shape)} and a target of shape "
                f"{tuple(target.shape)}"
            )
        # reading a token waits for the device, so only the CPU looks at every batch
        if tokens.device.type == "cpu":
            low, high = (int(value) for value in torch.cat([tokens.flatten(), target[target != IGNORED]]).aminmax())
            if low < 0 or high >= self.vocabulary_size:
                raise ConfigurationError(
                    f"model.vocabulary_size is {self.vocabulary_size}, so tokens must be 0 to "
                    f"{self.vocabulary_size - 1}, but a batch has tokens from {low} to {high}"
                )
        return data


_MEASURES: dict[str, tuple[str, type[CountedAverage]]] = {
    "word": ("perplexity", Perplexity),
    "character": ("bits_per_character", BitsPerCharacter),
}
