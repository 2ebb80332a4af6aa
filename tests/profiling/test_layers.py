"""What each layer costs: operations and bytes by hand, and that nothing is lost or counted twice."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_efficient.profiling import count_macs
from lightning_efficient.profiling.layers import LayerCost, traffic

FLOAT = 4


def cost(module: nn.Module, example: Tensor, name: str = "") -> LayerCost:
    return {layer.name: layer for layer in count_macs(module, example).layers}[name]


def test_a_linear_layer_reads_input_weight_and_bias_and_writes_its_output() -> None:
    found = cost(nn.Linear(4, 3), torch.zeros(1, 4))
    assert found == LayerCost("", "Linear", 12, 15, (3,), FLOAT * (4 + 12 + 3), FLOAT * 3)
    assert found.title == "Linear"


def test_a_convolution_reads_its_maps_once() -> None:
    found = cost(nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(1, 3, 10, 10))
    assert (found.macs, found.output_shape) == (100 * 8 * 27, (8, 10, 10))
    assert (found.read_bytes, found.written_bytes) == (FLOAT * (300 + 216), FLOAT * 800)


def test_views_cost_nothing_and_in_place_operators_write_what_they_read() -> None:
    layers = count_macs(nn.Sequential(nn.Unflatten(1, (2, 3)), nn.ReLU(inplace=True)), torch.zeros(1, 6)).layers
    assert [(layer.name, layer.read_bytes, layer.written_bytes) for layer in layers] == [("1", 24, 24)]


def test_a_lookup_reads_its_rows_and_not_its_table() -> None:
    found = cost(nn.Embedding(1000, 4), torch.zeros(1, 3, dtype=torch.long))
    assert (found.parameters, found.read_bytes, found.written_bytes) == (4000, 3 * 4 * FLOAT + 3 * 8, 3 * 4 * FLOAT)


def test_what_a_module_does_between_its_children_is_its_own() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out = self.linear(x)
            return out @ out.mT

    own, linear = count_macs(Squared(), torch.zeros(1, 5, 4)).layers
    assert (own.kind, own.macs, own.parameters) == ("Squared", 5 * 5 * 4, 0)
    assert (linear.name, linear.macs) == ("linear", 5 * 16)


def test_a_layer_that_runs_twice_is_one_row_with_the_sum() -> None:
    shared = nn.Linear(4, 4)
    (row,) = count_macs(nn.Sequential(shared, shared), torch.zeros(1, 4)).layers
    assert (row.name, row.macs, row.parameters) == ("0", 32, 20)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_layers_add_up_to_the_network(name: str) -> None:
    network = timm.create_model(name)
    count = count_macs(network, torch.zeros(1, 3, 160, 160))
    assert sum(layer.macs for layer in count.layers) == count.macs
    assert sum(layer.parameters for layer in count.layers) == sum(each.numel() for each in network.parameters())


def test_macs_are_per_sample_and_traffic_is_that_of_the_batch() -> None:
    one, four = (cost(nn.Linear(4, 3, bias=False), torch.zeros(batch, 4)) for batch in (1, 4))
    assert one.macs == four.macs
    assert four.read_bytes - one.read_bytes == 3 * 4 * FLOAT


def test_a_forward_on_the_real_device_tells_the_same() -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum().item() == 0 else x

    found = cost(Branching(4, 3), torch.zeros(1, 4))
    assert (found.macs, found.written_bytes) == (12, FLOAT * (3 + 1))  # the sum is written too


def test_no_hook_stays_behind_also_after_an_error() -> None:
    from torch.nn.modules import module as hooks

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_macs(nn.Linear(4, 2), torch.zeros(1, 3))
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


def test_an_expanded_tensor_lies_in_memory_once() -> None:
    x = torch.zeros(1).expand(100)
    assert traffic(torch.ops.aten.neg.default, ((x,), {}), torch.zeros(100)) == (FLOAT, 400)
    assert traffic(torch.ops.aten.empty.memory_format, (([100],), {}), torch.zeros(100)) == (0, 0)
