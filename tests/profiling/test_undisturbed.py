from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from lightning_efficient.profiling import count_macs, measure_latency, peak_memory, profile_module, undisturbed
from lightning_efficient.profiling.undisturbed import decomposing


def net() -> nn.Sequential:
    """In training, but for one layer that is frozen in evaluation on purpose; with gradients and a hook."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 2))
    model.train()
    model[3].eval()
    model[4].bias.requires_grad_(False)
    model(torch.randn(8, 4)).sum().backward()
    model[0].register_forward_hook(lambda *_: None)
    return model


def state_of(model: nn.Module) -> dict[str, object]:
    hooks = {
        name: list(getattr(torch_module, name))
        for name in vars(torch_module)
        if name.startswith("_global") and isinstance(getattr(torch_module, name), dict)
    }
    return {
        "training": [module.training for module in model.modules()],
        "parameters": [(id(p), p.data_ptr(), p.requires_grad, id(p.grad)) for p in model.parameters()],
        "weights": [p.tolist() for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "buffers": [(id(b), b.tolist()) for b in model.buffers()],
        "hooks": [[list(held) for key, held in vars(m).items() if key.endswith("hooks")] for m in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "global hooks": hooks,
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": str(np.random.get_state()),
        "python random": random.getstate(),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
    }  # fmt: skip


class Destructive(nn.Module):
    """Changes everything that a forward may change, then maybe raises."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.body = net()
        self.fails = fails
        self.cache: torch.Tensor | None = None
        self.history: list[torch.Tensor] = []
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.train()
        self.calls += 1
        self.register_buffer("late", torch.ones(1))
        self.cache = x
        self.history.append(x)
        self.extra = 1
        self.body[0].register_forward_hook(lambda *_: None)
        x = x + torch.rand(1) * np.random.rand() * random.random()
        for parameter in self.parameters():
            parameter.requires_grad_(True)
            if parameter.grad is not None:
                parameter.grad.add_(1)
            parameter.grad = torch.ones_like(parameter)
        if self.fails:
            raise RuntimeError("on purpose")
        return self.body(torch.cat([x, x]))[: len(x)]


MEASURES: dict[str, Callable[[nn.Module, torch.Tensor], object]] = {
    "latency": lambda m, x: measure_latency(m, x, threads=1, min_run_time=0.01),
    "macs": count_macs,
    "memory": peak_memory,
    "profile": lambda m, x: profile_module(m, x, batch_sizes=(1, 2), threads=1, min_run_time=0.01),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_measuring_leaves_a_model_in_training_as_it_was(measure: Callable) -> None:
    model = net()
    before = state_of(model)
    measure(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))
    assert state_of(model) == before


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_even_a_forward_that_changes_everything_leaves_no_trace(measure: Callable, fails: bool) -> None:
    model = Destructive(fails)
    x = torch.zeros(2, 4)
    before = state_of(model)
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            measure(model, x)
    else:
        measure(model, x)
    assert state_of(model) == before
    assert model.cache is None
    assert model.history == []
    assert not hasattr(model, "late")


def test_a_handle_still_removes_its_hook_afterwards() -> None:
    layer, calls = nn.Linear(4, 2), []
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    with undisturbed(layer):
        layer(torch.zeros(1, 4))
    handle.remove()
    layer(torch.zeros(1, 4))
    assert calls == [1]


def test_training_goes_on_bit_for_bit_after_a_measurement_between_forward_and_backward() -> None:
    def train(measure: bool) -> list[list[float]]:
        torch.manual_seed(0)
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            loss = model(torch.randn(8, 4)).square().mean()
            if measure:
                profile_module(model, input_shape=(4,), min_run_time=0.01)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [p.tolist() for p in model.parameters()]

    assert train(measure=True) == train(measure=False)


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with undisturbed(nn.Identity()):
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before


def test_nothing_compiled_runs_where_every_operator_is_to_be_seen() -> None:
    compiled_calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        return lambda *args: compiled_calls.append(1) or graph(*args)

    double = torch.compile(lambda x: 2 * x, backend=backend)
    assert double(torch.ones(1)).item() == 2
    with torch.inference_mode(), decomposing():
        assert double(torch.ones(1)).item() == 2
        assert not torch.is_inference_mode_enabled()
    assert compiled_calls == [1]
    assert double(torch.ones(1)).item() == 2
    assert compiled_calls == [1, 1]
