"""What a user adds to a Trainer: one file, one callback."""

from lightning_efficient.callbacks.chunked_backprop import ChunkedBackprop
from lightning_efficient.callbacks.constraint import Constraint
from lightning_efficient.callbacks.disk import DiSK
from lightning_efficient.callbacks.exact_resume import ExactResume
from lightning_efficient.callbacks.finite_loss import FiniteLoss
from lightning_efficient.callbacks.fptt import FPTT
from lightning_efficient.callbacks.guide_schedule import GuideSchedule
from lightning_efficient.callbacks.latency_profiler import LatencyProfiler
from lightning_efficient.callbacks.selective_coverage import SelectiveCoverage, from_forward

__all__ = [
    "FPTT",
    "ChunkedBackprop",
    "Constraint",
    "DiSK",
    "ExactResume",
    "FiniteLoss",
    "GuideSchedule",
    "LatencyProfiler",
    "SelectiveCoverage",
    "from_forward",
]
