"""The study of online abstention, at toy size: its batched runs are those of the module, its bounds hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightning_efficient.functional.online_abstention import (
    ABSTAIN,
    draw_expert,
    exploration_rate,
    hindsight,
)
from lightning_efficient.inference.online_abstainer import OnlineAbstainer

Load = Callable[[str], ModuleType]
SETTINGS = [("sqrt", None, 0.0, False), (0.2, 0.1, 0.05, False), (0.1, None, 0.02, True)]


@pytest.fixture
def study(load: Load) -> ModuleType:
    return load("online_abstention")


@pytest.fixture
def pools(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr(study, "CLASSIFIERS", 3)
    return study.make_pools()


@pytest.mark.parametrize(("explore", "eta", "tolerance", "use_all"), SETTINGS)
def test_runs_side_by_side_are_those_of_the_module(
    study: ModuleType, pools: dict, explore: float | str, eta: float | None, tolerance: float, use_all: bool
) -> None:
    pool, runs, rounds = pools["tolerant"], 3, 150
    order = study.streams_of(pool, runs, rounds)
    actions = study.simulate(pool, order, explore, eta, tolerance, use_all, seed=5)
    uniforms = torch.rand(rounds, 2, runs, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    feedback = "all" if use_all else "explore"
    for run in range(runs):
        abstainer = OnlineAbstainer(pool.predictions.shape[1], explore, eta, tolerance, feedback)
        for number, sample in enumerate(order[run].tolist()):
            tossed, drawn = uniforms[number, :, run]
            coin = bool(tossed < exploration_rate(number + 1, explore))
            expert = int(draw_expert(abstainer.probabilities, drawn))
            action, token = abstainer.decide(pool.predictions[sample], coin, expert)
            assert action == actions[run, number]
            if action == ABSTAIN:
                abstainer.feedback(token, int(pool.labels[sample]))


def test_counts_are_those_of_hindsight(study: ModuleType, pools: dict) -> None:
    for pool in pools.values():
        order = study.streams_of(pool, 4, 60)
        actions = study.simulate(pool, order, 0.2)
        counts = study.evaluate(pool, order, actions)
        for run in range(4):
            found = hindsight(actions[run], pool.predictions[order[run]], pool.labels[order[run]])
            assert counts["mistakes"][run] == found.mistakes
            assert counts["abstentions"][run] == found.abstentions
            assert counts["mistake_regret"][run] == found.mistake_regret
            if found.excess_abstentions is None:
                assert counts["excess"][run].isnan()
            else:
                assert counts["excess"][run] == found.excess_abstentions
            if found.best_mistakes == 0:
                assert counts["perfect"][run] == found.best_abstentions


def test_the_strict_pool_has_an_expert_without_mistakes_and_the_tolerant_one_has_none(study: ModuleType) -> None:
    pools = study.make_pools()
    wrong = {name: pool.wrong.sum(0) for name, pool in pools.items()}
    assert wrong["strict"][study.REFERENCE] == 0
    assert wrong["tolerant"].min() > 0
    silent = pools["strict"].predictions[:, study.REFERENCE] == ABSTAIN
    assert torch.equal(pools["strict"].labels[silent], pools["tolerant"].labels[silent])


def test_means_of_strict_runs_are_within_the_derived_bounds(study: ModuleType, pools: dict) -> None:
    pool, rounds = pools["strict"], 300
    order = study.streams_of(pool, 20, rounds)
    experts = pool.predictions.shape[1]
    for name in study.POWERS:
        rate, eta = study.rates_of(name, rounds, experts)
        counts = study.evaluate(pool, order, study.simulate(pool, order, rate, eta))
        limits = study.bounds(rounds, experts, rate, eta, counts["perfect"].mean().item())
        for key, limit in limits.items():
            assert counts[key].mean() <= limit, (name, key)


def test_bounds_are_the_formulas_of_the_page(study: ModuleType) -> None:
    rounds, experts = 1000, 20
    rate, eta = study.rates_of("T^-1/2", rounds, experts)
    found = study.bounds(rounds, experts, rate, eta, perfect=100.0)
    root = math.sqrt(rounds * math.log(experts))
    assert found["excess_of_perfect"] == pytest.approx(math.sqrt(rounds) + root + 100 * math.log(experts) / root)
    assert found["mistakes"] == pytest.approx(min(19, math.log(experts) + eta * (1 + eta) * 100) * math.sqrt(rounds))
    # with as many abstentions as rounds, the published form of the first
    assert study.bounds(rounds, experts, rate, eta, rounds)["excess_of_perfect"] == pytest.approx(
        math.sqrt(rounds) + 2 * root
    )


def test_nothing_to_compare_with_is_left_out_of_a_mean(study: ModuleType) -> None:
    found = study.summary(torch.tensor([1.0, math.nan, 3.0], dtype=torch.float64))
    assert (found["mean"], found["runs"]) == (2.0, 2)
    assert found["sd"] == pytest.approx(math.sqrt(2))
    assert study.fewest(torch.tensor([[3.0, 5.0]]), torch.tensor([[False, False]])).isnan().all()


def test_the_study_is_reported_drawn_and_drawn_again_from_its_results(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "CLASSIFIERS", 2)
    monkeypatch.setattr(study, "LENGTHS", (20, 40))
    monkeypatch.setattr(study, "TOLERANCE_LENGTH", 30)
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "PICTURE", tmp_path / "picture.png")
    monkeypatch.setattr(study, "save", lambda name, record: (tmp_path / f"{name}.json").write_text(json.dumps(record)))
    study.main(["--runs", "3"])
    first = capsys.readouterr().out
    assert "3 runs" in first
    assert 10_000 < study.PICTURE.stat().st_size < 150_000
    study.PICTURE.unlink()
    study.main(["--draw"])
    assert capsys.readouterr().out == first
    assert study.PICTURE.exists()
