"""The study of the promises of thresholds, at toy size, and that its populations are what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

Load = Callable[[str], ModuleType]


@pytest.fixture
def study(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("selective_thresholds")
    monkeypatch.setattr(module, "TARGETS", (0.01, 0.05))
    monkeypatch.setattr(module, "PICTURE", tmp_path / "docs" / "images" / "thresholds.png")
    return module


@pytest.mark.parametrize("name", ["smooth", "ties", "overconfident"])
@pytest.mark.parametrize("coverage", [0.1, 0.485, 0.805])
def test_the_true_coverage_and_risks_are_those_of_a_large_sample(study: ModuleType, name: str, coverage: float) -> None:
    population = study.POPULATIONS[name]
    summary = population.draw(400_000, torch.Generator().manual_seed(0))
    group = int(torch.searchsorted(summary.coverages, coverage))
    true = population.coverage(float(summary.thresholds[group]))
    assert true == pytest.approx(summary.coverages[group].item(), abs=0.004)
    assert population.risk(true, "selective") == pytest.approx(summary.selective_risks[group].item(), abs=0.002)
    assert population.risk(true, "generalized") == pytest.approx(summary.generalized_risks[group].item(), abs=0.001)


def test_the_best_coverage_meets_the_target_and_a_little_more_does_not(study: ModuleType) -> None:
    smooth = study.POPULATIONS["smooth"]
    best = smooth.best(0.01, "selective")
    assert smooth.risk(best, "selective") <= 0.01 < smooth.risk(best + 2e-4, "selective")
    # half a step beyond a whole number of hundredths, where rounded confidences begin
    assert study.POPULATIONS["ties"].best(0.01, "generalized") == pytest.approx(0.555)


def test_risk_of_the_overconfident_population_first_falls(study: ModuleType) -> None:
    overconfident = study.POPULATIONS["overconfident"]
    risks = [overconfident.risk(coverage, "selective") for coverage in (0.05, 0.3, 0.6)]
    assert risks[0] > risks[1] < risks[2]


def test_a_small_study_keeps_its_promises_and_tells_where_samples_are_too_few(study: ModuleType) -> None:
    rows = study.study(draws=40, sizes=[100, 300])
    assert len(rows) == 3 * 2 * len(study.rules()) * 2
    few = {(row["rule"], row["samples"]) for row in rows if row["violations"] is None and row["target"] == 0.01}
    assert few == {
        *((f"{rule}, {delta}", 100) for rule in ("sgr", "fixed_sequence", "rcps") for delta in (0.1, 0.05)),
        *((f"sgr, {delta}", 300) for delta in (0.1, 0.05)),
    }
    assert study.beyond_noise(rows, 40) == []
    naive = [row["violations"] for row in rows if row["rule"] == "empirical, selective"]
    assert min(naive) > 0.2


def test_too_many_violations_are_seen(study: ModuleType) -> None:
    kept = {"delta": 0.1, "violations": 0.12}
    assert study.beyond_noise([kept, broken := {"delta": 0.1, "violations": 0.3}], 400) == [broken]
    assert study.beyond_noise([{"delta": None, "violations": 0.9}, {"delta": 0.1, "violations": None}], 400) == []


def test_the_committed_result_kept_every_promise_and_shows_the_naive_rule(study: ModuleType) -> None:
    record = json.loads((study.RESULTS / "selective_thresholds.json").read_text())
    assert record["draws"] == 400
    assert study.beyond_noise(record["rows"], record["draws"]) == record["beyond_noise"] == []
    averages = [row for row in record["rows"] if row["rule"] == "conformal"]
    assert all(row["risk"] <= 1.02 * row["target"] for row in averages)


def test_the_report_and_the_picture_are_made(study: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"draws": 5, "rows": study.study(5, [100, 600]), "beyond_noise": []}
    study.report(record)
    assert "more violations than promised: none" in capsys.readouterr().out
    study.PICTURE.parent.mkdir(parents=True)
    docs = Path(__file__).parents[2] / "docs"
    (study.PICTURE.parents[1] / "make_pictures.py").write_text((docs / "make_pictures.py").read_text())
    study.draw(record, study.PICTURE)
    assert 5_000 < study.PICTURE.stat().st_size < 150_000
