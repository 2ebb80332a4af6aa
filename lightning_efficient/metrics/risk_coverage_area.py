"""Areas under the risk-coverage curve as metrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.operating_points import RiskKind
from lightning_efficient.functional.risk_coverage import RiskCoverage
from lightning_efficient.functional.risk_coverage_area import FORMS, ORACLES, Form, Oracle, augrc, aurc, eaurc
from lightning_efficient.metrics._risk_coverage_base import RiskCoverageMetric


class AURC(RiskCoverageMetric):
    """Area under the selective risk-coverage curve; see :func:`lightning_efficient.functional.aurc`.

    Args:
        form: ``"expected"``, ``"torch_uncertainty"`` or ``"fd_shifts"``.
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
        kwargs: See :class:`RiskCoverageMetric`.

    Example:
        >>> import torch
        >>> metric = EAURC()
        >>> metric.update_scores(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.1667, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, oracle: Oracle = "finite", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("oracle", oracle, ORACLES)
        self.oracle = oracle

    def _evaluate(self, summary: RiskCoverage) -> Tensor:
        return eaurc(summary, oracle=self.oracle)

    def _legend(self, summary: RiskCoverage, value: Tensor) -> str:
        return f"model, E-AURC {float(value):.4g}"


class AUGRC(RiskCoverageMetric):
    """Area under the generalized risk-coverage curve; see :func:`lightning_efficient.functional.augrc`.

    Args:
        form: ``"expected"``, ``"torch_uncertainty"`` or ``"fd_shifts"``.
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
