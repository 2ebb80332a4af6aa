"""A recurrent layer whose state takes Euler steps towards an equilibrium."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import overload

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.recurrent import Activation, incremental_rnn, near_identity
from lightning_efficient.nn._recurrent_layer import Implementation, RecurrentLayer

_WEAK = 0.5
"""Below this share of the old state in the new one, gradients over many steps are lost."""


class IncrementalRNN(RecurrentLayer):
    """Recurrent layer whose state evolves on top of the state before, towards an equilibrium with the input.

    Called like ``torch.nn.GRU``. With ``s`` the old state, ``x`` the input, and ``z`` starting from ``s``::

        z <- (1 - step_size) z + step_size (activation(z U + x W + b + s U) - s), inner_steps times;   new state z

    At the equilibrium the state Jacobian is minus the identity. After ``K`` steps it is about
    ``2 (1 - step_size)^K - 1`` times the identity: near +1 while ``K * step_size`` is far below 0.69, near -1 far above
    it, and near 0, so that nothing is remembered, around it. A warning says so where that factor is below 0.5 in size;
    a learned step size is free, and may move there or become negative, which ``learn_step_size=False`` rules out. Far
    below, the old state leaks at a rate of about ``2 * K * step_size`` per time step: choose it against the length of
    the sequences.

    Parameters of layer ``l``: ``weight_ih_l`` ``(H, F)`` = W, ``weight_hh_l`` ``(H, H)`` = U, ``bias_l`` ``(H,)`` = b,
    transposed as in ``torch.nn.Linear``, and ``step_size_l`` ``(K,)`` or ``(K, max_length)``. With ``rank``, U is the
    identity plus ``weight_up_l @ weight_down_l``, ``(H, rank)`` and ``(rank, H)``, and what enters the activation is
    multiplied by U once more, as in the released code. Multiplied out once per call, it saves parameters, not time.

    The time loop is one autograd function with a backward pass by hand, differentiable once. It computes in float32
    (float64 for a float64 layer) also under autocast or with half-precision weights, because small steps would be
    rounded away; outputs have the type of the input, states that of the parameters.

    Args:
        input_size: Features ``F`` of a time step.
        hidden_size: Units ``H``.
        num_layers: Layers, each on the outputs of the one below.
        batch_first: Whether inputs and outputs are ``(N, T, F)`` rather than ``(T, N, F)``.
        dropout: Probability that an output of a layer below another is dropped, in training.
        inner_steps: Iterations ``K`` within a time step.
        step_size: Initial step size of each iteration.
        activation: ``relu``, ``tanh`` or ``sigmoid``.
        rank: Rank of U less the identity, or None for a full matrix.
        learn_step_size: Whether step sizes are parameters.
        max_length: Number of time steps with step sizes of their own; later steps take the last. None: all share them.
        implementation: ``auto`` is ``fused``; ``reference`` runs plain operators step by step, slowly: for second
            derivatives and ``torch.func``. ``triton`` is ``fused`` with a forward kernel on CUDA where it fits (one
            iteration, 16 to 128 units, a power of two), which has run in Triton's interpreter only and on no GPU.

    Raises:
        ConfigurationError: an option has a value that cannot work.

    Example:
        >>> import torch
        >>> rnn = IncrementalRNN(3, 8, inner_steps=3, step_size=0.001)
        >>> output, state = rnn(torch.randn(10, 2, 3))
        >>> output.shape, state.shape
        (torch.Size([10, 2, 8]), torch.Size([1, 2, 8]))

    Reference:
        Kag, Zhang, Saligrama. RNNs Incrementally Evolving on an Equilibrium Manifold: A Panacea for Vanishing and
        Exploding Gradients? ICLR 2020.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        inner_steps: int = 1,
        step_size: float = 0.01,
        activation: Activation = "relu",
        rank: int | None = None,
        learn_step_size: bool = True,
        max_length: int | None = None,
        implementation: Implementation = "auto",
    ) -> None:
        if rank is not None and not (isinstance(rank, int) and 0 < rank <= hidden_size):
            raise ConfigurationError(f"rank={rank!r} must be in [1, hidden_size = {hidden_size}], or None.")
        self.rank = rank
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            batch_first,
            dropout,
            inner_steps=inner_steps,
            step_size=step_size,
            activation=activation,
            learn_step_size=learn_step_size,
            max_length=max_length,
            implementation=implementation,
        )
        kept = 2 * (1 - step_size) ** inner_steps - 1
        if abs(kept) < _WEAK:
            warnings.warn(
                f"With inner_steps={inner_steps} and step_size={step_size} a step keeps only {kept:.2f} of the old "
                "state; take their product far below 0.69, or far above it.",
                stacklevel=2,
            )

    def _add_layer(self, layer: int, features: int) -> None:
        hidden = self.hidden_size
        self._add(layer, weight_ih=(hidden, features), bias=(hidden,))
        if self.rank is None:
            self._add(layer, weight_hh=(hidden, hidden))
        else:
            self._add(layer, weight_up=(hidden, self.rank), weight_down=(self.rank, hidden))

    def _run_layer(
        self, layer: int, inputs: Tensor, state: Tensor, step_size: Tensor, batch_sizes: list[int] | None,
        previous: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        weight_ih, bias = self._of(layer, "weight_ih", "bias")
        if self.rank is None:
            (weight_hh,) = self._of(layer, "weight_hh")
        else:
            weight_hh = near_identity(*self._of(layer, "weight_up", "weight_down"))
        return incremental_rnn(
            inputs,
            state,
            weight_ih,
            weight_hh,
            bias,
            step_size,
            activation=self.activation,
            projection=None if self.rank is None else weight_hh,
            batch_sizes=batch_sizes,
            implementation=self._how(),
        )

    @overload
    def forward(
        self, inputs: Tensor, hx: Tensor | None = None, *, lengths: Tensor | Sequence[int] | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, inputs: PackedSequence, hx: Tensor | None = None, *, lengths: None = None, start: int = 0
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        inputs: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        start: int = 0,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run over time.

        Args:
            inputs: ``(T, N, F)``, ``(N, T, F)`` with ``batch_first``, ``(T, F)`` without a batch, or packed; any ``T``.
            hx: State before the first step, ``(num_layers, N, H)``, or ``(num_layers, H)`` without a batch; None for 0.
            lengths: Valid steps of each sequence, ``(N,)``, in ``[0, T]``; what the padding holds does not matter.
            start: Time index of the first step; only with ``max_length`` it matters.

        Returns:
            The states of the last layer in the layout of the input, 0 where a sequence has ended, and the last state
            of every layer ``(num_layers, N, H)``; that of a sequence of length 0 is ``hx``.

        Raises:
            ConfigurationError: a shape or a length that does not fit.
        """
        return self._forward(inputs, hx, lengths, start)
