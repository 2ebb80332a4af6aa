"""Schedules against the released code's own, their end points, and a config file."""

from __future__ import annotations

import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    PowerSchedule,
    Schedule,
    StepSchedule,
    as_schedule,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "disk.npz")
RELEASED = {
    "sched_lambda": CosineSchedule(1, 5, cycles=4),
    "sched_delta": CosineSchedule(0.6, 0.4, cycles=10, decay=0.9),
    "sched_delta_max": StepSchedule(0.6, factor=0.9, steps=10),
    "sched_lambda_mode0": ConstantSchedule(5),
    "sched_lambda_mode1": PowerSchedule(5, rate=200, power=1),
    "sched_lambda_mode2": PowerSchedule(5, rate=200, power=-1),
    "sched_lambda_mode3": PowerSchedule(5, rate=200, power=0.5),
    "im_sched_lambda": CosineSchedule(0.1, 0.5, cycles=3),
    "im_sched_delta_unused": CosineSchedule(0.3, 0.1, cycles=3),
}
numbers = st.floats(-100, 100)
progresses = st.floats(0, 1)


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_schedules_are_reproduced(name: str) -> None:
    expected = GOLDEN[name]
    values = [RELEASED[name](epoch / len(expected)) for epoch in range(len(expected))]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-10)


@given(start=numbers, end=numbers, progress=progresses)
def test_a_line_and_half_a_cosine_join_the_same_ends_and_stay_between_them(
    start: float, end: float, progress: float
) -> None:
    for schedule in (LinearSchedule(start, end), CosineSchedule(start, end)):
        assert schedule(0) == pytest.approx(start, abs=1e-12)
        assert schedule(1) == pytest.approx(end, abs=1e-12)
        assert min(start, end) - 1e-9 <= schedule(progress) <= max(start, end) + 1e-9
    assert LinearSchedule(start, end)(progress) == pytest.approx(start + progress * (end - start), abs=1e-9)


@given(epochs=st.integers(1, 400), cycles=st.integers(1, 40), data=st.data())
def test_a_restart_is_met_exactly_whatever_rounding_does(epochs: int, cycles: int, data: st.DataObject) -> None:
    length = epochs
    epoch = data.draw(st.integers(0, length * cycles - 1))
    cycle, within = divmod(epoch, length)
    schedule = CosineSchedule(2.0, 1.0, cycles=cycles, decay=0.5)
    begin = 2 * 0.5**cycle
    expected = begin + (1 - begin) * 0.5 * (1 - math.cos(math.pi * within / length))
    assert schedule(epoch / (length * cycles)) == pytest.approx(expected, abs=1e-9)
    assert StepSchedule(2.0, 0.5, steps=cycles)(epoch / (length * cycles)) == begin


@pytest.mark.parametrize("cycles", [1, 3, 10])
def test_the_end_of_training_is_the_end_of_the_last_cycle(cycles: int) -> None:
    assert CosineSchedule(0.6, 0.4, cycles=cycles, decay=0.9)(1.0) == pytest.approx(0.4, abs=1e-15)
    assert StepSchedule(8.0, factor=0.5, steps=cycles)(1.0) == 8 * 0.5 ** (cycles - 1)


@pytest.mark.parametrize(("cycles", "expected"), [(0.5, 1.5), (1.5, 1.0), (2.5, 0.75)])
def test_a_fraction_of_a_cycle_ends_half_way_from_where_it_began(cycles: float, expected: float) -> None:
    assert CosineSchedule(2.0, 1.0, cycles=cycles, decay=0.5)(1.0) == pytest.approx(expected)


def test_a_power_with_rate_minus_one_decays_to_zero() -> None:
    schedule = PowerSchedule(3.0, rate=-1, power=2)
    assert [schedule(progress) for progress in (0, 0.5, 1)] == [3, 0.75, 0]


@given(progress=progresses)
def test_numbers_are_constant_schedules_and_schedules_themselves(progress: float) -> None:
    line = LinearSchedule(0, 1)
    assert as_schedule(line) is line
    assert as_schedule(3) == ConstantSchedule(3.0)
    assert as_schedule(3)(progress) == 3


@pytest.mark.parametrize("progress", [-0.1, 1 + 1e-6, 7, math.nan])
def test_progress_outside_the_unit_interval_is_refused(progress: float) -> None:
    with pytest.raises(ConfigurationError, match=r"progress=.* is outside \[0, 1\]"):
        LinearSchedule(0, 1)(progress)


def test_progress_that_rounding_has_pushed_out_is_taken_in() -> None:
    assert LinearSchedule(0, 1)(1 + 1e-10) == 1
    assert LinearSchedule(0, 1)(-1e-10) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantSchedule(math.nan), "ConstantSchedule: value is nan"),
        (lambda: as_schedule("much"), "value is 'much'; it must be a finite number"),
        (lambda: LinearSchedule(0, math.inf), "end is inf"),
        (lambda: CosineSchedule(1, 0, cycles=0), "cycles is 0; it must be above 0"),
        (lambda: CosineSchedule(1, 0, decay=-0.9), "decay is -0.9"),
        (lambda: StepSchedule(1, 0.5, steps=0), "steps is 0; it must be a whole number"),
        (lambda: StepSchedule(1, 0.5, steps=2.5), "steps is 2.5"),
        (lambda: PowerSchedule(1, rate=-2, power=1), "rate is -2; it must be -1 or more"),
        (lambda: PowerSchedule(1, rate=-1, power=-1), "ends at infinity"),
    ],
)
def test_options_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize("schedule", RELEASED.values(), ids=RELEASED)
def test_schedules_are_values(schedule: Schedule) -> None:
    again = dataclasses.replace(schedule)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert eval(repr(schedule)) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.start = 1


class Owner:
    def __init__(self, budget: float | Schedule = 0.5) -> None:
        self.budget = as_schedule(budget)


@pytest.mark.parametrize("schedule", [*RELEASED.values(), LinearSchedule(0.0, 1.0)])
def test_a_config_names_a_schedule_by_its_class(schedule: Schedule) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Owner, "owner")
    path = f"{type(schedule).__module__}.{type(schedule).__name__}"
    given = {"class_path": path, "init_args": dataclasses.asdict(schedule)}
    config = parser.parse_object({"owner": {"budget": given}})
    again = parser.parse_string(parser.dump(config))
    assert parser.instantiate_classes(again).owner.budget == schedule


def test_a_config_may_give_a_number() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Owner, "owner")
    assert parser.instantiate_classes(parser.parse_args(["--owner.budget=0.3"])).owner.budget == ConstantSchedule(0.3)
