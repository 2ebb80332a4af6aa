"""The divergence term of FPTT as the paper has it: stay close to the previous epoch's prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.part_losses import divergence, log_probabilities
from lightning_efficient.losses._table import Table
from lightning_efficient.typing import Part


class PreviousPredictions(nn.Module):
    """Cross-entropy with what the model itself predicted for the same sample at the same part when it saw it last.

    Before the last part of a sequence its label may not be decided yet; this term asks for a prediction like that of
    the previous epoch there. A sample that was not seen yet asks for the uniform distribution. Calling it also keeps
    the new predictions, so call it once per part of a batch. The table of ``samples * parts * classes`` float32 is part
    of the checkpoint; it grows with the largest index seen, and reading that waits for the device once per sequence.

    Args:
        num_classes: ``C``.

    Example:
        >>> term = PreviousPredictions(num_classes=2)
        >>> logits, labels, index = torch.tensor([[0.0, 2.0]]), torch.tensor([1]), torch.tensor([7])
        >>> part = Part(index=0, count=2, start=0, stop=5, length=10)
        >>> term(logits, labels, part, index=index)  # not seen yet: the uniform distribution
        tensor([1.1269])
        >>> term(logits, labels, part, index=index)  # now with its own prediction: the entropy
        tensor([0.3653])

    Reference:
        Kag, Saligrama. Training Recurrent Neural Networks via Forward Propagation Through Time. ICML 2021.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table = Table(3)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        part: Part,
        *,
        index: Tensor | None = None,
        epoch: int = 1,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Return the term of each sample and keep the predictions.

        Args:
            logits: Class scores at the end of the part, shape ``(N, C)``.
            labels: Not used; the terms of both forms are called alike.
            part: Which part it is.
            index: Position of each sample in its data set, int64 of shape ``(N,)``.
            epoch: Not used.
            counted: Boolean of shape ``(N,)``; the predictions of the others are not kept.

        Returns:
            ``-sum_y Q(y) log P(y)``, shape ``(N,)``, float32 or wider.

        Raises:
            ConfigurationError: there is no ``index``.
        """
        if index is None:
            raise ConfigurationError(
                "the divergence from the previous epoch's predictions needs to know which samples a batch has; "
                "give batches (inputs, target, index), as SequenceBatch, or set model.divergence to null"
            )
        log_probs = log_probabilities(logits)
        probs = log_probs.detach().exp()
        samples = len(self.table.values)
        if part.index == 0 or not samples:
            samples = max(samples, int(index.max()) + 1)
        self.table.reserve(samples, part.count, self.num_classes)
        table = self.table.like(probs)
        kept = table[index, part.index]
        # softmax rows are never all zero, so zeros mean: not seen yet
        reference = torch.where(kept.any(-1, keepdim=True), kept, 1 / self.num_classes)
        new = probs if counted is None else torch.where(counted.unsqueeze(-1), probs, kept)
        table[index, part.index] = new
        return divergence(log_probs, reference, "sum")
