from __future__ import annotations

import json
import sys
from copy import deepcopy
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.depthwise_layer import depthwise_layer_at
from lightning_efficient.nn.surgery import (
    apply,
    carry_out,
    global_layers,
    interpolate,
    is_residual,
    perform,
    recipe_of,
    replace,
    stage,
)

INTERPOLATED = {"class_path": "SpatialInterpolation"}


def small() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("mobilenetv3_small_050", num_classes=4)


def user_steps(model: nn.Module, *, pretrained: bool = False, where: str = "2.1") -> list[dict[str, Any]]:
    return [] if where == "nowhere" else [{"op": "delete", "names": [f"blocks.{where}"]}]


@pytest.mark.parametrize("make", [interpolate, global_layers])
def test_a_recipe_makes_the_same_change_of_another_model(make: Any) -> None:
    model, other = small(), small()
    written = json.loads(json.dumps(make(model).recipe))
    apply(other, written)
    assert recipe_of(other) == written == recipe_of(model)
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_surgeries_of_a_model_add_up_in_its_recipe() -> None:
    model = small()
    first = replace(model, is_residual & stage(1), "SpatialInterpolation")
    second = replace(model, is_residual & stage(2), "SpatialInterpolation")
    assert recipe_of(model)["steps"] == first.recipe["steps"] + second.recipe["steps"]  # type: ignore[index]
    second.undo()
    assert recipe_of(model) == first.recipe


def test_a_function_is_written_as_its_import_path_with_its_keywords() -> None:
    model, other = small(), small()
    make = partial(depthwise_layer_at, wrap=True, act=nn.GELU)
    step = replace(model, "blocks.1.1", make).recipe["steps"][0]
    assert step["make"] == "lightning_efficient.nn.depthwise_layer:depthwise_layer_at"
    assert step["options"] == {"wrap": True, "act": {"import": "torch.nn.modules.activation:GELU"}}
    apply(other, json.loads(json.dumps({"version": 1, "steps": [step]})))
    assert str(other) == str(model)


def test_a_maker_without_a_name_has_no_recipe() -> None:
    model = nn.Sequential(nn.ReLU())
    result = replace(model, nn.ReLU, lambda name, block: nn.Identity())
    for asked in (lambda: result.recipe, lambda: recipe_of(model)):
        with pytest.raises(ConfigurationError, match=r"no recipe: make=.* of 0 has no import path"):
            asked()


def test_a_recipe_whose_blocks_do_not_fit_is_refused_and_changes_nothing() -> None:
    recipe = interpolate(small()).recipe
    del recipe["architecture"]  # as recipes were before they had it
    for name, message in (
        ("resnet18", "has no module 'blocks.1.1'"),
        ("mobilenetv3_small_075", "parameters here, and not"),
    ):
        model = timm.create_model(name)
        before = list(model.modules())
        with pytest.raises(ConfigurationError, match=message) as raised:
            apply(model, recipe)
        assert "a recipe fits the architecture that it was made on" in str(raised.value)
        assert list(model.modules()) == before


def test_the_type_of_a_block_must_be_the_same() -> None:
    recipe = interpolate(small()).recipe
    step = {**recipe["steps"][-1], "old": "EdgeResidual"}
    with pytest.raises(ConfigurationError, match="is a InvertedResidual here, and not a EdgeResidual"):
        apply(small(), {"version": 1, "steps": [*recipe["steps"][:-1], step]})


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ([], "recipe must be a mapping"),
        ({"version": 2, "steps": []}, "version=2 is not 1"),
        ({"version": 1, "steps": "all"}, "recipe.steps must be a list of steps"),
        ({"version": 1, "steps": [{"op": "stop"}]}, r"recipe.steps\[0\]: op='stop' is not one of"),
    ],
)
def test_what_is_no_recipe_is_told(recipe: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        apply(small(), recipe)


def test_policies_are_carried_out_one_after_the_other() -> None:
    model = small()
    result = perform(model, [{"class_path": "Condense", "init_args": {"stages": [2]}}, INTERPOLATED])
    assert list(model.blocks[2]._modules) == ["0"]
    assert "blocks.1.1" in result.names
    assert "blocks.2.1" not in result.names
    assert recipe_of(model) == result.recipe
    result.undo()
    assert list(model.state_dict()) == list(small().state_dict())


@pytest.mark.parametrize("path", ["my_policies.user_steps", "my_policies:user_steps"])
def test_a_policy_may_be_a_function_of_the_user(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("my_policies")
    module.user_steps = user_steps
    monkeypatch.setitem(sys.modules, "my_policies", module)
    model = small()
    perform(model, [{"class_path": path, "init_args": {"where": "2.2"}}])
    assert list(model.blocks[2]._modules) == ["0", "1"]
    with pytest.raises(ConfigurationError, match=r"has no option 'wher'\. Did you mean 'where'"):
        perform(model, [{"class_path": path, "init_args": {"wher": "2.2"}}])
    with pytest.raises(ConfigurationError, match=r"found no block in this MobileNetV3 with.*it takes where"):
        perform(model, [{"class_path": path, "init_args": {"where": "nowhere"}}])


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ([{"class_path": "SpatialInterpolaton"}], r"\[0\]: class_path='SpatialInterpolaton'.*Did you mean"),
        (
            [{"class_path": "SpatialInterpolation", "init_args": {"facter": 2}}],
            r"^model.surgery\[0\].init_args: SpatialInterpolation has no option 'facter'. Did you mean 'factor'\?$",
        ),
        ([{"class_path": "GlobalLayer", "init_args": {"velocty": "conv"}}], "Did you mean 'velocity'"),
        ([{"class_path": "Condense", "init_args": {"then": "GlobalLayer"}}], "Condense has no option 'then'"),
        ([{"class_path": "no.such"}], r"\[0\]: 'no:such' cannot be imported"),
        ([{"class_path": "torch.pi"}], "torch.pi is a float, not a function"),
        (["SpatialInterpolation"], "a policy is a mapping"),
        ([{"class_path": "Condense", "args": {}}], "and no 'args'"),
        ([INTERPOLATED, INTERPOLATED], r"model.surgery\[1\]"),
    ],
)
def test_a_policy_that_cannot_be_is_told_and_none_is_carried_out(policies: Any, message: str) -> None:
    model = small()
    before = list(model.modules())
    with pytest.raises(ConfigurationError, match=message) as raised:
        perform(model, policies)
    assert "\n" not in str(raised.value)
    assert list(model.modules()) == before
    assert recipe_of(model) is None


def test_pretrained_weights_start_without_the_new_branches() -> None:
    model = small().eval()
    x = torch.randn(2, 3, 64, 64)
    perform(model, [{"class_path": "GlobalLayer", "init_args": {"stages": [2]}}], pretrained=True)
    shorter = small().eval()
    carry_out(shorter, [{"op": "delete", "names": ["blocks.2.2"]}])
    torch.testing.assert_close(model(x), shorter(x))


def test_cut_weights_of_a_dense_network_load_from_the_original() -> None:
    original = timm.models.densenet.DenseNet(growth_rate=4, block_config=(2, 4), num_classes=3)
    model = deepcopy(original)
    result = carry_out(model, [{"op": "thin_densenet", "keep": [1, 3]}, {"op": "thin_densenet", "keep": [1, 2]}])
    expected: dict[str, Tensor] = {key: value.clone() for key, value in model.state_dict().items()}
    assert set(result.key_map) == set(expected)
    assert result.new_keys == []
    for value in model.parameters():
        nn.init.constant_(value, 7)
    result.load(original.state_dict())
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    result.undo()
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in original.state_dict().items()
    }
