"""What a user adds to a Trainer: one file, one callback."""

from lightning_efficient.callbacks.chunked_backprop import ChunkedBackprop
from lightning_efficient.callbacks.exact_resume import ExactResume
from lightning_efficient.callbacks.finite_loss import FiniteLoss
from lightning_efficient.callbacks.fptt import FPTT
from lightning_efficient.callbacks.latency_profiler import LatencyProfiler
from lightning_efficient.callbacks.selective_coverage import SelectiveCoverage, from_forward

__all__ = [
    "FPTT",
    "ChunkedBackprop",
    "ExactResume",
    "FiniteLoss",
    "LatencyProfiler",
    "SelectiveCoverage",
    "from_forward",
]
