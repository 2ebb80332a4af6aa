"""What an abstaining classifier has beside its class scores: an abstention logit, a selector, a second classifier."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple, TypeAlias, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice

HeadName: TypeAlias = Literal["abstain", "selection", "auxiliary"]

SELECTION_WIDTH = 512
"""Hidden units of SelectiveNet's selector, as released."""

SELECTION_SCALE = 10.0
"""What the selector's normalised hidden values are divided by, as released."""


class SelectiveOutputs(NamedTuple):
    """What an objective for abstaining classifiers may look at; a head that is not there is ``None``."""

    logits: Tensor
    """Class scores, shape ``(N, K)``, without the abstention logit."""
    abstain_logit: Tensor | None = None
    """Logit of the ``K + 1``st output, shape ``(N,)``."""
    selection_logit: Tensor | None = None
    """Log-odds of accepting, shape ``(N,)``: SelectiveNet's ``g`` before the sigmoid."""
    auxiliary_logits: Tensor | None = None
    """Class scores of the second classifier, shape ``(N, K)``."""


class SelectionHead(nn.Module):
    """SelectiveNet's selector: features in, log-odds of accepting out.

    A linear layer to 512 units, ReLU, batch normalisation, a division by 10, a linear layer to one value.

    Args:
        feature_dim: Size ``d`` of the features.

    Reference:
        Geifman, El-Yaniv. SelectiveNet: A Deep Neural Network with an Integrated Reject Option. ICML 2019; the
        division by 10 is in the released code.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(feature_dim, SELECTION_WIDTH)
        self.norm = nn.BatchNorm1d(SELECTION_WIDTH)
        self.output = nn.Linear(SELECTION_WIDTH, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the log-odds of accepting, shape ``(N,)``, for features of shape ``(N, d)``.

        Raises:
            ConfigurationError: one sample in training, where the batch normalisation has nothing to normalise by.
        """
        if self.training and len(features) < 2:
            raise ConfigurationError(
                f"SelectiveNet's selector needs batches of 2 or more samples in training, got {len(features)}; set "
                "drop_last=True in the training data loader, or another batch size"
            )
        normalised = self.norm(F.relu(self.hidden(features)))
        return self.output(normalised / SELECTION_SCALE).squeeze(-1)


class SelectiveHeads(nn.Module):
    """Heads beside a network's own classifier; they look at that classifier's input.

    Each costs one linear layer, the selector two with 512 units between. With nothing needed there are no parameters
    and nothing is computed. ``abstain`` is a ``Linear(d, 1)``: together with the classifier's ``Linear(d, K)`` the same
    as one layer with ``K + 1`` outputs.

    Args:
        feature_dim: Size ``d`` of the features.
        num_classes: Classes ``K``.
        needs: Any of ``"abstain"``, ``"selection"`` and ``"auxiliary"``.

    Raises:
        ConfigurationError: an unknown head.

    Example:
        >>> import torch
        >>> heads = SelectiveHeads(feature_dim=8, num_classes=3, needs={"abstain", "auxiliary"})
        >>> outputs = heads(torch.zeros(2, 3), torch.zeros(2, 8))
        >>> outputs.abstain_logit.shape, outputs.auxiliary_logits.shape, outputs.selection_logit
        (torch.Size([2]), torch.Size([2, 3]), None)
    """

    def __init__(self, feature_dim: int, num_classes: int, needs: Collection[str]) -> None:
        super().__init__()
        for name in sorted(needs):
            check_choice("needs", name, get_args(HeadName))
        self.feature_dim = feature_dim
        # always in this order, so that a seed gives the same weights whatever the order of a set
        self.abstain = nn.Linear(feature_dim, 1) if "abstain" in needs else None
        self.selection = SelectionHead(feature_dim) if "selection" in needs else None
        self.auxiliary = nn.Linear(feature_dim, num_classes) if "auxiliary" in needs else None

    def forward(self, logits: Tensor, features: Tensor) -> SelectiveOutputs:
        """Put the heads' outputs beside the class scores.

        Args:
            logits: The network's class scores, shape ``(N, K)``; handed on as they are.
            features: What its classifier looked at, shape ``(N, d)``.

        Raises:
            ConfigurationError: features of another shape, or a selector that trains on one sample.
        """
        if self.abstain is self.selection is self.auxiliary is None:
            return SelectiveOutputs(logits)
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise ConfigurationError(
                f"the heads need features of shape (N, {self.feature_dim}), got {tuple(features.shape)}; give them the "
                "input of the network's classifier"
            )
        return SelectiveOutputs(
            logits,
            abstain_logit=None if self.abstain is None else self.abstain(features).squeeze(-1),
            selection_logit=None if self.selection is None else self.selection(features),
            auxiliary_logits=None if self.auxiliary is None else self.auxiliary(features),
        )
