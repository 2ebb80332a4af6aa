"""Memory of a training step, by hand for small networks, and that a measurement leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.training_memory import training_memory

FLOAT = 4


def test_a_chain_keeps_what_its_derivatives_need() -> None:
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 2, bias=False))
    memory = training_memory(net, torch.zeros(3, 4))
    weights = FLOAT * (32 + 16)
    assert memory.batch_size == 3
    assert memory.saved_bytes == FLOAT * 3 * (4 + 8)  # the batch, and what Sigmoid returned
    assert memory.gradient_bytes == weights
    assert memory.adam_bytes == 2 * weights
    assert memory.with_adam_bytes == memory.peak_bytes + 2 * weights
    assert memory.method == "live tensors"
    assert memory.peak_bytes >= 2 * weights + memory.saved_bytes - FLOAT * 3 * 8


def test_what_is_kept_grows_with_the_batch_and_weights_do_not() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    two, ten = (training_memory(net, torch.zeros(batch, 4)) for batch in (2, 10))
    assert ten.saved_bytes == 5 * two.saved_bytes
    assert ten.gradient_bytes == two.gradient_bytes


def test_frozen_layers_have_no_gradient_and_no_state() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2, bias=False))
    net[0].requires_grad_(False)
    memory = training_memory(net, torch.zeros(2, 4))
    assert (memory.gradient_bytes, memory.adam_bytes) == (FLOAT * 16, 2 * FLOAT * 16)


def test_checkpointing_is_seen_to_keep_less() -> None:
    class Deep(nn.Module):
        def __init__(self, recompute: bool) -> None:
            super().__init__()
            self.body = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Sigmoid())))
            self.recompute = recompute

        def forward(self, x: Tensor) -> Tensor:
            if self.recompute:
                return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)
            return self.body(x)

    plain, spared = (training_memory(Deep(recompute), torch.zeros(64, 8)) for recompute in (False, True))
    assert spared.saved_bytes < plain.saved_bytes
    assert spared.gradient_bytes == plain.gradient_bytes


def test_nothing_changes_by_it() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)).eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    net[4].weight.register_post_accumulate_grad_hook(lambda parameter: pytest.fail("a hook of a parameter ran"))
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    first, again = (training_memory(net, torch.randn(2, 3, 8, 8, generator=torch.Generator())) for _ in range(2))
    assert first == again
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert net[4].weight.grad is None
    assert not any(module.training for module in net.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_it_works_where_gradients_are_off(context: type) -> None:
    net, batch = nn.Linear(4, 2), torch.zeros(2, 4)
    with context():
        assert training_memory(net, batch) == training_memory(net, batch)
    assert training_memory(net, batch).gradient_bytes == FLOAT * 10


def test_recurrent_layers_several_outputs_and_tied_weights_have_gradients() -> None:
    lstm = nn.LSTM(4, 6, batch_first=True)
    assert training_memory(lstm, torch.zeros(2, 3, 4)).gradient_bytes == sum(each.nbytes for each in lstm.parameters())
    layer = nn.Linear(4, 4, bias=False)
    assert training_memory(nn.Sequential(layer, layer), torch.zeros(2, 4)).gradient_bytes == FLOAT * 16


def test_a_compiled_module_needs_what_the_module_needs() -> None:
    net, batch = nn.Linear(4, 2), torch.zeros(2, 4)
    assert training_memory(torch.compile(net, backend="eager"), batch) == training_memory(net, batch)


def test_a_module_without_anything_to_train_is_told() -> None:
    with pytest.raises(ConfigurationError, match="no output of Linear depends on a parameter that can be trained"):
        training_memory(nn.Linear(4, 2).requires_grad_(False), torch.zeros(2, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_allocator_is_asked() -> None:
    memory = training_memory(nn.Linear(512, 512).cuda(), torch.zeros(64, 512))
    assert memory.method == "cuda allocator"
    assert memory.peak_bytes >= 2 * FLOAT * 512 * 512
