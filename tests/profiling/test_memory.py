from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_efficient.profiling import peak_memory

FLOAT = 4


class Chain(nn.Sequential):
    """Linear layers whose outputs have the sizes given, without biases."""

    def __init__(self, *sizes: int) -> None:
        pairs = pairwise(sizes)
        super().__init__(*(nn.Linear(before, after, bias=False) for before, after in pairs))


def test_a_chain_needs_its_weights_its_input_and_the_largest_neighbours() -> None:
    sizes = 10, 200, 300, 20, 5
    weights = sum(a * b for a, b in pairwise(sizes))
    # while a layer runs, its input and its output live; the example itself lives all the time
    activations = 10 + max(a + b for a, b in pairwise(sizes[1:]))
    assert peak_memory(Chain(*sizes), torch.zeros(1, 10)) == (FLOAT * (weights + activations), "live tensors")


def test_activations_grow_with_the_batch_and_weights_do_not() -> None:
    chain = Chain(10, 20, 20)
    one, eight = (peak_memory(chain, torch.zeros(batch, 10))[0] for batch in (1, 8))
    assert eight - one == 7 * FLOAT * (10 + 20 + 20)


def test_in_place_operators_and_views_need_nothing() -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Unflatten(1, (2, 5)), nn.Flatten())
    assert peak_memory(net, torch.zeros(1, 10))[0] == FLOAT * 10


def test_a_tensor_that_is_kept_longer_adds_to_the_peak() -> None:
    class Skip(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = x + 1
            second = first * 2
            third = second * 3
            return first + third

    # when the sum is made, all four others are still named by a variable
    assert peak_memory(Skip(), torch.zeros(1, 10))[0] == FLOAT * 10 * 5


def test_shared_weights_and_buffers_count_once() -> None:
    layer = nn.Linear(10, 10, bias=False)
    layer.register_buffer("scale", torch.ones(7), persistent=False)
    tied = nn.Sequential(layer, layer)
    assert peak_memory(tied, torch.zeros(1, 10))[0] == FLOAT * (100 + 7 + 3 * 10)


def test_the_same_number_every_time_and_in_training_mode_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten()).train()
    peaks = {peak_memory(net, torch.zeros(1, 3, 8, 8))[0] for _ in range(3)}
    peaks |= {peak_memory(net.eval(), torch.zeros(1, 3, 8, 8))[0]}
    assert len(peaks) == 1


def test_a_compiled_module_needs_what_the_module_needs() -> None:
    net = Chain(10, 20, 5)
    x = torch.zeros(1, 10)
    assert peak_memory(torch.compile(net, backend="eager"), x) == peak_memory(net, x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_allocator_is_asked() -> None:
    peak, method = peak_memory(Chain(512, 512, 512).cuda(), torch.zeros(1, 512))
    assert method == "cuda allocator"
    assert peak >= FLOAT * (2 * 512 * 512 + 3 * 512)
