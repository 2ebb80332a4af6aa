from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery import carry_out, condense, recipe_of, replace


class Wrapper(nn.Module):
    def __init__(self, body: nn.Module, channels: int = 4) -> None:
        super().__init__()
        self.body, self.extra = body, nn.Conv2d(channels, channels, 2, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def wrap(name: str, block: Any) -> nn.Module:
    return Wrapper(block, block.out_channels)


class Swish(nn.Conv2d):
    pass


def conv(channels: int = 4) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1)


def stack(depth: int = 3) -> nn.Sequential:
    return nn.Sequential(*(conv() for _ in range(depth)))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_blocks_are_replaced_and_told() -> None:
    model = stack()
    old = list(model)
    result = replace(model, nn.Conv2d, wrap)
    assert result.names == ["0", "1", "2"]
    assert result.model is model
    assert [pair[1] for pair in result.pairs] == old
    assert [pair[2] for pair in result.pairs] == list(model)
    assert result.key_map == {f"{n}.{k}": f"{n}.body.{k}" for n in range(3) for k in ("weight", "bias")}
    assert set(result.new_keys) == set(model.state_dict()) - set(result.key_map.values())


@pytest.mark.parametrize("copy_blocks", [True, False])
def test_undo_brings_modules_and_their_order_back(copy_blocks: bool) -> None:
    model = nn.Sequential(conv(), nn.ReLU(), conv())
    before, modules = weights(model), list(model)
    result = replace(model, "0", wrap, copy_blocks=copy_blocks)
    with torch.no_grad():
        model[0].body.weight.zero_()
    assert result.undo() is model
    assert list(model) == modules
    assert list(model._modules) == ["0", "1", "2"]
    assert torch.equal(model[0].weight, before["0.weight"]) is copy_blocks
    assert recipe_of(model) is None
    assert "_surgery_steps" not in model.__dict__


def test_a_copy_has_the_weights_of_its_block() -> None:
    model = stack()
    x, (first, *_) = torch.randn(1, 4, 5, 5), model
    before = model(x)
    replace(model, nn.Conv2d, wrap)
    assert model[0].body is not first
    assert torch.equal(model(x), before)


def test_undo_goes_backwards() -> None:
    model = stack()
    first = replace(model, "0", wrap)
    second = replace(model, "1", wrap)
    with pytest.raises(ConfigurationError, match="a later one is in place"):
        first.undo()
    second.undo()
    first.undo()
    with pytest.raises(ConfigurationError, match="undone already"):
        first.undo()
    assert [type(child) for child in model] == [nn.Conv2d] * 3


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(["wrap", "delete", "append"]), min_size=1, max_size=4))
def test_any_row_of_surgeries_can_be_undone(kinds: list[str]) -> None:
    model = nn.Sequential(*(nn.Sequential(conv(1), conv(1)) for _ in kinds))
    before, results = weights(model), []
    for index, kind in enumerate(kinds):
        step: dict[str, Any] = {"op": "replace", "name": f"{index}.0", "make": wrap}
        if kind == "delete":
            step = {"op": "delete", "names": [f"{index}.1"]}
        if kind == "append":
            step = {"op": "append", "name": str(index), "make": wrap}
        results.append(carry_out(model, [step]))
    assert weights(model).keys() != before.keys()
    for result in reversed(results):
        result.undo()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_block_is_replaced_once_where_two_parents_share_it() -> None:
    shared = conv()
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(nn.ReLU(), shared)})
    result = replace(model, nn.Conv2d, wrap)
    assert result.names == ["a.0"]
    assert model["a"][0] is model["b"][1]
    result.undo()
    assert model["a"][0] is shared
    assert model["b"][1] is shared


def test_tied_weights_stay_tied() -> None:
    model = stack(2)
    model[1].weight = model[0].weight
    replace(model, "0", wrap)
    assert model[0].body.weight is model[1].weight


def test_a_match_of_the_model_itself_gives_a_new_root() -> None:
    model = conv()
    result = replace(model, nn.Conv2d, wrap)
    assert type(result.model) is Wrapper
    assert result.names == [""]
    assert result.key_map == {"weight": "body.weight", "bias": "body.bias"}
    assert recipe_of(result.model) == result.recipe
    assert result.undo() is model


def test_what_is_new_follows_its_block() -> None:
    model = stack().double().eval().to(memory_format=torch.channels_last).requires_grad_(False)
    model[1].requires_grad_(True)
    replace(model, nn.Conv2d, wrap)
    assert not any(module.training for module in model.modules())
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float64}
    assert model[0].norm.num_batches_tracked.dtype == torch.int64
    assert model[0].extra.weight.is_contiguous(memory_format=torch.channels_last)
    assert [block.extra.weight.requires_grad for block in model] == [False, True, False]


def test_what_is_new_follows_its_block_to_another_device() -> None:
    model = stack().to("meta")
    replace(model, "0", wrap)
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


def test_frozen_norms_inside_a_block_keep_their_mode() -> None:
    model = nn.Sequential(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    model[0][1].eval()
    replace(model, "0", lambda name, block: Wrapper(block))
    assert model[0].training
    assert model[0].norm.training
    assert not model[0].body[1].training


@pytest.mark.parametrize("transplant", ["auto", None, lambda old, new: new.weight.fill_(2)])
def test_weights_go_over_into_a_module_of_another_type(transplant: Any) -> None:
    model = stack(1)
    before = model[0].weight.clone()
    result = replace(model, nn.Conv2d, lambda name, block: Swish(4, 4, 3), transplant=transplant)
    assert torch.equal(model[0].weight, before) is (transplant == "auto")
    assert bool((model[0].weight == 2).all()) is callable(transplant)
    assert (result.key_map == {"0.weight": "0.weight", "0.bias": "0.bias"}) is (transplant == "auto")


def test_a_maker_may_leave_blocks_alone() -> None:
    model = stack()
    result = replace(model, nn.Conv2d, lambda name, block: wrap(name, block) if name == "1" else None)
    assert result.names == ["1"]
    assert type(model[0]) is nn.Conv2d
    with pytest.raises(ConfigurationError, match="make returned None for all 2 modules"):
        replace(model, nn.Conv2d, lambda name, block: None)


def test_an_error_in_the_middle_changes_nothing() -> None:
    model, seen = stack(), []

    def make(name: str, block: nn.Module) -> nn.Module:
        seen.append(name)
        if name == "2":
            raise RuntimeError("no third one")
        return wrap(name, block)

    before = list(model)
    with pytest.raises(RuntimeError, match="no third one"):
        replace(model, nn.Conv2d, make)
    assert seen == ["0", "1", "2"]
    assert list(model) == before
    assert recipe_of(model) is None


def test_a_second_surgery_on_the_same_blocks_is_refused() -> None:
    model = stack()
    replace(model, nn.Conv2d, wrap)
    with pytest.raises(ConfigurationError, match="was replaced already"):
        replace(model, nn.Conv2d, wrap)
    for name in ("0", "0.body"):
        with pytest.raises(ConfigurationError, match="a surgery put in already"):
            carry_out(model, [{"op": "replace", "name": name, "make": wrap}])


def test_a_model_that_was_operated_on_copies_and_pickles() -> None:
    model = stack()
    replace(model, nn.Conv2d, wrap)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert recipe_of(copy) == recipe_of(model)
        with pytest.raises(ConfigurationError, match="already"):
            replace(copy, nn.Conv2d, wrap)


def test_neighbours_become_one() -> None:
    model = stack()
    chained = {"op": "merge", "names": ["1", "2"], "make": lambda name, blocks: nn.Sequential(*blocks)}
    x = torch.randn(1, 4, 5, 5)
    before = model(x)
    result = carry_out(model, [chained])
    assert list(model._modules) == ["0", "1"]
    assert torch.equal(model(x), before)
    assert result.key_map["2.weight"] == "1.1.weight"
    result.undo()
    assert list(model._modules) == ["0", "1", "2"]


def test_the_rest_of_a_stage_gives_way() -> None:
    model = timm.create_model("resnet18")
    result = condense(model, [1, "layer3"], then=lambda name, block: nn.Identity())
    assert result.names == ["layer1.1", "layer3.1"]
    result.undo()
    condense(model, 2)
    assert list(model.layer2._modules) == ["0"]
    condense(model, 4, keep=2, then=lambda name, block: nn.Identity())
    assert list(model.layer4._modules) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 9}, "stage=9 is no Sequential of ResNet"),
        ({"stage": 1, "keep": 2}, "keep=2 leaves every block"),
        ({"stage": 1, "keep": -1}, "keep=-1 must be an integer, 0 or more"),
    ],
)
def test_a_stage_that_cannot_be_condensed_is_told(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        condense(timm.create_model("resnet18"), **options)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"op": "replace", "name": "7", "make": wrap}, r"steps\[0\]: Sequential has no module '7'"),
        ({"op": "replac", "name": "1", "make": wrap}, "op='replac' is not one of.*Did you mean 'replace'"),
        ({"op": "replace", "name": "1"}, "replace needs 'make'"),
        ({"op": "delete", "names": []}, "delete has no names"),
        ({"op": "delete", "names": ["0.0"]}, "has no module '0.0'"),
        ({"op": "delete", "names": [""]}, "delete takes children of a Sequential"),
        ({"op": "append", "name": "0", "make": wrap}, "append needs a Sequential.*is a Conv2d"),
        ({"op": "append", "name": "", "make": wrap, "child": "1"}, "has a child '1' already"),
        ({"op": "merge", "names": ["0", "2"], "make": wrap}, "merge takes neighbours"),
        ({"op": "merge", "names": ["1", "0"], "make": wrap}, "merge takes neighbours"),
        ({"op": "replace", "name": "1", "make": "Nothing"}, "make='Nothing' is neither one of"),
        ({"op": "replace", "name": "1", "make": "no.such:thing"}, "'no.such:thing' cannot be imported"),
        ({"op": "replace", "name": "1", "make": lambda name, block: 3}, "make returned a int"),
        ({"op": "replace", "name": "1", "make": wrap, "old": "ReLU"}, "'1' is a Conv2d here, and not a ReLU"),
        ({"op": "replace", "name": "1", "make": wrap, "params": 3}, "'1' has 148 parameters here, and not 3"),
        ({"op": "replace", "name": "1", "make": wrap, "option": {}}, "no key 'option'.*Did you mean 'options'"),
        ("delete", r"steps\[0\] must be a mapping"),
    ],
)
def test_a_step_that_does_not_fit_is_told_in_one_line(step: Any, message: str) -> None:
    model = stack()
    before = list(model)
    with pytest.raises(ConfigurationError, match=message) as raised:
        carry_out(model, [step])
    assert "\n" not in str(raised.value)
    assert list(model) == before


def test_where_nothing_is_meant_the_model_says_what_it_has() -> None:
    with pytest.raises(ConfigurationError, match="means nothing in this Sequential; it has Sequential, Conv2d"):
        replace(stack(), "blocks.*", wrap)
    with pytest.raises(ConfigurationError, match="transplant='some' is none of"):
        replace(stack(), nn.Conv2d, wrap, transplant="some")


def test_a_model_wrapped_for_parallel_training_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="wrapped by DataParallel; operate first"):
        replace(nn.DataParallel(stack()), nn.Conv2d, wrap)


def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="TorchScript"):
        replace(torch.jit.script(stack()), nn.Conv2d, wrap)


def test_of_a_compiled_model_the_inner_one_is_changed() -> None:
    model = stack()
    result = replace(torch.compile(model, backend="eager"), "0", wrap)
    assert result.names == ["0"]
    assert type(model[0]) is Wrapper
    with pytest.raises(ConfigurationError, match="1 is compiled by itself"):
        replace(nn.Sequential(conv(), torch.compile(conv(), backend="eager")), "0", wrap)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet18"])
def test_weights_of_the_original_load_into_the_changed_model(name: str) -> None:
    original, other = timm.create_model(name), timm.create_model(name)
    model = deepcopy(other)
    stem = "blocks" if hasattr(model, "blocks") else "layer"
    stage = f"{stem}.2" if stem == "blocks" else "layer2"
    steps = [{"op": "replace", "name": f"{stage}.0", "make": lambda name, block: Wrapper(block)}]
    result = carry_out(model, [*steps, {"op": "delete", "names": [f"{stage}.1"]}])
    fresh = result.load(original.state_dict())
    assert fresh == result.new_keys
    assert all(".extra." in key or ".norm." in key for key in fresh)
    now = model.state_dict()
    assert all(torch.equal(now[new], original.state_dict()[old]) for old, new in result.key_map.items())


def test_a_state_dict_of_something_else_is_told() -> None:
    model = stack()
    original = weights(model)
    result = carry_out(model, [{"op": "replace", "name": "0", "make": wrap}, {"op": "delete", "names": ["2"]}])
    with pytest.raises(ConfigurationError, match=r"has 'head.weight', which the model never had"):
        result.load({**original, "head.weight": torch.ones(1)})
    with pytest.raises(ConfigurationError, match=r"lacks '0.weight' and 3 more"):
        result.load({})
    with pytest.raises(ConfigurationError, match=r"'0.bias' of shape \(5,\), which does not give \(4,\)"):
        result.load({**original, "0.bias": torch.ones(5)})
    result.load({key: value for key, value in original.items() if not key.startswith("2.")})
