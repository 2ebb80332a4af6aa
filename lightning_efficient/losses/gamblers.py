"""The objective of Deep Gamblers: bet on a class, or keep the stake."""

from __future__ import annotations

from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.abstention import answer_score, gamblers_loss
from lightning_efficient.losses._selective_objective import SelectiveObjective
from lightning_efficient.nn.selective_heads import SelectiveOutputs

PAYOFF_WITHOUT_WARMUP = 6.1
"""From this payoff on the released code trains with its loss from the beginning."""


class GamblersLoss(SelectiveObjective):
    """Mean of ``-log(q_y + q_{K+1} / o)``, with the probability of one more output that says: no answer.

    With a small payoff training can end up with no answer for everything, so it starts with plain cross-entropy; see
    ``warmup_share``.

    Args:
        payoff: ``o``, above 1 and at most the number of classes; the smaller, the more is left without an answer.

    Raises:
        ConfigurationError: a payoff outside its range, or outputs without the head.

    Example:
        >>> import torch
        >>> outputs = SelectiveOutputs(torch.zeros(1, 3), abstain_logit=torch.zeros(1))
        >>> GamblersLoss(payoff=2.0)(outputs, torch.tensor([1]))
        {'loss': tensor(0.9808), 'abstention': tensor(0.2500)}

    Reference:
        Liu, Wang, Liang, Salakhutdinov, Morency, Ueda. Deep Gamblers: Learning to Abstain with Portfolio Theory.
        NeurIPS 2019.
    """

    needs = frozenset({"abstain"})
    default_score = "abstain_logit"

    def __init__(self, payoff: float = 2.2) -> None:
        super().__init__()
        if not 1 < payoff < float("inf"):
            raise ConfigurationError(f"payoff={payoff!r} must be above 1 and at most the number of classes.")
        self.payoff = payoff

    def warmup_share(self) -> float:
        """Return a third, as released for a payoff below 6.1, else 0."""
        return 1 / 3 if self.payoff < PAYOFF_WITHOUT_WARMUP else 0.0

    def forward(self, outputs: SelectiveOutputs, target: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``{"loss", "abstention"}``: nats, and the mean probability of no answer."""
        abstain_logit = self._head(outputs, "abstain_logit")
        loss = gamblers_loss(outputs.logits, abstain_logit, target, self.payoff).mean()
        return {"loss": loss, "abstention": -answer_score(outputs.logits.detach(), abstain_logit.detach()).mean()}
