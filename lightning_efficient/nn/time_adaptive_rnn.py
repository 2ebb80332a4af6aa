"""A recurrent layer whose units choose how fast they move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.recurrent import Activation, Gate, time_adaptive_rnn
from lightning_efficient.nn._recurrent_layer import Implementation, RecurrentLayer

_GATE_BIAS = {"after": -3.0, "inside": 0.0}
"""With the gate after, units start slow: the sigmoid of -3 is 0.047."""


class TimeAdaptiveRNN(RecurrentLayer):
    """Recurrent layer in which a gate of input and state is the inverse time constant of every unit.

    Called like ``torch.nn.GRU``. With ``s`` the old state, ``x`` the input, ``x'`` the input before, and ``z`` starting
    from ``s``::

        rate = sigmoid(s Ug + x Wg + bg)
        f(z) = activation(z U1 + s U2 + x W1 + x' W2 + b1) - z - s + x B1 + s B2
        gate="inside":  z <- z + step_size rate f(z), inner_steps times;               new state z
        gate="after":   z <- (1 - step_size) z + step_size f(z), inner_steps times;    new state (1 - rate) s + rate z

    Parameters of layer ``l``: ``weight_ih_l`` ``(3H, F)`` = Wg, W1, B1; ``weight_ph_l`` ``(H, F)`` = W2;
    ``weight_hh_l`` ``(4H, H)`` = Ug, U1, U2, B2; ``bias_l`` ``(2H,)`` = bg, b1; ``step_size_l`` ``(K,)`` or
    ``(K, max_length)``: together ``4FH + 4H^2 + 2H + K``. Drawn by ``reset_parameters``; the bias of the gate is -3
    (after) or 0 (inside).

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
        step_size: Initial step size.
        gate: Where the gate acts. With one iteration and the same weights, the two differ by one more ``- z``.
        activation: ``relu``, ``tanh`` or ``sigmoid``.
        max_length: Number of time steps with a step size of their own, as in the released code; later steps take the
            last one. None: one for all time steps.
        learn_step_size: Whether step sizes are parameters.
        implementation: ``auto`` is ``fused``; ``reference`` runs plain operators step by step, slowly: for second
            derivatives and ``torch.func``. ``triton`` is ``fused`` with a forward kernel on CUDA where it fits (one
            iteration, 16 to 128 units, a power of two), which has run in Triton's interpreter only and on no GPU.

    Raises:
        ConfigurationError: an option has a value that cannot work.

    Example:
        >>> rnn = TimeAdaptiveRNN(3, 8, batch_first=True)
        >>> x = torch.randn(2, 10, 3)
        >>> output, state = rnn(x)
        >>> output.shape, state.shape
        (torch.Size([2, 10, 8]), torch.Size([1, 2, 8]))
        >>> _, half = rnn(x[:, :5])
        >>> _, rest = rnn(x[:, 5:], half, previous_input=x[:, 4])
        >>> torch.allclose(rest, state)
        True

    Reference:
        Kag, Saligrama. Time Adaptive Recurrent Neural Network. CVPR 2021.
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
        gate: Gate = "after",
        activation: Activation = "relu",
        max_length: int | None = None,
        learn_step_size: bool = True,
        implementation: Implementation = "auto",
    ) -> None:
        check_choice("gate", gate, _GATE_BIAS)
        self.gate: Gate = gate
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

    def _add_layer(self, layer: int, features: int) -> None:
        hidden = self.hidden_size
        self._add(
            layer,
            weight_ih=(3 * hidden, features),
            weight_ph=(hidden, features),
            weight_hh=(4 * hidden, hidden),
            bias=(2 * hidden,),
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, and set the bias of the gate."""
        super().reset_parameters()
        for layer in range(self.num_layers):
            self._of(layer, "bias")[0][: self.hidden_size] = _GATE_BIAS[self.gate]

    def _run_layer(
        self, layer: int, inputs: Tensor, state: Tensor, step_size: Tensor, batch_sizes: list[int] | None,
        previous: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        weight_ih, weight_ph, weight_hh, bias = self._of(layer, "weight_ih", "weight_ph", "weight_hh", "bias")
        return time_adaptive_rnn(
            inputs,
            state,
            weight_ih,
            weight_ph,
            weight_hh,
            bias,
            step_size,
            gate=self.gate,
            activation=self.activation,
            previous_input=previous,
            batch_sizes=batch_sizes,
            implementation=self._how(),
        )

    @overload
    def forward(
        self, inputs: Tensor, hx: Tensor | None = None, *, lengths: Tensor | Sequence[int] | None = None,
        start: int = 0, previous_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    @overload
    def forward(
        self, inputs: PackedSequence, hx: Tensor | None = None, *, lengths: None = None, start: int = 0,
        previous_input: Tensor | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...  # fmt: skip

    def forward(
        self,
        inputs: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        start: int = 0,
        previous_input: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run over time.

        Args:
            inputs: ``(T, N, F)``, ``(N, T, F)`` with ``batch_first``, ``(T, F)`` without a batch, or packed; any ``T``.
            hx: State before the first step, ``(num_layers, N, H)``, or ``(num_layers, H)`` without a batch; None for 0.
            lengths: Valid steps of each sequence, ``(N,)``, in ``[0, T]``; what the padding holds does not matter.
            start: Time index of the first step; only with ``max_length`` it matters.
            previous_input: Input of the step before, ``(N, F)``, for sequences that go on; layers above the first then
                take the state ``hx`` of the layer below. None: every layer takes its first step's own input.

        Returns:
            The states of the last layer in the layout of the input, 0 where a sequence has ended, and the last state
            of every layer ``(num_layers, N, H)``; that of a sequence of length 0 is ``hx``.

        Raises:
            ConfigurationError: a shape or a length that does not fit.
        """
        return self._forward(inputs, hx, lengths, start, previous_input)
