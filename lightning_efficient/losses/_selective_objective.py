"""What every objective for abstaining classifiers has."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.selective_heads import SelectiveOutputs

DefaultScore: TypeAlias = Literal["msp", "selector", "abstain_logit"]


class SelectiveObjective(nn.Module):
    """Base of the objectives that train a classifier which may abstain.

    A subclass says which heads it uses, which score decides about accepting, and computes ``forward``.

    Attributes:
        needs: Heads it looks at, of ``"abstain"``, ``"selection"`` and ``"auxiliary"``.
        needs_index: Whether ``forward`` wants the index of each sample in the training data.
        default_score: What confidence is read from: ``"msp"``, ``"selector"`` or ``"abstain_logit"``.
    """

    needs: frozenset[str] = frozenset()
    needs_index: bool = False
    default_score: DefaultScore = "msp"

    def warmup_share(self) -> float:
        """Return which share of the run trains with plain cross-entropy first, as released."""
        return 0.0

    def forward(self, outputs: SelectiveOutputs, target: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``{"loss": ...}``, a scalar with a graph, and further scalars to log.

        Args:
            outputs: Class scores and heads.
            target: Class indices, int64 of shape ``(N,)``.
            index: Position of each sample in the training data, int64 of shape ``(N,)``; where ``needs_index``.
        """
        raise NotImplementedError

    def project(self) -> None:
        """Move own parameters back into their range; to be called after each step of the optimiser."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return own parameters as groups for the optimiser.

        A key ``lr_scale`` says by what to multiply the optimiser's learning rate; take it out before the optimiser
        sees the group.
        """
        return []

    def _head(self, outputs: SelectiveOutputs, kind: str) -> Tensor:
        """Return a head's output, or say in one sentence that it is missing."""
        value = getattr(outputs, kind)
        if value is None:
            needed = ", ".join(sorted(self.needs))
            raise ConfigurationError(
                f"{type(self).__name__} needs {kind}, and the network's outputs have none; give it SelectiveHeads with "
                f"needs={needed}"
            )
        return value
