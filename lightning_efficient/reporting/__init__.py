"""One door from a callback to any Lightning logger and to the run folder."""

from lightning_efficient.reporting.cascade import CostCurve, CostMark, cascade_figure
from lightning_efficient.reporting.energy import (
    energy_figure,
)
from lightning_efficient.reporting.footprint import (
    footprint_figure,
)
from lightning_efficient.reporting.hybrid import CostPoint, hybrid_figure
from lightning_efficient.reporting.log import log_curve, log_figure, log_scalars, log_table
from lightning_efficient.reporting.names import model_name
from lightning_efficient.reporting.pareto import (
    ParetoPoint,
    ParetoSummary,
    pareto_figure,
    pareto_summary,
)
from lightning_efficient.reporting.risk_coverage import risk_coverage_figure
from lightning_efficient.reporting.run_folder import run_dir
from lightning_efficient.reporting.run_records import (
    RunRecord,
    read_run,
    read_runs,
)
from lightning_efficient.reporting.senders import send_curve, send_figure, send_table

__all__ = [
    "CostCurve",
    "CostMark",
    "CostPoint",
    "ParetoPoint",
    "ParetoSummary",
    "RunRecord",
    "cascade_figure",
    "energy_figure",
    "footprint_figure",
    "hybrid_figure",
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
    "send_curve",
    "send_figure",
    "send_table",
]
