"""Runs that are killed anywhere, and again while they resume, end as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed import CASES, PLACES, STEPS, Chain, differences, load, options_of, points
from torch import Tensor

Fit = Callable[..., Any]


OTHERS = [case for case in CASES if case != "with_workers"]


def of(checkpoint: dict[str, Any], callback: str) -> dict[str, Any]:
    """Return the state of a callback."""
    return next(state for key, state in checkpoint["callbacks"].items() if key.partition("[")[0] == callback)


def moved(*tensors: Tensor) -> bool:
    return any(len(tensor.unique()) > 1 for tensor in tensors)


HAS_STATE: dict[str, Callable[[dict[str, Any]], bool]] = {
    "averaged": lambda end: (
        of(end, "Constraint")["multiplier"] > 0
        and sum(row["train_joules"] for row in of(end, "EnergyMeter")["epochs"].values()) == STEPS
        and end["averaging_state"]["n_averaged"] > 1
    ),
    "channels_pruned": lambda end: [entry["step"] for entry in of(end, "GradualPruning")["history"]] == [3, 6, 9],
    "weights_pruned": lambda end: [entry["step"] for entry in of(end, "GradualPruning")["history"]] == [3, 6, 9],
    "quantized": lambda end: of(end, "QuantizationAware")["begun"] and of(end, "QuantizationAware")["ranges"],
    "distilled": lambda end: (
        of(end, "GuideSchedule")["dual"]["multiplier"] > 0 and len(of(end, "GuideSchedule")["history"]) == 3
    ),
    "scaffolded": lambda end: of(end, "DiSK")["dual"]["multiplier"] > 0 and len(of(end, "DiSK")["history"]) == 3,
    "selective_osp": lambda end: moved(end["state_dict"]["objective.multipliers"]),
    "selective_sat": lambda end: moved(end["state_dict"]["objective.doubt._extra_state"]),
    "hybrid": lambda end: not end["state_dict"]["threshold"].isnan().any(),
    "in_parts": lambda end: (
        of(end, "FPTT")["updates"] == 2 * STEPS and any(dual.any() for dual in of(end, "FPTT")["duals"].values())
    ),
    "chunked": lambda end: of(end, "ChunkedBackprop")["updates"] == 3 * STEPS,
    "language": lambda end: of(end, "FPTT")["updates"] == 2 * STEPS,
}
"""That a case has the state that it is there for; the others have weights and an optimiser only."""


def check(fit: Fit, tmp_path: Path, case: str, number: int) -> None:
    """Compare a whole run with one that is killed at some points."""
    whole = tmp_path / "whole"
    finished = fit(*options_of(case, whole), folder=whole)
    assert finished.status == 0, finished.stderr
    last = next(whole.rglob("last.ckpt"))
    end = load(last)
    assert end["global_step"] == STEPS
    assert HAS_STATE.get(case, bool)(end)
    chain = Chain.begun(fit, tmp_path / "pieces", case, last.stat().st_size)
    for point in points(case, number):
        if not chain.kill(point):
            # it was through, since its last chance to die in this place was over: from the start there is one
            assert differences(end, chain.end()) == [], chain.deaths
            chain = Chain.begun(fit, tmp_path / f"pieces_{point.step}", case, chain.size)
            assert chain.kill(point), point
    chain.finish()
    assert differences(end, chain.end()) == [], chain.deaths


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_a_run_that_is_killed_three_times_ends_like_a_whole_one(case: str, fit: Fit, tmp_path: Path) -> None:
    check(fit, tmp_path, case, 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ["with_workers", *(pytest.param(case, marks=pytest.mark.study) for case in OTHERS)])
def test_a_run_that_is_killed_in_ten_places_ends_like_a_whole_one(case: str, fit: Fit, tmp_path: Path) -> None:
    assert len(PLACES) == 10
    check(fit, tmp_path, case, 10)
