from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.spatial_interpolation import SpatialInterpolation
from lightning_efficient.nn.surgery import (
    POLICIES,
    apply,
    carry_out,
    condense,
    global_layers,
    interpolate,
    perform,
    preview,
)
from lightning_efficient.nn.surgery.policies import Policy


class DistributedDataParallel(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def bare(name: str = "resnet18") -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def told(call: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_nothing_to_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told(lambda: global_layers(bare(), stages=[]), r"global_layers found nothing to do in this ResNet.*'stages': \[\]")
    monkeypatch.setattr("lightning_efficient.nn.surgery.interpolation.interpolation_steps", lambda *_, **__: [])
    told(lambda: interpolate(bare(), factor=2), "interpolate found nothing to do in this ResNet.*'factor': 2")
    told(lambda: apply(bare(), {"version": 1, "steps": []}), "recipe.steps is empty")


@pytest.mark.parametrize("make", [interpolate, global_layers])
def test_a_compiled_model_is_changed_inside_and_a_parallel_one_refused(make: Any) -> None:
    model = bare("mobilenetv3_small_050")
    result = make(torch.compile(model, backend="eager"))
    assert result.model is model
    assert all(hasattr(model.get_submodule(name), "forward") for name in result.names)
    assert not any(name.startswith("_orig_mod") for name in result.names)
    assert result.names
    told(lambda: make(DistributedDataParallel(bare())), "is wrapped by DistributedDataParallel; operate first, wrap")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 2, "keep": 0}, "layer2.0 changes the shape of its input and cannot be removed; give a larger keep"),
        ({"stage": 2, "keep": 0, "then": "GlobalLayer"}, "layer2.0 changes the shape"),
        ({"stage": 1, "keep": True}, "keep=True must be an integer, 0 or more"),
        ({"stage": 1, "keep": 1.0}, "keep=1.0 must be an integer"),
        ({"stage": 1, "keep": -1}, "keep=-1 must be an integer, 0 or more"),
        ({"stage": True}, "stage=True must be a number, a name, or a list"),
        ({"stage": 1.0}, "stage=1.0 must be a number"),
        ({"stage": [1, False]}, "must be a number, a name, or a list"),
        ({"stage": []}, r"stage=\[\] must be"),
        ({"stage": None}, "stage=None must be"),
        ({"stage": 1, "steps": 2}, "then=None makes nothing that could take 'steps'"),
    ],
)
def test_a_stage_that_cannot_lose_its_blocks_stays(options: dict[str, Any], message: str) -> None:
    model = bare()
    before = list(model.modules())
    told(lambda: condense(model, **options), message)
    assert list(model.modules()) == before


@pytest.mark.parametrize("then", ["GlobalLayer", "DepthwiseLayer"])
def test_layers_that_must_be_told_whether_to_wrap_do_not(then: str) -> None:
    model = bare("resnet34")
    condense(model, [1, 2], then=then)
    assert [type(model.layer1[1].init), type(model.layer2[1].init)] == [nn.Identity] * 2
    assert (len(model.layer1), len(model.layer2)) == (2, 2)
    condense(model, 3, keep=0, then=then, wrap=True)
    assert type(model.layer3[0].init).__name__ == "BasicBlock"
    condense(model, 4, keep=3, then=then, wrap=True)
    assert type(model.layer4[3].init) is nn.Identity


def test_what_keeps_the_block_may_take_the_place_of_one_that_changes_the_shape() -> None:
    model = bare()
    condense(model, 1, keep=0, then="SpatialInterpolation")
    assert type(model.layer1[0]) is SpatialInterpolation
    condense(model, 3, keep=0, then=lambda name, block: nn.Sequential(block))
    assert len(model.layer3) == 1


@pytest.mark.parametrize("given", [["factor"], "factor", 3, [("factor", 2)]])
def test_options_of_a_policy_are_a_mapping(given: Any) -> None:
    policies = [{"class_path": "SpatialInterpolation", "init_args": given}]
    told(lambda: perform(bare(), policies), r"model.surgery\[0\].init_args must be a mapping of options, not")


def test_a_policy_may_have_no_options() -> None:
    assert perform(bare(), [{"class_path": "SpatialInterpolation", "init_args": None}]).names


@pytest.mark.parametrize(
    "init_args",
    [{"stages": 3.5}, {"keep": "two"}, {"steps": "two"}, {"dt": None}, {"kernel_size": [3, 3]}, {7: 2}],
)
def test_options_of_a_wrong_type_are_told_in_one_line(init_args: dict[str, Any]) -> None:
    model = bare()
    before = list(model.modules())
    told(lambda: perform(model, [{"class_path": "GlobalLayer", "init_args": init_args}]), r"^model.surgery\[0\]")
    assert list(model.modules()) == before


def broken(model: nn.Module, *, pretrained: bool = False, kind: str = "") -> list[dict[str, Any]]:
    raise {"TypeError": TypeError, "ValueError": ValueError, "RuntimeError": RuntimeError}[kind]("one\n  two")


def broken_maker(name: str, block: nn.Module, kind: str = "") -> nn.Module:
    raise {"ValueError": ValueError, "RuntimeError": RuntimeError}[kind]("one\n  two")


def making(model: nn.Module, *, pretrained: bool = False, kind: str = "") -> list[dict[str, Any]]:
    return [{"op": "replace", "name": "layer1.0", "make": broken_maker, "options": {"kind": kind}}]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (broken, "TypeError"),
        (broken, "ValueError"),
        (broken, "RuntimeError"),
        (making, "ValueError"),
        (making, "RuntimeError"),
    ],
)
def test_errors_of_our_policies_and_makers_name_the_policy_and_its_options(
    function: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("breaking_policies")
    module.chosen = function
    monkeypatch.setitem(sys.modules, "breaking_policies", module)
    monkeypatch.setitem(POLICIES, "Breaking", Policy("breaking_policies:chosen"))
    message = rf"^model.surgery\[0\]: Breaking cannot be c.* with {{'kind': '{kind}'}}: one two$"
    told(lambda: perform(bare(), [{"class_path": "Breaking", "init_args": {"kind": kind}}]), message)
    if kind != "TypeError":  # a user's own function fails with its own error
        with pytest.raises({"ValueError": ValueError, "RuntimeError": RuntimeError}[kind], match=r"^one\n  two$"):
            perform(bare(), [{"class_path": "breaking_policies.chosen", "init_args": {"kind": kind}}])


REPLACE: dict[str, Any] = {"op": "replace", "name": "layer1.0", "make": "SpatialInterpolation"}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({**REPLACE, "name": 1}, "name=1 must be the name of a module"),
        ({**REPLACE, "options": [2]}, r"options=\[2\] must be a mapping"),
        ({**REPLACE, "make": 3}, r"make=3 must be a name or a function"),
        ({**REPLACE, "make": {"unnamed": "<lambda>"}}, "make={'unnamed': '<lambda>'} must be a name or a function"),
        ({**REPLACE, "transplant": 3}, "transplant=3 must be 'auto', None, a function"),
        ({**REPLACE, "transplant": "all"}, "transplant='all' must be 'auto', None, a function"),
        ({**REPLACE, "old": 3}, "old=3 must be the name of a type"),
        ({**REPLACE, "params": "many"}, "params='many' must be an integer"),
        ({**REPLACE, "op": "append", "child": "a.b"}, "child='a.b' must be a name without dots"),
        ({"op": "delete", "names": "layer1.0"}, "names='layer1.0' must be a list of names"),
        ({"op": "delete", "names": ["layer1.0", 3]}, r"names=\['layer1.0', 3\] must be a list of names"),
        ({"op": "thin_densenet", "keep": 3}, "keep=3 must be a list of integers"),
        ({"op": "thin_densenet", "keep": [1, True]}, r"keep=\[1, True\] must be a list of integers"),
        ({"op": ["delete"]}, r"op=\['delete'\] is not one of"),
    ],
)
@pytest.mark.parametrize("call", [carry_out, lambda model, steps: preview(model, steps, (1, 3, 32, 32))])
def test_values_of_a_step_have_their_types(call: Any, step: dict[str, Any], message: str) -> None:
    told(lambda: call(bare(), [step]), rf"^steps\[0\]: {message}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"options": {"facter": 2}}, "SpatialInterpolation cannot make what stands at 'layer1.0' with options.*facter"),
        ({"options": {3: 2}}, "keywords must be strings"),
        ({"make": "GlobalLayer"}, "GlobalLayer cannot make .* with options {}: .*'wrap'"),
        ({"make": lambda name: None}, "<lambda> cannot make what stands at 'layer1.0' with options {}"),
    ],
)
def test_a_maker_that_cannot_be_called_so_is_told_with_its_step(changed: dict[str, Any], message: str) -> None:
    model = bare()
    before = list(model.modules())
    told(lambda: carry_out(model, [{**REPLACE, **changed}]), rf"^steps\[0\]: .*{message}")
    assert list(model.modules()) == before
