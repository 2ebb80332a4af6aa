"""Every kind of hook that a block can carry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery import replace


def wrap(name: str, block: nn.Module) -> nn.Module:
    return nn.Sequential(block)


def run(model: nn.Module) -> None:
    model(torch.ones(2, 4, requires_grad=True)).sum().backward()


KINDS = pytest.mark.parametrize(
    ("register", "options"),
    [
        ("register_forward_hook", {"with_kwargs": True}),
        ("register_forward_hook", {"always_call": True}),
        ("register_forward_hook", {"prepend": True}),
        ("register_forward_pre_hook", {"with_kwargs": True}),
        ("register_full_backward_hook", {}),
        ("register_full_backward_pre_hook", {}),
    ],
)


@KINDS
@pytest.mark.parametrize("copy_blocks", [True, False])
def test_it_is_called_once_for_what_takes_the_place_until_its_handle_removes_it(
    register: str, options: dict[str, Any], copy_blocks: bool
) -> None:
    model, calls = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), []
    handle = getattr(model[0], register)(lambda module, *rest: calls.append(type(module).__name__), **options)
    with pytest.warns(UserWarning, match="hooks on 0 were moved to the Sequential in its place"):
        result = replace(model, "0", wrap, copy_blocks=copy_blocks)
    run(model)
    assert calls == ["Sequential"]
    result.undo()
    run(model)
    assert calls == ["Sequential", "Linear"]
    with pytest.warns(UserWarning, match="were moved"):
        replace(model, "0", wrap, copy_blocks=copy_blocks)
    handle.remove()
    run(model)
    assert calls == ["Sequential", "Linear"]


@KINDS
def test_inside_a_block_it_is_in_the_way(register: str, options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    handle = getattr(model[0][0], register)(lambda module, *rest: None, **options)
    with pytest.raises(ConfigurationError, match=r"0\.0 carries a hook.*once 0 is replaced"):
        replace(model, "0", wrap)
    handle.remove()
    assert replace(model, "0", wrap).names == ["0"]


def test_keywords_of_a_call_still_reach_a_hook_that_asked_for_them() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return x * scale

    model, seen = nn.ModuleDict({"a": Scaled()}), []
    model["a"].register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with pytest.warns(UserWarning, match="were moved"):
        replace(model, "a", lambda name, block: Scaled())
    model["a"](torch.ones(1), scale=2.0)
    assert seen == [{"scale": 2.0}]
