"""Plain cross-entropy as an objective for abstaining classifiers: the baseline of all others."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.distillation import check_class_indices
from lightning_efficient.losses._options import check_below_one
from lightning_efficient.losses._selective_objective import SelectiveObjective
from lightning_efficient.nn.selective_heads import SelectiveOutputs


class SelectiveCrossEntropy(SelectiveObjective):
    """Cross-entropy with the label; the classifier abstains where its largest probability is small.

    Args:
        label_smoothing: In ``[0, 1)``. It also smooths the probabilities that confidence is read from.

    Raises:
        ConfigurationError: ``label_smoothing`` is outside its range.

    Example:
        >>> import torch
        >>> SelectiveCrossEntropy()(SelectiveOutputs(torch.zeros(1, 2)), torch.tensor([1]))["loss"]
        tensor(0.6931)
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_below_one("label_smoothing", label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, outputs: SelectiveOutputs, target: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``{"loss"}``, a scalar in nats."""
        check_class_indices(outputs.logits, target)
        logits = at_least_float32(outputs.logits)
        return {"loss": F.cross_entropy(logits, target.long(), label_smoothing=self.label_smoothing)}
