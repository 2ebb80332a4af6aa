"""One door from a callback to any Lightning logger and to the run folder."""

from lightning_efficient.reporting.cascade import CostCurve, CostMark, cascade_figure
from lightning_efficient.reporting.hybrid import CostPoint, hybrid_figure
from lightning_efficient.reporting.log import log_curve, log_figure, log_scalars, log_table
from lightning_efficient.reporting.names import model_name
from lightning_efficient.reporting.risk_coverage import risk_coverage_figure
from lightning_efficient.reporting.run_folder import run_dir
from lightning_efficient.reporting.senders import send_curve, send_figure, send_table

__all__ = [
    "CostCurve",
    "CostMark",
    "CostPoint",
    "cascade_figure",
    "hybrid_figure",
    "log_curve",
    "log_figure",
    "log_scalars",
    "log_table",
    "model_name",
    "risk_coverage_figure",
    "run_dir",
    "send_curve",
    "send_figure",
    "send_table",
]
