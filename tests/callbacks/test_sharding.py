"""Each callback either works where parameters are sharded, or refuses that before anything is trained."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from sharded_worker import data
from torch import Tensor, nn

from lightning_efficient import callbacks
from lightning_efficient.callbacks import (
    FPTT,
    ChunkedBackprop,
    Constraint,
    DiSK,
    ExactResume,
    FiniteLoss,
    GradualPruning,
    GuideSchedule,
    LatencyProfiler,
    QuantizationAware,
    SelectiveCoverage,
    from_forward,
)
from lightning_efficient.callbacks.energy_meter import EnergyMeter
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.metrics import RiskCoverageCurve
from lightning_efficient.rng import capture_rng

STRATEGIES = {"FSDP": FSDPStrategy, "FSDP2": ModelParallelStrategy, "DeepSpeed": DeepSpeedStrategy}
WORK: dict[type[L.Callback], Callable[[], L.Callback]] = {
    SelectiveCoverage: SelectiveCoverage,
    FiniteLoss: FiniteLoss,
    ExactResume: ExactResume,
    EnergyMeter: EnergyMeter,
    Constraint: lambda: Constraint("train_loss", at_most=0.5),
}
REFUSE: dict[type[L.Callback], Callable[[], L.Callback]] = {
    ChunkedBackprop: lambda: ChunkedBackprop(parts=2),
    FPTT: lambda: FPTT(parts=2),
    DiSK: lambda: DiSK(nn.Linear(4, 3)),
    GuideSchedule: lambda: GuideSchedule(multiplier=1.0),
    GradualPruning: GradualPruning,
    QuantizationAware: QuantizationAware,
    LatencyProfiler: LatencyProfiler,
}
EXCEPTIONS = {(Constraint, "DeepSpeed")}
"""Constraint says why: the steps of the optimiser are out of sight."""


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch).mean()


def sharding(monkeypatch: pytest.MonkeyPatch, kind: type[Strategy], *others: L.Callback) -> L.Trainer:
    """A Trainer with a strategy that cannot be set up on this machine."""
    run = L.Trainer(accelerator="cpu", logger=False, callbacks=list(others), enable_checkpointing=False)
    strategy = kind.__new__(kind)
    if kind is ModelParallelStrategy:
        monkeypatch.setattr(kind, "distributed_sampler_kwargs", {"num_replicas": 1, "rank": 0})
    monkeypatch.setattr(type(run), "strategy", strategy, raising=False)
    return run


def test_no_callback_is_forgotten() -> None:
    exported = {getattr(callbacks, name) for name in callbacks.__all__}
    classes = {each for each in exported if inspect.isclass(each) and issubclass(each, L.Callback)}
    assert classes | {EnergyMeter} == WORK.keys() | REFUSE.keys()
    assert not WORK.keys() & REFUSE.keys()


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        pytest.param(kind, strategy, id=f"{kind.__name__}-{strategy}")
        for kind in REFUSE
        for strategy in STRATEGIES
        if (kind, strategy) not in EXCEPTIONS
    ],
)
def test_what_needs_whole_parameters_refuses_shards(
    kind: type[L.Callback], strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = REFUSE[kind]()
    run = sharding(monkeypatch, STRATEGIES[strategy], callback)
    with pytest.raises(ConfigurationError, match=STRATEGIES[strategy].__name__) as refused:
        callback.setup(run, Net(), "fit")
    assert str(refused.value).startswith(kind.__name__)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", WORK, ids=lambda kind: kind.__name__)
def test_the_others_are_set_up(kind: type[L.Callback], strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = WORK[kind]()
    run = sharding(monkeypatch, STRATEGIES[strategy], callback)
    if (kind, strategy) in EXCEPTIONS:
        with pytest.raises(ConfigurationError, match="DeepSpeed"):
            callback.setup(run, Net(), "fit")
    else:
        callback.setup(run, Net(), "fit")


def test_a_forward_pass_outside_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = SelectiveCoverage(predictions=from_forward)
    with pytest.raises(ConfigurationError, match="SelectiveCoverage: from_forward runs the module outside of FSDP"):
        callback.setup(sharding(monkeypatch, FSDPStrategy, callback), Net(), "fit")


def test_samples_that_several_ranks_see_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = SelectiveCoverage()
    run = sharding(monkeypatch, ModelParallelStrategy, callback)
    monkeypatch.setattr(type(run), "world_size", 4)
    with pytest.raises(ConfigurationError, match=r"would count each sample 4 times; .* tensor_parallel_size=1"):
        callback.setup(run, Net(), "fit")


@pytest.mark.parametrize("late", [True, False], ids=["after the set-up", "before it"])
def test_random_states_are_restored_where_the_checkpoint_comes_after_the_set_up(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = ExactResume()
    run = sharding(monkeypatch, FSDPStrategy)
    monkeypatch.setattr(type(run), "world_size", 1)
    monkeypatch.setattr(type(run), "global_rank", 0)
    monkeypatch.setattr(FSDPStrategy, "restore_checkpoint_after_setup", late)
    torch.manual_seed(1)
    checkpoint = {"callbacks": {callback.state_key: {"per_rank": [capture_rng()], "epoch_is_over": True}}}
    expected = torch.rand(3)
    torch.manual_seed(2)
    callback.on_fit_start(run, Net())
    callback.on_load_checkpoint(run, Net(), checkpoint)
    assert torch.equal(torch.rand(3), expected) is late


# ---- FSDP2 on two processes


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What ``sharded_worker.py`` found in each process."""
    folder = tmp_path_factory.mktemp("sharded")
    script = Path(__file__).with_name("sharded_worker.py")
    done = subprocess.run([sys.executable, script, folder], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def alike(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_shards_that_are_observed_train_as_those_that_are_not(sharded: Any) -> None:
    first, second = sharded[1]
    assert alike(first["observed"], first["without"])
    assert alike(first["observed"], second["observed"])


@pytest.mark.slow
def test_a_resumed_run_of_shards_ends_with_the_weights_of_the_uninterrupted_one(sharded: Any) -> None:
    for rank in sharded[1]:
        assert alike(rank["resumed"], rank["observed"])


@pytest.mark.slow
def test_coverage_is_that_of_the_whole_model_over_all_samples(sharded: Any) -> None:
    first, second = sharded[1]
    whole = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(6, 4)).eval()
    whole.load_state_dict({name.removeprefix("net."): value for name, value in first["observed"].items()})
    metric = RiskCoverageCurve()
    with torch.no_grad():
        for x, target in data():
            metric.update(whole(x), target)
    for rank in (first, second):
        for found, expected in zip(rank["confidence_and_loss"], metric.samples(), strict=True):
            torch.testing.assert_close(found.double().sort().values, expected.double().sort().values)


@pytest.mark.slow
def test_joules_of_both_processes_are_summed(sharded: Any) -> None:
    found = json.loads((sharded[0] / "observed" / "energy.json").read_text())
    # readings of one joule and of two; 40 samples in each of two epochs, 20 of them in each process
    assert found["joules"] == 3 * (found["train_seconds"] + found["val_seconds"]) / 0.5
    assert (found["samples"], found["steps"], found["complete"]) == (80, 10, True)
    resumed = json.loads((sharded[0] / "resumed" / "energy.json").read_text())
    assert (resumed["samples"], resumed["steps"], resumed["complete"]) == (80, 10, True)


@pytest.mark.slow
def test_a_constraint_moves_alike_on_both_and_changes_the_training(sharded: Any) -> None:
    first, second = sharded[1]
    assert first["multiplier"] == second["multiplier"] > 0
    assert alike(first["constrained"], second["constrained"])
    assert not alike(first["constrained"], first["without"])


@pytest.mark.slow
def test_a_nan_in_the_shard_of_one_process_stops_both_before_a_checkpoint(sharded: Any) -> None:
    folder, ranks = sharded
    for rank in ranks:
        assert "the weights hold NaN or infinite values at step 5" in rank["spoilt"]
    assert not list((folder / "spoilt").rglob("*.ckpt"))
