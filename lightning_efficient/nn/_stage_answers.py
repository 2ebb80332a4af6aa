"""Which stage answered which row of a batch, gathered stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.cascade import cascade_choice
from lightning_efficient.functional.routing import QueryScore, query_score


class StageAnswers(NamedTuple):
    """The answers of a cascade.

    Attributes:
        logits: Class scores of the stage that answered each row, shape ``(N, C)``; those of different stages have
            different scales.
        source: That stage, from 0, int64, shape ``(N,)``.
        query_score: That stage's, shape ``(N,)``, larger for less sure, float32 or wider.
    """

    logits: Tensor
    source: Tensor
    query_score: Tensor


class LiveRows:
    """The rows of a batch that no stage has answered yet, and the answers of the others.

    Args:
        rows: Number of rows.
        device: Of the answers.
        score: How sure a stage is.
    """

    def __init__(self, rows: int, device: torch.device, score: QueryScore = "msp") -> None:
        self.live = torch.arange(rows, device=device)
        self.score = score
        self._parts: list[tuple[Tensor, StageAnswers]] = []

    def ask(self, logits: Tensor, stage: int, threshold: float) -> Tensor | None:
        """Keep the answers of a stage that are sure enough.

        Args:
            logits: Of the live rows, ``(n, C)``.
            stage: Its number.
            threshold: A row is answered where its query score is at most this.

        Returns:
            Which of the live rows go on, int64 ``(m,)``; ``None`` where all do.
        """
        scores = query_score(logits, self.score)
        stays = cascade_choice(scores, [threshold]) == 1
        if bool(stays.all()):
            return None
        leaves = ~stays
        self._keep(self.live[leaves], logits[leaves], stage, scores[leaves])
        self.live = self.live[stays]
        return stays.nonzero().squeeze(1)

    def close(self, logits: Tensor, stage: int) -> None:
        """Take the answers of the last stage for all rows that are left."""
        self._keep(self.live, logits, stage, query_score(logits, self.score))
        self.live = self.live[:0]

    def answers(self) -> StageAnswers:
        """Return all answers in the order of the rows."""
        order = torch.cat([rows for rows, _ in self._parts]).argsort()
        logits, source, scores = (
            torch.cat(each)[order] for each in zip(*(part for _, part in self._parts), strict=True)
        )
        return StageAnswers(logits, source, scores)

    def _keep(self, rows: Tensor, logits: Tensor, stage: int, scores: Tensor) -> None:
        self._parts.append((rows, StageAnswers(logits, torch.full_like(rows, stage), scores)))


def no_answers(device: torch.device, num_classes: int) -> StageAnswers:
    """Return the answers of an empty batch."""
    scores = torch.empty(0, device=device)
    return StageAnswers(scores.new_empty(0, num_classes), scores.long(), scores)


def check_routing(network: nn.Module, thresholds: Sequence[float]) -> None:
    """Raise unless a network of several ``stages`` can answer with these thresholds now.

    Raises:
        ConfigurationError: another number of thresholds than stages but the last.
        RuntimeError: the network is in training mode.
    """
    if network.training:
        raise RuntimeError(f"{type(network).__name__}.route answers in evaluation mode; call eval() first")
    wanted = int(network.stages) - 1  # type: ignore[arg-type]
    if len(thresholds) != wanted:
        raise ConfigurationError(
            f"thresholds has {len(thresholds)} values; give {wanted}, one for each stage but the last"
        )
