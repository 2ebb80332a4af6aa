"""What a module costs: parameters, bytes, MACs, memory and latency, measured without leaving a trace. No Lightning."""

from __future__ import annotations

from lightning_efficient.profiling.footprint import Footprint, Latency
from lightning_efficient.profiling.in_turns import time_in_turns
from lightning_efficient.profiling.latency import measure_latency
from lightning_efficient.profiling.macs import MacCount, count_macs
from lightning_efficient.profiling.memory import peak_memory
from lightning_efficient.profiling.profile import profile_module
from lightning_efficient.profiling.render import footprint_table
from lightning_efficient.profiling.surgery_costs import BlockCost, SurgeryCosts, surgery_costs
from lightning_efficient.profiling.undisturbed import undisturbed

__all__ = [
    "BlockCost",
    "Footprint",
    "Latency",
    "MacCount",
    "SurgeryCosts",
    "count_macs",
    "footprint_table",
    "measure_latency",
    "peak_memory",
    "profile_module",
    "surgery_costs",
    "time_in_turns",
    "undisturbed",
]
