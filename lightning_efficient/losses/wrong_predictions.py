"""The divergence term of FPTT as its authors' code has it: a table of wrong predictions per class and part."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lightning_efficient.functional.part_losses import (
    divergence,
    first_wrong_per_class,
    in_last_full_part,
    log_probabilities,
)
from lightning_efficient.losses._table import Table
from lightning_efficient.typing import Part


class WrongPredictions(nn.Module):
    """The term that the released code computes, which differs from the paper's.

    Averaged over classes, it is ``C`` times weaker. Before ``table_from`` it asks for the uniform distribution, then
    for the entry of the sample's class and part in a table; from the last full part on, for the label. In every batch
    and part before that, the first sample of each class that is taken for another class overwrites the entry with its
    prediction, after the entry was used. Entries are zeros at first. Call it once per part of a batch; the table of
    ``C * parts * C`` float32 is part of the checkpoint.

    Args:
        num_classes: ``C``.
        table_from: First epoch, counted from 1, that uses the table.

    Example:
        >>> term = WrongPredictions(num_classes=2)
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([0])
        >>> part = Part(index=0, count=2, start=0, stop=5, length=10)
        >>> term(logits, labels, part, epoch=1)
        tensor([0.5635])
        >>> term(logits, labels, part, epoch=20)  # with its own wrong prediction of before
        tensor([0.1827])

    Reference:
        Kag, Saligrama. Training Recurrent Neural Networks via Forward Propagation Through Time. ICML 2021.
        The authors' code: https://github.com/anilkagak2/FPTT
    """

    def __init__(self, num_classes: int, table_from: int = 20) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table_from = table_from
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
        """Return the term of each sample and fill the table.

        Args:
            logits: Class scores at the end of the part, shape ``(N, C)``.
            labels: Classes, int64 of shape ``(N,)``.
            part: Which part it is.
            index: Not used; the terms of both forms are called alike.
            epoch: Number of the epoch, from 1.
            counted: Boolean of shape ``(N,)``; the others do not fill the table.

        Returns:
            The mean over classes of ``-Q(y) log P(y)``, shape ``(N,)``, float32 or wider.
        """
        log_probs = log_probabilities(logits)
        probs = log_probs.detach().exp()
        labels = labels if counted is None else torch.where(counted, labels, -1)
        rows = labels.clamp(min=0)
        if in_last_full_part(part):
            return divergence(log_probs, one_hot(rows, self.num_classes), "mean")
        self.table.reserve(self.num_classes, part.count, self.num_classes)
        entries = self.table.like(probs)[:, part.index]
        reference = entries[rows] if epoch >= self.table_from else torch.full_like(log_probs, 1 / self.num_classes)
        found, sample = first_wrong_per_class(probs, labels)
        entries.copy_(torch.where(found.unsqueeze(1), probs[sample], entries))
        return divergence(log_probs, reference, "mean")
