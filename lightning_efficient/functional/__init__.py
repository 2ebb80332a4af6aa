"""Pure tensor functions: tensors in, tensors out; no state and no Lightning."""

from __future__ import annotations

from lightning_efficient.functional.confidence import (
    Score,
    confidence,
    confidence_from_probs,
    energy,
    entropy,
    margin,
    max_logit,
    msp,
)
from lightning_efficient.functional.fptt import fptt_gradient_, fptt_penalty, fptt_restart_, fptt_update_
from lightning_efficient.functional.operating_points import (
    RiskKind,
    abstention_rate,
    coverage_at_risk,
    risk_at_coverage,
    selective_accuracy,
)
from lightning_efficient.functional.parts import SplitBatch, sequence_parts
from lightning_efficient.functional.recurrent import incremental_rnn, time_adaptive_rnn
from lightning_efficient.functional.risk_coverage import (
    RiskCoverage,
    RiskCoveragePoints,
    risk_coverage_curve,
    risk_coverage_summary,
)
from lightning_efficient.functional.risk_coverage_area import Form, Oracle, augrc, aurc, eaurc

__all__ = [
    "Form",
    "Oracle",
    "RiskCoverage",
    "RiskCoveragePoints",
    "RiskKind",
    "Score",
    "SplitBatch",
    "abstention_rate",
    "augrc",
    "aurc",
    "confidence",
    "confidence_from_probs",
    "coverage_at_risk",
    "eaurc",
    "energy",
    "entropy",
    "fptt_gradient_",
    "fptt_penalty",
    "fptt_restart_",
    "fptt_update_",
    "incremental_rnn",
    "margin",
    "max_logit",
    "msp",
    "risk_at_coverage",
    "risk_coverage_curve",
    "risk_coverage_summary",
    "selective_accuracy",
    "sequence_parts",
    "time_adaptive_rnn",
]
