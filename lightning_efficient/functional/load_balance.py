"""A price for a gate that sends most samples to few of its experts."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._precision import at_least_float32


def load_balance_loss(gate_probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Load-balance loss of a hard gate: ``E Σ_e share_e · mean p_e`` over ``E`` experts.

    1 where the gate sends the same share to each expert, ``E`` where one expert gets everything with certainty. The
    gradient flows through the mean probabilities alone.

    Args:
        gate_probabilities: Of each expert, shape ``(N, E)``, rows that sum to 1, any float dtype (computed in float32;
            float64 stays).
        chosen: Which expert each sample went to, int64 ``(N,)``, 0 to ``E - 1``.

    Returns:
        A scalar; 0 for an empty batch.

    Raises:
        ConfigurationError: shapes that do not belong together.

    Example:
        >>> even = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
        >>> load_balance_loss(even, torch.tensor([0, 1]))
        tensor(1.)

    Reference:
        Fedus, Zoph, Shazeer. Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient
        Sparsity. JMLR 2022.
    """
    if gate_probabilities.ndim != 2 or chosen.shape != gate_probabilities.shape[:1]:
        raise ConfigurationError(
            f"gate_probabilities has shape {tuple(gate_probabilities.shape)} and chosen {tuple(chosen.shape)}; give "
            "(N, E) and (N,)."
        )
    probabilities = at_least_float32(gate_probabilities)
    count, experts = probabilities.shape
    samples = max(count, 1)
    shares = torch.zeros_like(probabilities).scatter(1, chosen.unsqueeze(1), 1.0).sum(0) / samples
    return experts * (shares * probabilities.sum(0) / samples).sum()
