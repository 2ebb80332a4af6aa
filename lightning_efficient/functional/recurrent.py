"""The recurrences of Kag and Saligrama as functions: inputs, first state and weights in, states out.

``IncrementalRNN`` and ``TimeAdaptiveRNN`` in ``lightning_efficient.nn`` are these with parameters. Everything is
computed in float32, or in float64 where an argument has it: a step adds a small multiple of an increment to the state,
which half precision would round away. Autocast changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional._recurrence import Form, Segment, fused_recurrence
from lightning_efficient.functional._recurrence_reference import (
    ACTIVATIONS,
    incremental_reference,
    time_adaptive_reference,
)

Gate: TypeAlias = Literal["after", "inside"]
Activation: TypeAlias = Literal["relu", "tanh", "sigmoid"]
Implementation: TypeAlias = Literal["fused", "reference", "triton"]


def time_adaptive_rnn(
    inputs: Tensor,
    initial: Tensor,
    weight_ih: Tensor,
    weight_ph: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    step_size: Tensor,
    *,
    gate: Gate = "after",
    activation: Activation = "relu",
    previous_input: Tensor | None = None,
    batch_sizes: Sequence[int] | None = None,
    implementation: Implementation = "fused",
) -> tuple[Tensor, Tensor]:
    """Time adaptive recurrence: every unit chooses from input and state how fast it moves.

    With ``s`` the old state, ``x`` the input, ``x'`` the input before, and ``z`` starting from ``s``::

        rate = sigmoid(s Ug + x Wg + bg)
        f(z) = activation(z U1 + s U2 + x W1 + x' W2 + b1) - z - s + x B1 + s B2
        inside:  z <- z + step_size rate f(z), K times;               new state z
        after:   z <- (1 - step_size) z + step_size f(z), K times;    new state (1 - rate) s + rate z

    A step costs ``3 + K - 1`` products of the state with an ``H x H`` matrix, in ``K`` calls.

    Args:
        inputs: ``(T, N, F)``, float, ``T >= 1``.
        initial: State before the first step, ``(N, H)``.
        weight_ih: ``(3H, F)``: ``Wg, W1, B1`` one below the other, transposed as in ``torch.nn.Linear``.
        weight_ph: ``(H, F)``: ``W2``.
        weight_hh: ``(4H, H)``: ``Ug, U1, U2, B2``.
        bias: ``(2H,)``: ``bg, b1``.
        step_size: ``(K,)``, or ``(K, T)`` with one for every time step.
        gate: Where the gate acts.
        activation: ``"relu"``, ``"tanh"`` or ``"sigmoid"``.
        previous_input: Input before the first step, ``(N, F)``; None takes the first step's own.
        batch_sizes: How many sequences are still running at each step, not increasing, the longest sequence first.
        implementation: ``"fused"``: buffers filled in place and a backward pass by hand, once differentiable.
            ``"reference"``: plain operators, differentiable any number of times and under ``torch.func``.
            ``"triton"``: as fused, with all forward steps in one kernel where that is possible: float32 on CUDA,
            ``K = 1``, 16 to 128 units, a power of two. The kernel has been tested in Triton's interpreter only.

    Returns:
        The states ``(T, N, H)``, 0 after the end of a sequence, and each sequence's last one ``(N, H)``; float32 or
        float64.

    Raises:
        ConfigurationError: an unknown option, a step size of the wrong length or ``batch_sizes`` that do not fit.

    Example:
        >>> x, zeros = torch.ones(5, 1, 2), torch.zeros(1, 3)
        >>> weights = torch.ones(9, 2), torch.ones(3, 2), torch.zeros(12, 3), torch.zeros(6)
        >>> states, last = time_adaptive_rnn(x, zeros, *weights, step_size=torch.tensor([0.1]))
        >>> states[:, 0, 0]
        tensor([0.5285, 0.9173, 1.2034, 1.4139, 1.5688])

    Reference:
        Kag, Saligrama. Time Adaptive Recurrent Neural Network. CVPR 2021.
    """
    check_choice("gate", gate, ("after", "inside"))
    sizes = _check(inputs, step_size, activation, batch_sizes, implementation)
    tensors = inputs, initial, weight_ih, weight_ph, weight_hh, bias, step_size
    before = inputs[0] if previous_input is None else previous_input
    with torch.autocast(inputs.device.type, enabled=False):
        x, first, wide, narrow, square, offset, table, before = _promoted(*tensors, before)
        table = _table(table, len(x))
        if implementation == "reference":
            weights = wide, narrow, square, offset
            return time_adaptive_reference(x, first, weights, table, before, gate, activation, sizes)
        decay = 2.0 if gate == "after" else 1.0  # with the gate after, -z stands in (1 - step_size) z and in f(z)
        to_gate, inner, to_active, to_linear = square.chunk(4)
        hidden = first.shape[-1]
        identity = torch.eye(hidden, dtype=square.dtype, device=square.device)
        fused = torch.cat([to_gate, inner + to_active, to_linear - (1 + decay) * identity])
        offset = torch.cat([offset, offset.new_zeros(hidden)])
        # one iteration from an increment of 0: only its product with the rate matters, in either place
        single = len(table) == 1
        form = Form("inside" if single else gate, activation, decay, triton=implementation == "triton")
        square_inner = None if single else inner.contiguous()
        segments = _segments(sizes)
        return fused_recurrence(
            x.contiguous(), before, first, wide, narrow, fused, square_inner, offset, table, form, segments
        )


def incremental_rnn(
    inputs: Tensor,
    initial: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    step_size: Tensor,
    *,
    activation: Activation = "relu",
    projection: Tensor | None = None,
    batch_sizes: Sequence[int] | None = None,
    implementation: Implementation = "fused",
) -> tuple[Tensor, Tensor]:
    """Incremental recurrence: Euler steps of a state that evolves on top of the one before.

    With ``s`` the old state, ``x`` the input, and ``z`` starting from ``s``::

        z <- (1 - step_size) z + step_size (activation((z U + x W + b + s U) P) - s), K times;   new state z

    where ``P`` is the identity unless ``projection`` is given. A step costs ``K`` products with an ``H x H`` matrix:
    ``P`` is multiplied into the weights beforehand.

    Args:
        inputs: ``(T, N, F)``, float, ``T >= 1``.
        initial: State before the first step, ``(N, H)``.
        weight_ih: ``W``, ``(H, F)``, transposed as in ``torch.nn.Linear``.
        weight_hh: ``U``, ``(H, H)``.
        bias: ``b``, ``(H,)``.
        step_size: ``(K,)``, or ``(K, T)`` with one for every time step.
        activation: ``"relu"``, ``"tanh"`` or ``"sigmoid"``.
        projection: ``P``, ``(H, H)``.
        batch_sizes: How many sequences are still running at each step, not increasing, the longest sequence first.
        implementation: As in ``time_adaptive_rnn``.

    Returns:
        The states ``(T, N, H)``, 0 after the end of a sequence, and each sequence's last one ``(N, H)``; float32 or
        float64.

    Raises:
        ConfigurationError: an unknown option, a step size of the wrong length or ``batch_sizes`` that do not fit.

    Example:
        >>> x, zeros = torch.ones(3, 1, 2), torch.zeros(1, 2)
        >>> weights = torch.ones(2, 2), torch.eye(2), torch.zeros(2)
        >>> states, last = incremental_rnn(x, zeros, *weights, step_size=torch.tensor([0.1]))
        >>> states[:, 0, 0]
        tensor([0.2000, 0.4000, 0.6000])

    Reference:
        Kag, Zhang, Saligrama. RNNs Incrementally Evolving on an Equilibrium Manifold: A Panacea for Vanishing and
        Exploding Gradients? ICLR 2020.
    """
    sizes = _check(inputs, step_size, activation, batch_sizes, implementation)
    tensors = inputs, initial, weight_ih, weight_hh, bias, step_size
    with torch.autocast(inputs.device.type, enabled=False):
        x, first, wide, square, offset, table, *rest = _promoted(
            *tensors, *([] if projection is None else [projection])
        )
        table = _table(table, len(x))
        if implementation == "reference":
            projected = rest[0] if rest else None
            return incremental_reference(x, first, (wide, square, offset), table, projected, activation, sizes)
        for matrix in rest:
            wide, square, offset = matrix @ wide, matrix @ square, matrix @ offset
        inner = None if len(table) == 1 else square.contiguous()
        form, segments = Form(None, activation, 1.0, triton=implementation == "triton"), _segments(sizes)
        # the first iteration starts from the old state, which therefore enters twice
        return fused_recurrence(
            x.contiguous(), None, first, wide, None, 2 * square, inner, offset, table, form, segments
        )


def near_identity(up: Tensor, down: Tensor) -> Tensor:
    """Return the identity plus the product of ``(H, r)`` and ``(r, H)``, in float32 or float64 also under autocast.

    Example:
        >>> near_identity(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([[1., 2.],
                [0., 1.]])
    """
    with torch.autocast(up.device.type, enabled=False):
        left, right = _promoted(up, down)
        return torch.eye(len(left), dtype=left.dtype, device=left.device) + left @ right


def _check(
    inputs: Tensor, step_size: Tensor, activation: str, batch_sizes: Sequence[int] | None, implementation: str
) -> list[int]:
    """Check the arguments that both share, and return the batch sizes."""
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("implementation", implementation, ("fused", "reference", "triton"))
    if inputs.ndim != 3 or not len(inputs):
        raise ConfigurationError(f"inputs have shape {tuple(inputs.shape)}; give (T, N, F) with at least one step.")
    if not inputs.is_floating_point():
        raise ConfigurationError(f"inputs are {inputs.dtype}; give floating-point features, or embed the tokens first.")
    steps, batch = inputs.shape[:2]
    if step_size.ndim not in (1, 2) or (step_size.ndim == 2 and step_size.shape[1] != steps):
        raise ConfigurationError(
            f"step_size has shape {tuple(step_size.shape)}; for {steps} steps give (K,) or (K, {steps})."
        )
    sizes = [batch] * steps if batch_sizes is None else list(batch_sizes)
    if batch_sizes is not None and not (
        len(sizes) == steps and sizes == sorted(sizes, reverse=True) and 0 < sizes[-1] <= sizes[0] <= batch
    ):
        raise ConfigurationError(
            f"batch_sizes must be {steps} numbers from {batch} down to 1, none larger than the one before, and are "
            f"{sizes if len(sizes) < 10 else f'{len(sizes)} numbers'}."
        )
    return sizes


def _promoted(*tensors: Tensor) -> list[Tensor]:
    dtype = torch.float64 if any(each.dtype == torch.float64 for each in tensors) else torch.float32
    return [each.to(dtype) for each in tensors]


def _table(step_size: Tensor, steps: int) -> Tensor:
    return step_size if step_size.ndim == 2 else step_size[:, None].expand(-1, steps)


def _segments(batch_sizes: list[int]) -> list[Segment]:
    segments, start = [], 0
    for rows, same in groupby(batch_sizes):
        stop = start + len(list(same))
        segments.append(Segment(start, stop, rows))
        start = stop
    return segments
