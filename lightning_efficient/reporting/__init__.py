"""One door from a callback to any Lightning logger and to the run folder, and back from a run to its numbers.

Importing it loads neither torch nor Lightning, so that verbs which only read runs answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_efficient._lazy import lazy_names

if TYPE_CHECKING:
    from lightning_efficient.reporting.artifacts import Artifact, log_artifact, send_artifact
    from lightning_efficient.reporting.cascade import CostCurve, CostMark, cascade_figure
    from lightning_efficient.reporting.energy import energy_figure
    from lightning_efficient.reporting.footprint import footprint_figure
    from lightning_efficient.reporting.hybrid import CostPoint, hybrid_figure
    from lightning_efficient.reporting.log import log_curve, log_figure, log_scalars, log_table
    from lightning_efficient.reporting.names import model_name
    from lightning_efficient.reporting.pareto import ParetoPoint, ParetoSummary, pareto_figure, pareto_summary
    from lightning_efficient.reporting.risk_coverage import risk_coverage_figure
    from lightning_efficient.reporting.run_folder import run_dir
    from lightning_efficient.reporting.run_records import RunRecord, read_run, read_runs
    from lightning_efficient.reporting.senders import send_curve, send_figure, send_table
    from lightning_efficient.reporting.steady_wandb import SteadyWandbLogger

_HOMES = {
    "Artifact": "artifacts",
    "CostCurve": "cascade",
    "CostMark": "cascade",
    "CostPoint": "hybrid",
    "ParetoPoint": "pareto",
    "ParetoSummary": "pareto",
    "RunRecord": "run_records",
    "SteadyWandbLogger": "steady_wandb",
    "cascade_figure": "cascade",
    "energy_figure": "energy",
    "footprint_figure": "footprint",
    "hybrid_figure": "hybrid",
    "log_artifact": "artifacts",
    "log_curve": "log",
    "log_figure": "log",
    "log_scalars": "log",
    "log_table": "log",
    "model_name": "names",
    "pareto_figure": "pareto",
    "pareto_summary": "pareto",
    "read_run": "run_records",
    "read_runs": "run_records",
    "risk_coverage_figure": "risk_coverage",
    "run_dir": "run_folder",
    "send_artifact": "artifacts",
    "send_curve": "senders",
    "send_figure": "senders",
    "send_table": "senders",
}

__all__ = [
    "Artifact",
    "CostCurve",
    "CostMark",
    "CostPoint",
    "ParetoPoint",
    "ParetoSummary",
    "RunRecord",
    "SteadyWandbLogger",
    "cascade_figure",
    "energy_figure",
    "footprint_figure",
    "hybrid_figure",
    "log_artifact",
    "log_curve",
    "log_figure",
    "log_scalars",
    "log_table",
    "model_name",
    "pareto_figure",
    "pareto_summary",
    "read_run",
    "read_runs",
    "risk_coverage_figure",
    "run_dir",
    "send_artifact",
    "send_curve",
    "send_figure",
    "send_table",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
