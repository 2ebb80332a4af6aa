from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lightning_efficient import Digits, TorchvisionImages

FOLDER = Path(__file__).parents[2] / "benchmarks"
SLOW = {"timm", "sklearn", "wandb", "pandas"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # studies run as scripts, so their own folder is where they find it
    module = load("harness")
    monkeypatch.setitem(sys.modules, "harness", module)
    return module


@pytest.fixture
def startup(harness: ModuleType) -> ModuleType:
    return load("startup")


@pytest.fixture
def overhead(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("callback_overhead")
    monkeypatch.setattr(module, "data", lambda: Digits(train_samples=64, image_size=8))
    monkeypatch.setattr(module, "UNTIMED_STEPS", 2)
    return module


def test_help_version_and_configs_load_neither_torch_nor_lightning(startup: ModuleType, tmp_path: Path) -> None:
    found = startup.light(rounds=1, bytecode=tmp_path)
    assert found["loads"] == {"--help": [], "--version": [], "configs ls": []}
    assert all(seconds[0] > 0 for kind in ("cpu", "wall") for seconds in found["seconds"][kind].values())


def test_a_heavy_import_of_a_command_is_seen(startup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pandas.py").write_text("")
    (tmp_path / "script.py").write_text("import pandas\n")
    assert startup.loaded([sys.executable, tmp_path / "script.py"], tmp_path / "bytecode") == ["pandas"]


def test_nothing_slow_is_imported_before_it_is_used() -> None:
    # each would cost `fit --help` more than the 0.2 times of a bare LightningCLI that it may take on top
    package = FOLDER.parent / "lightning_efficient"
    files = {path: ast.parse(path.read_text()) for path in package.rglob("*.py")}
    found = {path.name: SLOW & set(imported(tree)) for path, tree in files.items()}
    assert len(found) > 20
    assert {name: packages for name, packages in found.items() if packages} == {}


def imported(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def test_fit_help_is_compared_with_every_script(
    startup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "FIT_HELP", ["--help"])
    monkeypatch.setattr(startup, "SCRIPTS", dict.fromkeys(startup.SCRIPTS, "pass\n"))
    found = startup.fit_help(rounds=2, bytecode=tmp_path / "bytecode", scripts=tmp_path)
    ours, bare = (found["seconds"]["cpu"][name] for name in (startup.OURS, "bare LightningCLI"))
    middle = (ours[0] / bare[0] + ours[1] / bare[1]) / 2
    assert found["ratios"]["bare LightningCLI"]["cpu"]["median"] == pytest.approx(middle)
    assert found["reached"] == (middle <= 1.2)


def test_the_data_are_found_by_an_environment_variable_and_not_by_a_recorded_argument(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = load("callback_overhead")
    monkeypatch.delenv(study.DATA_VARIABLE, raising=False)
    assert isinstance(study.data(), Digits)
    monkeypatch.setenv(study.DATA_VARIABLE, str(tmp_path))
    images = study.data()
    assert isinstance(images, TorchvisionImages)
    assert (images.root, images.train_samples) == (str(tmp_path), 6000)


def test_microseconds_are_added_round_by_round(overhead: ModuleType) -> None:
    found = overhead.added([3e-6, 12e-6, 104e-6], [1e-6, 10e-6, 100e-6])
    assert found == pytest.approx({"median": 2.0, "low": 2.0, "high": 3.6})


def test_only_hooks_that_a_callback_overrides_are_timed(overhead: ModuleType) -> None:
    watch = overhead.Stopwatch()
    spent = overhead.timed_hooks(watch)
    watch.on_train_epoch_start(None, None)
    watch.on_train_batch_start(None, None, None, 0)
    watch.on_train_epoch_end(None, None)
    assert set(spent) == {"on_train_epoch_start", "on_train_epoch_end"}
    assert 0 < watch.seconds < 1


METHODS = ("bare", "EnergyMeter", "Constraint", "GradualPruning, weights")


def test_steps_and_an_epoch_are_measured_and_reported(
    overhead: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "BACKBONE", "test_efficientnet")
    monkeypatch.setattr(overhead, "METHOD_VARIANTS", {name: overhead.METHOD_VARIANTS[name] for name in METHODS})
    step, epoch = overhead.steps(1, 3, str(tmp_path)), overhead.epochs(1, str(tmp_path))
    method = overhead.methods(1, 5, str(tmp_path))
    record = {"step": step, "method": method, "epoch": epoch}
    assert set(method["ratio"]) == set(METHODS) - {"bare"}
    assert list(step["cpu_seconds_per_step"]) == list(overhead.STEP_VARIANTS)
    assert all(0 < seconds[0] < 1 for seconds in step["cpu_seconds_per_step"].values())
    assert set(step["over_empty_us"]) == set(overhead.STEP_VARIANTS) - {"bare", "bare again", "empty Callback"}
    assert epoch["job"] | {"train": 64, "val": 300, "data": "Digits"} == epoch["job"]
    assert epoch["own_share"] == pytest.approx(epoch["own_seconds"][0] / epoch["seconds"]["SelectiveCoverage"][0])
    assert epoch["hook_seconds"]["on_validation_batch_end"] > 0
    assert str(tmp_path) not in json.dumps(record)
    overhead.report(record)
    assert "64 to train" in capsys.readouterr().out


@pytest.mark.parametrize("processes", [False, True])
def test_risk_coverage_metrics_are_measured_and_reported(
    harness: ModuleType, processes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load("risk_coverage")
    # the peer is no dependency of the tests: ours stands in for it
    monkeypatch.setitem(study.VARIANTS, study.PEER, study.our_metrics)
    asked = []
    monkeypatch.setattr(study, "peak_bytes", lambda *arguments: asked.append(arguments) or 5_000_000)
    record = study.compare(2500, batch=1000, rounds=2, processes=processes)
    variants = record["variants"]
    assert asked == ([(name, 2500, 1000) for name in study.VARIANTS] if processes else [])
    assert variants["ours, exact"]["difference"] == dict.fromkeys(study.NAMES, 0.0)
    assert variants["ours, exact"]["state_bytes"] == 5 * 2500 + 8
    assert variants["ours, 1000 bins"]["state_bytes"] == 16 * 1000 + 8 + 2
    assert variants["ours, 1000 bins"]["values"]["AURC"] == pytest.approx(
        variants["ours, exact"]["values"]["AURC"], abs=1e-3
    )
    for found in variants.values():
        assert found["seconds"]["total"]["low"] >= found["seconds"]["update"]["low"] > 0
        assert ("peak_bytes" in found) == processes
    study.report(record)
    assert "2,500 samples" in capsys.readouterr().out


def test_the_data_of_the_risk_coverage_study_come_in_batches(harness: ModuleType) -> None:
    batches = load("risk_coverage").make_data(2500, batch=1000)
    assert [len(target) for _, target in batches] == [1000, 1000, 500]
    accuracy = sum((probs.argmax(-1) == target).sum().item() for probs, target in batches) / 2500
    assert 0.6 < accuracy < 0.75


def test_a_longer_evaluation_needs_more_memory(harness: ModuleType) -> None:
    study = load("risk_coverage")
    # 2e6 samples have a state of 10 MB, and as much again while it is merged and sorted
    assert study.growth(study.our_metrics(), 2_000_000, batch=100_000) > 10_000_000
