"""The two halves of a hybrid of a small and a large model, as they are deployed apart."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_efficient.nn.input_fit import InputFit
from lightning_efficient.nn.routers import Router
from lightning_efficient.nn.views import ViewTap


class EdgeGraph(nn.Module):
    """What runs at the edge: the base model and the router; the threshold stays outside.

    Args:
        base: From inputs to class scores.
        router: Asked with the base's class scores, and the input of its classifier if it needs that.
        fit: Resizes and normalises inputs for the base.

    Example:
        >>> import torch
        >>> from lightning_efficient.nn.routers import ScoreRouter
        >>> logits, query_score = EdgeGraph(nn.Linear(4, 3), ScoreRouter("msp"))(torch.zeros(2, 4))
        >>> tuple(logits.shape), tuple(query_score.shape)
        ((2, 3), (2,))
    """

    def __init__(self, base: nn.Module, router: Router, fit: InputFit | None = None) -> None:
        super().__init__()
        self.base, self.router, self.fit = base, router, fit or nn.Identity()
        self._tap = ViewTap(base, features=router.needs_features)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores ``(N, C)`` and query scores ``(N,)``, larger to ask the global model."""
        views = self._tap(self.fit(inputs))
        return views.logits, self.router(views.logits, views.features)


class GlobalGraph(nn.Module):
    """What runs in the cloud: the global model on the inputs as the edge got them.

    Args:
        network: From inputs to class scores.
        fit: Resizes and normalises inputs for it.
    """

    def __init__(self, network: nn.Module, fit: InputFit | None = None) -> None:
        super().__init__()
        self.network, self.fit = network, fit or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return class scores ``(N, C)``."""
        return self.network(self.fit(inputs))
