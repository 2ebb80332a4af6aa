"""The energy of a run is the sum of its windows, is told apart by phase and epoch, and goes on after a resume."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.callbacks import energy_meter
from lightning_efficient.callbacks.energy_meter import EnergyMeter
from lightning_efficient.errors import ConfigurationError, MissingExtraError
from lightning_efficient.profiling.energy import EnergyReading, MeterError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`", "ignore:You're resuming from a checkpoint", "ignore:The dirpath has"
)


class Counter:
    """Reads joules and seconds that the module spends, and fails where it is told to."""

    def __init__(self, reason: str | None = None, fails_after: int | None = None) -> None:
        self.reason, self.fails_after = reason, fails_after
        self.spent = 0.0
        self.open: dict[str, float] = {}
        self.ends = 0

    def available(self) -> str | None:
        return self.reason

    def begin(self, key: str) -> None:
        assert key not in self.open
        self.open[key] = self.spent

    def end(self, key: str) -> EnergyReading:
        self.ends += 1
        if self.fails_after is not None and self.ends > self.fails_after:
            raise MeterError("the counter of cpu:0 ran backwards (-3 J)")
        joules = self.spent - self.open.pop(key)
        return EnergyReading(joules, joules / 4, {"cpu:0": joules / 4, "gpu:0": 3 * joules / 4})


class Net(L.LightningModule):
    """Spends 2 J on a training batch and 1 J on a validation batch."""

    def __init__(self, counter: Counter | None = None, breaks_at: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
        self.counter, self.breaks_at = counter or Counter(), breaks_at

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.breaks_at == self.global_step:
            raise RuntimeError("broken on purpose")
        self.counter.spent += 2
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.counter.spent += 1
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(batches: int) -> DataLoader:
    x = torch.randn(2 * batches, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x), batch_size=2)


def fit(folder: Path, module: Net, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    """Four training batches and three validation batches an epoch, for two epochs."""
    L.seed_everything(0, verbose=False)
    path = options.pop("ckpt_path", None)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, "logger": False, **options},
    )
    trainer.fit(module, loader(4), loader(3), ckpt_path=path)
    return trainer


def report(folder: Path, name: str = "energy.json") -> dict[str, Any]:
    return json.loads(next(folder.rglob(name)).read_text())


def test_training_and_validation_are_told_apart_and_the_sanity_check_is_in_neither(tmp_path: Path) -> None:
    counter = Counter()
    fit(tmp_path, Net(counter), EnergyMeter(counter=counter))
    assert counter.spent == 2 * (8 + 3) + 2  # Lightning's sanity check takes two batches
    assert counter.open == {}
    found = report(tmp_path)
    assert {key: found[key] for key in ("joules", "train_joules", "val_joules", "steps", "samples")} == {
        "joules": 22,
        "train_joules": 16,
        "val_joules": 6,
        "steps": 8,
        "samples": 16,
    }
    assert (found["joules_per_step"], found["joules_per_sample"], found["average_watts"]) == (2, 1, 4)
    assert (found["complete"], found["gaps"]) == (True, [])
    assert found["devices"] == {"cpu:0": 5.5, "gpu:0": 16.5}
    assert [(row["epoch"], row["train_joules"], row["val_joules"]) for row in found["epochs"]] == [(0, 8, 3), (1, 8, 3)]
    assert "carbon_g" not in found


def test_the_run_folder_gets_a_table_and_a_picture(tmp_path: Path) -> None:
    counter = Counter()
    fit(tmp_path, Net(counter), EnergyMeter(counter=counter))
    with (tmp_path / "energy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], float(row["train_joules"]), float(row["joules_per_step"])) for row in rows] == [
        ("0", 8, 2),
        ("1", 8, 2),
    ]
    assert (tmp_path / "energy.png").read_bytes().startswith(b"\x89PNG")


def test_windows_and_epochs_are_logged(tmp_path: Path) -> None:
    counter = Counter()
    meter = EnergyMeter(carbon_intensity_g_per_kwh=3.6e6, every_n_steps=3, counter=counter)
    fit(tmp_path, Net(counter), meter, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    windows = [row for row in rows if "energy/joules_per_step" in row]
    # a window may reach over the end of an epoch; its power includes validation
    names = ("step", "energy/joules_per_step", "energy/watts")
    assert [[row[name] for name in names] for row in windows] == [[3, 2, 4], [6, 2, 4]]
    epochs = [row for row in rows if "energy/total_joules" in row]
    names = ("train_joules", "val_joules", "joules_per_sample", "total_joules", "carbon_g")
    assert [[row[f"energy/{name}"] for name in names] for row in epochs] == [[8, 3, 1, 11, 11], [8, 3, 1, 22, 22]]
    assert (report(tmp_path)["carbon_g"], report(tmp_path)["carbon_intensity_g_per_kwh"]) == (22, 3.6e6)


def test_a_window_in_which_the_counter_does_not_move_is_not_logged_but_grows(tmp_path: Path) -> None:
    class Slow(Counter):
        def end(self, key: str) -> EnergyReading:
            moved, self.spent = self.spent, 12.0 * (self.spent // 12)
            reading = super().end(key)
            self.spent = moved
            return reading

        def begin(self, key: str) -> None:
            self.open[key] = 12.0 * (self.spent // 12)

    counter = Slow()
    options = {"limit_val_batches": 0, "logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
    fit(tmp_path, Net(counter), EnergyMeter(every_n_steps=1, counter=counter), **options)
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("energy/joules_per_step")]
    assert [(row["step"], float(row["energy/joules_per_step"])) for row in logged] == [("6", 2)]


def test_steps_are_those_of_the_optimiser(tmp_path: Path) -> None:
    counter = Counter()
    fit(tmp_path, Net(counter), EnergyMeter(counter=counter), accumulate_grad_batches=2)
    found = report(tmp_path)
    assert (found["steps"], found["samples"], found["joules_per_step"]) == (4, 16, 4)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_resumed_run_goes_on_counting(epoch: int, tmp_path: Path) -> None:
    counter = Counter()
    save = ModelCheckpoint(tmp_path / "c", filename="{epoch}", save_top_k=-1)
    fit(tmp_path / "whole", Net(counter), EnergyMeter(counter=counter), save)
    path = tmp_path / "c" / f"epoch={epoch}.ckpt"
    torch.load(path, weights_only=True)
    counter = Counter()
    fit(tmp_path / "resumed", Net(counter), EnergyMeter(counter=counter), max_epochs=3, ckpt_path=path)
    found = report(tmp_path / "resumed")
    assert (found["joules"], found["steps"], found["samples"], found["complete"]) == (33, 12, 24, True)
    assert [row["train_joules"] for row in found["epochs"]] == [8, 8, 8]
    assert found["devices"] == {"cpu:0": 8.25, "gpu:0": 24.75}


def test_a_run_resumed_in_mid_epoch_has_that_epoch_once(tmp_path: Path) -> None:
    counter = Counter()
    save = ModelCheckpoint(tmp_path / "c", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(tmp_path / "whole", Net(counter), EnergyMeter(counter=counter), save, max_epochs=1)
    counter = Counter()
    path = tmp_path / "c" / "step=2.ckpt"
    fit(tmp_path / "resumed", Net(counter), EnergyMeter(counter=counter), max_epochs=1, ckpt_path=path)
    [row] = report(tmp_path / "resumed")["epochs"]
    assert (row["epoch"], row["train_joules"], row["steps"]) == (0, 8, 4)


def test_a_run_that_began_without_the_callback_is_marked(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path / "c", filename="{epoch}", save_top_k=-1)
    fit(tmp_path / "first", Net(), save, max_epochs=1)
    counter = Counter()
    fit(tmp_path / "second", Net(counter), EnergyMeter(counter=counter), ckpt_path=tmp_path / "c" / "epoch=0.ckpt")
    found = report(tmp_path / "second")
    assert (found["joules"], found["complete"], found["gaps"]) == (11, False, ["not measured before step 4"])


def test_a_run_that_goes_on_without_a_meter_keeps_what_was_counted(tmp_path: Path) -> None:
    counter = Counter()
    save = ModelCheckpoint(tmp_path / "c", filename="{epoch}", save_top_k=-1)
    fit(tmp_path, Net(counter), EnergyMeter(counter=counter), save, max_epochs=1)
    meter = EnergyMeter(counter=Counter("unplugged"))
    save = ModelCheckpoint(tmp_path / "d", filename="{epoch}", save_top_k=-1)
    fit(tmp_path, Net(), meter, save, max_epochs=2, ckpt_path=tmp_path / "c" / "epoch=0.ckpt")
    state = torch.load(tmp_path / "d" / "epoch=1.ckpt", weights_only=True)["callbacks"]["EnergyMeter[energy]"]
    assert state["gaps"] == ["no meter from step 4: unplugged"]
    assert sum(row["train_joules"] + row["val_joules"] for row in state["epochs"].values()) == 11


def test_an_interrupted_run_leaves_what_it_spent(tmp_path: Path) -> None:
    counter = Counter()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        fit(tmp_path, Net(counter, breaks_at=6), EnergyMeter(counter=counter))
    found = report(tmp_path)
    assert (found["joules"], found["steps"]) == (8 + 3 + 4, 6)
    assert (tmp_path / "energy.png").exists()
    assert counter.open == {}


def test_weights_are_those_of_a_run_that_is_not_measured(tmp_path: Path) -> None:
    counter = Counter()
    measured, plain = Net(counter), Net()
    for module, callbacks in ((measured, [EnergyMeter(every_n_steps=1, counter=counter)]), (plain, [])):
        L.seed_everything(1, verbose=False)
        module.net[0].reset_parameters()
        fit(tmp_path, module, *callbacks)
    assert counter.ends > 8
    assert torch.equal(measured.net[0].weight, plain.net[0].weight)


def test_a_second_fit_starts_anew(tmp_path: Path) -> None:
    counter = Counter()
    meter = EnergyMeter(counter=counter)
    for _ in range(2):
        fit(tmp_path, Net(counter), meter)
        assert report(tmp_path)["joules"] == 22


# ---- no meter, or none any more


def test_without_a_meter_one_line_says_why_and_nothing_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counter = Counter("no GPU is used, and CPUs are not asked for")
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        save = ModelCheckpoint(tmp_path / "c", filename="{epoch}")
        fit(tmp_path, Net(counter), EnergyMeter(counter=counter), save)
    said = [record.getMessage() for record in caplog.records if "EnergyMeter" in record.getMessage()]
    assert said == [
        "EnergyMeter: no meter (no GPU is used, and CPUs are not asked for); nothing is measured",
    ]
    assert counter.ends == 0
    assert list(tmp_path.rglob("energy*")) == []
    assert "EnergyMeter[energy]" not in torch.load(tmp_path / "c" / "epoch=1.ckpt")["callbacks"]


def test_a_counter_that_fails_costs_a_warning_and_no_training(tmp_path: Path) -> None:
    counter = Counter(fails_after=3)
    module = Net(counter)
    with pytest.warns(UserWarning, match="EnergyMeter: a counter failed before step") as caught:
        trainer = fit(tmp_path, module, EnergyMeter(every_n_steps=2, counter=counter))
    assert trainer.global_step == 8
    assert len([each for each in caught if "EnergyMeter" in str(each.message)]) == 1
    assert counter.ends == 4
    found = report(tmp_path)
    assert found["complete"] is False
    assert found["gaps"] == ["a counter failed before step 4: the counter of cpu:0 ran backwards (-3 J)"]
    assert (found["train_joules"], found["steps"]) == (8, 4)


def test_a_missing_package_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str) -> None:
        raise MissingExtraError(f"{module} needs {extra}")

    monkeypatch.setattr(energy_meter, "require", missing)
    module = Net()
    with pytest.raises(MissingExtraError, match="zeus needs energy"):
        fit(tmp_path, module, EnergyMeter())
    assert module.counter.spent == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"carbon_intensity_g_per_kwh": 0}, "carbon_intensity_g_per_kwh must be a positive number .* got 0"),
        ({"carbon_intensity_g_per_kwh": float("nan")}, "carbon_intensity_g_per_kwh must be a positive number"),
        ({"every_n_steps": 0}, "every_n_steps must be 1 or more, got 0"),
    ],
    ids=["no intensity", "NaN", "no steps"],
)
def test_a_wrong_option_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"EnergyMeter: {message}"):
        EnergyMeter(**options)


def test_two_need_two_names(tmp_path: Path) -> None:
    counter, other = Counter(), Counter()
    with pytest.raises(ConfigurationError, match="two EnergyMeter callbacks are named 'energy'"):
        fit(tmp_path, Net(), EnergyMeter(counter=counter), EnergyMeter(counter=other))
    fit(tmp_path, Net(counter), EnergyMeter(counter=counter), EnergyMeter(counter=counter, name="rack"))
    assert report(tmp_path)["joules"] == report(tmp_path, "rack_energy.json")["joules"] == 22


# ---- several processes


class Strategy:
    """What ``_find_meter`` and the sums ask of a strategy."""

    def __init__(self, device: str, replicas: int) -> None:
        self.root_device = torch.device(device)
        self.distributed_sampler_kwargs = {"num_replicas": replicas}


class Run:
    """A Trainer of several processes, seen by one of them."""

    def __init__(self, device: str = "cpu", local_rank: int = 0, world_size: int = 2, replicas: int = 2) -> None:
        self.strategy = Strategy(device, replicas)
        self.local_rank, self.world_size = local_rank, world_size
        self.num_nodes = 1
        self.global_step = 0


@pytest.mark.parametrize(
    ("device", "local_rank", "asked"),
    [
        ("cuda:3", 0, ([3], True)),
        ("cuda:3", 1, ([3], False)),
        ("cpu", 0, ([], True)),
        ("cpu", 1, None),
    ],
)
def test_each_rank_reads_its_gpu_and_the_first_of_a_machine_its_cpus(
    device: str, local_rank: int, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def counter(*arguments: Any) -> Counter:
        made.append(arguments)
        return Counter()

    monkeypatch.setattr(energy_meter, "EnergyCounter", counter)
    meter, reason = EnergyMeter()._find_meter(Run(device, local_rank))
    assert reason is None
    assert made == ([asked] if asked else [])
    assert (meter is None) is (asked is None)


def test_a_device_whose_energy_nobody_counts_is_no_meter() -> None:
    meter, reason = EnergyMeter()._find_meter(Run("mps"))
    assert (meter, reason) == (None, "zeus reads no counter of a device of type mps")


@pytest.mark.parametrize(("replicas", "samples"), [(2, 12), (1, 6)], ids=["data parallel", "two parts of one model"])
def test_joules_of_ranks_add_up_and_each_sample_is_counted_once(replicas: int, samples: int) -> None:
    one = {"train_joules": 3.0, "val_joules": 1.0, "train_seconds": 2.0, "val_seconds": 1.0, "steps": 4, "samples": 6}
    other = {**one, "train_joules": 5.0, "train_seconds": 2.5}
    assert energy_meter._sum(Run(replicas=replicas), [one, other]) == {
        "train_joules": 8.0,
        "val_joules": 2.0,
        "train_seconds": 2.5,
        "val_seconds": 1.0,
        "steps": 4,
        "samples": samples,
    }
