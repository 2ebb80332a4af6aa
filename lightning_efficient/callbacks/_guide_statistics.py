"""What a guide does over an epoch, added up on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

BINS = 20
AT_ONCE = 64
"""Batches that are kept and then counted together: on a GPU many small operations would cost more than a step."""

NAMES = (
    "mean",
    "below_half",
    "help_cost",
    "both_right",
    "only_student_right",
    "only_teacher_right",
    "both_wrong",
    "agreement",
)


class GuideStatistics:
    """Add up batches without waiting for the device; read at the end of an epoch."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, ...]] = []
        self._sums: Tensor | None = None

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Add the outputs of a step: ``guide``, ``help_cost``, ``logits``, ``teacher_logits``, ``target``."""
        guide = outputs["guide"].detach()
        choices = (outputs[name].detach().argmax(1) for name in ("logits", "teacher_logits"))
        self._kept.append((guide, outputs["help_cost"].detach().expand(len(guide)), outputs["target"], *choices))
        if len(self._kept) == AT_ONCE:
            self._count()

    def take(self, reduce: Callable[[Tensor], Tensor]) -> tuple[dict[str, float], list[float]] | None:
        """Return the means and the histogram of the epoch over all processes, and start anew.

        Args:
            reduce: Sums a tensor over the processes.
        """
        self._count()
        if self._sums is None:
            return None
        size, *values = reduce(self._sums).tolist()
        self._sums = None
        means, histogram = values[: len(NAMES)], values[len(NAMES) :]
        return {name: value / size for name, value in zip(NAMES, means, strict=True)}, histogram

    def sums(self) -> Tensor | None:
        """Return what was added since the last :meth:`take`, on the CPU, to go on from in another run."""
        self._count()
        return None if self._sums is None else self._sums.cpu()

    def go_on(self, sums: Tensor) -> None:
        """Start from the sums of another run."""
        self._kept, self._sums = [], sums

    def _count(self) -> None:
        if not self._kept:
            return
        guide, cost, target, student, teacher = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        self._kept = []
        student_right, teacher_right = student == target, teacher == target
        counted = torch.stack(
            [
                torch.ones_like(guide),
                guide,
                guide < 0.5,
                cost,
                student_right & teacher_right,
                student_right & ~teacher_right,
                ~student_right & teacher_right,
                ~student_right & ~teacher_right,
                student == teacher,
            ]
        )
        # neither histc nor bincount is deterministic on CUDA
        bins = (guide * BINS).long().clamp(max=BINS - 1)
        histogram = (bins == torch.arange(BINS, device=guide.device)[:, None]).sum(1)
        sums = torch.cat([counted.sum(1), histogram])
        self._sums = sums if self._sums is None else self._sums + sums
