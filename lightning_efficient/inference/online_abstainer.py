"""A decision per sample of a stream whose labels come only after an abstention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional.online_abstention import (
    ABSTAIN,
    Explore,
    abstention_step,
    check_exploration,
    draw_expert,
    expert_probabilities,
    exploration_rate,
    observe,
)

FeedbackUse: TypeAlias = Literal["explore", "all"]
"""Which labels erase experts: those of abstentions that the coin forced, or those of every abstention."""


class OnlineDecision(NamedTuple):
    """What to do in one round."""

    action: int
    """The class to answer, or -1 to abstain."""
    token: int
    """Names the round; ``feedback`` takes it."""


class OnlineAbstainer(nn.Module):
    """Follow one of many abstaining experts per round, and learn which to trust from the labels of abstentions.

    An expert is a classifier with its threshold, see ``expert_predictions``. In each round a coin abstains with
    probability ``explore``; otherwise an expert is drawn by its weight and followed. Experts that abstain in the round
    have their weight multiplied by ``1 - eta``, at once, as this needs no label. When a label comes, experts that erred
    in its round and have erred too often are erased.

    Labels may be late, and until one comes, the experts that it erases are still followed. The rule uses the
    predictions and the coin of the round that a label belongs to, and the counts and the experts as they are when it
    comes. With each label right after its abstention this is the released algorithm. The order of the same labels
    matters only with a tolerance, or where one would erase the last expert; such a label is ignored, and its errors are
    not counted.

    A state dict holds weights, counts, open rounds and the generator's state, so a stream goes on bit for bit. Use it
    on the CPU: a round decides one sample. It serves one stream; with several processes, each has to keep its own.

    Args:
        num_experts: How many experts, N.
        explore: Probability to abstain for the label alone, in ``[0, 1]``, or ``"sqrt"`` for ``min(1 / sqrt(t), 0.1)``.
        eta: Share of its weight that an expert loses by an abstention, in ``[0, 1)``. Default: the
            round's ``explore``.
        tolerance: Share of errors that an expert is forgiven, θ in ``[0, 1]``: erased are those with more than
            ``θc + sqrt(2θc)`` errors in ``c`` labels. 0 erases at the first error.
        feedback: ``"explore"`` uses the labels of abstentions that the coin forced, an unbiased sample of the stream.
            ``"all"`` uses every label of an abstention: more of them, mostly from where the experts are unsure.
        generator: Where draws come from. Default: one of its own, seeded from torch's.
        max_pending: How many abstentions may wait for their label; beyond it, the oldest is forgotten.
        per_rank: Allow several processes. Each then keeps its own experts and sees only its own share of the stream;
            give each a generator with another seed, and save each one's state.

    Attributes:
        log_weights: float64 ``(N,)``, 0 for the heaviest expert that is left; meaningless for erased ones.
        alive: Bool ``(N,)``, False for erased ones.
        observed_errors: int64 ``(N,)``, errors in the labels that were used.
        feedback_count: int64, how many labels were used.
        round: int64, how many rounds were decided.

    Raises:
        ConfigurationError: an option outside its range.

    Example:
        >>> abstainer = OnlineAbstainer(num_experts=3, explore=0.05, generator=torch.Generator().manual_seed(0))
        >>> action, token = abstainer.decide(torch.tensor([2, -1, 1]), coin=True)
        >>> action
        -1
        >>> abstainer.feedback(token, label=2)
        >>> abstainer.alive.tolist()
        [True, True, False]
        >>> abstainer.probabilities
        tensor([0.5128, 0.4872, 0.0000], dtype=torch.float64)

    Reference:
        Gangrade, Kag, Cutkosky, Saligrama. Online Selective Classification with Limited Feedback. NeurIPS 2021,
        released code.
    """

    log_weights: Tensor
    alive: Tensor
    observed_errors: Tensor
    feedback_count: Tensor
    round: Tensor

    def __init__(
        self,
        num_experts: int,
        explore: Explore = "sqrt",
        eta: float | None = None,
        tolerance: float = 0.0,
        feedback: FeedbackUse = "explore",
        generator: torch.Generator | None = None,
        *,
        max_pending: int = 10_000,
        per_rank: bool = False,
    ) -> None:
        super().__init__()
        for option, given in (("num_experts", num_experts), ("max_pending", max_pending)):
            if given < 1:
                raise ConfigurationError(f"{option}={given!r} must be at least 1.")
        check_exploration(explore, eta)
        check_fraction("tolerance", tolerance, zero=True)
        check_choice("feedback", feedback, ["explore", "all"])
        self.num_experts = num_experts
        self.explore = explore
        self.eta = eta
        self.tolerance = tolerance
        self.feedback_use = feedback
        self.max_pending = max_pending
        self.per_rank = per_rank
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self.generator = generator
        self._pending: dict[int, Tensor] = {}  # predictions by token; empty where the label will not be used
        self.register_buffer("log_weights", torch.zeros(num_experts, dtype=torch.float64))
        self.register_buffer("alive", torch.ones(num_experts, dtype=torch.bool))
        self.register_buffer("observed_errors", torch.zeros(num_experts, dtype=torch.int64))
        self.register_buffer("feedback_count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("round", torch.zeros((), dtype=torch.int64))

    @property
    def probabilities(self) -> Tensor:
        """Probability to follow each expert where the coin does not abstain, float64 ``(N,)``."""
        return expert_probabilities(self.log_weights, self.alive)

    @property
    def pending(self) -> list[int]:
        """Tokens of abstentions whose label has not come, oldest first."""
        return list(self._pending)

    def decide(self, expert_predictions: Tensor, coin: bool | None = None, expert: int | None = None) -> OnlineDecision:
        """Answer one sample, or abstain.

        Args:
            expert_predictions: What each expert says, any integer dtype ``(N,)``, -1 for an abstention.
            coin: Whether to abstain for the label alone, to replay a log. Default: drawn.
            expert: Which expert to follow where the coin does not abstain, to replay a log. Default: drawn.

        Returns:
            Action and token. An abstention's token may be given to ``feedback``, now, later or never.

        Raises:
            ConfigurationError: predictions of another shape or dtype or below -1, an expert that does not exist, or
                several processes without ``per_rank``.
        """
        self._refuse_several_processes()
        predictions = self._checked(expert_predictions)
        if expert is not None and not 0 <= expert < self.num_experts:
            raise ConfigurationError(f"expert={expert!r} is not one of the {self.num_experts} experts, 0 and up.")
        self.round += 1
        token = int(self.round)
        explore = exploration_rate(token, self.explore)
        eta = explore if self.eta is None else self.eta
        if coin is None:
            coin = float(self._uniform()) < explore
        if coin:
            action = ABSTAIN
        else:
            if expert is None:
                expert = int(draw_expert(self.probabilities, self._uniform()))
            action = int(predictions[expert])
        self._reweigh(abstention_step(self.log_weights, predictions == ABSTAIN, eta))
        if action == ABSTAIN:
            uses = coin or self.feedback_use == "all"
            self._pending[token] = predictions.clone() if uses else predictions.new_empty(0)
            if len(self._pending) > self.max_pending:
                del self._pending[next(iter(self._pending))]
        return OnlineDecision(action, token)

    def forward(self, expert_predictions: Tensor) -> OnlineDecision:
        """Answer one sample, or abstain; see :meth:`decide`."""
        return self.decide(expert_predictions)

    def feedback(self, token: int, label: int) -> None:
        """Take the label of an abstention; once, at any time and in any order.

        Args:
            token: The one that ``decide`` returned with the abstention.
            label: The true class, 0 or more.

        Raises:
            ConfigurationError: a label below 0, or a token that waits for no label.
        """
        if label < 0:
            raise ConfigurationError(f"label={label!r} must be a class, 0 or more.")
        if token not in self._pending:
            raise ConfigurationError(
                f"token={token!r} waits for no label: it must be an abstention's, not answered before, and one of the "
                f"last max_pending={self.max_pending}."
            )
        predictions = self._pending.pop(token)
        if not len(predictions):
            return
        predictions = predictions.to(self.alive.device)
        wrong = (predictions != ABSTAIN) & (predictions != label)
        found = observe(self.alive, self.observed_errors, self.feedback_count, wrong, self.tolerance)
        self.alive.copy_(found.alive)
        self.observed_errors.copy_(found.observed_errors)
        self.feedback_count.copy_(found.feedback_count)
        self._reweigh(self.log_weights)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the generator's state, and the rounds that wait for a label."""
        return {
            "generator": self.generator.get_state(),
            "pending": {token: predictions.clone() for token, predictions in self._pending.items()},
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.generator.set_state(state["generator"].cpu())
        self._pending = {int(token): predictions.clone() for token, predictions in state["pending"].items()}

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return (
            f"num_experts={self.num_experts}, explore={self.explore!r}, eta={self.eta}, tolerance={self.tolerance}, "
            f"feedback={self.feedback_use!r}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnlineAbstainer:
        # A module cast to half precision takes all its floating-point buffers along; weights would lose their digits.
        exact = self.log_weights
        super()._apply(fn, recurse)
        self.log_weights = exact.to(self.alive.device)
        return self

    def _refuse_several_processes(self) -> None:
        distributed = torch.distributed
        if self.per_rank or not (distributed.is_available() and distributed.is_initialized()):
            return
        if (processes := distributed.get_world_size()) > 1:
            raise ConfigurationError(
                f"per_rank=False serves one stream, and {processes} processes run; decide in one of them, or set "
                "per_rank=True for one abstainer in each."
            )

    def _checked(self, predictions: Tensor) -> Tensor:
        if tuple(predictions.shape) != (self.num_experts,):
            raise ConfigurationError(
                f"expert_predictions has the shape {tuple(predictions.shape)}; give one of each expert, "
                f"({self.num_experts},)."
            )
        if predictions.is_floating_point() or predictions.is_complex() or predictions.dtype is torch.bool:
            raise ConfigurationError(f"expert_predictions has the dtype {predictions.dtype}; give integers.")
        predictions = predictions.detach().to(self.alive.device, torch.int64)
        if (least := int(predictions.min())) < ABSTAIN:
            raise ConfigurationError(f"expert_predictions has {least}; give classes, 0 or more, or -1 to abstain.")
        return predictions

    def _uniform(self) -> Tensor:
        device = self.generator.device
        return torch.rand((), generator=self.generator, dtype=torch.float64, device=device).to(self.alive.device)

    def _reweigh(self, log_weights: Tensor) -> None:
        # In place: under inference_mode a new tensor could not be changed outside of it.
        self.log_weights.copy_(log_weights - log_weights[self.alive].max())
