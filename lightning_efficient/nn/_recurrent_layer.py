"""What the recurrent layers share: layouts of the input, several layers, dropout, lengths, and the checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_positive
from lightning_efficient.functional.recurrent import ACTIVATIONS, Activation

Implementation: TypeAlias = Literal["auto", "fused", "reference", "triton"]


class Lengths(NamedTuple):
    """Sequences of different lengths, the longest first.

    Attributes:
        order: Positions in the batch by falling length, ``(N,)``.
        inverse: Where each sequence of the batch went, ``(N,)``.
        batch_sizes: How many sequences are still running, for each step that any of them has.
    """

    order: Tensor
    inverse: Tensor
    batch_sizes: list[int]


class RecurrentLayer(nn.Module):
    """A stack of recurrent layers; subclasses say what one of them computes.

    Args:
        input_size: Features of a time step.
        hidden_size: Units of every layer.
        num_layers: Layers, each on the outputs of the one below.
        batch_first: Whether inputs and outputs are ``(N, T, F)`` rather than ``(T, N, F)``.
        dropout: Probability that an output of a layer below another is dropped, in training.
        inner_steps: Iterations within a time step.
        step_size: Initial step size of each iteration.
        activation: ``relu``, ``tanh`` or ``sigmoid``.
        learn_step_size: Whether step sizes are parameters.
        max_length: Time steps with a step size of their own, or None for one that all share.
        implementation: ``fused``, ``reference``, ``triton`` (see the functions), or ``auto``, which is ``fused``.

    Raises:
        ConfigurationError: an option has a value that cannot work.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        batch_first: bool,
        dropout: float,
        *,
        inner_steps: int,
        step_size: float,
        activation: Activation,
        learn_step_size: bool,
        max_length: int | None,
        implementation: Implementation,
    ) -> None:
        super().__init__()
        counts = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, value in {**counts, "inner_steps": inner_steps, "max_length": max_length}.items():
            if not (isinstance(value, int) and value > 0) and not (name == "max_length" and value is None):
                raise ConfigurationError(f"{name}={value!r} must be a whole number above 0.")
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"dropout={dropout!r} must be in [0, 1).")
        check_positive("step_size", step_size)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("implementation", implementation, ("auto", "fused", "reference", "triton"))
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout = batch_first, dropout
        self.inner_steps, self.step_size, self.activation = inner_steps, step_size, activation
        self.learn_step_size, self.max_length, self.implementation = learn_step_size, max_length, implementation
        for layer in range(num_layers):
            self._add_layer(layer, input_size if layer == 0 else hidden_size)
            sizes = torch.empty((inner_steps,) if max_length is None else (inner_steps, max_length))
            if learn_step_size:
                self.register_parameter(f"step_size_l{layer}", nn.Parameter(sizes))
            else:
                self.register_buffer(f"step_size_l{layer}", sizes)
        self.reset_parameters()

    def _add_layer(self, layer: int, features: int) -> None:
        """Register the weights of one layer."""
        raise NotImplementedError

    def _run_layer(
        self, layer: int, inputs: Tensor, state: Tensor, step_size: Tensor, batch_sizes: list[int] | None,
        previous: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the states ``(T, N, H)`` and the last ones ``(N, H)`` of one layer."""
        raise NotImplementedError

    def _add(self, layer: int, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(shape)))

    def _of(self, layer: int, *names: str) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"{name}_l{layer}") for name in names)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights from a normal distribution, zero the biases and set the step sizes to ``step_size``.

        The standard deviation is 0.1, as in the released code, and at most ``hidden_size ** -0.5`` for what comes from
        the state: that keeps the spectral radius of a recurrent matrix at 1 or below in wide layers too, where with
        ``relu`` the state would otherwise grow without bound.
        """
        recurrent = min(0.1, self.hidden_size**-0.5)
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if name.startswith("step_size"):
                tensor.fill_(self.step_size)
            elif name.startswith("bias"):
                tensor.zero_()
            else:
                tensor.normal_(std=0.1 if name.startswith(("weight_ih", "weight_ph")) else recurrent)

    def flatten_parameters(self) -> None:
        """Do nothing; ``torch.nn.GRU`` has it for cuDNN, and code written for it calls it."""

    def _forward(
        self,
        inputs: Tensor | PackedSequence,
        hx: Tensor | None,
        lengths: Tensor | Sequence[int] | None,
        start: int,
        previous_input: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Bring the inputs to ``(T, N, F)``, run the layers, and undo what was done to the layout."""
        if isinstance(inputs, PackedSequence):
            if lengths is not None:
                raise ConfigurationError("lengths were given with a PackedSequence, which has its own; leave them out.")
            return self._forward_packed(inputs, hx, start, previous_input)
        if inputs.ndim not in (2, 3) or inputs.shape[-1] != self.input_size:
            layout = "(N, T, F)" if self.batch_first else "(T, N, F)"
            raise ConfigurationError(
                f"The input has shape {tuple(inputs.shape)}; {type(self).__name__} needs {layout}, or (T, F) without a "
                f"batch, with F = input_size = {self.input_size}."
            )
        if inputs.ndim == 2:
            if lengths is not None:
                raise ConfigurationError("lengths were given with an input (T, F) that has no batch; leave them out.")
            alone, hx = inputs.unsqueeze(1), self._with_batch("hx", hx, 2, 1)
            output, last = self._run(alone, hx, None, start, self._with_batch("previous_input", previous_input, 1, 0))
            return output.squeeze(1), last.squeeze(1)
        timed = inputs.transpose(0, 1) if self.batch_first else inputs
        output, last = self._run(timed, hx, self._lengths(lengths, timed), start, previous_input)
        return output.transpose(0, 1) if self.batch_first else output, last

    def _with_batch(self, name: str, given: Tensor | None, ndim: int, dim: int) -> Tensor | None:
        if given is not None and given.ndim != ndim:
            expected = f"({self.num_layers}, {self.hidden_size})" if name == "hx" else f"({self.input_size},)"
            raise ConfigurationError(
                f"{name} has shape {tuple(given.shape)}, but an input (T, F) without a batch needs {expected}."
            )
        return given if given is None else given.unsqueeze(dim)

    def _forward_packed(
        self, packed: PackedSequence, hx: Tensor | None, start: int, previous_input: Tensor | None
    ) -> tuple[PackedSequence, Tensor]:
        # the indices are left out here, so that the sequences stay sorted
        padded, sizes = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
        if padded.ndim != 3 or padded.shape[-1] != self.input_size:
            raise ConfigurationError(
                f"The packed data have shape {tuple(packed.data.shape)}; {type(self).__name__} needs (steps, F) with "
                f"F = input_size = {self.input_size}."
            )
        if packed.sorted_indices is not None:
            hx = hx if hx is None else hx.index_select(1, packed.sorted_indices)
            previous_input = _select(previous_input, packed.sorted_indices)
        output, last = self._run(padded, hx, self._lengths(sizes, padded), start, previous_input)
        data = pack_padded_sequence(output, sizes).data
        if packed.unsorted_indices is not None:
            last = last.index_select(1, packed.unsorted_indices)
        return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), last

    def _lengths(self, lengths: Tensor | Sequence[int] | None, inputs: Tensor) -> Lengths | None:
        if lengths is None:
            return None
        given, (steps, batch) = torch.as_tensor(lengths), inputs.shape[:2]
        if given.shape != (batch,) or given.is_floating_point():
            raise ConfigurationError(
                f"lengths have shape {tuple(given.shape)} and type {given.dtype}; give one whole number for each of "
                f"the {batch} sequences."
            )
        counts: list[int] = given.tolist()
        if batch and not 0 <= min(counts) <= max(counts) <= steps:
            raise ConfigurationError(
                f"lengths go from {min(counts)} to {max(counts)}, but the input {tuple(inputs.shape)} has {steps} time "
                f"steps; they must be in [0, {steps}]."
            )
        if all(count == steps for count in counts):
            return None
        order = sorted(range(batch), key=lambda position: -counts[position])
        inverse = sorted(range(batch), key=order.__getitem__)
        ended = torch.bincount(given.long()).cumsum(0)[:-1]
        order_there, inverse_there = (torch.tensor(each, device=inputs.device) for each in (order, inverse))
        return Lengths(order_there, inverse_there, (batch - ended).tolist())

    def _run(
        self, inputs: Tensor, hx: Tensor | None, lengths: Lengths | None, start: int, previous: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        steps, batch = inputs.shape[:2]
        expected = (self.num_layers, batch, self.hidden_size)
        if steps == 0:
            raise ConfigurationError(f"The input has {steps} time steps; give at least one.")
        if hx is not None and hx.shape != expected:
            raise ConfigurationError(
                f"hx has shape {tuple(hx.shape)}, but num_layers, batch and hidden_size make {expected}."
            )
        if previous is not None and previous.shape != (batch, self.input_size):
            raise ConfigurationError(
                f"previous_input has shape {tuple(previous.shape)}, but batch and input_size make "
                f"{(batch, self.input_size)}."
            )
        if start < 0:
            raise ConfigurationError(f"start={start} must be the number of a time step, 0 or above.")
        dtype = next(self.parameters()).dtype
        state = inputs.new_zeros(expected, dtype=dtype) if hx is None else hx
        if lengths is None:
            output, last = self._stack(inputs, state, None, start, previous)
            return output.to(inputs.dtype), last.to(dtype)
        longest = len(lengths.batch_sizes)
        if longest == 0:
            return inputs.new_zeros(steps, batch, self.hidden_size), state
        output, last = self._stack(
            inputs[:longest].index_select(1, lengths.order),
            state.index_select(1, lengths.order),
            lengths.batch_sizes,
            start,
            _select(previous, lengths.order),
        )
        output = nn.functional.pad(output.index_select(1, lengths.inverse), (0, 0, 0, 0, 0, steps - longest))
        return output.to(inputs.dtype), last.index_select(1, lengths.inverse).to(dtype)

    def _stack(
        self, inputs: Tensor, state: Tensor, batch_sizes: list[int] | None, start: int, previous: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        last, carried = [], previous is not None
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                inputs = nn.functional.dropout(inputs, self.dropout)
            before = state[layer - 1] if carried and layer else previous
            sizes = self._step_sizes(layer, start, len(inputs))
            inputs, end = self._run_layer(layer, inputs, state[layer], sizes, batch_sizes, before)
            last.append(end)
        return inputs, torch.stack(last)

    def _step_sizes(self, layer: int, start: int, steps: int) -> Tensor:
        (sizes,) = self._of(layer, "step_size")
        if self.max_length is None:
            return sizes
        times = torch.arange(start, start + steps, device=sizes.device).clamp_(max=self.max_length - 1)
        return sizes.index_select(1, times)

    def _how(self) -> Literal["fused", "reference", "triton"]:
        return "fused" if self.implementation == "auto" else self.implementation

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults."""
        options: dict[str, Any] = {
            "num_layers": 1,
            "batch_first": False,
            "dropout": 0.0,
            "inner_steps": 1,
            "max_length": None,
        }
        options |= {"gate": "after", "rank": None}
        given = {name: (getattr(self, name, default), default) for name, default in options.items()}
        told = [f"{name}={value!r}" for name, (value, default) in given.items() if value != default]
        return ", ".join([str(self.input_size), str(self.hidden_size), *told, f"activation={self.activation!r}"])


def _select(values: Tensor | None, order: Tensor) -> Tensor | None:
    return values if values is None else values.index_select(0, order)
