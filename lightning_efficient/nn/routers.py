"""Routers: from what a small (base) model says to how much a sample asks for a large (global) one.

A router sees the base's logits, and the input of its classifier if it needs that, and returns a *query score*, larger
to ask. The threshold is not part of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import check_choice, check_flag, check_number, check_positive, is_integer
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.router_losses import gain_loss, proxy_loss
from lightning_efficient.functional.routing import QUERY_SCORES, QueryScore, query_score
from lightning_efficient.nn._router import FeatureHead
from lightning_efficient.nn._router import Router as Router
from lightning_efficient.nn.released_routers import PaperRouter
from lightning_efficient.nn.router_features import log_odds_of_error


class ScoreRouter(Router):
    """A score of the base's logits, with nothing to learn.

    Args:
        score: Name of a score, or a function from scaled logits to a confidence; see
            :func:`~lightning_efficient.functional.routing.query_score`.
        temperature: Divides the logits.

    Raises:
        ConfigurationError: an unknown score, or a temperature not above 0.

    Example:
        >>> ScoreRouter("msp")(torch.tensor([[0.0, 0.0], [0.0, 100.0]]))
        tensor([-0.5000, -1.0000])
    """

    learns = False

    def __init__(self, score: QueryScore = "msp", temperature: float = 1.0) -> None:
        super().__init__()
        if not callable(score):
            check_choice("score", score, QUERY_SCORES)
        check_number("temperature", temperature)
        check_positive("temperature", temperature)
        self.score, self.temperature = score, temperature

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the query scores, shape ``(N,)``."""
        return query_score(logits, self.score, self.temperature)

    def extra_repr(self) -> str:
        """Say which score it is."""
        return f"score={self.score!r}, temperature={self.temperature:g}"


class GainRouter(Router):
    """Predict for each model whether it is right, and ask where the global model gains the most.

    Looks at the entropy of the base's softmax, the differences of its ``top_k`` largest probabilities, the logsumexp of
    the logits, the input of the base's classifier, and the log-odds of its largest probability: batch normalisation,
    dropout, a hidden layer, and one output for each model. With ``skip`` the base's own log-odds are added to its
    output, times a learned scalar. It starts as the rule of the largest probability.

    Computed in float32 (float64 for a float64 router) also under autocast.

    Args:
        num_classes: Classes ``C``, 2 or more.
        feature_dim: Size ``D`` of the input of the base's classifier; 0 to look at the logits alone.
        actions: Number of models to choose from, the base first; 2 for base and global model.
        hidden: Hidden units.
        dropout: Probability of dropping an input of the hidden layer in training.
        top_k: How many of the largest probabilities are compared; all where there are fewer classes.
        skip: Whether the base's log-odds are added to its output.

    Raises:
        ConfigurationError: an option outside its range.

    Example:
        >>> router = GainRouter(num_classes=3).eval()
        >>> router(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 100.0]])).detach()
        tensor([ 0.1667, -0.5000])

    Reference:
        Jitkrittum, Gupta, Menon, Narasimhan, Rawat, Kumar. When Does Confidence-Based Cascade Deferral Suffice?
        NeurIPS 2023: the gain. Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective
        Query. ICLR 2023: differences of probabilities and features of the base.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 0,
        *,
        actions: int = 2,
        hidden: int = 32,
        dropout: float = 0.2,
        top_k: int = 10,
        skip: bool = True,
    ) -> None:
        super().__init__()
        if not is_integer(actions) or actions < 2:
            raise ConfigurationError(f"actions={actions!r} must be an integer of at least 2, the base and one more.")
        check_flag("skip", skip)
        self.needs_features, self.actions = feature_dim > 0, actions
        self.head = FeatureHead(num_classes, feature_dim, actions, hidden, dropout, top_k)
        self.skip_scale = nn.Parameter(torch.ones(())) if skip else None

    def correct_logits(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the log-odds that each model is right, shape ``(N, actions)``, the base first."""
        with torch.autocast(logits.device.type, enabled=False):
            log_odds = log_odds_of_error(logits)
            out = self.head(logits, features, log_odds)
            if self.skip_scale is None:
                return out
            base = out[:, :1] - at_least_float32(self.skip_scale) * log_odds.unsqueeze(1).to(out.dtype)
            return torch.cat([base, out[:, 1:]], 1)

    def probabilities(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the probability that each model is right, shape ``(N, actions)``, the base first."""
        return self.correct_logits(logits, features).sigmoid()

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return by how much the best other model is likelier right than the base, in ``[-1, 1]``, shape ``(N,)``."""
        right = self.probabilities(logits, features)
        return right[:, 1:].amax(1) - right[:, 0]

    def query_logit(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the difference of the log-odds, shape ``(N,)``: 0 where the query score is 0."""
        right = self.correct_logits(logits, features)
        return right[:, 1:].amax(1) - right[:, 0]

    def choose(self, logits: Tensor, features: Tensor | None, prices: Sequence[float], price: float) -> Tensor:
        """Return which model is worth the most: the largest ``P(right) - price * prices[model]``.

        Args:
            logits: The base's class scores, shape ``(N, C)``.
            features: The input of its classifier, shape ``(N, D)``, where ``needs_features``.
            prices: What each model costs, the base first, in any unit.
            price: What one unit costs in accuracy, 0 or more.

        Returns:
            int64 ``(N,)``, 0 for the base; the cheaper one of equals if ``prices`` rise.

        Raises:
            ConfigurationError: another number of prices than of models, or a price below 0.
        """
        if len(prices) != self.actions:
            raise ConfigurationError(f"prices={list(prices)!r} must have {self.actions} numbers, one for each model.")
        if not 0 <= price < float("inf"):
            raise ConfigurationError(f"price={price!r} must be a finite number, 0 or more.")
        right = self.probabilities(logits, features)
        return (right - price * right.new_tensor(list(prices))).argmax(1)

    def loss(self, logits: Tensor, features: Tensor | None, base_correct: Tensor, global_correct: Tensor) -> Tensor:
        """Return the cross-entropy of whether each model is right, summed over models, a scalar.

        Args:
            logits: The base's class scores, shape ``(N, C)``.
            features: The input of its classifier, shape ``(N, D)``, where ``needs_features``.
            base_correct: Whether the base is right, bool ``(N,)``.
            global_correct: Whether the others are, bool ``(N,)``, or ``(N, actions - 1)`` for more than two models.
        """
        right = self.correct_logits(logits, features)
        others = right[:, 1] if self.actions == 2 and global_correct.ndim == 1 else right[:, 1:]
        return gain_loss(right[:, 0], others, base_correct, global_correct)


class ProxyRouter(Router):
    """Predict the published label: the base is wrong and the global model right.

    Built like :class:`GainRouter`, with one output; the query score is its log-odds.

    Args:
        num_classes: Classes ``C``, 2 or more.
        feature_dim: Size ``D`` of the input of the base's classifier; 0 to look at the logits alone.
        hidden: Hidden units.
        dropout: Probability of dropping an input of the hidden layer in training.
        top_k: How many of the largest probabilities are compared; all where there are fewer classes.
        skip: Whether the log-odds that the base is wrong are added to the output, times a learned scalar.

    Raises:
        ConfigurationError: an option outside its range.

    Reference:
        Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query. ICLR 2023.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 0,
        *,
        hidden: int = 32,
        dropout: float = 0.2,
        top_k: int = 10,
        skip: bool = True,
    ) -> None:
        super().__init__()
        check_flag("skip", skip)
        self.needs_features = feature_dim > 0
        self.head = FeatureHead(num_classes, feature_dim, 1, hidden, dropout, top_k)
        self.skip_scale = nn.Parameter(torch.ones(())) if skip else None

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the log-odds that the base is wrong and the global model right, shape ``(N,)``."""
        with torch.autocast(logits.device.type, enabled=False):
            log_odds = log_odds_of_error(logits)
            out = self.head(logits, features, log_odds).squeeze(1)
            return out if self.skip_scale is None else out + at_least_float32(self.skip_scale) * log_odds.to(out.dtype)

    def query_logit(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the same as ``forward``."""
        return self(logits, features)

    def loss(self, logits: Tensor, features: Tensor | None, base_correct: Tensor, global_correct: Tensor) -> Tensor:
        """Return the cross-entropy with the published label, a scalar."""
        return proxy_loss(self(logits, features), base_correct, global_correct)


_LEARNED: dict[str, type[Router]] = {"gain": GainRouter, "proxy": ProxyRouter, "paper": PaperRouter}


def build_router(
    router: str | nn.Module, num_classes: int, feature_dim: int = 0, options: Mapping[str, Any] | None = None
) -> Router:
    """Build a router by name, or take one that is there.

    Args:
        router: ``"gain"``, ``"proxy"``, ``"paper"`` (the published network), a score (``"msp"``, ``"margin"``,
            ``"logit_margin"``, ``"entropy"``, ``"gini"``, ``"energy"``, ``"energy_softmax"``, ``"max_logit"``), or a
            :class:`Router`.
        num_classes: Classes ``C``.
        feature_dim: Size of the input of the base's classifier, for a router that learns; 0 to look at logits alone.
        options: Keyword options of the router, such as ``hidden`` or, for a score, ``temperature``.

    Raises:
        ConfigurationError: an unknown name or option, or a module that is no router.

    Example:
        >>> build_router("entropy", num_classes=10)
        ScoreRouter(score='entropy', temperature=1)
        >>> build_router("gain", num_classes=10, feature_dim=64, options={"hidden": 16}).needs_features
        True
    """
    given = dict(options or {})
    if not isinstance(router, str):
        if not isinstance(router, Router):
            raise ConfigurationError(
                f"router is a {type(router).__name__}; give a name or a lightning_efficient.nn.routers.Router, which "
                "has forward(logits, features)"
            )
        if given:
            raise ConfigurationError(f"router options {sorted(given)} do not go with a router that is already built.")
        return router
    check_choice("router", router, (*_LEARNED, *QUERY_SCORES))
    kind: Callable[..., Router] = _LEARNED.get(router, ScoreRouter)
    sizes = {"num_classes": num_classes, "feature_dim": feature_dim} if router in _LEARNED else {"score": router}
    allowed = sorted(inspect.signature(kind).parameters.keys() - sizes.keys())
    for name in given:
        if name not in allowed:
            raise ConfigurationError(
                f"router={router!r} has no option {name!r}; it has {allowed}.{did_you_mean(name, allowed)}"
            )
    return kind(**sizes, **given)
