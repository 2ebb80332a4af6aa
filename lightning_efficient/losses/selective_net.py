"""The objective of SelectiveNet: a classifier and a selector for a wanted coverage."""

from __future__ import annotations

from typing import get_args

from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.distillation import check_class_indices
from lightning_efficient.functional.selective_net import SelectiveRiskForm, selective_risk_loss
from lightning_efficient.losses._options import check_below_one, check_weight
from lightning_efficient.losses._selective_objective import SelectiveObjective
from lightning_efficient.nn.selective_heads import SelectiveOutputs


class SelectiveNetLoss(SelectiveObjective):
    """Cross-entropy on what the selector accepts, a penalty below the wanted coverage, and a second classifier's loss.

    ``(1 - w) [mean(l · g) / φ + λ max(0, c - φ)²] + w · CE(second classifier)``, with the selector's ``g`` in
    ``(0, 1)`` and its mean ``φ``; see :func:`~lightning_efficient.functional.selective_net.selective_risk_loss`. The
    second classifier makes the features fit for all samples, also for those that are not accepted. One network is
    trained for one coverage. ``φ`` is that of each process's own batch, so small batches make the penalty noisy.

    Args:
        coverage: ``c``, share to be accepted, in ``(0, 1]``.
        penalty: ``λ``, 0 or more.
        auxiliary_weight: ``w``, in ``[0, 1)``; the paper's ``α`` is ``1 - w``.
        form: ``paper``, or ``released``, which does not divide by ``φ``.

    Raises:
        ConfigurationError: an option outside its range, or outputs without the heads.

    Example:
        >>> import torch
        >>> zeros = torch.zeros(4, 2)
        >>> outputs = SelectiveOutputs(zeros, selection_logit=torch.zeros(4), auxiliary_logits=zeros)
        >>> terms = SelectiveNetLoss(coverage=0.5)(outputs, torch.tensor([0, 1, 0, 1]))
        >>> {name: round(value.item(), 4) for name, value in terms.items()}
        {'loss': 0.6931, 'selective_risk': 0.6931, 'auxiliary': 0.6931, 'coverage': 0.5}

    Reference:
        Geifman, El-Yaniv. SelectiveNet: A Deep Neural Network with an Integrated Reject Option. ICML 2019.
    """

    needs = frozenset({"selection", "auxiliary"})
    default_score = "selector"

    def __init__(
        self,
        coverage: float = 0.8,
        penalty: float = 32.0,
        auxiliary_weight: float = 0.5,
        form: SelectiveRiskForm = "paper",
    ) -> None:
        super().__init__()
        check_fraction("coverage", coverage, zero=False)
        check_weight("penalty", penalty)
        check_below_one("auxiliary_weight", auxiliary_weight)
        check_choice("form", form, get_args(SelectiveRiskForm))
        self.coverage = coverage
        self.penalty = penalty
        self.auxiliary_weight = auxiliary_weight
        self.form: SelectiveRiskForm = form

    def forward(self, outputs: SelectiveOutputs, target: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``{"loss", "selective_risk", "auxiliary", "coverage"}``, scalars.

        ``selective_risk`` has the penalty in it; both it and ``auxiliary`` are in nats, without their weights.
        ``coverage`` is ``φ``.
        """
        selection_logit = at_least_float32(self._head(outputs, "selection_logit"))
        auxiliary_logits = at_least_float32(self._head(outputs, "auxiliary_logits"))
        check_class_indices(outputs.logits, target)
        losses = F.cross_entropy(at_least_float32(outputs.logits), target.long(), reduction="none")
        selection = selection_logit.sigmoid()
        risk = selective_risk_loss(losses, selection, self.coverage, self.penalty, self.form)
        auxiliary = F.cross_entropy(auxiliary_logits, target.long())
        return {
            "loss": (1 - self.auxiliary_weight) * risk + self.auxiliary_weight * auxiliary,
            "selective_risk": risk.detach(),
            "auxiliary": auxiliary.detach(),
            "coverage": selection.detach().mean(),
        }
