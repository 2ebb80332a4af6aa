"""The study of routers on digits, at toy size, and what it is for: a router that beats a plain confidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

TOY = {"copies": 2, "epochs": {"base": 1, "global": 1}}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("digit_scenarios")


@pytest.fixture
def study(data: ModuleType, load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("hybrid_digits")


@pytest.fixture
def toy(study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    # ``save`` and ``draw`` look into the folder by this name
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr("harness.RESULTS", tmp_path)
    monkeypatch.setattr(study, "ROUTER_EPOCHS", 1)
    monkeypatch.setattr(study, "EXTRA_EPOCHS", {"base": 1, "global": 1})
    for part in ("router", "calibration", "test"):
        monkeypatch.setitem(study.COPIES, part, 1)
    return study


def test_no_image_is_in_two_parts(data: ModuleType) -> None:
    parts = data.digits(0)
    images = [image.numpy().tobytes() for images, _ in parts.values() for image in images]
    assert {name: len(labels) for name, (_, labels) in parts.items()} == data.PARTS
    assert len(images) == 1797
    assert len(set(images)) == len(images)
    assert not torch.equal(data.digits(1)["test"][1], parts["test"][1])


def test_every_copy_of_an_image_is_corrupted_anew_and_the_seed_says_how(data: ModuleType) -> None:
    images, labels = data.digits(0)["train"]
    part = (images[:5], labels[:5])
    inputs, targets = data.inputs_of(part, data.SCENARIOS["plain"], 3, seed=1)
    assert inputs.shape == (15, 1, 16, 16)
    assert targets.tolist() == labels[:5].tolist() * 3
    assert len({each.numpy().tobytes() for each in inputs}) == 15
    assert torch.equal(inputs, data.inputs_of(part, data.SCENARIOS["plain"], 3, seed=1)[0])
    assert not torch.equal(inputs, data.inputs_of(part, data.SCENARIOS["plain"], 3, seed=2)[0])


def test_a_fifth_of_mixed_inputs_is_lost_in_noise(data: ModuleType) -> None:
    blank = (torch.zeros(2000, 1, 16, 16), torch.zeros(2000, dtype=torch.long))
    inputs, _ = data.inputs_of(blank, data.SCENARIOS["mixed"], 1, seed=0)
    noise = inputs.std((1, 2, 3)) * data.STD
    hopeless = noise > (data.NOISE + data.HOPELESS_NOISE) / 2
    assert float(hopeless.float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float(noise[hopeless].mean()) == pytest.approx(data.HOPELESS_NOISE, rel=0.05)
    assert float(noise[~hopeless].mean()) == pytest.approx(data.NOISE, rel=0.05)


def test_only_the_large_network_misses_classes(data: ModuleType) -> None:
    scenario = data.SCENARIOS["specialist"]
    pair = data.trained_pair(scenario, data.digits(0)["train"], 0, **TOY)
    shares = [
        float(torch.isin(labels, torch.tensor(scenario.weak)).float().mean())
        for labels in (pair.base_data[1], pair.global_data[1])
    ]
    assert shares[0] == pytest.approx(0.4, abs=0.05)
    assert 0 < shares[1] < 0.05
    assert not pair.base.training
    assert not pair.global_model.training


def test_the_networks_cost_what_their_docstrings_say(data: ModuleType, study: ModuleType) -> None:
    example = torch.zeros(1, 1, 16, 16)
    assert study.count_macs(data.base_network().eval(), example).macs == 23_680
    assert study.count_macs(data.global_network().eval(), example).macs == 1_070_336


def test_every_router_is_fitted_reported_and_drawn(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = dict(TOY)
    found = toy.run(toy.SCENARIOS["specialist"], 0, settings)
    assert list(found["routers"]) == [*toy.ROUTERS, toy.OWN_IMAGES]
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(toy.run(toy.SCENARIOS["specialist"], 0, settings)))
    for result in found["routers"].values():
        # all queries and none: both networks alone, whatever the router
        assert result["curve"][0] == pytest.approx(found["global"], abs=1e-5)
        assert result["curve"][-1] == pytest.approx(found["base"], abs=1e-5)
        assert result["gap"] == pytest.approx(found["oracle_area"] - result["area"])
        for key in ("0.9", "0.7", "0.5"):
            assert result[key]["equal"] <= found["oracle"][key] + 1e-9
            assert 0 < result[key]["coverage"] <= 1
    record = {"scenarios": {"specialist": {"0": found, "1": found}}}
    toy.report(record)
    printed = capsys.readouterr().out
    assert "specialist, 2 seeds" in printed
    assert "± 0.00 points; wanted at least +1" in printed
    toy.save(toy.NAME, record)
    toy.draw(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_scenarios_that_are_left_out_stay_as_they_were_saved(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "run", lambda scenario, seed: {"seed": seed, "hopeless": scenario.hopeless})
    monkeypatch.setattr(toy, "report", lambda record: None)
    toy.study(["mixed", "plain"], 2)
    toy.study(["plain"], 1)
    saved = json.loads((tmp_path / "hybrid_digits.json").read_text())["scenarios"]
    assert {name: list(runs) for name, runs in saved.items()} == {"plain": ["0"], "mixed": ["0", "1"]}
    assert saved["mixed"]["1"] == {"seed": 1, "hopeless": 0.2}


@pytest.mark.parametrize(
    ("scenario", "ahead", "met"),
    [("specialist", 0.012, True), ("specialist", 0.008, False), ("plain", -0.004, True), ("plain", 0.006, False)],
)
def test_a_goal_is_met_or_said_not_to_be(study: ModuleType, scenario: str, ahead: float, met: bool) -> None:
    routers = {"msp": {"0.7": {"equal": 0.7}}, "gain": {"0.7": {"equal": 0.7 + ahead}}}
    [said] = study.goals({"scenarios": {scenario: {"0": {"routers": routers}}}})
    assert said.startswith(f"{scenario}: gain over msp at 0.7 is {100 * ahead:+.2f} points")
    assert said.endswith(": NOT met") is not met


@pytest.mark.study
def test_with_a_specialist_the_gain_router_is_ahead_of_the_largest_probability(study: ModuleType) -> None:
    # the same study with fewer copies and epochs: large networks that are worse, but as uneven
    scenario = study.SCENARIOS["specialist"]
    parts = study.digits(0)
    pair = study.trained_pair(scenario, parts["train"], 0, copies=8, epochs={"base": 8, "global": 4})
    asked = study.ask(pair, scenario, parts, 0)
    found = {
        name: study.evaluated(study.fitted(name, asked["router"], 0), asked) for name in ("msp", "entropy", "gain")
    }
    assert found["gain"]["gap"] < min(found["msp"]["gap"], found["entropy"]["gap"])
    assert 100 * (found["gain"]["0.7"]["equal"] - found["msp"]["0.7"]["equal"]) >= 1
