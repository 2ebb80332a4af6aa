from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import fptt_penalty, fptt_update_
from lightning_efficient.losses import FPTTRegularizer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def train(module: nn.Module, regularizer: FPTTRegularizer, steps: int) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        module(torch.full((2, 3), float(step))).square().mean().backward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.update()


def test_a_loop_of_ones_own_equals_the_penalty_in_the_loss() -> None:
    module, by_autograd = network(), network()
    train(module, FPTTRegularizer(module.named_parameters(), alpha=0.5), 4)
    params = list(by_autograd.parameters())
    means, duals = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    optimizer = torch.optim.SGD(params, lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        loss = by_autograd(torch.full((2, 3), float(step))).square().mean()
        (loss + fptt_penalty(params, means, duals, alpha=0.5)).backward()
        optimizer.step()
        fptt_update_(params, means, duals, alpha=0.5)
    for one, other in zip(module.parameters(), params, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_frozen_and_unused_parameters_are_left_alone() -> None:
    module = network()
    module[0].requires_grad_(False)
    regularizer = FPTTRegularizer(module.named_parameters())
    assert regularizer.names == ["2.weight", "2.bias"]
    module[2].weight.sum().backward()
    grads, added = regularizer.add_gradient()
    assert len(grads) == len(added) == 1
    assert module[2].bias.grad is None


def test_a_restored_state_continues_in_every_bit() -> None:
    module = network()
    regularizer = FPTTRegularizer(module.named_parameters(), alpha=0.3, beta=0.7, proximal_weight=2.0)
    train(module, regularizer, 3)
    saved = {"weights": {k: v.clone() for k, v in module.state_dict().items()}, "state": regularizer.state_dict()}
    train(module, regularizer, 3)
    again = network()
    again.load_state_dict(saved["weights"])
    second = FPTTRegularizer(again.named_parameters(), alpha=0.3, beta=0.7, proximal_weight=2.0)
    second.load_state_dict(saved["state"])
    train(again, second, 3)
    assert second.updates == regularizer.updates == 6
    assert float(second.distance()) == float(regularizer.distance()) > 0
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


def test_a_state_of_another_model_is_refused() -> None:
    state = FPTTRegularizer(network().named_parameters()).state_dict()
    other = nn.Sequential(nn.Linear(5, 4))
    with pytest.raises(ConfigurationError, match=r"one of shape \(4, 3\) for '0.weight' of shape \(4, 5\)"):
        FPTTRegularizer(other.named_parameters()).load_state_dict(state)


def test_low_precision_parameters_have_a_state_in_float32() -> None:
    module = network().bfloat16()
    regularizer = FPTTRegularizer(module.named_parameters())
    assert {tensor.dtype for tensor in (*regularizer.means, *regularizer.duals)} == {torch.float32}
    assert FPTTRegularizer(network().double().named_parameters()).means[0].dtype is torch.float64


@pytest.mark.parametrize(
    "options", [{"alpha": 0}, {"alpha": float("nan")}, {"beta": 0}, {"beta": 1}, {"proximal_weight": -1}]
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        FPTTRegularizer(network().named_parameters(), **options)
    module = network().requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no parameter"):
        FPTTRegularizer(module.named_parameters())
