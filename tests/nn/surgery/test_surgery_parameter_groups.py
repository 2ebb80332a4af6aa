"""Which group of which optimiser a new parameter joins."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lightning_efficient.nn.surgery import carry_out, replace


def linear(name: str, block: Any) -> nn.Module:
    return nn.Linear(4, 4, bias=False)


def wrap(name: str, block: Any) -> nn.Module:
    return nn.Sequential(block, nn.Linear(4, 4, bias=False))


def step(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    model.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def held(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [[id(each) for each in group["params"]] for group in optimizer.param_groups]


def ids(*parameters: Any) -> list[int]:
    return [id(each) for each in parameters]


def by_child(model: Any, **options: Any) -> SGD:
    groups = [list(child.parameters()) for child in model.children()]
    return SGD([{"params": group, "lr": 0.01} for group in groups if group], momentum=0.9, **options)


def test_after_a_child_without_parameters_it_joins_the_group_of_the_container() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
    optimizer = by_child(model)
    before = held(optimizer)
    result = carry_out(model, [{"op": "append", "name": "1", "make": linear}], optimizer=optimizer)
    (new,) = model[1][2].parameters()
    assert held(optimizer) == [before[0], [*before[1], id(new)], before[2]]
    weight = new.clone()
    step(model, optimizer)
    assert not torch.equal(new, weight)
    result.undo()
    assert held(optimizer) == before
    assert new not in optimizer.state
    step(model, optimizer)


def test_after_a_copied_block_it_joins_the_group_of_the_original() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    optimizer = by_child(model)
    steps = [
        {"op": "replace", "name": "1.0", "make": lambda name, block: nn.Sequential(block)},
        {"op": "append", "name": "1", "make": linear},
    ]
    carry_out(model, steps, optimizer=optimizer)
    assert held(optimizer) == [ids(*model[0].parameters()), ids(*model[1].parameters())]


@pytest.mark.parametrize("operation", ["append", "replace"])
@pytest.mark.parametrize(("place", "group"), [(0, 0), (1, 0), (2, 1)])
def test_beside_blocks_without_parameters_it_joins_its_neighbour(operation: str, place: int, group: int) -> None:
    children: list[nn.Module] = [nn.Linear(4, 4), nn.Linear(4, 4)]
    children.insert(place, nn.Sequential(nn.ReLU()))
    model: Any = nn.Sequential(*children)
    optimizer = by_child(model)
    expected = held(optimizer)
    carry_out(model, [{"op": operation, "name": str(place), "make": linear}], optimizer=optimizer)
    expected[group].append(id(next(model[place].parameters())))
    assert held(optimizer) == expected


def test_beside_a_frozen_neighbour_it_joins_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 4))
    optimizer = SGD(model[2].parameters(), lr=0.01)
    before = held(optimizer)
    replace(model, nn.ReLU, linear, optimizer=optimizer)
    assert held(optimizer) == before


def test_of_two_optimisers_that_share_a_block_one_gets_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    weights, biases = (SGD([getattr(child, kind) for child in model], lr=0.01) for kind in ("weight", "bias"))
    before = held(weights), held(biases)
    result = replace(model, "0", wrap, optimizer=[weights, biases])
    body, extra = model[0]
    assert held(weights) == [ids(body.weight, model[1].weight, extra.weight)]
    assert held(biases) == [ids(body.bias, model[1].bias)]
    step(model, weights, biases)
    result.undo()
    assert (held(weights), held(biases)) == before


@pytest.mark.parametrize("none", [(), []])
def test_who_says_that_there_is_no_optimiser_is_not_warned(none: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = by_child(model)
    before = held(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(model, "0", wrap, optimizer=none)
    assert held(optimizer) == before


def test_replaced_deleted_and_new_parameters_at_once_and_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
    optimizer = by_child(model)
    step(model, optimizer)
    before, learned = held(optimizer), {id(each): optimizer.state[each] for each in model.parameters()}
    steps = [
        {"op": "replace", "name": "0", "make": wrap},
        {"op": "append", "name": "1", "make": linear},
        {"op": "delete", "names": ["2"]},
    ]
    result = carry_out(model, steps, optimizer=optimizer)
    assert held(optimizer) == [ids(*model[0].parameters()), ids(*model[1].parameters()), []]
    losses = []
    for _ in range(3):
        step(model, optimizer)
        losses.append(float(model(torch.ones(2, 4)).square().sum().detach()))
    assert losses[2] < losses[0]
    assert {id(each) for each in optimizer.state} == {id(each) for each in model.parameters()}
    gone = result.pairs[0][1]
    result.undo()
    assert model[0] is gone
    assert held(optimizer) == before
    assert {id(each) for each in optimizer.state} == set(learned)
    assert all(optimizer.state[each] is learned[id(each)] for each in model[2].parameters())
