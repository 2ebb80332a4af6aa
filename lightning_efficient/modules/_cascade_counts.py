"""What a cascade achieves at each point of a fixed path of thresholds, counted batch by batch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

_LARGEST = 16.0
"""Log-odds of the first finite point: a score within 1e-7 of its surest value."""

BOUNDED = ("msp", "margin", "gini", "entropy", "energy_softmax")
"""Scores with a largest and a smallest value that follow from the number of classes."""


class CascadeResult(NamedTuple):
    """Along a path of ``T`` points of ``M`` stages.

    Attributes:
        shares: Share that each stage answers, ``(T, M)``.
        accuracy: Share of right answers, ``(T,)``.
        stage_accuracy: Of each stage alone on all samples, ``(M,)``.
    """

    shares: Tensor
    accuracy: Tensor
    stage_accuracy: Tensor

    def costs(self, stage_costs: tuple[float, ...]) -> Tensor:
        """Return the mean cost of an answer at each point, ``(T,)``, from what an answer of each stage costs in all."""
        return self.shares @ torch.tensor(stage_costs, dtype=self.shares.dtype)

    def area(self, stage_costs: tuple[float, ...]) -> float:
        """Return the mean accuracy over the costs from the cheapest to the dearest point of the path."""
        costs, order = self.costs(stage_costs).sort(stable=True)
        accuracy, span = self.accuracy[order], float(costs[-1] - costs[0])
        if span <= 0:
            return float(accuracy.mean())
        return float(torch.trapezoid(accuracy, costs)) / span


class CascadeCounts(Metric):
    """Count answers and right answers of each stage along a path of thresholds; a few numbers per point, no samples.

    Args:
        path: Thresholds of the query scores, ``(T, M - 1)``, from where the last stage answers all.
        kwargs: What every ``torchmetrics.Metric`` takes.
    """

    is_differentiable: bool = False
    higher_is_better: bool | None = None
    full_state_update: bool = False

    answered: Tensor
    right: Tensor
    stage_right: Tensor
    samples: Tensor

    def __init__(self, path: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        points, stages = len(path), path.shape[1] + 1
        self.register_buffer("path", path, persistent=False)
        counts = {"answered": (points, stages), "right": (points,), "stage_right": (stages,), "samples": ()}
        for name, shape in counts.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, query_score: Tensor, correct: Tensor) -> None:
        """Add a batch.

        Args:
            query_score: Of each stage but the last, ``(N, M - 1)``.
            correct: Whether each stage is right, bool ``(N, M)``.
        """
        scores = query_score.detach()
        path: Tensor = self.path  # type: ignore[assignment]
        keeps = (scores <= path.unsqueeze(1)) & scores.isfinite()  # (T, N, M - 1)
        keeps = torch.cat([keeps, keeps.new_ones(*keeps.shape[:2], 1)], 2)
        choice = keeps.int().argmax(2)
        stages = torch.arange(correct.shape[1], device=choice.device)
        self.answered += (choice.unsqueeze(2) == stages).sum(1)
        self.right += correct.gather(1, choice.T).sum(0)
        self.stage_right += correct.sum(0)
        self.samples += len(correct)

    def compute(self) -> CascadeResult:
        """Return shares and accuracies; NaN where no sample was seen."""
        counts = (self.answered, self.right, self.stage_right)
        # some accelerators have no float64
        return CascadeResult(*(count.cpu().double() / int(self.samples) for count in counts))


def shared_path(score: str, num_classes: int, stages: int, points: int = 101) -> Tensor:
    """Return one query score for all stages, from minus to plus infinity, chosen before any data are seen.

    Between them, bounded scores go from certainty to ignorance in even steps of log-odds, which resolve both ends; the
    others go from -1000 to 1000 in steps that grow with the distance from 0, until training scores tell their range.

    Args:
        score: Name of a query score.
        num_classes: Number of classes.
        stages: Number of stages, ``M``.
        points: Length of the path, 3 or more.

    Returns:
        Shape ``(points, M - 1)``, float32.
    """
    steps = torch.linspace(_LARGEST, -_LARGEST, points - 2, dtype=torch.float64)
    if score in BOUNDED:
        sure, unsure = _ends(score, num_classes)
        # one minus the logistic function loses the digits near certainty, so take it of the opposite
        inner = sure + (unsure - sure) * (-steps).sigmoid()
    else:
        inner = -1000 * torch.sinh(steps / 2) / torch.sinh(torch.tensor(_LARGEST / 2, dtype=torch.float64))
    infinity = torch.tensor([torch.inf], dtype=torch.float64)
    return torch.cat([-infinity, inner, infinity]).float().unsqueeze(1).repeat(1, stages - 1)


def _ends(score: str, classes: int) -> tuple[float, float]:
    """Return the query scores of a one-hot and of a uniform softmax."""
    if score == "energy_softmax":
        return -math.log(classes - 1 + math.e), -(math.log(classes) + 1 / classes)
    if score == "entropy":
        return 0.0, math.log(classes)
    return -1.0, 0.0 if score == "margin" else -1 / classes
