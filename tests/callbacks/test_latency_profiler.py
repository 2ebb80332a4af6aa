from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_efficient.callbacks.latency_profiler import LatencyProfiler
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling import Footprint
from lightning_efficient.profiling.energy import EnergyCounter

QUICK = {"min_run_time_s": 0.01}
MACS = 4 * 8 + 8 * 2


class Net(LightningModule):
    """Four numbers in, two out, with what a careless measurement would disturb."""

    def __init__(self, key: str | int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[self.key]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[self.key])

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Words(torch.utils.data.Dataset):
    """Samples that are dicts."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"label": torch.tensor(index), "image": torch.full((4,), float(index))}


def pairs(samples: int = 12) -> DataLoader:
    return DataLoader([(torch.full((4,), float(i)), i) for i in range(samples)], batch_size=4)


def trainer(tmp_path: Path, *callbacks: LatencyProfiler, **options: Any) -> Trainer:
    options = {"max_epochs": 2, "logger": False, **options}
    return Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def test_a_fit_ends_with_a_footprint_in_the_logs_and_in_the_run_folder(tmp_path: Path) -> None:
    callback = LatencyProfiler(batch_sizes=(1, 4), threads=1, **QUICK)
    logger = CSVLogger(tmp_path, name="run", version=0)
    trainer(tmp_path, callback, logger=logger).fit(Net(), pairs(), pairs())
    footprint = callback.footprint
    assert (footprint.name, footprint.macs, footprint.input_shape) == ("Net", MACS, (4,))
    assert sum(layer.macs for layer in footprint.layers) == MACS
    assert (footprint.training, footprint.variants, footprint.left_out) == (None, None, ())
    assert [(each.batch_size, each.threads) for each in footprint.latencies] == [(1, 1), (4, 1)]

    folder = tmp_path / "run" / "version_0"
    assert Footprint.from_dict(json.loads((folder / "profile.json").read_text())) == footprint
    assert (folder / "profile.csv").read_text().splitlines()[0] == ",".join(Footprint.columns)
    assert (folder / "profile.png").read_bytes().startswith(b"\x89PNG")
    header, *values = (folder / "metrics.csv").read_text().splitlines()
    logged = dict(zip(header.split(","), values[-1].split(","), strict=True))
    assert float(logged["profile/macs"]) == MACS
    assert float(logged["profile/latency_ms_p50_b4"]) == pytest.approx(footprint.latencies[1].p50_ms)


@pytest.mark.parametrize("when", ["fit_end", "fit_start", "both"])
def test_weights_after_training_are_those_without_the_callback(tmp_path: Path, when: str) -> None:
    def weights(*callbacks: LatencyProfiler) -> dict[str, Tensor]:
        seed_everything(0)
        net = Net()
        trainer(tmp_path, *callbacks).fit(net, pairs(), pairs())
        return net.state_dict()

    plain, profiled = weights(), weights(LatencyProfiler(when=when, **QUICK))
    assert all(torch.equal(plain[name], profiled[name]) for name in plain)


def test_more_is_measured_where_it_is_asked_for_and_the_training_is_the_same(tmp_path: Path) -> None:
    def weights(*callbacks: LatencyProfiler) -> dict[str, Tensor]:
        seed_everything(0)
        net = Net()
        trainer(tmp_path, *callbacks).fit(net, pairs())
        return net.state_dict()

    asked = LatencyProfiler(when="fit_start", layers=0, variants=["bf16"], training_memory=True, **QUICK)
    plain, profiled = weights(), weights(asked)
    assert all(torch.equal(plain[name], profiled[name]) for name in plain)
    assert [row.name for row in asked.footprint.variants.rows] == ["float", "bf16"]
    assert asked.footprint.variants.rows[1].reason is None
    assert asked.footprint.training.batch_size == 2
    assert not (tmp_path / "profile.png").exists()


def test_what_does_not_fit_the_time_budget_is_told_in_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="left out: latency at batch 1, threads .*does not fit into 1e-06 s"):
        trainer(tmp_path, LatencyProfiler(layers=0, time_budget_s=1e-6), max_epochs=1).fit(Net(), pairs())


def test_energy_that_no_meter_tells_is_told_in_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EnergyCounter, "available", lambda self: "no counters here")
    profiler = LatencyProfiler(layers=0, energy=True, min_run_time_s=0.01)
    with pytest.warns(UserWarning, match=r"left out: energy: no meter \(no counters here\)"):
        trainer(tmp_path, profiler, max_epochs=1).fit(Net(), pairs())
    assert profiler.footprint.energy_mj is None


class Counting(LatencyProfiler):
    """Writes down at which step it measured."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps: list[int] = []

    def measure(self, trainer: Trainer, pl_module: LightningModule, example: Any = None) -> Footprint:
        self.steps.append(trainer.global_step)
        return super().measure(trainer, pl_module, example)


@pytest.mark.parametrize(("when", "steps"), [("fit_start", [0]), ("fit_end", [6]), ("both", [0, 6])])
def test_it_measures_when_it_is_asked_to(tmp_path: Path, when: str, steps: list[int]) -> None:
    callback = Counting(when=when, **QUICK)
    trainer(tmp_path, callback).fit(Net(), pairs())
    assert callback.steps == steps


def test_a_test_without_a_fit_measures_and_one_after_a_fit_does_not_again(tmp_path: Path) -> None:
    fresh = Counting(**QUICK)
    trainer(tmp_path, fresh).test(Net(), pairs(), verbose=False)
    assert len(fresh.steps) == 1
    assert fresh.footprint.macs == MACS

    fitted, net = Counting(**QUICK), Net()
    run = trainer(tmp_path, fitted)
    run.fit(net, pairs())
    run.test(net, pairs(), verbose=False)
    assert fitted.steps == [6]


def test_the_first_sample_is_kept_alone_and_only_once(tmp_path: Path) -> None:
    callback = LatencyProfiler(**QUICK)
    seen: list[Any] = []

    class Watch(Net):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(callback._sample)

    trainer(tmp_path, callback).fit(Watch(), pairs())
    assert all(sample is seen[0] for sample in seen)
    assert seen[0].tolist() == [[0.0] * 4]
    assert seen[0].untyped_storage().nbytes() == 4 * 4


@pytest.mark.parametrize("choose", ["image", lambda batch: batch["image"]], ids=["key", "function"])
def test_a_dict_batch_needs_the_name_of_the_input(tmp_path: Path, choose: Any) -> None:
    callback = LatencyProfiler(input=choose, **QUICK)
    trainer(tmp_path, callback).fit(Net(key="image"), DataLoader(Words(), batch_size=4))
    assert callback.footprint.macs == MACS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"a dict with keys \['label', 'image'\], is the model's input\? Name it with input="),
        ({"input": "imag"}, "input='imag' is not a key of the batch.* Did you mean 'image'"),
        ({"input": lambda batch: batch["label"]}, "Net.forward does not take what input= picks"),
        ({"input_shape": (5,)}, r"Net.forward does not take an input of shape \(5,\)"),
    ],
)
def test_an_input_that_cannot_work_is_told_at_the_first_batch(tmp_path: Path, options: dict, words: str) -> None:
    net = Net(key="image")
    with pytest.raises(ConfigurationError, match=words):
        trainer(tmp_path, LatencyProfiler(**options)).fit(net, DataLoader(Words(), batch_size=4))
    assert net.training


def test_an_input_shape_is_used_instead_of_the_data(tmp_path: Path) -> None:
    callback = LatencyProfiler(input_shape=[4], **QUICK)
    trainer(tmp_path, callback).fit(Net(key="image"), DataLoader(Words(), batch_size=4))
    assert callback.footprint.macs == MACS


def test_on_demand_an_example_the_shape_or_the_modules_own_example_is_measured() -> None:
    net = Net()
    assert LatencyProfiler(**QUICK).measure(None, net, torch.zeros(3, 4)).macs == MACS
    assert LatencyProfiler(input_shape=(4,), **QUICK).measure(None, net).macs == MACS
    with pytest.raises(ConfigurationError, match="give Net an example_input_array"):
        LatencyProfiler().measure(None, net)
    net.example_input_array = torch.zeros(2, 4)
    callback = LatencyProfiler(**QUICK)
    assert callback.measure(None, net) is callback.footprint


def test_mixed_precision_is_measured_as_it_is_trained(tmp_path: Path) -> None:
    callback = LatencyProfiler(**QUICK)
    trainer(tmp_path, callback, precision="bf16-mixed", max_epochs=1).fit(Net(), pairs())
    assert callback.footprint.latencies[0].precision == "bf16-mixed"


def test_true_half_precision_is_measured_as_it_is_trained(tmp_path: Path) -> None:
    callback = LatencyProfiler(**QUICK)
    trainer(tmp_path, callback, precision="bf16-true", max_epochs=1).fit(Net(), pairs(), pairs())
    assert callback.footprint.latencies[0].precision == "bf16-true"


def test_a_fast_dev_run_measures_and_writes_nothing(tmp_path: Path) -> None:
    callback = LatencyProfiler(min_run_time_s=1000)
    trainer(tmp_path, callback, fast_dev_run=True, max_epochs=None).fit(Net(), pairs(), pairs())
    assert callback.footprint.macs == MACS
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_module_is_measured_like_the_module(tmp_path: Path) -> None:
    callback = LatencyProfiler(**QUICK)
    trainer(tmp_path, callback, max_epochs=1).fit(torch.compile(Net(), backend="eager"), pairs())
    assert callback.footprint.macs == MACS
    assert callback.footprint.name == "Net"


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    callback = LatencyProfiler(**QUICK)
    with pytest.warns(UserWarning, match=r"profile.json could not be written"):
        trainer(tmp_path / "file", callback, max_epochs=1).fit(Net(), pairs())
    assert callback.footprint.macs == MACS


def test_nothing_is_kept_for_checkpoints() -> None:
    assert LatencyProfiler().state_dict() == {}


def test_a_strategy_that_shards_the_model_is_refused() -> None:
    class Sharded:
        strategy = FSDPStrategy()

    with pytest.raises(ConfigurationError, match="FSDPStrategy shards the parameters"):
        LatencyProfiler().setup(Sharded(), Net(), "fit")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"when": "fitend"}, "Did you mean 'fit_end'"),
        ({"batch_sizes": [1, 0]}, "batch sizes must be 1 or more"),
        ({"threads": 0}, "threads must be 1 or more"),
        ({"min_run_time_s": 0}, "must be positive"),
        ({"layers": -1}, "layers must be 0 or more, got -1"),
        ({"variants": ["bf61"]}, "Did you mean 'bf16'"),
        ({"time_budget_s": 0}, "time_budget_s must be above 0"),
    ],
)
def test_options_that_cannot_work_are_refused_before_the_training(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        LatencyProfiler(**options)


def test_layers_that_the_macs_leave_out_are_named_in_a_warning(tmp_path: Path) -> None:
    class Gated(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Bilinear(4, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.gate(x, x))

    with pytest.warns(UserWarning, match="leave out gate"):
        trainer(tmp_path, LatencyProfiler(**QUICK), max_epochs=1).fit(Gated(), pairs())


def fit_and_test_on_two_processes(folder: str) -> None:
    callback = LatencyProfiler(when="both", **QUICK)
    run = trainer(Path(folder), callback, max_epochs=1, strategy="ddp_fork", devices=2)
    run.fit(Net(), pairs(), pairs())
    run.test(Net(), pairs(), verbose=False)


@pytest.mark.slow
def test_with_two_processes_the_first_measures_and_the_other_waits(tmp_path: Path) -> None:
    # in an interpreter of its own: one that has run a backward pass may refuse to be forked
    code = f"import {Path(__file__).stem} as this; this.fit_and_test_on_two_processes({str(tmp_path)!r})"
    subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True, timeout=120
    )
    assert json.loads((tmp_path / "profile.json").read_text())["macs"] == MACS
