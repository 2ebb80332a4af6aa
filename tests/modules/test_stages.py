"""Stages follow each other, and each tells how far it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules._stages import Stage, StagePlan

NAMES = ("base", "global", "router")


def plan(*stages: Any) -> StagePlan:
    return StagePlan(list(stages), NAMES, "model.stages")


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 5)), min_size=1, max_size=6))
def test_each_epoch_has_the_stage_of_its_place(stages: list[tuple[str, int]]) -> None:
    made = plan(*({name: epochs} for name, epochs in stages))
    expected = [(number, name) for number, (name, epochs) in enumerate(stages) for _ in range(epochs)]
    assert [(made.at(epoch).number, made.at(epoch).name) for epoch in range(made.epochs)] == expected
    assert made.epochs == len(expected)
    assert made.at(made.epochs + 7).number == len(stages) - 1
    assert made.names == {name for name, _ in stages}
    for stage in made.stages:
        assert expected.index((stage.number, stage.name)) == stage.start


def test_the_share_that_is_done_rises_from_0_to_1() -> None:
    stage = Stage("base", epochs=2, start=3, number=1)
    done = [stage.progress(epoch, batch, 4) for epoch in (3, 4) for batch in range(4)]
    assert done == pytest.approx([step / 8 for step in range(8)])
    assert (stage.progress(2, 0, 4), stage.progress(5, 0, 4), stage.progress(9, 3, 4)) == (0.0, 1.0, 1.0)
    assert stage.progress(4, 3, float("inf")) == 0.5  # of an endless loader only epochs are known


@pytest.mark.parametrize("epochs", [6, 7, -1, None])
def test_a_run_may_be_as_long_as_its_stages_or_longer_or_endless(epochs: int | None) -> None:
    plan({"base": 2}, {"router": 4}).check_length(epochs)


def test_a_run_that_is_too_short_is_told_with_the_stages() -> None:
    message = r"trainer\.max_epochs is 5, and model\.stages take 6 \(base 2, router 4\); set it to 6, or shorten"
    with pytest.raises(ConfigurationError, match=message):
        plan({"base": 2}, {"router": 4}).check_length(5)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("base", r"model\.stages\[0\] is 'base'; it must be one name with its epochs, such as \{base: 15\}"),
        ({}, r"model\.stages\[0\] is \{\}; it must be one name"),
        (
            {"rooter": 1},
            r"unknown stage 'rooter'\. Did you mean 'router'\? It must be one of base, global, router",
        ),
        ({"base": 1.5}, r"model\.stages\[0\] has 1\.5 epochs for base; it must be 1 or more"),
        ({"base": True}, r"has True epochs for base"),
        ({"base": None}, r"has None epochs for base"),
    ],
)
def test_an_entry_that_is_no_stage_is_told(entry: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan(entry)
