"""Areas under the risk-coverage curve as metrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.operating_points import RiskKind
from lightning_efficient.functional.risk_coverage import RiskCoverage
from lightning_efficient.functional.risk_coverage_area import (
    FORMS,
    Form,
    Oracle,
    augrc,
    aurc,
    check_oracle,
    eaugrc,
    eaurc,
)
from lightning_efficient.metrics._risk_coverage_base import RiskCoverageMetric


class AURC(RiskCoverageMetric):
    """Area under the selective risk-coverage curve; see :func:`lightning_efficient.functional.aurc`.

    Args:
        form: ``"expected"``, ``"torch_uncertainty"``, ``"fd_shifts"`` or ``"fd_shifts_achievable"``.
        kwargs: See :class:`RiskCoverageMetric`.

    Example:
        >>> import torch
        >>> metric = AURC(input="probs")
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), torch.tensor([0, 1, 1]))
        >>> metric.compute()
        tensor(0.1111, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, form: Form = "expected", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("form", form, FORMS)
        self.form = form

    def _evaluate(self, summary: RiskCoverage) -> Tensor:
        return aurc(summary, form=self.form)

    def _legend(self, summary: RiskCoverage, value: Tensor) -> str:
        return f"model, AURC {float(value):.4g}"


class EAURC(RiskCoverageMetric):
    """Excess AURC over a perfect ranking; see :func:`lightning_efficient.functional.eaurc`.

    Args:
        oracle: ``"finite"`` or ``"asymptotic"``.
        form: Of the AURC; those other than ``"expected"`` go with the asymptotic oracle.
        kwargs: See :class:`RiskCoverageMetric`.

    Example:
        >>> import torch
        >>> metric = EAURC()
        >>> metric.update_scores(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.1667, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, oracle: Oracle = "finite", form: Form = "expected", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_oracle(oracle, form)
        self.oracle = oracle
        self.form = form

    def _evaluate(self, summary: RiskCoverage) -> Tensor:
        return eaurc(summary, oracle=self.oracle, form=self.form)

    def _legend(self, summary: RiskCoverage, value: Tensor) -> str:
        return f"model, E-AURC {float(value):.4g}"


class AUGRC(RiskCoverageMetric):
    """Area under the generalized risk-coverage curve; see :func:`lightning_efficient.functional.augrc`.

    Args:
        form: ``"expected"``, ``"torch_uncertainty"``, ``"fd_shifts"`` or ``"fd_shifts_achievable"``.
        kwargs: See :class:`RiskCoverageMetric`.

    Example:
        >>> import torch
        >>> metric = AUGRC()
        >>> metric.update_scores(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.1667, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, form: Form = "expected", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("form", form, FORMS)
        self.form = form

    def _evaluate(self, summary: RiskCoverage) -> Tensor:
        return augrc(summary, form=self.form)

    @property
    def _drawn_risk(self) -> RiskKind:
        return "generalized"

    def _legend(self, summary: RiskCoverage, value: Tensor) -> str:
        return f"model, AUGRC {float(value):.4g}"


class EAUGRC(RiskCoverageMetric):
    """Excess AUGRC over a perfect ranking; see :func:`lightning_efficient.functional.eaugrc`.

    Args:
        kwargs: See :class:`RiskCoverageMetric`.

    Example:
        >>> import torch
        >>> metric = EAUGRC()
        >>> metric.update_scores(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.1111, dtype=torch.float64)
    """

    higher_is_better = False

    def _evaluate(self, summary: RiskCoverage) -> Tensor:
        return eaugrc(summary)

    @property
    def _drawn_risk(self) -> RiskKind:
        return "generalized"

    def _legend(self, summary: RiskCoverage, value: Tensor) -> str:
        return f"model, E-AUGRC {float(value):.4g}"
