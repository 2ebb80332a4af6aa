"""What only ``IncrementalRNN`` has: its state Jacobian, the warning about it, and the low rank."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn import IncrementalRNN

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "recurrent_cells.npz")


def jacobian(inner_steps, step_size):
    """State Jacobian of one step, with tanh and a small recurrent matrix."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rnn = IncrementalRNN(3, 8, inner_steps=inner_steps, step_size=step_size, activation="tanh").double()
    rnn.weight_hh_l0.data.mul_(0.02)
    x, state = torch.randn(1, 3).double(), torch.randn(1, 8).double()
    return torch.autograd.functional.jacobian(lambda state: rnn(x, state)[1][0], state)[0, :, 0]


def distance(matrix, sign):
    return torch.linalg.matrix_norm(matrix - sign * torch.eye(len(matrix)), 2).item()


@pytest.mark.parametrize(
    ("inner_steps", "step_size", "plus", "minus"),
    [(1, 0.001, 0.0, 2.0), (1, 0.1, 0.2, 1.8), (5, 0.1, 0.82, 1.18), (50, 0.1, 1.99, 0.01), (500, 0.1, 2.0, 0.0)],
)
def test_state_jacobian_goes_from_identity_to_minus_identity(inner_steps, step_size, plus, minus):
    """Spec B.3: about 2 (1 - step_size)^K - 1 times the identity, plus a term of the recurrent matrix."""
    found = jacobian(inner_steps, step_size)
    assert distance(found, 1) == pytest.approx(plus, abs=0.02)
    assert distance(found, -1) == pytest.approx(minus, abs=0.02)


def test_state_jacobian_at_the_equilibrium_is_minus_the_identity_whatever_the_weights():
    torch.manual_seed(0)
    rnn = IncrementalRNN(3, 8, inner_steps=500, step_size=0.1, activation="tanh").double()
    rnn.weight_hh_l0.data.normal_(std=0.15)
    x, state = torch.randn(1, 3).double(), torch.randn(1, 8).double()
    found = torch.autograd.functional.jacobian(lambda state: rnn(x, state)[1][0], state)[0, :, 0]
    assert distance(found, -1) < 1e-6


def test_settings_whose_jacobian_is_nearly_singular_warn():
    for inner_steps, step_size in [(5, 0.1), (1, 0.5), (2, 0.3)]:
        with pytest.warns(UserWarning, match="far below 0.69, or far above"):
            IncrementalRNN(3, 4, inner_steps=inner_steps, step_size=step_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for inner_steps, step_size in [(1, 0.01), (3, 0.001), (1, 0.1), (50, 0.1), (1, 1.0)]:
            IncrementalRNN(3, 4, inner_steps=inner_steps, step_size=step_size)


def test_low_rank_layer_equals_the_released_cell():
    p = {name: torch.from_numpy(GOLDEN[f"irnn_lowrank_K1/param/{name}"]) for name in ("W", "b", "V", "V2", "alpha")}
    rnn = IncrementalRNN(3, 4, rank=2, max_length=5).double()
    rnn.load_state_dict(
        {
            "weight_ih_l0": p["W"].t(),
            "bias_l0": p["b"],
            "weight_up_l0": p["V"].t(),
            "weight_down_l0": p["V2"].t(),
            "step_size_l0": p["alpha"],
        }
    )
    _, state = rnn(torch.from_numpy(GOLDEN["x"]), torch.from_numpy(GOLDEN["h0"]))
    torch.testing.assert_close(state[0], torch.from_numpy(GOLDEN["irnn_lowrank_K1/h_T"]), rtol=0, atol=1e-10)


def test_rank_saves_parameters():
    full, low = IncrementalRNN(9, 64), IncrementalRNN(9, 64, rank=8)
    assert sum(parameter.numel() for parameter in full.parameters()) == 4736 + 1
    assert sum(parameter.numel() for parameter in low.parameters()) == 4736 + 1 - 64 * 64 + 2 * 64 * 8


@pytest.mark.parametrize("rank", [0, 5, 1.5])
def test_a_wrong_rank_is_one_clear_error(rank):
    with pytest.raises(ConfigurationError, match=r"must be in \[1, hidden_size = 4\]"):
        IncrementalRNN(3, 4, rank=rank)
