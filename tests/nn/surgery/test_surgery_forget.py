from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.depthwise_layer import depthwise_layer_at
from lightning_efficient.nn.surgery import apply, carry_out, recipe_of

STEPS: list[dict[str, Any]] = [
    {"op": "replace", "name": "0", "make": depthwise_layer_at, "options": {"wrap": True}},
    {"op": "delete", "names": ["2"]},
]


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_blocks_that_went_leave_the_memory(with_optimizer: bool) -> None:
    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), 0.1) if with_optimizer else ()
    result = carry_out(model, STEPS, optimizer=optimizer)
    replaced, deleted = (weakref.ref(result.pairs[0][1]), weakref.ref(result._changes[0][3]["2"]))
    gc.collect()
    assert isinstance(replaced(), nn.Conv2d)
    assert isinstance(deleted(), nn.Conv2d)
    result.forget()
    gc.collect()
    assert replaced() is None
    assert deleted() is None


def test_what_is_no_undo_still_works() -> None:
    model, original = stack(), stack().state_dict()
    result = carry_out(model, STEPS, optimizer=())
    recipe, names, key_map, new_keys = result.recipe, result.names, result.key_map, result.new_keys
    result.forget()
    assert (result.recipe, result.names, result.key_map, result.new_keys) == (recipe, names, key_map, new_keys)
    assert [(name, type(old), new) for name, old, new in result.pairs] == [("0", nn.Identity, model[0])]
    nn.init.zeros_(model[1].weight)
    assert result.load(original) == new_keys
    assert torch.equal(model[1].weight, original["1.weight"])
    assert recipe_of(model) == recipe
    assert str(apply(stack(), recipe, optimizer=()).model) == str(model)


def test_what_was_forgotten_cannot_be_undone() -> None:
    model = stack()
    result = carry_out(model, STEPS, optimizer=())
    result.forget()
    result.forget()
    with pytest.raises(ConfigurationError, match=r"cannot be undone: forget\(\) dropped the blocks"):
        result.undo()
    assert len(model) == 2
