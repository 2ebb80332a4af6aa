"""The study of the promises of thresholds, at toy size, and that its populations are what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightning_efficient.functional.thresholds import coverage_threshold, empirical_threshold

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
    found = study.study(draws=40, sizes=[100, 300])
    rows = found["rows"]
    assert len(rows) == 3 * 2 * len(study.rules()) * 2
    few = {(row["rule"], row["samples"]) for row in rows if row["violations"] is None and row["target"] == 0.01}
    assert few == {
        *((f"{rule}, {delta}", 100) for rule in ("sgr", "fixed_sequence", "rcps") for delta in (0.1, 0.05)),
        *((f"sgr, {delta}", 300) for delta in (0.1, 0.05)),
    }
    assert study.beyond_noise(rows, 40) == []
    naive = [row["violations"] for row in rows if row["rule"] == "empirical, selective"]
    assert min(naive) > 0.2
    assert study.means_beyond_noise(found) == []


def test_a_small_study_tests_the_promised_means(study: ModuleType) -> None:
    found = study.study(draws=40, sizes=[100, 300])
    risks, coverages = found["conformal_means"], found["coverage_means"]
    assert [len(risks), len(coverages)] == [3 * 2 * 2, 2 * 2 * 3]
    of_row = {
        (r["population"], r["samples"], r["target"]): r["risk"] for r in found["rows"] if r["rule"] == "conformal"
    }
    for row in risks:
        assert row["mean"] == pytest.approx(of_row[row["population"], row["samples"], row["target"]])
        assert row["ratio"] == pytest.approx(row["mean"] / row["target"])
        assert row["promised"] == row["target"]
    assert {row["promised"] for row in coverages if row["samples"] == 100} == {50 / 101, 80 / 101, 90 / 101}
    for row in coverages:
        # the standard error of the k-th of n uniform numbers, from 40 draws
        spread = (row["target"] * (1 - row["target"]) / row["samples"] / 40) ** 0.5
        assert row["standard_error"] == pytest.approx(spread, rel=0.4)
        assert row["mean"] == pytest.approx(row["promised"] + row["z"] * row["standard_error"])


def test_a_rule_that_breaks_its_promised_mean_is_seen(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(scores: object, *, risk: float) -> object:
        return empirical_threshold(scores, risk=1.5 * risk, kind="generalized")

    def greedy(scores: object, *, coverage: float) -> object:
        return coverage_threshold(scores, coverage=coverage - 0.05)

    monkeypatch.setattr(study, "conformal_threshold", lenient)
    monkeypatch.setattr(study, "coverage_threshold", greedy)
    found = study.study(draws=40, sizes=[300])
    broken = study.means_beyond_noise(found)
    assert {row["population"] for row in broken if row in found["conformal_means"]} == set(study.POPULATIONS)
    assert {row["population"] for row in broken if row in found["coverage_means"]} == {"smooth", "ties"}


def test_means_are_held_against_what_they_promise_on_the_side_that_breaks_it(study: ModuleType) -> None:
    def row(population: str, z: float | None, mean: float = 0.5) -> dict[str, object]:
        return {"population": population, "z": z, "mean": mean, "promised": 0.5}

    kept, broken = [row("smooth", -9.0), row("smooth", 2.0), row("smooth", None, 0.0)], row("smooth", 5.0)
    always = row("smooth", None, 0.6)
    assert study.means_beyond_noise({"conformal_means": [*kept, broken, always], "coverage_means": []}) == [
        broken,
        always,
    ]
    few, more, kept = row("ties", -5.0), row("smooth", 5.0), [row("ties", 9.0), row("smooth", -2.0)]
    assert study.means_beyond_noise({"conformal_means": [], "coverage_means": [few, more, *kept]}) == [more, few]


def test_too_many_violations_are_seen(study: ModuleType) -> None:
    kept = {"delta": 0.1, "violations": 0.12}
    assert study.beyond_noise([kept, broken := {"delta": 0.1, "violations": 0.3}], 400) == [broken]
    assert study.beyond_noise([{"delta": None, "violations": 0.9}, {"delta": 0.1, "violations": None}], 400) == []


def test_the_committed_result_kept_every_promise_and_shows_the_naive_rule(study: ModuleType) -> None:
    record = json.loads((study.RESULTS / "selective_thresholds.json").read_text())
    assert record["draws"] == 400
    assert study.beyond_noise(record["rows"], record["draws"]) == record["beyond_noise"] == []
    assert study.means_beyond_noise(record) == record["means_beyond_noise"] == []
    assert len(record["conformal_means"]) == 36
    assert max(row["ratio"] for row in record["conformal_means"]) < 1.02
    assert len(record["coverage_means"]) == 18
    assert max(abs(row["ratio"] - 1) for row in record["coverage_means"] if row["population"] == "smooth") < 0.003


def test_the_report_and_the_picture_are_made(study: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"draws": 5, "beyond_noise": [], "means_beyond_noise": [], **study.study(5, [50, 600])}
    study.report(record)
    printed = capsys.readouterr().out
    assert "more violations than promised: none" in printed
    assert "means that break their promise: none" in printed
    for row in (record["conformal_means"][-1], record["coverage_means"][-1]):
        assert f"({row['z']:+.1f})" in printed
    assert f"{record['conformal_means'][-1]['ratio']:.3f}" in printed
    study.PICTURE.parent.mkdir(parents=True)
    docs = Path(__file__).parents[2] / "docs"
    (study.PICTURE.parents[1] / "make_pictures.py").write_text((docs / "make_pictures.py").read_text())
    study.draw(record, study.PICTURE)
    assert 5_000 < study.PICTURE.stat().st_size < 150_000
