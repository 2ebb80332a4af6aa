"""One way to call every recurrent network: on a whole sequence or part by part, padded or not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves, tree_map

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules._rnn_factory import create_rnn


class RecurrentNetwork(nn.Module):
    """A recurrent network that goes on where the part before has stopped.

    What it returns as ``hiddens`` is given back with the next part; calling it on all parts in turn gives the outputs
    of one call on the whole sequence. ``hiddens`` is the state that ``rnn`` returns, or ``(state, last_input)`` for a
    network whose ``forward`` takes ``previous_input``. A network that takes ``start`` is told the time index of the
    part's first step, and one that takes ``lengths`` is told those; for torch's own, sequences are packed.

    Args:
        rnn: Name, import path or class; see ``create_rnn``.
        input_size: Features per time step.
        hidden_size: Width of the state.
        num_layers: How many networks are stacked.
        dropout: Share of dropped outputs between layers.
        rnn_kwargs: Further arguments of the class.

    Attributes:
        output_size: Features of an output.

    Example:
        >>> network = RecurrentNetwork("gru", input_size=3, hidden_size=4)
        >>> x = torch.randn(2, 10, 3)
        >>> whole, last, _ = network(x)
        >>> _, _, hiddens = network(x[:, :6])
        >>> rest, last_of_parts, _ = network(x[:, 6:], hiddens, start=6)
        >>> torch.allclose(whole[:, 6:], rest, atol=1e-6), torch.allclose(last, last_of_parts, atol=1e-6)
        (True, True)
    """

    def __init__(
        self,
        rnn: str | type[nn.Module],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        rnn_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.rnn = create_rnn(rnn, input_size, hidden_size, num_layers, dropout, rnn_kwargs)
        self.output_size = int(getattr(self.rnn, "proj_size", 0) or hidden_size)
        takes = inspect.signature(self.rnn.forward).parameters
        self.takes_start = "start" in takes
        self.takes_lengths = "lengths" in takes
        self.takes_previous_input = "previous_input" in takes

    def forward(
        self, inputs: Tensor, hiddens: Any = None, lengths: Tensor | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor, Any]:
        """Run over the time steps of a part.

        Args:
            inputs: Float features of shape ``(N, T, F)``.
            hiddens: What the call on the part before returned; ``None`` begins with the network's own first state.
            lengths: Valid steps of each sequence within this part, int64 of shape ``(N,)``; 0 in a later part for a
                sequence that has ended, which keeps its state.
            start: Time index of the part's first step in the whole sequence.

        Returns:
            ``(output, last, hiddens)``: the outputs ``(N, T, H)``, zeros beyond a sequence's end, the output of each
            sequence's last valid step ``(N, H)``, and what the next part needs.

        Raises:
            ConfigurationError: ``hiddens`` is of another batch size, or a length is impossible.
        """
        _check_state(hiddens, len(inputs))
        state, previous = hiddens if self.takes_previous_input and hiddens is not None else (hiddens, None)
        options: dict[str, Any] = {"start": start} if self.takes_start else {}
        if self.takes_previous_input:
            options["previous_input"] = previous
        if lengths is None:
            output, state = self.rnn(inputs, state, **options)
            return output, output[:, -1], (state, inputs[:, -1]) if self.takes_previous_input else state
        _check_lengths(lengths, inputs, start)
        lengths = lengths.to(inputs.device)
        if self.takes_lengths:
            output, state = self.rnn(inputs, state, lengths=lengths, **options)
        else:
            output, state = self._packed(inputs, state, lengths)
        ended = (lengths == 0).unsqueeze(1)
        last = _last(output, lengths)
        top = tree_leaves(state)[0]
        if top.ndim == 3 and top.shape[1:] == last.shape:
            last = torch.where(ended, top[-1], last)
        if not self.takes_previous_input:
            return output, last, state
        newest = _last(inputs, lengths)
        return output, last, (state, newest if previous is None else torch.where(ended, previous, newest))

    def _packed(self, inputs: Tensor, state: Any, lengths: Tensor) -> tuple[Tensor, Any]:
        if not isinstance(self.rnn, nn.RNNBase):
            raise ConfigurationError(
                f"a batch has lengths, but {type(self.rnn).__name__}.forward does not take them; "
                "add a keyword argument lengths to it, or give sequences of one length"
            )
        ended = (lengths == 0).view(-1, 1, 1)
        # torch packs no empty sequence; one step of zeros is run for it, and then forgotten
        packed = pack_padded_sequence(
            torch.where(ended, 0.0, inputs), lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        packed, new = self.rnn(packed, state)
        output, _ = pad_packed_sequence(packed, batch_first=True, total_length=inputs.shape[1])
        if state is not None:
            new = tree_map(lambda after, before: torch.where(ended.view(-1, 1), before, after), new, state)
        return torch.where(ended, 0.0, output), new


def _last(values: Tensor, lengths: Tensor) -> Tensor:
    return values[torch.arange(len(values), device=values.device), (lengths - 1).clamp(min=0)]


def _check_state(hiddens: Any, batch_size: int) -> None:
    for leaf in tree_leaves(hiddens):
        if not isinstance(leaf, Tensor) or leaf.ndim not in (2, 3):
            continue
        given = leaf.shape[-2]  # states are (layers, N, H), inputs (N, F)
        if given != batch_size:
            raise ConfigurationError(
                f"the recurrent state is of {given} sequences, but the batch has {batch_size}; "
                "carry a state only between batches of one size (drop_last) and of the same sequences"
            )


def _check_lengths(lengths: Tensor, inputs: Tensor, start: int) -> None:
    samples, steps = inputs.shape[:2]
    if lengths.shape != (samples,) or lengths.dtype.is_floating_point:
        raise ConfigurationError(
            f"lengths are {str(lengths.dtype).removeprefix('torch.')} of shape {tuple(lengths.shape)}; "
            f"they must be one integer for each of the {samples} sequences"
        )
    low, high = (int(value) for value in lengths.aminmax())
    if high > steps:
        raise ConfigurationError(f"a sequence has length {high}, but the batch has {steps} time steps")
    if low < 0 or (low == 0 and start == 0):
        raise ConfigurationError(
            f"a sequence has length {low}; each must have at least 1 time step, so leave empty sequences out"
        )
