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
from lightning_efficient.functional.disk import (
    help_cost,
    help_normalizer,
    mean_help_cost,
    scaffolded_nll,
    support_mask,
    teacher_mass,
)
from lightning_efficient.functional.distillation import decoupled_kl, distillation_kl, feature_distance
from lightning_efficient.functional.fptt import fptt_gradient_, fptt_penalty, fptt_restart_, fptt_update_
from lightning_efficient.functional.operating_points import (
    RiskKind,
    abstention_rate,
    coverage_at_risk,
    risk_at_coverage,
    selective_accuracy,
)
from lightning_efficient.functional.parts import SplitBatch, sequence_parts
from lightning_efficient.functional.phases import Alternation, Phase
from lightning_efficient.functional.primal_dual import PrimalDual
from lightning_efficient.functional.recurrent import incremental_rnn, time_adaptive_rnn
from lightning_efficient.functional.risk_coverage import (
    RiskCoverage,
    RiskCoveragePoints,
    risk_coverage_curve,
    risk_coverage_summary,
)
from lightning_efficient.functional.risk_coverage_area import Form, Oracle, augrc, aurc, eaurc
from lightning_efficient.functional.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    PowerSchedule,
    Schedule,
    StepSchedule,
    as_schedule,
)

__all__ = [
    "Alternation",
    "ConstantSchedule",
    "CosineSchedule",
    "Form",
    "LinearSchedule",
    "Oracle",
    "Phase",
    "PowerSchedule",
    "PrimalDual",
    "RiskCoverage",
    "RiskCoveragePoints",
    "RiskKind",
    "Schedule",
    "Score",
    "SplitBatch",
    "StepSchedule",
    "abstention_rate",
    "as_schedule",
    "augrc",
    "aurc",
    "confidence",
    "confidence_from_probs",
    "coverage_at_risk",
    "decoupled_kl",
    "distillation_kl",
    "eaurc",
    "energy",
    "entropy",
    "feature_distance",
    "fptt_gradient_",
    "fptt_penalty",
    "fptt_restart_",
    "fptt_update_",
    "help_cost",
    "help_normalizer",
    "incremental_rnn",
    "margin",
    "max_logit",
    "mean_help_cost",
    "msp",
    "risk_at_coverage",
    "risk_coverage_curve",
    "risk_coverage_summary",
    "scaffolded_nll",
    "selective_accuracy",
    "sequence_parts",
    "support_mask",
    "teacher_mass",
    "time_adaptive_rnn",
]
