"""The objective of self-adaptive training: labels that the network itself comes to doubt ask for no answer."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_fraction
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.abstention import answer_score, self_adaptive_loss, updated_belief
from lightning_efficient.losses._selective_objective import SelectiveObjective
from lightning_efficient.losses._table import Table
from lightning_efficient.nn.selective_heads import SelectiveOutputs


class SelfAdaptiveLoss(SelectiveObjective):
    """Mean of ``-(t log q_y + (1 - t) log q_{K+1})``, where ``t`` is the belief in a sample's label.

    The belief starts at 1 and moves at each visit towards the probability that the network gives to the label: before
    the loss of that visit, as released. So a label that is never learned asks more and more for no answer.

    The table has one float32 per training sample, is part of the checkpoint, and grows with the largest index seen.
    Reading that index waits for the device once per step; with ``num_samples`` one process need not wait. An index that
    a batch has twice gets the value of its last place. With several processes all have the same table: they exchange 16
    bytes per sample at each step, so all must make the same number of steps. In evaluation (``eval()``) the index is
    not looked at, nothing is kept, and every label is believed.

    Args:
        momentum: ``m``, share of the belief that a visit keeps, in ``[0, 1]``; 0.99 was published for ImageNet.
        num_samples: Size of the training set, where known; an index beyond is an error then, on an accelerator that of
            the device.

    Raises:
        ConfigurationError: an option outside its range, outputs without the head, or no usable index.

    Example:
        >>> loss, index = SelfAdaptiveLoss(momentum=0.5), torch.tensor([7])
        >>> outputs = SelectiveOutputs(torch.zeros(1, 2), abstain_logit=torch.zeros(1))
        >>> loss(outputs, torch.tensor([1]), index)["belief"], loss(outputs, torch.tensor([1]), index)["belief"]
        (tensor(0.7500), tensor(0.6250))

    Reference:
        Huang, Zhang, Zhang. Self-Adaptive Training: beyond Empirical Risk Minimization. NeurIPS 2020.
    """

    needs = frozenset({"abstain"})
    needs_index = True
    default_score = "abstain_logit"

    def __init__(self, momentum: float = 0.9, num_samples: int | None = None) -> None:
        super().__init__()
        check_fraction("momentum", momentum, zero=True)
        if num_samples is not None and (num_samples < 1 or int(num_samples) != num_samples):
            raise ConfigurationError(f"num_samples={num_samples!r} must be a whole number, 1 or more, or null.")
        self.momentum = momentum
        self.num_samples = None if num_samples is None else int(num_samples)
        # 1 - belief, so that the zeros of new rows mean: not seen yet
        self.doubt = Table(1)
        if self.num_samples is not None:
            self.doubt.reserve(self.num_samples)

    def warmup_share(self) -> float:
        """Return a half, as released for CIFAR-10."""
        return 0.5

    def belief(self, index: Tensor) -> Tensor:
        """Return the belief in the labels of samples, shape ``(N,)``; 1 where none was kept yet."""
        values = self.doubt.values
        index = index.to(values.device).long()
        if not len(values):
            return torch.ones(index.shape, dtype=values.dtype, device=values.device)
        doubt = values[index.clamp(0, len(values) - 1)]
        return 1 - torch.where(index < len(values), doubt, 0.0)

    def forward(self, outputs: SelectiveOutputs, target: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``{"loss", "abstention", "belief"}`` and, in training, keep the new beliefs.

        Args:
            outputs: Class scores and ``abstain_logit``.
            target: Class indices, int64 of shape ``(N,)``.
            index: Position of each sample in the training data, int64 of shape ``(N,)``.

        Returns:
            The loss in nats, and the means of the probability of no answer and of the belief.

        Raises:
            ConfigurationError: there is no index in training, or it is not usable.
        """
        logits, abstain_logit = outputs.logits, self._head(outputs, "abstain_logit")
        if self.training:
            belief = self._visit(logits.detach(), target, index)
        else:
            belief = at_least_float32(logits.detach()).new_ones(len(logits))
        loss = self_adaptive_loss(logits, abstain_logit, target, belief).mean()
        abstention = -answer_score(logits.detach(), abstain_logit.detach()).mean()
        return {"loss": loss, "abstention": abstention, "belief": belief.mean()}

    def _visit(self, logits: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        if index is None:
            raise ConfigurationError(
                "objective 'sat' needs to know which samples a batch has; it got no index, so use a data module with "
                "sample_keys, or batches (inputs, target, index)"
            )
        if index.shape != logits.shape[:1] or index.is_floating_point() or index.dtype == torch.bool:
            raise ConfigurationError(
                f"index has dtype {index.dtype} and shape {tuple(index.shape)}; give the position of each sample in "
                f"the training data, integers of shape {tuple(logits.shape[:1])}."
            )
        index = index.to(logits.device).long()
        self.doubt.like(at_least_float32(logits))
        before = self.belief(index)
        belief = updated_belief(before, logits, target, self.momentum)
        # a batch that overflowed, which a gradient scaler skips, must not be remembered for ever
        self._keep(*_of_all_processes(index, 1 - torch.where(belief.isfinite(), belief, before.to(belief.dtype))))
        return belief

    def _keep(self, index: Tensor, doubt: Tensor) -> None:
        if not len(index):
            return
        size = self.num_samples or 0
        if not size or index.device.type == "cpu":
            least, largest = torch.stack(index.aminmax()).tolist()
            if least < 0 or (size and largest >= size):
                wrong, below = least if least < 0 else largest, f" and below num_samples={size}" if size else ""
                raise ConfigurationError(
                    f"index has {wrong}; it must be a position in the training data, 0 or more{below}."
                )
            size = size or largest + 1
        self.doubt.reserve(size)
        # all places of one index write the value of its last place, so that their order does not matter
        ordered, order = index.sort(stable=True)
        last = torch.searchsorted(ordered, ordered, right=True) - 1
        self.doubt.values[ordered] = doubt[order[last]]


def _of_all_processes(index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices and values of all processes in the order of their ranks."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return index, values
    from torchmetrics.utilities.distributed import gather_all_tensors

    # one message: float64 has room for both, indices up to 2^53 and values as they are
    gathered = torch.cat(gather_all_tensors(torch.stack((index.double(), values.double()), 1)))
    return gathered[:, 0].long(), gathered[:, 1].to(values.dtype)
