"""Energy comes from counters, and where there is none there is a reason and no number."""

from __future__ import annotations

import builtins
import logging
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.energy import (
    CountsEnergy,
    EnergyCounter,
    EnergyReading,
    MeterError,
    carbon_grams,
    energy_per_call,
)

zeus = pytest.importorskip("zeus.monitor")

Write = Callable[[str, int], None]


@pytest.fixture
def rapl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Zeus on counters that a test writes, in microjoules: two packages, the memory of one, and the whole platform."""
    import zeus.device.cpu as cpu
    import zeus.device.cpu.rapl as module

    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0/intel-rapl:0:0": "dram",
        "intel-rapl:0/intel-rapl:0:1": "core",
        "intel-rapl:1": "psys",
        "intel-rapl:2": "package-1",
    }

    def write(zone: str, microjoules: int) -> None:
        (tmp_path / zone / "energy_uj").write_text(f"{microjoules}\n")

    for zone, name in zones.items():
        (tmp_path / zone).mkdir(parents=True)
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("1000000000\n")
        write(zone, 5_000_000)
    monkeypatch.setattr(module, "RAPL_DIR", str(tmp_path))
    monkeypatch.setattr(cpu, "_cpus", None)
    # the real one starts a process for each file
    no_wrap = SimpleNamespace(get_num_wraparounds=lambda: 0)
    monkeypatch.setattr(module, "RaplWraparoundTracker", lambda *_: no_wrap)
    module.rapl_is_available.cache_clear()
    yield write
    module.rapl_is_available.cache_clear()


class FakeGpus:
    """NVML of two GPUs, the second without a counter of energy."""

    def __init__(self) -> None:
        self.millijoules = 1_000_000

    def __len__(self) -> int:
        return 2

    def supports_get_total_energy_consumption(self, index: int) -> bool:
        return index == 0

    def get_total_energy_consumption(self, index: int) -> int:
        return self.millijoules


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    import zeus.device
    import zeus.monitor.energy

    fake = FakeGpus()
    monkeypatch.setattr(zeus.device, "get_gpus", lambda: fake)
    monkeypatch.setattr(zeus.monitor.energy, "get_gpus", lambda: fake)
    return fake


class FakeCounter:
    """Counts two joules of a CPU and one of a GPU a call of ``work``."""

    def __init__(self, reason: str | None = None, moves: bool = True) -> None:
        self.reason, self.moves = reason, moves
        self.calls = 0
        self.begun: dict[str, int] = {}

    def work(self) -> None:
        self.calls += 1

    def available(self) -> str | None:
        return self.reason

    def begin(self, key: str) -> None:
        self.begun[key] = self.calls

    def end(self, key: str) -> EnergyReading:
        calls = self.calls - self.begun.pop(key)
        each = calls if self.moves else 0
        return EnergyReading(3.0 * each, 0.5 * calls, {"cpu:0": 2.0 * each, "gpu:0": 1.0 * each})


def has_meter() -> bool:
    return EnergyCounter().available() is None


# ---- no meter


@pytest.mark.skipif(has_meter(), reason="this machine has a meter")
def test_zeus_itself_gives_a_reason_where_there_is_no_meter(capfd: pytest.CaptureFixture[str]) -> None:
    counter = EnergyCounter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reason = counter.available()
    assert reason is not None
    assert "RAPL" in reason
    assert "\n" not in reason
    assert counter.devices == ()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(MeterError, match="no meter"):
        counter.begin("window")
    assert energy_per_call(lambda: None, samples=1) is None


def test_nothing_to_count_is_no_meter() -> None:
    assert EnergyCounter(gpus=[], cpus=False).available() == "no GPU is used, and CPUs are not asked for"


def test_a_missing_package_is_a_reason_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "zeus"]:
        monkeypatch.delitem(sys.modules, name)
    load = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.split(".")[0] == "zeus":
            raise ModuleNotFoundError(f"No module named {name!r}", name="zeus")
        return load(name, *args)

    class Missing:
        def find_spec(self, name: str, *_: Any) -> None:
            if name.split(".")[0] == "zeus":
                raise ModuleNotFoundError("No module named 'zeus'", name="zeus")

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    reason = EnergyCounter(gpus=[]).available()
    assert reason == "'zeus.monitor' is not installed; install it with: pip install 'lightning-efficient[energy]'"


def test_counters_that_only_root_may_read_are_said_to_be_so(rapl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import zeus.device
    from zeus.device.cpu.common import ZeusCPUNoPermissionError

    def refuse() -> None:
        raise ZeusCPUNoPermissionError("Can't read file due to permission error")

    monkeypatch.setattr(zeus.device, "get_cpus", refuse)
    assert "this user may not read the RAPL counters" in str(EnergyCounter(gpus=[]).available())


def test_a_broken_zone_is_a_reason(rapl: Write, tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").unlink()
    assert EnergyCounter(gpus=[]).available() == (
        "no GPU is used, and the RAPL counters of the CPU cannot be read: Error reading package max energy range"
    )


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ([1], "GPU 1 has no energy counter"),
        ([0, 1], "GPU 1 has no energy counter"),
        ([7], "GPU 7 is not among the 2 that NVML shows"),
    ],
    ids=["alone", "beside another", "not there"],
)
def test_a_gpu_without_a_counter_leaves_no_meter(chosen: list[int], reason: str, rapl: Write, gpus: FakeGpus) -> None:
    assert EnergyCounter(gpus=chosen).available() == reason


def test_a_gpu_that_may_not_be_read_is_told_in_one_line(gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(index: int) -> int:
        raise RuntimeError("Insufficient permissions\nmore")

    monkeypatch.setattr(gpus, "get_total_energy_consumption", fail)
    assert EnergyCounter(gpus=[0]).available() == (
        "the energy counters of the GPUs cannot be read: Insufficient permissions"
    )


# ---- counters


def test_packages_and_memory_are_counted_and_the_platform_is_not(rapl: Write) -> None:
    counter = EnergyCounter(gpus=[])
    assert counter.available() is None
    assert counter.devices == ("cpu:0", "cpu:2")
    counter.begin("window")
    for zone, microjoules in (("0", 8_000_000), ("0/intel-rapl:0:0", 5_500_000), ("1", 90_000_000), ("2", 6_000_000)):
        rapl(f"intel-rapl:{zone}", microjoules)
    reading = counter.end("window")
    assert reading.by_device == pytest.approx({"cpu:0": 3.0, "cpu:2": 1.0, "dram:0": 0.5})
    assert reading.joules == pytest.approx(4.5)
    assert 0 < reading.seconds < 60
    assert reading.watts == pytest.approx(reading.joules / reading.seconds)


def test_windows_overlap_by_key(rapl: Write) -> None:
    counter = EnergyCounter(gpus=[])
    counter.begin("outer")
    rapl("intel-rapl:0", 6_000_000)
    counter.begin("inner")
    rapl("intel-rapl:0", 8_000_000)
    assert (counter.end("inner").joules, counter.end("outer").joules) == pytest.approx((2.0, 3.0))


def test_a_gpu_is_waited_for_at_both_edges_and_cpus_are_left_out_with_a_reason(
    gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zeus.device

    waited: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(zeus.device, "get_cpus", lambda: SimpleNamespace(cpus=[]))
    monkeypatch.setattr(zeus.device.cpu.rapl, "rapl_is_available", lambda: True)
    counter = EnergyCounter(gpus=[0])
    assert counter.available() is None
    assert (counter.devices, list(counter.not_counted)) == (("gpu:0",), ["cpu"])
    counter.begin("window")
    gpus.millijoules += 2500
    assert counter.end("window").by_device == {"gpu:0": 2.5}
    assert waited == [0, 0]


def test_a_window_in_which_no_counter_moved_is_zero_and_silent(gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    counter = EnergyCounter(gpus=[0], cpus=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counter.begin("window")
        assert counter.end("window").joules == 0


def test_a_counter_that_runs_backwards_is_an_error(rapl: Write) -> None:
    counter = EnergyCounter(gpus=[])
    counter.begin("window")
    rapl("intel-rapl:2", 4_000_000)
    with pytest.raises(MeterError, match=r"the counter of cpu:2 ran backwards \(-1 J\)"):
        counter.end("window")


def test_a_counter_that_vanishes_is_an_error(rapl: Write, tmp_path: Path) -> None:
    counter = EnergyCounter(gpus=[])
    counter.begin("window")
    (tmp_path / "intel-rapl:2" / "energy_uj").unlink()
    with pytest.raises(MeterError, match="No such file"):
        counter.end("window")


def test_windows_that_do_not_match_are_errors(rapl: Write) -> None:
    counter = EnergyCounter(gpus=[])
    with pytest.raises(MeterError, match="no window 'w' is open"):
        counter.end("w")
    counter.begin("w")
    with pytest.raises(MeterError, match="'w' already exists"):
        counter.begin("w")
    counter.end("w")
    with pytest.raises(MeterError, match="'w' does not exist"):
        counter.end("w")


def test_the_log_of_zeus_is_left_as_it_was(rapl: Write, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("zeus")
    with caplog.at_level(logging.INFO):
        counter = EnergyCounter(gpus=[])
        counter.begin("w")
        counter.end("w")
    assert [record for record in caplog.records if record.name.startswith("zeus")] == []
    assert logger.level == logging.NOTSET


def test_counters_are_recognised_by_what_they_can() -> None:
    assert isinstance(EnergyCounter(gpus=[]), CountsEnergy)
    assert isinstance(FakeCounter(), CountsEnergy)
    assert not isinstance(object(), CountsEnergy)


# ---- one sample, and CO2


def test_the_energy_of_a_sample_is_that_of_the_window_over_its_samples() -> None:
    counter = FakeCounter()
    reading = energy_per_call(counter.work, samples=4, min_time=0.01, counter=counter)
    assert reading == EnergyReading(0.75, 0.125, {"cpu:0": 0.5, "gpu:0": 0.25})
    assert counter.calls > 2
    assert counter.begun == {}


def test_one_call_goes_before_the_window() -> None:
    counter = FakeCounter()
    energy_per_call(counter.work, samples=1, min_time=1e-9, counter=counter)
    assert counter.calls == 2


@pytest.mark.parametrize("counter", [FakeCounter("none here"), FakeCounter(moves=False)], ids=["no meter", "no move"])
def test_without_a_meter_that_moves_there_is_no_number(counter: FakeCounter) -> None:
    assert energy_per_call(counter.work, samples=1, min_time=0.01, counter=counter) is None
    assert (counter.calls > 0) is (counter.reason is None)


def test_a_call_that_fails_closes_its_window() -> None:
    counter = FakeCounter()

    def work() -> None:
        counter.work()
        if counter.calls == 2:
            raise KeyError("broken model")

    with pytest.raises(KeyError, match="broken model"):
        energy_per_call(work, samples=1, min_time=0.01, counter=counter)
    assert counter.begun == {}


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": 1, "min_time": 0}], ids=["samples", "min_time"])
def test_what_cannot_be_measured_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="samples must be 1 or more and min_time positive, got"):
        energy_per_call(lambda: None, counter=FakeCounter(), **options)


@given(st.floats(0, 1e12), st.floats(1e-3, 1e4))
def test_grams_grow_with_energy_and_intensity(joules: float, intensity: float) -> None:
    assert carbon_grams(joules, intensity) == pytest.approx(intensity * joules / 3_600_000)


@pytest.mark.parametrize("intensity", [0, -1, math.inf, math.nan])
def test_an_intensity_that_is_none_is_refused(intensity: float) -> None:
    with pytest.raises(ConfigurationError, match="intensity_g_per_kwh must be a positive number"):
        carbon_grams(1.0, intensity)


def test_a_window_without_length_has_no_power() -> None:
    assert math.isnan(EnergyReading(1.0, 0.0).watts)
