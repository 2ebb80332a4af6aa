"""Costs of surgery: what is timed, on which input, and that nothing changes by it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery import POLICIES, carry_out, preview
from lightning_efficient.profiling.surgery_costs import BlockCost, SurgeryCosts, surgery_costs

QUICK: dict[str, Any] = {"min_run_time": 0.001, "threads": 1}


@dataclass
class Row:
    """What a row of a plan has."""

    name: str
    new_name: str
    old: str
    new: str
    macs_before: int = 100
    macs_after: int = 50
    params_before: int = 0
    params_after: int = 0


@dataclass
class Changes:
    """What a plan has."""

    rows: list[Row]
    example_shape: tuple[int, ...] = (1, 3, 8, 8)
    macs_before: int = 1000
    macs_after: int = 610
    params_before: int = 20
    params_after: int = 30
    steps: list[dict[str, Any]] = field(default_factory=list)

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Seen(nn.Module):
    """A layer of weight 1 that notes what it gets and under which conditions."""

    def __init__(self, notes: list[Any], sleep: int = 0) -> None:
        super().__init__()
        self.notes, self.products = [notes], sleep  # in a list, so that the notes are not put back
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        note = {"input": x.clone(), "training": self.training, "inference": torch.is_inference_mode_enabled()}
        self.notes[0].append(note | {"threads": torch.get_num_threads(), "last": is_last(x)})
        for _ in range(self.products):
            torch.mm(torch.ones(128, 128), torch.ones(128, 128))
        return x + self.weight


def is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def network(*blocks: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(*blocks), nn.BatchNorm2d(4))


def state_of(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    modules = [(id(module), module.training, sorted(vars(module))) for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    return [*((id(each), each.data_ptr(), each.stride(), each.tolist()) for each in tensors), *modules, *hooks]


def test_a_block_runs_on_the_input_that_it_gets_in_the_network() -> None:
    before_notes: list[Any] = []
    after_notes: list[Any] = []
    before = network(Seen([]), Seen(before_notes))
    after = network(Seen([]), Seen(after_notes))
    surgery_costs(before, after, Changes([Row("1.1", "1.1", "Seen", "Seen")]), batch_size=2, **QUICK)
    inputs = {tuple(note["input"].flatten().tolist()) for note in before_notes + after_notes}
    assert len(inputs) == 1
    assert before_notes[0]["input"].shape == (2, 4, 6, 6)
    assert {(note["training"], note["inference"], note["threads"]) for note in before_notes} == {(False, True, 1)}


def test_an_input_that_a_later_layer_overwrites_is_timed_as_it_was() -> None:
    notes: list[Any] = []

    class Spoils(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Seen(notes)

        def forward(self, x: Tensor) -> Tensor:
            seen = self.inner(x)
            x.zero_()
            return seen

    before, plan = network(Spoils()), Changes([Row("1.0.inner", "1.0.inner", "Seen", "Seen")])
    surgery_costs(before, copy.deepcopy(before), plan, **QUICK)
    assert all(note["input"].abs().sum() > 0 for note in notes)


def test_rows_hold_the_figures_of_the_plan_and_positive_times() -> None:
    plan = Changes([Row("1.0", "1.0", "Identity", "Conv2d", 7, 8)])
    costs = surgery_costs(network(nn.Identity()), network(nn.Conv2d(4, 4, 1)), plan, **QUICK)
    (row,) = costs.rows
    assert (row.name, row.old, row.new, row.macs_before, row.macs_after) == ("1.0", "Identity", "Conv2d", 7, 8)
    assert (costs.total.name, costs.total.old) == ("", "Sequential")
    assert (costs.total.macs_before, costs.total.macs_after) == (1000, 610)
    assert (costs.params_before, costs.params_after, costs.input_shape) == (20, 30, (3, 8, 8))
    for each in (row, costs.total):
        assert each.pairs >= 10
        assert min(each.ms_before, each.ms_after) > 0
        assert 0 < each.low <= each.speed_up <= each.high


def test_a_faster_block_has_a_speed_up_above_one() -> None:
    before, after = network(Seen([], sleep=30)), network(Seen([]))
    costs = surgery_costs(before, after, Changes([Row("1.0", "1.0", "Seen", "Seen")]), **QUICK)
    assert costs.rows[0].low > 1
    assert costs.total.low > 1
    assert costs.gained


@pytest.mark.parametrize("absent", ["-", ""])
def test_a_deleted_block_has_a_row_with_nothing_after(absent: str) -> None:
    plan = Changes([Row("1.1", absent, "Conv2d", absent, 100, 0)])
    costs = surgery_costs(network(nn.Identity(), nn.Conv2d(4, 4, 1)), network(nn.Identity()), plan, **QUICK)
    (row,) = costs.rows
    assert (row.name, row.new, row.ms_after, row.speed_up, row.low, row.high) == ("1.1", "-", 0.0, None, None, None)
    assert row.ms_before > 0


def test_an_added_layer_has_a_row_with_nothing_before() -> None:
    plan = Changes([Row("", "1.1", "-", "Conv2d", 0, 100)])
    costs = surgery_costs(network(nn.Identity()), network(nn.Identity(), nn.Conv2d(4, 4, 1)), plan, **QUICK)
    (row,) = costs.rows
    assert (row.name, row.old, row.ms_before, row.speed_up) == ("1.1", "-", 0.0, None)
    assert row.ms_after > 0


def test_merged_blocks_are_timed_one_after_the_other() -> None:
    notes: list[Any] = []
    before, after = network(Seen(notes), Seen(notes)), network(Seen([]))
    plan = Changes([Row("1.0, 1.1", "1.0", "Seen, Seen", "Seen")])
    costs = surgery_costs(before, after, plan, **QUICK)
    assert costs.rows[0].name == "1.0, 1.1"
    first, second = notes[-2]["input"], notes[-1]["input"]
    assert torch.equal(first + 1, second)


def test_a_block_that_is_called_twice_is_timed_twice() -> None:
    notes: list[Any] = []
    shared = Seen(notes)
    costs = surgery_costs(
        network(shared, shared), network(nn.Identity()), Changes([Row("1.0", "1.0", "Seen", "Identity")]), **QUICK
    )
    pairs = costs.rows[0].pairs + costs.total.pairs
    assert len(notes) == 2 + 2 * (pairs + 2 * 3)  # the run that captures, then three untimed calls for each row


@pytest.mark.parametrize("channels_last", [False, True])
def test_networks_and_random_states_are_left_as_they_were(channels_last: bool) -> None:
    before, after = network(nn.Dropout(0.5)).train(), network(nn.Conv2d(4, 4, 3)).train()
    before[1].eval()
    states, random = [state_of(each) for each in (before, after)], torch.get_rng_state()
    plan = Changes([Row("1.0", "1.0", "Dropout", "Conv2d")])
    surgery_costs(before, after, plan, channels_last=channels_last, **QUICK)
    assert [state_of(each) for each in (before, after)] == states
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_layout_reaches_weights_and_maps(channels_last: bool) -> None:
    notes: list[Any] = []
    plan = Changes([Row("1.0", "1.0", "Seen", "Seen")])
    costs = surgery_costs(network(Seen(notes)), network(Seen([])), plan, channels_last=channels_last, **QUICK)
    assert {note["last"] for note in notes} == {channels_last}
    assert costs.channels_last is channels_last


def test_weights_come_back_after_an_error_too() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("on purpose")

    before = network(nn.Identity())
    with pytest.raises(RuntimeError, match="on purpose"):
        surgery_costs(before, network(Fails()), Changes([]), channels_last=True, **QUICK)
    assert before[0].weight.is_contiguous()
    assert before.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch sizes must be 1 or more, got \[0\]"),
        ({"threads": 0}, "threads must be 1 or more, or None for the current number, got 0"),
        ({"min_run_time": 0.0}, "min_run_time must be positive and warmup 0 or more, got 0.0 and 3"),
    ],
)
def test_numbers_out_of_range_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        surgery_costs(network(), network(), Changes([]), **{**QUICK, **options})


def test_networks_that_the_plan_is_not_about_are_named() -> None:
    plan = Changes([Row("1.7", "1.7", "Seen", "Seen")])
    with pytest.raises(
        ConfigurationError, match=r"before: Sequential has no module '1.7'; give the networks of the plan"
    ):
        surgery_costs(network(), network(), plan, **QUICK)


def test_two_devices_are_one_line() -> None:
    with pytest.raises(ConfigurationError, match="before and after must be on one device, got cpu and meta"):
        surgery_costs(network(), network().to("meta"), Changes([]), **QUICK)


def test_a_plan_of_the_surgery_package_has_the_rows_that_are_timed() -> None:
    model = timm.create_model("mobilenetv3_small_050")
    steps = POLICIES["SpatialInterpolation"](model)
    plan = preview(model, steps, (1, 3, 64, 64))
    before = copy.deepcopy(model)
    after = carry_out(model, steps).model
    costs = surgery_costs(before, after, plan, batch_size=2, **QUICK)
    assert [(row.name, row.macs_after) for row in costs.rows] == [(row.new_name, row.macs_after) for row in plan]
    assert {row.new for row in costs.rows} == {"SpatialInterpolation"}
    assert costs.total.macs_after == plan.macs_after < costs.total.macs_before
    assert costs.input_shape == (3, 64, 64)


def test_costs_survive_json() -> None:
    rows = (BlockCost("a", "A", "-", 10, 0, 1.5, 0.0, None, None, None, 10),)
    total = BlockCost("", "N", "N", 100, 61, 2.0, 1.9, 1.05, 0.99, 1.2, 11)
    costs = SurgeryCosts(rows, total, 5, 6, 4, (3, 8, 8), 2, "cpu", "float32", True)
    assert SurgeryCosts.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs


@pytest.mark.parametrize(
    ("speed_up", "low", "gained"), [(1.2, 1.1, True), (1.2, 0.99, False), (1.04, 1.02, False), (None, None, False)]
)
def test_a_gain_is_five_percent_and_beyond_the_noise(speed_up: float, low: float, gained: bool) -> None:
    total = BlockCost("", "N", "N", 100, 61, 2.0, 1.9, speed_up, low, 1.3, 11)
    assert SurgeryCosts((), total, 5, 6, 4, (3,), 2, "cpu", "float32", True).gained is gained


def test_a_network_without_macs_has_no_change() -> None:
    total = BlockCost("", "N", "N", 0, 0, 2.0, 1.9, 1.0, 1.0, 1.0, 11)
    assert SurgeryCosts((), total, 5, 6, 4, (3,), 2, "cpu", "float32", True).macs_change == 0
