"""What only ``TimeAdaptiveRNN`` has: its gate, and the input before the first step."""

from __future__ import annotations

import pytest
import torch

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn import TimeAdaptiveRNN


def test_parameters_are_as_many_as_in_the_released_cell_without_the_unused_bias():
    rnn = TimeAdaptiveRNN(1, 128, max_length=784)
    assert sum(parameter.numel() for parameter in rnn.parameters()) == 67_216 - 128


@pytest.mark.parametrize(("gate", "bias"), [("after", -3.0), ("inside", 0.0)])
def test_gate_starts_slow_only_where_it_comes_after(gate, bias):
    start = TimeAdaptiveRNN(3, 4, num_layers=2, gate=gate).bias_l1
    assert start.tolist() == [bias] * 4 + [0.0] * 4


def test_initial_weights_have_the_released_spread_and_a_bounded_spectral_radius():
    torch.manual_seed(0)
    narrow, wide = TimeAdaptiveRNN(20, 64), TimeAdaptiveRNN(20, 1024)
    assert narrow.weight_hh_l0.std().item() == pytest.approx(0.1, rel=0.05)
    assert wide.weight_ih_l0.std().item() == pytest.approx(0.1, rel=0.05)
    radius = torch.linalg.eigvals(wide.weight_hh_l0[:1024].detach()).abs().max()
    assert radius == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gate", ["after", "inside"])
def test_states_stay_bounded_over_a_long_sequence(gate):
    torch.manual_seed(0)
    rnn = TimeAdaptiveRNN(1, 128, gate=gate)
    with torch.no_grad():
        output, _ = rnn(torch.randn(2000, 4, 1))
    assert output.abs().max() < 100


def test_without_a_previous_input_the_first_step_takes_its_own():
    torch.manual_seed(0)
    rnn, x = TimeAdaptiveRNN(3, 4), torch.randn(5, 2, 3)
    assert torch.equal(rnn(x)[0], rnn(x, previous_input=x[0])[0])
    assert not torch.equal(rnn(x)[0], rnn(x, previous_input=x[1])[0])


def test_layers_above_take_the_state_below_as_their_previous_input():
    torch.manual_seed(0)
    rnn, x = TimeAdaptiveRNN(3, 4, num_layers=3, inner_steps=2, step_size=0.3).double(), torch.randn(6, 2, 3).double()
    output, state = rnn(x)
    _, half = rnn(x[:3])
    rest, end = rnn(x[3:], half, previous_input=x[2])
    torch.testing.assert_close(rest, output[3:])
    torch.testing.assert_close(end, state)


def test_previous_input_goes_with_its_sequence_when_lengths_differ():
    torch.manual_seed(0)
    rnn, x, before = TimeAdaptiveRNN(3, 4).double(), torch.randn(5, 3, 3).double(), torch.randn(3, 3).double()
    lengths = [2, 5, 4]
    _, state = rnn(x, lengths=lengths, previous_input=before)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    _, other = rnn(packed, previous_input=before)
    for position, length in enumerate(lengths):
        _, alone = rnn(x[:length, position], previous_input=before[position])
        torch.testing.assert_close(state[:, position], alone)
        torch.testing.assert_close(other[:, position], alone)


def test_a_wrong_gate_or_previous_input_is_one_clear_error():
    with pytest.raises(ConfigurationError, match=r"gate='insid' .* Did you mean 'inside'"):
        TimeAdaptiveRNN(3, 4, gate="insid")
    with pytest.raises(ConfigurationError, match=r"previous_input has shape \(2, 4\).*\(2, 3\)"):
        TimeAdaptiveRNN(3, 4)(torch.zeros(5, 2, 3), previous_input=torch.zeros(2, 4))
    with pytest.raises(ConfigurationError, match=r"previous_input has shape \(1, 3\).*needs \(3,\)"):
        TimeAdaptiveRNN(3, 4)(torch.zeros(5, 3), previous_input=torch.zeros(1, 3))


def test_options_are_told():
    assert repr(TimeAdaptiveRNN(3, 4, num_layers=2, gate="inside")) == (
        "TimeAdaptiveRNN(3, 4, num_layers=2, gate='inside', activation='relu')"
    )
