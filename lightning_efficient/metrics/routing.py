"""What a pair of models achieves at every share of inputs that the small one answers, as a metric."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.routing import HybridCurve, hybrid_curve, oracle_curve
from lightning_efficient.metrics._gather import gather_promoted
from lightning_efficient.metrics._plot import new_axes


class RoutingCurve(Metric):
    """Accuracy of a hybrid of two models over its coverage, the share of inputs that the base answers.

    ``compute`` returns the curve; ``oracle`` the best one that any order of the same inputs could give. Keeps every
    sample, 6 bytes each.

    Args:
        kwargs: What every ``torchmetrics.Metric`` takes.

    Example:
        >>> metric = RoutingCurve()
        >>> base, best = torch.tensor([True, True, False]), torch.tensor([True, True, True])
        >>> metric.update(torch.tensor([0.1, 0.3, 0.9]), base, best)
        >>> curve = metric.compute()
        >>> curve.coverage.tolist()[-1], curve.accuracy.tolist()[0]
        (1.0, 1.0)
    """

    is_differentiable: bool = False
    higher_is_better: bool | None = None
    full_state_update: bool = False

    query_score: list[Tensor]
    base_correct: list[Tensor]
    global_correct: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dist_sync_fn", gather_promoted)
        super().__init__(**kwargs)
        for name in ("query_score", "base_correct", "global_correct"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, query_score: Tensor, base_correct: Tensor, global_correct: Tensor) -> None:
        """Add a batch.

        Args:
            query_score: Larger means ask the global model, shape ``(N,)``, any float dtype; what is not finite counts
                as infinite, as it is always asked.
            base_correct: Whether the base is right, bool ``(N,)``.
            global_correct: Whether the global model is right, bool ``(N,)``.

        Raises:
            ConfigurationError: shapes that differ.
        """
        shapes = [tuple(each.shape) for each in (query_score, base_correct, global_correct)]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise ConfigurationError(f"query_score, base_correct and global_correct have {shapes}; each must be (N,)")
        scores = query_score.detach().float()
        self.query_score.append(torch.where(scores.isfinite(), scores, torch.inf))
        self.base_correct.append(base_correct.to(torch.uint8))
        self.global_correct.append(global_correct.to(torch.uint8))

    @property
    def samples(self) -> tuple[Tensor, Tensor, Tensor]:
        """All scores, and whether base and global model are right, of all processes."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._gathered()

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        scores = dim_zero_cat(self.query_score)
        return scores, dim_zero_cat(self.base_correct).bool(), dim_zero_cat(self.global_correct).bool()

    def compute(self) -> HybridCurve:
        """Return the curve."""
        return hybrid_curve(*self._gathered())

    def oracle(self) -> HybridCurve:
        """Return the curve of the best order of these inputs."""
        return oracle_curve(*self.samples[1:])

    def plot(self, val: HybridCurve | None = None, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw accuracy over coverage, and the oracle's.

        Args:
            val: A curve; by default that of ``compute``, with the oracle.
            ax: Where to draw.
        """
        axes = new_axes() if ax is None else ax
        curve = self.compute() if val is None else val
        axes.plot(curve.coverage.cpu(), 100 * curve.accuracy.cpu(), label="hybrid")
        if val is None:
            best = self.oracle()
            axes.plot(best.coverage.cpu(), 100 * best.accuracy.cpu(), "--", color="grey", label="oracle")
        axes.set_xlabel("coverage: share that the base answers")
        axes.set_ylabel("accuracy, %")
        axes.legend(frameon=False)
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        return figure, axes
