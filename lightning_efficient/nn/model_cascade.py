"""Several networks in a row, each of which answers what the one before was not sure of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.routing import QueryScore
from lightning_efficient.nn._stage_answers import LiveRows, StageAnswers, check_routing, no_answers
from lightning_efficient.nn.views import ViewTap


class ModelCascade(nn.Module):
    """Networks of growing cost: each answers the rows that it is sure of and hands on the others.

    ``forward`` asks all of them about every row; ``route`` asks each network once, about the rows that are left, and
    one for which none is left not at all. Their weights lie below ``models.0.``, ``models.1.``, and so on.

    Args:
        models: Networks from ``(N, ...)`` to class scores ``(N, C)``, the cheapest first, with the same classes.
        num_classes: Number of classes, where no network tells.
        fits: What each network's inputs go through before it, such as ``InputFit``; nothing by default.

    Attributes:
        stages: Number of networks, ``M``.

    Raises:
        ConfigurationError: fewer than two networks, or classes that differ.

    Example:
        >>> cascade = ModelCascade([nn.Linear(4, 3), nn.Linear(4, 3)]).eval()
        >>> cascade(torch.zeros(5, 4)).shape, cascade.route(torch.zeros(5, 4), [float("-inf")]).source.tolist()
        (torch.Size([5, 2, 3]), [1, 1, 1, 1, 1])
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        num_classes: int | None = None,
        fits: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if len(models) < 2:
            raise ConfigurationError(
                f"models has {len(models)} networks; a cascade needs 2 or more, the cheapest first"
            )
        if fits is not None and len(fits) != len(models):
            raise ConfigurationError(f"fits has {len(fits)} entries for {len(models)} models; give one for each")
        self.num_classes = _classes(models, num_classes)
        self.models = nn.ModuleList(models)
        self.fits = nn.ModuleList(fits or [nn.Identity() for _ in models])
        self.stages = len(models)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the class scores of every network, shape ``(N, M, C)``."""
        return torch.stack([self._logits(inputs, stage) for stage in range(self.stages)], 1)

    def route(self, inputs: Tensor, thresholds: Sequence[float], score: QueryScore = "msp") -> StageAnswers:
        """Answer each row with the first network that is sure enough.

        Args:
            inputs: Shape ``(N, ...)``; may be empty.
            thresholds: One query score per network but the last: a row is answered where its own is at most this.
                Infinity answers every row, minus infinity none, and a score that is not finite is never enough.
            score: How unsure a network is, by name, or a function from class scores ``(N, C)`` to confidence ``(N,)``.

        Raises:
            ConfigurationError: another number of thresholds.
            RuntimeError: the cascade is in training mode.
        """
        check_routing(self, thresholds)
        if not len(inputs):
            return no_answers(inputs.device, self.num_classes)
        rows = LiveRows(len(inputs), inputs.device, score)
        for stage, threshold in enumerate(thresholds):
            going_on = rows.ask(self._logits(inputs, stage), stage, threshold)
            if going_on is not None:
                inputs = inputs.index_select(0, going_on)
            if not len(inputs):
                return rows.answers()
        rows.close(self._logits(inputs, self.stages - 1), self.stages - 1)
        return rows.answers()

    def last(self, inputs: Tensor) -> Tensor:
        """Return the class scores ``(N, C)`` of the last network alone."""
        return self._logits(inputs, self.stages - 1)

    def up_to(self, inputs: Tensor, stage: int) -> Tensor:
        """Return the class scores ``(N, C)`` of one network, and ask all before it too.

        Raises:
            ConfigurationError: no such stage.
        """
        if not 0 <= stage < self.stages:
            raise ConfigurationError(f"stage={stage} must be 0 to {self.stages - 1}")
        return [self._logits(inputs, number) for number in range(stage + 1)][-1]

    def _logits(self, inputs: Tensor, stage: int) -> Tensor:
        return self.models[stage](self.fits[stage](inputs))


def _classes(models: Sequence[nn.Module], num_classes: int | None) -> int:
    wanted = num_classes
    for number, model in enumerate(models):
        found = ViewTap(model).num_classes
        if wanted is None:
            wanted = found
        if found not in (None, wanted):
            raise ConfigurationError(
                f"models[{number}], a {type(model).__name__}, has {found} classes where {wanted} are expected; all "
                "models must have the same classes in the same order"
            )
    if wanted is None:
        raise ConfigurationError("num_classes is not given, and no model has a linear classifier that tells it")
    return wanted
