from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.phases import Alternation
from lightning_efficient.functional.schedules import CosineSchedule

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "disk.npz")
turns = st.builds(Alternation, st.integers(1, 5), st.integers(1, 5), st.integers(0, 7))


def test_the_released_order_is_a_warm_up_and_then_three_and_three() -> None:
    released = Alternation(3, 3, 5, "epoch")
    order = "".join(released.phase(count)[0] for count in range(17))
    assert order == "ggggg" + "sssggg" * 2
    assert released.length == 6


@given(turns)
def test_each_cycle_has_as_many_units_of_both_as_asked_for(phases: Alternation) -> None:
    warm = [phases.phase(count) for count in range(phases.warmup)]
    assert warm == ["guide"] * phases.warmup
    for cycle in range(3):
        begin = phases.warmup + cycle * phases.length
        order = [phases.phase(begin + count) for count in range(phases.length)]
        assert order == ["student"] * phases.student + ["guide"] * phases.guide


@given(turns, st.integers(1, 300))
def test_progress_counts_whole_cycles_and_stays_within_bounds(phases: Alternation, total: int) -> None:
    cycles = max(1, -(-(total - phases.warmup) // phases.length))
    found = [phases.progress(count, total) for count in range(total + 1)]
    done = [max(0, count - phases.warmup) // phases.length for count in range(total + 1)]
    assert found == [min(1.0, whole / cycles) for whole in done]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= 1


@pytest.mark.parametrize(
    ("key", "schedule"),
    [
        ("sched_lambda", CosineSchedule(1.0, 5.0, cycles=4)),
        ("sched_delta", CosineSchedule(0.6, 0.4, cycles=10, decay=0.9)),
    ],
)
def test_schedules_over_cycles_are_those_of_the_released_code(key: str, schedule: CosineSchedule) -> None:
    golden = GOLDEN[key]
    phases = Alternation(3, 3, 5, "epoch")
    total = phases.warmup + phases.length * len(golden)
    for count in range(phases.warmup, total):
        cycle = (count - phases.warmup) // phases.length
        assert schedule(phases.progress(count, total)) == pytest.approx(golden[cycle], abs=1e-10)
    assert schedule(phases.progress(0, total)) == pytest.approx(golden[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": 0}, "phases.student is 0; it must be at least 1"),
        ({"guide": -1}, "phases.guide is -1; it must be at least 1"),
        ({"warmup": -2}, "phases.warmup is -2; it must be at least 0"),
        ({"unit": "epochs"}, r"phases.unit.*'epochs'.*Did you mean 'epoch'"),
    ],
)
def test_impossible_turns_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        Alternation(**options)
    assert "\n" not in str(error.value)
