from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery import interpolate, is_residual, plan, preview, replace, stage
from lightning_efficient.nn.surgery.meta import block_macs, example_shape, meta_copy, output_sizes


@pytest.fixture
def small() -> nn.Module:
    return timm.create_model("mobilenetv3_small_050")


def test_a_plan_changes_nothing(small: nn.Module) -> None:
    modules, state = list(small.modules()), {key: value.clone() for key, value in small.state_dict().items()}
    random = torch.get_rng_state()
    rows = plan(small, is_residual & stage(1, 2), "SpatialInterpolation")
    assert [row.name for row in rows] == ["blocks.1.1", "blocks.2.1", "blocks.2.2"]
    assert torch.equal(torch.get_rng_state(), random)
    assert list(small.modules()) == modules
    assert not hasattr(small, "_surgery_steps")
    assert all(torch.equal(value, state[key]) for key, value in small.state_dict().items())


def test_a_plan_tells_what_the_surgery_does(small: nn.Module) -> None:
    where = is_residual & stage(1, 2)
    rows = plan(small, where, "SpatialInterpolation")
    before = block_macs(small, (1, 3, 224, 224))
    replace(small, where, "SpatialInterpolation")
    after = block_macs(small, (1, 3, 224, 224))
    assert (rows.macs_before, rows.macs_after) == (before[""], after[""])
    for row in rows:
        assert (row.old, row.new) == ("InvertedResidual", "SpatialInterpolation")
        assert (row.macs_before, row.macs_after) == (before[row.name], after[row.new_name])
        assert row.params_after == sum(each.numel() for each in small.get_submodule(row.new_name).parameters())
    assert rows.params_after == sum(each.numel() for each in small.parameters())
    assert rows.macs_before - rows.macs_after == sum(row.macs_before - row.macs_after for row in rows)


def test_every_operation_has_its_rows() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    chained = {"op": "merge", "names": ["3", "4"], "make": lambda name, blocks: nn.Sequential(*blocks)}
    added = {"op": "append", "name": "", "make": lambda name, block: nn.Linear(4, 1)}
    gone = {"op": "delete", "names": ["1", "2"]}
    told = preview(model, [gone, chained, added], (2, 4))
    assert [(row.name, row.new_name, row.old, row.new) for row in told] == [
        ("1", "", "Linear", "-"),
        ("2", "", "Linear", "-"),
        ("3, 4", "3", "2 Linear", "Sequential"),
        ("", "4", "-", "Linear"),
    ]
    assert [(row.macs_before, row.macs_after) for row in told] == [(16, 0), (16, 0), (32, 32), (0, 4)]
    assert [(row.params_before, row.params_after) for row in told] == [(20, 0), (20, 0), (40, 40), (0, 5)]
    assert (told.macs_before, told.macs_after, told.params_before, told.params_after) == (80, 52, 100, 65)
    assert told.to_dict()["rows"][3]["new"] == "Linear"
    assert told.to_dict()["example_shape"] == [2, 4]
    assert "-35.0%" in str(told).splitlines()[-1]
    assert len(told[:2]) == 2


def test_the_step_of_a_plan_can_be_carried_out(small: nn.Module) -> None:
    from lightning_efficient.nn.surgery import carry_out

    told = plan(small, is_residual & stage(1), "SpatialInterpolation", example=(1, 3, 64, 64))
    assert told.example_shape == (1, 3, 64, 64)
    assert carry_out(small, told.steps).names == ["blocks.1.1"]


def test_a_plan_refuses_what_the_surgery_would_refuse(small: nn.Module) -> None:
    small.blocks[1][1].conv_dw.register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(ConfigurationError, match=r"blocks\.1\.1\.conv_dw carries a hook"):
        plan(small, is_residual, "SpatialInterpolation")


@pytest.mark.parametrize(
    ("options", "shape"), [({}, (1, 3, 224, 224)), ({"in_chans": 1}, (1, 1, 224, 224)), ({"features_only": True}, None)]
)
def test_the_input_is_as_the_configuration_says(options: Any, shape: tuple[int, ...] | None) -> None:
    model = timm.create_model("mobilenetv3_small_050", **options)
    assert shape is None or example_shape(model) == shape
    assert example_shape(model, torch.zeros(2, 3, 8, 8)) == (2, 3, 8, 8)


def test_a_model_that_does_not_know_its_input_asks_for_it() -> None:
    with pytest.raises(ConfigurationError, match="example=None: Sequential does not say"):
        plan(nn.Sequential(nn.ReLU()), nn.ReLU, lambda name, block: nn.Identity())


def test_a_copy_without_data_shares_what_the_model_shares_and_has_no_hooks() -> None:
    model, calls = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), []
    model[1].weight = model[0].weight
    model[0].register_forward_hook(lambda module, inputs, output: calls.append(1))
    copy = meta_copy(model)
    assert copy[0].weight is copy[1].weight
    assert copy[0].weight.is_meta
    assert not model[0].weight.is_meta
    copy(torch.empty(1, 4, device="meta"))
    assert calls == []


def test_sizes_of_maps_are_those_of_a_forward_pass(small: nn.Module) -> None:
    sizes = output_sizes(small, (1, 3, 64, 96))
    assert sizes["conv_stem"] == (32, 48)
    assert sizes["blocks.1.1"] == (8, 12)
    assert sizes["blocks.5.0"] == (2, 3)


def test_operations_are_counted_where_surgery_was_done_before(small: nn.Module) -> None:
    whole = block_macs(small, (1, 3, 64, 64))[""]
    interpolate(small)
    assert 0 < block_macs(small, (4, 3, 64, 64))[""] < whole
