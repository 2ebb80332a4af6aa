"""The routers of the released code for hybrid models, with its weights' names.

Reference:
    Released code of: Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query. ICLR
    2023.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction, check_number, check_positive
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.released_hybrid import (
    GATE_LABELS,
    GENERATIONS,
    GateLabel,
    Generation,
    released_gate_loss,
)
from lightning_efficient.functional.router_losses import proxy_loss
from lightning_efficient.nn._router import Router, check_inputs, check_sizes
from lightning_efficient.nn.router_features import released_logit_features

_BIAS = 0.01


class ReleasedRouter(Router):
    """Base of both: loads the released weights.

    Args:
        num_classes: Classes ``C``, 2 or more.
        feature_dim: Size ``D`` of the input of the base's classifier, where it is looked at.
        top_k: How many of the largest probabilities are compared; all where there are fewer classes.
    """

    def __init__(self, num_classes: int, feature_dim: int, top_k: int) -> None:
        super().__init__()
        check_sizes(num_classes, feature_dim, top_k)
        self.num_classes, self.feature_dim, self.top_k = num_classes, feature_dim, top_k
        self.needs_features = feature_dim > 0

    def load_released(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights of the released code, saved from one device or from several.

        Raises:
            ConfigurationError: weights of another router, or of other sizes.
        """
        own = self.state_dict()
        given = {name.removeprefix("module."): value for name, value in state_dict.items()}
        for name in sorted(own.keys() ^ given.keys()):
            where = "is missing" if name in own else "is not the router's"
            raise ConfigurationError(f"the weights do not fit {type(self).__name__}: {name!r} {where}")
        for name, value in given.items():
            if value.shape != own[name].shape:
                raise ConfigurationError(
                    f"the weights do not fit {type(self).__name__}: {name!r} has shape {tuple(value.shape)}, and "
                    f"{tuple(own[name].shape)} is needed; set num_classes, feature_dim and top_k as they were"
                )
        self.load_state_dict(given)

    def _seen(self, logits: Tensor) -> Tensor:
        return released_logit_features(logits, self.top_k).to(next(self.parameters()).dtype)


class PaperRouter(ReleasedRouter):
    """The gate of the paper's time: entropy and differences of probabilities in, logits of asking and keeping out.

    Batch normalisation, a linear layer to 256 units, batch normalisation, ReLU, a linear layer to 64 units, batch
    normalisation, a linear layer to two logits. Weights start as Glorot's, biases at 0.01. The query score is the
    difference of the logits, asking minus keeping. It learns by the loss of the released code's first generation with
    the paper's label; see :func:`~lightning_efficient.functional.released_hybrid.released_gate_loss`.

    Computed in float32 (float64 for a float64 router) also under autocast.

    Args:
        num_classes: Classes ``C``, 2 or more.
        feature_dim: Not looked at: this gate sees the logits alone.
        top_k: How many of the largest probabilities are compared; all where there are fewer classes.
        label: ``proxy``, as in the paper, or ``base_correct``, the default of the released code.
        generation: Of the loss, ``first`` or ``second``.
        max_query_rate: Largest share of queries that costs nothing in training.
        max_keep_rate: Likewise of what is kept; ``second`` only.
        query_divisor: What the weight of samples to ask about is divided by; ``first`` only.

    Raises:
        ConfigurationError: an option outside its range.

    Example:
        >>> PaperRouter(num_classes=3).eval()(torch.zeros(2, 3)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 0,
        *,
        top_k: int = 10,
        label: GateLabel = "proxy",
        generation: Generation = "first",
        max_query_rate: float = 0.45,
        max_keep_rate: float = 0.65,
        query_divisor: float = 0.4,
    ) -> None:
        super().__init__(num_classes, 0, top_k)
        check_choice("label", label, GATE_LABELS)
        check_choice("generation", generation, GENERATIONS)
        rates = {"max_query_rate": max_query_rate, "max_keep_rate": max_keep_rate}
        for option, given in {**rates, "query_divisor": query_divisor}.items():
            check_number(option, given)
            check_fraction(option, given, zero=True) if option in rates else check_positive(option, given)
        self.label, self.generation = label, generation
        self.max_query_rate, self.max_keep_rate, self.query_divisor = max_query_rate, max_keep_rate, query_divisor
        size = 1 + min(top_k, num_classes) ** 2
        self.routing = nn.Sequential(
            nn.BatchNorm1d(size),
            nn.Linear(size, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Linear(256, 64),
            nn.BatchNorm1d(64),
            nn.Linear(64, 2),
        )
        for layer in self.routing:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.constant_(layer.bias, _BIAS)

    def gate(self, logits: Tensor) -> Tensor:
        """Return the logits of asking and of keeping, shape ``(N, 2)``, for class scores ``(N, C)``."""
        check_inputs(self, logits, None)
        with torch.autocast(logits.device.type, enabled=False):
            return at_least_float32(self.routing(self._seen(logits)))

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the log-odds of asking, shape ``(N,)``."""
        gate = self.gate(logits)
        return gate[:, 0] - gate[:, 1]

    def query_logit(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the same as ``forward``."""
        return self(logits, features)

    def loss(self, logits: Tensor, features: Tensor | None, base_correct: Tensor, global_correct: Tensor) -> Tensor:
        """Return the loss of the released code, a scalar."""
        return released_gate_loss(
            self.gate(logits),
            base_correct,
            global_correct,
            generation=self.generation,
            label=self.label,
            max_query_rate=self.max_query_rate,
            max_keep_rate=self.max_keep_rate,
            query_divisor=self.query_divisor,
        )


class ReleasedHeadRouter(ReleasedRouter):
    """The router of the released code's last form: also sees the input of the base's classifier.

    The features go through layers of 128 and 64 units, are put after what :class:`PaperRouter` sees, and three hidden
    layers of ``C``, 64 and ``C`` units lead to one logit of keeping, each layer with batch normalisation and ReLU. The
    query score is its negative. Alone it learns the paper's label by cross-entropy; the released code trains it within
    :func:`~lightning_efficient.functional.released_hybrid.joint_head_loss`.

    Computed in float32 (float64 for a float64 router) also under autocast.

    Args:
        num_classes: Classes ``C``, 2 or more.
        feature_dim: Size ``D`` of the input of the base's classifier, 1 or more.
        top_k: How many of the largest probabilities are compared; all where there are fewer classes.

    Raises:
        ConfigurationError: an option outside its range.

    Example:
        >>> router = ReleasedHeadRouter(num_classes=3, feature_dim=4).eval()
        >>> router(torch.zeros(2, 3), torch.zeros(2, 4)).shape
        torch.Size([2])
    """

    def __init__(self, num_classes: int, feature_dim: int, *, top_k: int = 10) -> None:
        super().__init__(num_classes, feature_dim, top_k)
        if not feature_dim:
            raise ConfigurationError("feature_dim=0 must be an integer of at least 1: this router looks at features.")
        self.transform_ft = _layers(feature_dim, 128, 64)
        size = 64 + 1 + min(top_k, num_classes) ** 2
        self.routing = nn.Sequential(*_layers(size, num_classes, 64, num_classes), nn.Linear(num_classes, 1))

    def keep_logit(self, logits: Tensor, features: Tensor | None) -> Tensor:
        """Return the log-odds of keeping, shape ``(N,)``, as the released router does."""
        check_inputs(self, logits, features)
        assert features is not None
        with torch.autocast(logits.device.type, enabled=False):
            seen = self._seen(logits)
            joined = torch.cat([seen, self.transform_ft(features.to(seen.dtype))], 1)
            return at_least_float32(self.routing(joined).squeeze(1))

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the log-odds of asking, shape ``(N,)``."""
        return -self.keep_logit(logits, features)

    def query_logit(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the same as ``forward``."""
        return self(logits, features)

    def loss(self, logits: Tensor, features: Tensor | None, base_correct: Tensor, global_correct: Tensor) -> Tensor:
        """Return the cross-entropy with the published label, a scalar."""
        return proxy_loss(self(logits, features), base_correct, global_correct)


def _layers(in_features: int, *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers)
