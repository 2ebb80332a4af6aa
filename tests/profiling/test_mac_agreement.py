"""Our MACs against other counters and against formulas by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_efficient.profiling import count_macs

STEPS, INPUTS, HIDDEN, PROJECTED = 5, 8, 16, 6

# (module, MACs of one step by hand); gates times hidden rows, over inputs and the fed-back state
RECURRENT = {
    "lstm": (nn.LSTM(INPUTS, HIDDEN), 4 * HIDDEN * (INPUTS + HIDDEN)),
    "bidirectional lstm": (nn.LSTM(INPUTS, HIDDEN, bidirectional=True), 2 * 4 * HIDDEN * (INPUTS + HIDDEN)),
    "projected lstm": (
        nn.LSTM(INPUTS, HIDDEN, proj_size=PROJECTED),
        4 * HIDDEN * (INPUTS + PROJECTED) + HIDDEN * PROJECTED,
    ),
    "two layers of projected lstm, both ways": (
        nn.LSTM(INPUTS, HIDDEN, num_layers=2, proj_size=PROJECTED, bidirectional=True),
        2 * (4 * HIDDEN * (INPUTS + 4 * PROJECTED) + 2 * HIDDEN * PROJECTED),
    ),
    "gru": (nn.GRU(INPUTS, HIDDEN), 3 * HIDDEN * (INPUTS + HIDDEN)),
    "two layers of gru, both ways": (
        nn.GRU(INPUTS, HIDDEN, num_layers=2, bidirectional=True),
        2 * 3 * HIDDEN * (INPUTS + HIDDEN) + 2 * 3 * HIDDEN * 3 * HIDDEN,
    ),
    "rnn": (nn.RNN(INPUTS, HIDDEN, bias=False), HIDDEN * (INPUTS + HIDDEN)),
}


class Last(nn.Module):
    """A recurrent layer inside a network that takes the batch first."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.layer.batch_first else x.transpose(0, 1)
        out, _ = self.layer(x)
        return self.head(out[:, -1] if self.layer.batch_first else out[-1])


@pytest.mark.parametrize("batch_first", [False, True], ids=["steps first", "batch first"])
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_counts_what_the_formula_says(kind: str, batch_first: bool) -> None:
    layer, per_step = RECURRENT[kind]
    layer.batch_first = batch_first
    network = Last(layer)
    count = count_macs(network, torch.zeros(3, STEPS, INPUTS))
    assert count.by_module["layer"] == STEPS * per_step
    assert count.macs == STEPS * per_step + network.head.weight.numel()
    assert count.uncounted == ()


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_a_cell_counts_one_step(cell: type[nn.RNNCellBase], gates: int) -> None:
    assert count_macs(cell(INPUTS, HIDDEN), torch.zeros(2, INPUTS)).macs == gates * HIDDEN * (INPUTS + HIDDEN)
