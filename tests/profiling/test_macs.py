from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling import count_macs


class ConvNet(nn.Sequential):
    """3x8x8 -> 4x8x8 -> depthwise 4x8x8 -> 1x1 to 6 -> 10 classes."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.Conv2d(4, 6, 1),
            nn.Flatten(),
            nn.Linear(6 * 64, 10),
        )


class NeedsValues(nn.Module):
    """Branches on what it sees, which meta tensors cannot answer."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) if x.mean().item() < 10 else x


class KeepsAPlainTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.offset = torch.ones(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x + self.offset)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Bilinear(4, 4, 3)
        self.head = nn.Linear(3, 2)
        self.never_runs = nn.Bilinear(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gate(x, x))


CONV = 64 * 4 * 3 * 9, 64 * 4 * 9, 64 * 6 * 4, 6 * 64 * 10


def lstm_macs(steps: int, inputs: int, hidden: int) -> int:
    return steps * 4 * hidden * (inputs + hidden)


def test_convolutions_grouped_ones_and_linear_layers_are_counted_per_sample() -> None:
    count = count_macs(ConvNet(), torch.zeros(5, 3, 8, 8))
    assert count.macs == sum(CONV)
    assert count.flops == 2 * count.macs
    assert dict(count.by_module) == {"0": CONV[0], "2": CONV[1], "3": CONV[2], "5": CONV[3]}
    assert count.uncounted == ()


@pytest.mark.parametrize("wrap", [nn.Identity, NeedsValues], ids=["meta", "real device"])
def test_lstm_is_counted_although_its_kernel_hides_it(wrap: type[nn.Module]) -> None:
    lstm = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
    module = lstm if wrap is nn.Identity else wrap(lstm)
    expected = 2 * lstm_macs(5, 8, 16) + 2 * lstm_macs(5, 32, 16)
    assert count_macs(module, torch.zeros(3, 5, 8)).macs == expected


@pytest.mark.parametrize("values", [False, True], ids=["meta", "real device"])
def test_attention_is_counted_although_it_has_a_fast_path(values: bool) -> None:
    length, width, hidden = 5, 16, 32
    layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True)
    projections = length * width * 3 * width + length * width * width
    attention = 2 * length * length * width
    mlp = 2 * length * width * hidden
    count = count_macs(NeedsValues(layer) if values else layer, torch.zeros(2, length, width))
    assert count.macs == projections + attention + mlp
    assert count.uncounted == ()


def test_multihead_attention_takes_its_inputs_as_a_tuple_or_by_name() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.zeros(1, 3, 8)
    expected = 3 * 8 * 24 + 3 * 8 * 8 + 2 * 3 * 3 * 8
    assert count_macs(attention, (x, x, x)).macs == expected
    assert count_macs(attention, {"query": x, "key": x, "value": x}).macs == expected


@pytest.mark.parametrize(("cell", "gates"), [(nn.RNN, 1), (nn.GRU, 3)])
def test_other_recurrent_layers_are_counted(cell: type[nn.RNNBase], gates: int) -> None:
    assert count_macs(cell(8, 16, batch_first=True), torch.zeros(2, 5, 8)).macs == 5 * gates * 16 * (8 + 16)


class Devices(TorchDispatchMode):
    """Remembers on which devices operators made tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {leaf.device.type for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


def test_counting_computes_on_the_meta_device_only_and_leaves_the_weights_where_they_are() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    before = {name: (id(p), p.data_ptr(), p.device.type) for name, p in net.named_parameters()}
    x = torch.zeros(1, 3, 8, 8)
    with Devices() as devices:
        count_macs(net, x)
    assert devices.seen == {"meta"}
    assert {name: (id(p), p.data_ptr(), p.device.type) for name, p in net.named_parameters()} == before


def test_a_module_that_lives_on_the_meta_device_is_counted_too() -> None:
    with torch.device("meta"):
        net = ConvNet()
    assert count_macs(net, torch.zeros(1, 3, 8, 8)).macs == sum(CONV)


@pytest.mark.parametrize(
    ("module", "macs"), [(NeedsValues(ConvNet()), sum(CONV)), (KeepsAPlainTensor(), 12)], ids=["branch", "attribute"]
)
def test_a_forward_that_cannot_run_on_meta_is_counted_on_its_device(module: nn.Module, macs: int) -> None:
    x = torch.zeros(2, 3, 8, 8) if isinstance(module, NeedsValues) else torch.zeros(2, 4)
    assert count_macs(module, x).macs == macs


def test_layers_without_a_formula_are_named_if_they_ran() -> None:
    count = count_macs(Gated(), torch.zeros(2, 4))
    assert count.macs == 6
    assert count.uncounted == ("gate",)


def test_a_lone_layer_without_a_formula_is_named_by_its_class() -> None:
    count = count_macs(nn.Bilinear(4, 4, 3), (torch.zeros(2, 4), torch.zeros(2, 4)))
    assert count.macs == 0
    assert count.uncounted == ("Bilinear",)


def test_embeddings_and_norms_are_free_and_not_reported_as_gaps() -> None:
    net = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 2))
    count = count_macs(net, torch.zeros(2, 3, dtype=torch.long))
    assert count.macs == 24
    assert count.uncounted == ()


def test_a_layer_that_is_used_twice_counts_twice_and_is_no_gap() -> None:
    shared = nn.Linear(4, 4)
    count = count_macs(nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared)), torch.zeros(3, 4))
    assert count.macs == 32
    assert count.uncounted == ()


def test_reparametrised_weights_are_no_gap() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU())
    count = count_macs(net, torch.zeros(1, 4))
    assert count.macs == 20
    assert count.uncounted == ()


def test_packed_weights_of_a_quantised_layer_are_named() -> None:
    quantised = torch.ao.nn.quantized.dynamic.Linear(4, 5)
    assert count_macs(nn.Sequential(nn.Linear(4, 4), quantised), torch.zeros(1, 4)).uncounted == ("1",)


def test_a_compiled_module_is_counted_uncompiled() -> None:
    net = ConvNet()
    compiled = torch.compile(net, backend="eager")
    inside = nn.Sequential(compiled, nn.Linear(10, 2))
    assert count_macs(compiled, torch.zeros(1, 3, 8, 8)).macs == sum(CONV)
    assert count_macs(inside, torch.zeros(1, 3, 8, 8)).macs == sum(CONV) + 20


def test_switches_of_kernels_are_put_back() -> None:
    def switches() -> tuple[bool, ...]:
        backends = torch.backends
        return backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, backends.cudnn.enabled

    before = switches()
    count_macs(nn.LSTM(2, 2), torch.zeros(1, 1, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_macs(nn.Linear(4, 2), torch.zeros(1, 3))
    assert switches() == before


@pytest.mark.parametrize("example", ["text", torch.tensor(1.0), torch.zeros(0, 4), {}])
def test_an_example_without_a_batch_is_refused(example: object) -> None:
    with pytest.raises(ConfigurationError, match="first dimension is the batch"):
        count_macs(nn.Linear(4, 2), example)
