from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.parts import sequence_parts
from lightning_efficient.modules._recurrent_network import RecurrentNetwork
from lightning_efficient.modules._rnn_factory import create_rnn, rnn_name

N, T, F, H = 4, 11, 3, 5


class Differences(nn.Module):
    """A network of another kind: it needs the step before, the time index, and knows lengths."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, batch_first: bool, dropout: float, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * input_size + 1, hidden_size)
        self.gain = gain

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        previous_input: Tensor | None = None,
        start: int = 0,
    ) -> tuple[Tensor, Tensor]:
        before = x[:, 0] if previous_input is None else previous_input
        hidden = x.new_zeros(len(x), self.linear.out_features) if state is None else state[0]
        outputs = []
        for step in range(x.shape[1]):
            now = x[:, step]
            time = now.new_full((len(x), 1), float(start + step))
            new = torch.tanh(self.gain * self.linear(torch.cat([now, before, time], 1)) + hidden)
            goes_on = torch.ones(len(x), 1, dtype=torch.bool) if lengths is None else (step < lengths).unsqueeze(1)
            hidden, before = torch.where(goes_on, new, hidden), torch.where(goes_on, now, before)
            outputs.append(torch.where(goes_on, new, 0.0))
        return torch.stack(outputs, 1), hidden.unsqueeze(0)


KINDS = ["lstm", "gru", "rnn", "irnn", "tarnn", Differences]


def network(rnn: Any, **options: Any) -> RecurrentNetwork:
    torch.manual_seed(0)
    return RecurrentNetwork(rnn, F, H, **options).double()


def in_parts(net: RecurrentNetwork, x: Tensor, count: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Any]:
    hiddens, outputs, last = None, [], torch.empty(0)
    for part in sequence_parts(x.shape[1], count):
        within = None if lengths is None else (lengths - part.start).clamp(0, part.stop - part.start)
        output, last, hiddens = net(x[:, part.start : part.stop], hiddens, within, part.start)
        outputs.append(output)
    return torch.cat(outputs, 1), last, hiddens


def assert_same(one: Any, other: Any) -> None:
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("rnn", KINDS)
def test_parts_give_the_outputs_of_the_whole_sequence(rnn: Any, layers: int) -> None:
    net = network(rnn, num_layers=1 if rnn is Differences else layers)
    x = torch.randn(N, T, F, dtype=torch.float64)
    whole, last, _ = net(x)
    assert_same(in_parts(net, x, 4)[:2], (whole, last))
    assert torch.equal(last, whole[:, -1])


@pytest.mark.parametrize("rnn", KINDS)
def test_padded_sequences_give_what_each_gives_alone_in_parts_or_whole(rnn: Any) -> None:
    net = network(rnn)
    x, lengths = torch.randn(N, T, F, dtype=torch.float64), torch.tensor([3, 11, 1, 8])
    whole, last, _ = net(x, None, lengths)
    outputs, last_of_parts, _ = in_parts(net, x, 4, lengths)
    assert_same((whole, last), (outputs, last_of_parts))
    for row, length in enumerate(lengths.tolist()):
        alone, _, _ = net(x[row : row + 1, :length])
        assert torch.allclose(whole[row, :length], alone[0], atol=1e-12)
        assert torch.allclose(last[row], alone[0, -1], atol=1e-12)
        assert not whole[row, length:].any()


@pytest.mark.parametrize("rnn", KINDS)
def test_an_ended_sequence_keeps_its_state_and_spoils_no_gradient(rnn: Any) -> None:
    net = network(rnn)
    x = torch.randn(N, T, F, dtype=torch.float64)
    _, _, hiddens = net(x)
    ended = torch.zeros(N, dtype=torch.long)
    padding = torch.full_like(x, 1e3)
    output, last, after = net(padding, hiddens, ended, T)
    assert_same(_leaves(after), _leaves(hiddens))
    assert not output.any()
    (last.sum() + output.sum()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


def _leaves(hiddens: Any) -> list[Tensor]:
    return [leaf for each in hiddens for leaf in _leaves(each)] if isinstance(hiddens, tuple) else [hiddens]


def test_padding_of_nan_is_never_read() -> None:
    net = network("lstm")
    x = torch.randn(N, T, F, dtype=torch.float64)
    _, _, hiddens = net(x)
    output, last, _ = net(torch.full_like(x, float("nan")), hiddens, torch.zeros(N, dtype=torch.long), T)
    (last.sum() + output.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_a_state_of_another_batch_size_names_both() -> None:
    for rnn in ("lstm", "gru"):
        net = network(rnn)
        _, _, hiddens = net(torch.randn(N, T, F, dtype=torch.float64))
        with pytest.raises(ConfigurationError, match="state is of 4 sequences, but the batch has 3"):
            net(torch.randn(3, T, F, dtype=torch.float64), hiddens)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([1, 2, 3, 12]), "length 12, but the batch has 11 time steps"),
        (torch.tensor([1, 2, 3, 0]), "length 0; each must have at least 1 time step"),
        (torch.tensor([1, 2, 3, -1]), "length -1"),
        (torch.tensor([1, 2, 3]), r"lengths are int64 of shape \(3,\); they must be one integer for each of the 4"),
        (torch.ones(4), "lengths are float32"),
    ],
)
def test_impossible_lengths_are_told(lengths: Tensor, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        network("gru")(torch.randn(N, T, F, dtype=torch.float64), None, lengths)


def test_a_foreign_network_without_lengths_says_so() -> None:
    class Plain(nn.Module):
        def __init__(self, input_size: int, hidden_size: int, num_layers: int, batch_first: bool, dropout: float):
            super().__init__()
            self.gru = nn.GRU(input_size, hidden_size, batch_first=True)

        def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return self.gru(x, state)

    net = network(Plain)
    x = torch.randn(N, T, F, dtype=torch.float64)
    assert net(x)[0].shape == (N, T, H)
    with pytest.raises(ConfigurationError, match=r"Plain.forward does not take them; add a keyword argument lengths"):
        net(x, None, torch.tensor([1, 2, 3, 4]))


def test_the_outputs_of_a_projected_lstm_have_its_size() -> None:
    net = network("lstm", rnn_kwargs={"proj_size": 2})
    output, last, _ = net(torch.randn(N, T, F, dtype=torch.float64))
    assert net.output_size == output.shape[-1] == last.shape[-1] == 2


def test_an_import_path_and_its_class_are_the_same() -> None:
    assert isinstance(create_rnn("torch.nn.GRU", F, H), nn.GRU)
    assert isinstance(create_rnn(rnn_name(nn.GRU), F, H), nn.GRU)
    assert create_rnn(Differences, F, H, options={"gain": 2.0}).gain == 2.0


@pytest.mark.parametrize(
    ("rnn", "options", "message"),
    [
        (
            "lstn",
            {},
            r"unknown recurrent network 'lstn'; it is one of lstm, gru, rnn, irnn, .*Did you mean 'lstm'",
        ),
        ("torch.nn.GRUU", {}, r"model.rnn: 'torch.nn.GRUU' cannot be imported"),
        ("no_such_package.GRU", {}, "cannot be imported: No module named 'no_such_package'"),
        ("torch.nn.init", {}, "no subclass of torch.nn.Module"),
        ("gru", {"biass": True}, r"model.rnn_kwargs: gru cannot be built with {'biass': True}"),
        ("lstm", {"bidirectional": True}, "knows no future"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(rnn: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        create_rnn(rnn, F, H, options=options)
    assert "\n" not in str(error.value)
