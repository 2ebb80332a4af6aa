"""What a user adds to a Trainer: one file, one callback."""

from lightning_efficient.callbacks.chunked_backprop import ChunkedBackprop
from lightning_efficient.callbacks.constraint import Constraint
from lightning_efficient.callbacks.disk import DiSK
from lightning_efficient.callbacks.energy_meter import EnergyMeter
from lightning_efficient.callbacks.exact_resume import ExactResume
from lightning_efficient.callbacks.finite_loss import FiniteLoss
from lightning_efficient.callbacks.fptt import FPTT
from lightning_efficient.callbacks.gradual_pruning import GradualPruning
from lightning_efficient.callbacks.guide_schedule import GuideSchedule
from lightning_efficient.callbacks.latency_profiler import LatencyProfiler
from lightning_efficient.callbacks.quantization_aware import QuantizationAware
from lightning_efficient.callbacks.selective_coverage import SelectiveCoverage, from_forward

__all__ = [
    "FPTT",
    "ChunkedBackprop",
    "Constraint",
    "DiSK",
    "EnergyMeter",
    "ExactResume",
    "FiniteLoss",
    "GradualPruning",
    "GuideSchedule",
    "LatencyProfiler",
    "QuantizationAware",
    "SelectiveCoverage",
    "from_forward",
]
