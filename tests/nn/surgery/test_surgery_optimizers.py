from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_efficient.nn.surgery import carry_out, replace


def stack() -> Any:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))


def wrap(name: str, block: Any) -> nn.Module:
    return nn.Sequential(block, nn.Linear(4, 4, bias=False))


def two_groups(model: Any) -> torch.optim.Optimizer:
    first, second, third = (list(block.parameters()) for block in model)
    return torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": second + third, "lr": 0.2}], momentum=0.9)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


def held(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [[id(each) for each in group["params"]] for group in optimizer.param_groups]


def ids(*modules: nn.Module) -> list[int]:
    return [id(each) for module in modules for each in module.parameters()]


@pytest.mark.parametrize("copy_blocks", [True, False])
def test_new_parameters_join_the_group_of_their_block_and_copies_keep_its_state(copy_blocks: bool) -> None:
    model = stack()
    optimizer = two_groups(model)
    step(model, optimizer)
    momentum = optimizer.state[model[1].weight]["momentum_buffer"].clone()
    before = held(optimizer)
    result = replace(model, "1", wrap, optimizer=optimizer, copy_blocks=copy_blocks)
    body, extra = model[1]
    assert held(optimizer) == [ids(model[0]), [*ids(body), *ids(model[2]), *ids(extra)]]
    assert torch.equal(optimizer.state[body.weight]["momentum_buffer"], momentum)
    weight = extra.weight.clone()
    step(model, optimizer)
    assert not torch.equal(extra.weight, weight)
    assert extra.weight in optimizer.state
    result.undo()
    assert held(optimizer) == before
    assert set(map(id, optimizer.state)) == {each for group in before for each in group}
    assert not torch.equal(optimizer.state[model[1].weight]["momentum_buffer"], momentum)
    step(model, optimizer)


def test_a_trained_copy_goes_on_as_the_block_would_have() -> None:
    results = []
    for operate in (False, True):
        torch.manual_seed(0)
        model = stack()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        step(model, optimizer)
        if operate:
            replace(model, "1", lambda name, block: nn.Sequential(block), optimizer=optimizer)
        step(model, optimizer)
        results.append(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_parameters_of_deleted_blocks_leave_with_their_state_and_come_back() -> None:
    model = stack()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    gone = list(model[2].parameters())
    result = carry_out(model, [{"op": "delete", "names": ["2"]}], optimizer=optimizer)
    assert held(optimizer) == [ids(model)]
    assert not any(each in optimizer.state for each in gone)
    result.undo()
    assert held(optimizer) == [ids(model)]
    assert all("exp_avg" in optimizer.state[each] for each in gone)


def test_names_of_parameters_follow() -> None:
    model = stack()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    result = replace(model, "0", wrap, optimizer=[optimizer])
    expected = ["0.0.weight", "0.0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "0.1.weight"]
    assert optimizer.param_groups[0]["param_names"] == expected
    result.undo()
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


def test_the_state_of_cut_weights_is_cut_as_they_are() -> None:
    model = timm.models.densenet.DenseNet(growth_rate=4, block_config=(2, 4), num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = parameter.detach().clone()
    carry_out(model, [{"op": "thin_densenet", "keep": [1, 2]}], optimizer=optimizer)
    assert held(optimizer)
    assert set(held(optimizer)[0]) == set(ids(model))
    assert all(torch.equal(optimizer.state[each]["momentum_buffer"], each) for each in model.parameters())


def test_a_live_optimiser_that_was_not_given_is_warned_of() -> None:
    model = stack()
    optimizer = two_groups(model)
    with pytest.warns(UserWarning, match="a live SGD holds parameters from before the surgery.*optimizer="):
        replace(model, "1", wrap)
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("other", [lambda model: None, lambda model: torch.optim.SGD(stack().parameters())])
def test_an_optimiser_of_another_model_is_none_of_our_business(other: Callable[[Any], Any]) -> None:
    model = stack()
    kept = other(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(model, "1", wrap)
    assert kept is None or isinstance(kept, torch.optim.Optimizer)


def test_frozen_parameters_do_not_join() -> None:
    model = stack()
    model[1].requires_grad_(False)
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    before: list[Tensor] = list(optimizer.param_groups[0]["params"])
    replace(model, "1", wrap, optimizer=optimizer)
    assert [id(each) for each in optimizer.param_groups[0]["params"]] == [id(each) for each in before]
