"""What all routers share: how they are called, and the perceptron of those that learn."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_count, check_number, is_integer
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.nn.router_features import logit_feature_size, logit_features


class Router(nn.Module):
    """Base of the routers.

    A subclass computes ``forward``, and ``loss`` and ``query_logit`` if it learns. ``needs_features`` says whether it
    looks at the input of the base's classifier.
    """

    learns: ClassVar[bool] = True
    needs_features: bool = False

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the query scores, shape ``(N,)``, float32 or wider, larger to ask the global model.

        Args:
            logits: The base's class scores, shape ``(N, C)``.
            features: The input of its classifier, shape ``(N, D)``; not looked at unless ``needs_features``.
        """
        raise NotImplementedError

    def query_logit(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return log-odds of asking, shape ``(N,)``, for losses that want a soft decision.

        Raises:
            ConfigurationError: the router has nothing that learns.
        """
        raise ConfigurationError(f"{type(self).__name__} has nothing to learn; take a router that does, such as 'gain'")

    def loss(self, logits: Tensor, features: Tensor | None, base_correct: Tensor, global_correct: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            logits: The base's class scores, shape ``(N, C)``.
            features: The input of its classifier, shape ``(N, D)``, where ``needs_features``.
            base_correct: Whether the base is right, bool ``(N,)``.
            global_correct: Whether the global model is right, bool ``(N,)``.

        Raises:
            ConfigurationError: the router has nothing that learns.
        """
        raise ConfigurationError(f"{type(self).__name__} has nothing to learn; take a router that does, such as 'gain'")


class SizedRouter(Protocol):
    """Which sizes a router was built for."""

    num_classes: int
    feature_dim: int
    training: bool


class FeatureHead(nn.Module):
    """Batch normalisation, dropout, and a perceptron with one hidden layer that starts by saying 0."""

    def __init__(
        self, num_classes: int, feature_dim: int, outputs: int, hidden: int, dropout: float, top_k: int
    ) -> None:
        super().__init__()
        check_sizes(num_classes, feature_dim, top_k)
        check_count("hidden", hidden)
        check_number("dropout", dropout)
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"dropout={dropout!r} must be a number from 0 to below 1.")
        self.num_classes, self.feature_dim, self.top_k = num_classes, feature_dim, top_k
        size = logit_feature_size(num_classes, top_k) + 1 + feature_dim
        self.norm = nn.BatchNorm1d(size)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(size, hidden)
        self.output = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, logits: Tensor, features: Tensor | None, log_odds: Tensor) -> Tensor:
        """Return ``(N, outputs)``, float32 or wider."""
        check_inputs(self, logits, features)
        seen = [logit_features(logits, self.top_k)]
        if features is not None and self.feature_dim:
            seen.append(at_least_float32(features))
        joined = torch.cat([*seen, log_odds.unsqueeze(1)], 1).to(self.hidden.weight.dtype)
        return at_least_float32(self.output(self.hidden(self.dropout(self.norm(joined))).relu()))


def check_sizes(num_classes: int, feature_dim: int, top_k: int) -> None:
    """Raise ``ConfigurationError`` unless a router can have these sizes."""
    for option, given, least in (("num_classes", num_classes, 2), ("feature_dim", feature_dim, 0)):
        if not is_integer(given) or given < least:
            raise ConfigurationError(f"{option}={given!r} must be an integer of at least {least}.")
    check_count("top_k", top_k)


def check_inputs(router: SizedRouter, logits: Tensor, features: Tensor | None) -> None:
    """Raise ``ConfigurationError`` unless logits and features have the router's sizes, and enough rows to train on."""
    if logits.ndim != 2 or logits.shape[1] != router.num_classes:
        raise ConfigurationError(
            f"the router needs logits of shape (N, {router.num_classes}), got {tuple(logits.shape)}"
        )
    # len() would fix the batch size of an exported graph
    rows, size = logits.shape[0], router.feature_dim
    if size and (features is None or features.ndim != 2 or features.shape[1] != size or features.shape[0] != rows):
        got = "none" if features is None else f"{tuple(features.shape)} for {rows} rows of logits"
        raise ConfigurationError(
            f"the router needs features of shape (N, {size}), got {got}; give it the input of the base's classifier, "
            "or build it with feature_dim=0"
        )
    if router.training and rows < 2:
        raise ConfigurationError(
            f"the router needs batches of 2 or more samples in training, got {rows}; set drop_last=True in the "
            "training data loader, or another batch size"
        )
