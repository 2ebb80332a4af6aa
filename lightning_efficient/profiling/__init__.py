"""What a module costs: parameters, bytes, MACs, memory and latency, measured without leaving a trace. No Lightning."""

from __future__ import annotations

from lightning_efficient.profiling.energy import (
    CountsEnergy,
    EnergyCounter,
    EnergyReading,
    MeterError,
    carbon_grams,
    energy_per_call,
)
from lightning_efficient.profiling.footprint import Footprint, Latency
from lightning_efficient.profiling.in_turns import time_in_turns
from lightning_efficient.profiling.latency import measure_latency
from lightning_efficient.profiling.layers import (
    LayerCost,
)
from lightning_efficient.profiling.macs import MacCount, count_macs
from lightning_efficient.profiling.memory import peak_memory
from lightning_efficient.profiling.profile import profile_module
from lightning_efficient.profiling.render import footprint_table
from lightning_efficient.profiling.surgery_costs import BlockCost, SurgeryCosts, surgery_costs
from lightning_efficient.profiling.training_memory import (
    TrainingMemory,
    training_memory,
)
from lightning_efficient.profiling.undisturbed import undisturbed
from lightning_efficient.profiling.variant_costs import (
    VariantComparison,
    VariantCost,
    VariantTime,
)
from lightning_efficient.profiling.variants import (
    compare_variants,
)

__all__ = [
    "BlockCost",
    "CountsEnergy",
    "EnergyCounter",
    "EnergyReading",
    "Footprint",
    "Latency",
    "LayerCost",
    "MacCount",
    "MeterError",
    "SurgeryCosts",
    "TrainingMemory",
    "VariantComparison",
    "VariantCost",
    "VariantTime",
    "carbon_grams",
    "compare_variants",
    "count_macs",
    "energy_per_call",
    "footprint_table",
    "measure_latency",
    "peak_memory",
    "profile_module",
    "surgery_costs",
    "time_in_turns",
    "training_memory",
    "undisturbed",
]
