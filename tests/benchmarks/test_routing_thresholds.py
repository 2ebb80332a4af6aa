"""The study of the promises on the accuracy drop, at toy size."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

Load = Callable[[str], ModuleType]


@pytest.fixture
def study(load: Load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("routing_thresholds")
    monkeypatch.setattr(module, "SETTINGS", ((300, 0.05), (600, 0.05)))
    monkeypatch.setattr(module, "PILOT", 500)
    return module


def made(study: ModuleType, samples: int = 8000) -> Any:
    """A population without networks: the base errs where its score is high."""
    draw = torch.Generator().manual_seed(0)
    score = torch.rand(samples, generator=draw)
    base, full = (torch.rand(samples, generator=draw) > rate for rate in (0.6 * score**2, 0.2 * score))
    return study.Population(score, base, full)


@pytest.mark.study
def test_the_population_is_that_of_two_networks_on_every_corrupted_image(study: ModuleType) -> None:
    size = study.Size(copies=3, train_copies=4, epochs=8, parts={"train": 300, "test": 100})
    found = study.population(0, size)
    assert [each.shape for each in found] == [(300,)] * 3
    assert (found.query_score < 0).all()
    assert 0.2 < found.base_correct.double().mean() < 0.99
    again = study.population(0, size)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_the_true_outcome_of_a_threshold_is_that_of_the_whole_population(study: ModuleType) -> None:
    found = made(study)
    path = torch.tensor([[float("-inf")], [0.5], [float("inf")]], dtype=torch.float64)
    correct = found.system_correct(path)
    assert torch.equal(correct[:, 0], found.full_correct)
    assert torch.equal(correct[:, 2], found.base_correct)
    coverage, drop = found.outcome(0.5)
    assert coverage == (found.query_score <= 0.5).double().mean().item()
    full, hybrid = found.full_correct.double().mean(), correct[:, 1].double().mean()
    assert drop == pytest.approx((full - hybrid).item(), abs=1e-12)


def test_a_small_study_keeps_its_promises_and_shows_the_naive_rule(study: ModuleType) -> None:
    record = study.study(made(study), draws=40, seed=0)
    assert [row["rule"] for row in record["rows"]] == [*study.RULES] * 2
    assert study.beyond_noise(record["rows"], 40) == []
    naive, betting = ([row for row in record["rows"] if row["rule"] == rule] for rule in ("empirical", "betting"))
    assert min(row["violations"] for row in naive) > 0.2
    assert max(row["violations"] for row in betting) < 0.3
    assert all(0 < row["coverage"] < row["best_coverage"] for row in betting)


def test_broken_promises_are_seen(study: ModuleType) -> None:
    def row(rule: str, violations: float, z: float | None = 0.0) -> dict[str, Any]:
        return {"rule": rule, "violations": violations, "z": z, "drop": 0.02, "max_drop": 0.01}

    kept = [row("betting", 0.12), row("empirical", 0.9), row("published", 0.9), row("conformal", 0.9, 2.0)]
    broken = [row("binomial", 0.3), row("conformal", 0.0, 5.0), row("conformal", 0.0, None)]
    assert study.beyond_noise([*kept, *broken], 400) == broken


def test_the_committed_result_kept_every_promise(study: ModuleType) -> None:
    record = json.loads((study.RESULTS / "routing_thresholds.json").read_text())
    assert study.beyond_noise(record["rows"], record["draws"]) == record["beyond_noise"] == []
    assert record["population"] == 597 * 110
    of = {(row["rule"], row["samples"], row["max_drop"]): row for row in record["rows"]}
    assert len(of) == 4 * len(study.RULES)
    assert min(row["violations"] for key, row in of.items() if key[0] == "empirical") > 0.3
    for setting in dict.fromkeys(key[1:] for key in of):
        # betting gets more of the possible coverage than the published rule
        assert of["published", *setting]["coverage"] < of["betting", *setting]["coverage"]


def test_the_report_prints_a_row_for_every_rule(study: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    study.report({"draws": 5, "beyond_noise": [], **study.study(made(study), 5, 0)})
    printed = capsys.readouterr().out
    assert all(rule in printed for rule in (*study.RULES, "best possible"))
    assert "promises that are broken: none" in printed
