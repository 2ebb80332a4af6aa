"""Pure tensor functions: tensors in, tensors out; no state and no Lightning."""

from __future__ import annotations

from lightning_efficient.functional.abstention import (
    abstention_log_probabilities,
    answer_score,
    gamblers_loss,
    self_adaptive_loss,
    updated_belief,
)
from lightning_efficient.functional.advection_diffusion import advection_diffusion
from lightning_efficient.functional.binomial import clopper_pearson_upper
from lightning_efficient.functional.bootstrap import bootstrap_interval
from lightning_efficient.functional.cascade import (
    budgeted_thresholds,
    cascade_choice,
    expected_cost,
    published_thresholds,
)
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
from lightning_efficient.functional.drop_control import (
    DropChoice,
    choose_drop_point,
    label_free_drop_bound,
    needed_samples_for_drop,
)
from lightning_efficient.functional.entropy_penalty import entropy_penalty
from lightning_efficient.functional.fptt import fptt_gradient_, fptt_penalty, fptt_restart_, fptt_update_
from lightning_efficient.functional.load_balance import load_balance_loss
from lightning_efficient.functional.one_sided import (
    OneSidedCosts,
    one_sided_costs,
    one_sided_lagrangian,
    one_sided_released,
)
from lightning_efficient.functional.online_abstention import Hindsight, expert_predictions, hindsight
from lightning_efficient.functional.operating_points import (
    CoverageAtRiskForm,
    RiskAtCoverageForm,
    RiskKind,
    abstention_rate,
    coverage_at_risk,
    risk_at_coverage,
    selective_accuracy,
)
from lightning_efficient.functional.pareto import (
    hypervolume,
    knee,
    mnasnet_reward,
    pareto_mask,
)
from lightning_efficient.functional.parts import SplitBatch, sequence_parts
from lightning_efficient.functional.phases import Alternation, Phase
from lightning_efficient.functional.primal_dual import PrimalDual, dual_group, project_
from lightning_efficient.functional.pruning import (
    check_sparsity,
    cubic_sparsity,
    keep_masks,
    regrow,
    round_fraction,
    saliency,
    sparsity_after_round,
    sparsity_of,
)
from lightning_efficient.functional.quantization import (
    QuantizationParameters,
    affine_parameters,
    dequantize,
    fake_quantize,
    quantization_range,
    quantize,
)
from lightning_efficient.functional.recurrent import incremental_rnn, time_adaptive_rnn
from lightning_efficient.functional.released_hybrid import JointLoss, joint_head_loss
from lightning_efficient.functional.risk_coverage import (
    RiskCoverage,
    RiskCoveragePoints,
    risk_coverage_curve,
    risk_coverage_summary,
)
from lightning_efficient.functional.risk_coverage_area import Form, Oracle, augrc, aurc, eaugrc, eaurc
from lightning_efficient.functional.router_losses import (
    AlternationWeights,
    alternation_weights,
    gain_loss,
    proxy_loss,
    query_rate_penalty,
)
from lightning_efficient.functional.routing import (
    HybridCurve,
    accuracy_at_coverage,
    gap_to_oracle,
    hybrid_area,
    hybrid_curve,
    oracle_curve,
    proxy_label,
    query_score,
    query_threshold,
)
from lightning_efficient.functional.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    PowerSchedule,
    Schedule,
    StepSchedule,
    as_schedule,
)
from lightning_efficient.functional.selective_net import selective_risk_loss
from lightning_efficient.functional.threshold_grid import GridChoice, best_coverage_at_error, best_error_at_coverage
from lightning_efficient.functional.threshold_path import query_thresholds, threshold_path
from lightning_efficient.functional.thresholds import (
    ThresholdChoice,
    ThresholdRule,
    conformal_threshold,
    coverage_threshold,
    empirical_threshold,
    fixed_sequence_threshold,
    needed_samples,
    rcps_threshold,
    sgr_threshold,
)

__all__ = [
    "Alternation",
    "AlternationWeights",
    "ConstantSchedule",
    "CosineSchedule",
    "CoverageAtRiskForm",
    "DropChoice",
    "Form",
    "GridChoice",
    "Hindsight",
    "HybridCurve",
    "JointLoss",
    "LinearSchedule",
    "OneSidedCosts",
    "Oracle",
    "Phase",
    "PowerSchedule",
    "PrimalDual",
    "QuantizationParameters",
    "RiskAtCoverageForm",
    "RiskCoverage",
    "RiskCoveragePoints",
    "RiskKind",
    "Schedule",
    "Score",
    "SplitBatch",
    "StepSchedule",
    "ThresholdChoice",
    "ThresholdRule",
    "abstention_log_probabilities",
    "abstention_rate",
    "accuracy_at_coverage",
    "advection_diffusion",
    "affine_parameters",
    "alternation_weights",
    "answer_score",
    "as_schedule",
    "augrc",
    "aurc",
    "best_coverage_at_error",
    "best_error_at_coverage",
    "bootstrap_interval",
    "budgeted_thresholds",
    "cascade_choice",
    "check_sparsity",
    "choose_drop_point",
    "clopper_pearson_upper",
    "confidence",
    "confidence_from_probs",
    "conformal_threshold",
    "coverage_at_risk",
    "coverage_threshold",
    "cubic_sparsity",
    "decoupled_kl",
    "dequantize",
    "distillation_kl",
    "dual_group",
    "eaugrc",
    "eaurc",
    "empirical_threshold",
    "energy",
    "entropy",
    "entropy_penalty",
    "expected_cost",
    "expert_predictions",
    "fake_quantize",
    "feature_distance",
    "fixed_sequence_threshold",
    "fptt_gradient_",
    "fptt_penalty",
    "fptt_restart_",
    "fptt_update_",
    "gain_loss",
    "gamblers_loss",
    "gap_to_oracle",
    "help_cost",
    "help_normalizer",
    "hindsight",
    "hybrid_area",
    "hybrid_curve",
    "hypervolume",
    "incremental_rnn",
    "joint_head_loss",
    "keep_masks",
    "knee",
    "label_free_drop_bound",
    "load_balance_loss",
    "margin",
    "max_logit",
    "mean_help_cost",
    "mnasnet_reward",
    "msp",
    "needed_samples",
    "needed_samples_for_drop",
    "one_sided_costs",
    "one_sided_lagrangian",
    "one_sided_released",
    "oracle_curve",
    "pareto_mask",
    "project_",
    "proxy_label",
    "proxy_loss",
    "published_thresholds",
    "quantization_range",
    "quantize",
    "query_rate_penalty",
    "query_score",
    "query_threshold",
    "query_thresholds",
    "rcps_threshold",
    "regrow",
    "risk_at_coverage",
    "risk_coverage_curve",
    "risk_coverage_summary",
    "round_fraction",
    "saliency",
    "scaffolded_nll",
    "selective_accuracy",
    "selective_risk_loss",
    "self_adaptive_loss",
    "sequence_parts",
    "sgr_threshold",
    "sparsity_after_round",
    "sparsity_of",
    "support_mask",
    "teacher_mass",
    "threshold_path",
    "time_adaptive_rnn",
    "updated_belief",
]
