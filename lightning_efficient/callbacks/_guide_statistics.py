"""Sums over an epoch that say what a guide does, kept on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BINS = 20
NAMES = ("mean", "below_half", "help_cost", "both_right", "only_student_right", "only_teacher_right", "both_wrong")
NAMES += ("agreement",)


class GuideStatistics:
    """Add up batches without waiting for the device; read at the end of an epoch."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Add the outputs of a step: ``guide``, ``help_cost``, ``logits``, ``teacher_logits``, ``target``."""
        guide = outputs["guide"].detach().double()
        student, teacher = (outputs[name].detach().argmax(1) for name in ("logits", "teacher_logits"))
        student_right, teacher_right = (choice == outputs["target"] for choice in (student, teacher))
        counts = (
            guide.sum(),
            (guide < 0.5).sum(),
            outputs["help_cost"].detach() * len(guide),
            (student_right & teacher_right).sum(),
            (student_right & ~teacher_right).sum(),
            (~student_right & teacher_right).sum(),
            (~student_right & ~teacher_right).sum(),
            (student == teacher).sum(),
        )
        size = torch.full((1,), float(len(guide)), dtype=torch.float64, device=guide.device)
        # histc has no double version on some devices, and counts exactly in any
        histogram = torch.histc(guide.float(), BINS, 0, 1).double()
        sums = torch.cat([size, torch.stack([count.double() for count in counts]), histogram])
        self.sums = sums if self.sums is None else self.sums + sums

    def take(self, reduce: Any) -> tuple[dict[str, float], list[float]] | None:
        """Return the means and the histogram of the epoch over all processes, and start anew.

        Args:
            reduce: Sums a tensor over the processes.
        """
        if self.sums is None:
            return None
        # float64 is not known to every backend of torch.distributed
        size, *values = reduce(self.sums.float()).tolist()
        self.sums = None
        means, histogram = values[: len(NAMES)], values[len(NAMES) :]
        return {name: value / size for name, value in zip(NAMES, means, strict=True)}, histogram
