"""Calls are timed in turns: forwards and backwards, after a warm-up that does not count."""

from __future__ import annotations

import pytest

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.in_turns import time_in_turns


def test_rounds_go_forwards_and_backwards_and_the_warm_up_is_not_timed() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = time_in_turns(calls, rounds=3, warmup=1)
    assert "".join(order) == "cba" + "abc" + "cba" + "abc"
    assert list(times) == ["a", "b", "c"]
    assert [len(each) for each in times.values()] == [3, 3, 3]
    assert all(seconds >= 0 for each in times.values() for seconds in each)


@pytest.mark.parametrize(("names", "rounds", "warmup"), [("", 1, 0), ("a", 0, 0), ("a", 1, -1)])
def test_nothing_to_time_is_told(names: str, rounds: int, warmup: int) -> None:
    calls = {name: lambda: None for name in names}
    message = rf"needs calls, rounds >= 1 and warmup >= 0, got {len(names)}, {rounds} and {warmup}"
    with pytest.raises(ConfigurationError, match=message):
        time_in_turns(calls, rounds=rounds, warmup=warmup)


def test_a_call_that_fails_is_not_hidden() -> None:
    def broken() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        time_in_turns({"a": broken}, rounds=1)
