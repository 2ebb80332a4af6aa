"""Energy from the counters of the hardware, and from nothing else: where there is no counter, there is no number."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import torch

from lightning_efficient.errors import ConfigurationError, MissingExtraError, require

_RAPL = "/sys/class/powercap/intel-rapl"
_WINDOW = "lightning_efficient.energy_per_call"


class MeterError(RuntimeError):
    """A counter of energy cannot be read, or ran backwards."""


@dataclass(frozen=True)
class EnergyReading:
    """What was spent in a window.

    Attributes:
        joules: Energy of all counted devices.
        seconds: Length of the window.
        by_device: Joules of each device: ``gpu:0``, ``cpu:0`` (a package), ``dram:0`` (the memory of that package).
    """

    joules: float
    seconds: float
    by_device: dict[str, float] = field(default_factory=dict)

    @property
    def watts(self) -> float:
        """Average power, NaN for a window without length."""
        return self.joules / self.seconds if self.seconds > 0 else math.nan


@runtime_checkable
class CountsEnergy(Protocol):
    """What ``EnergyMeter`` and ``energy_per_call`` ask of a counter; tests and other meters have their own."""

    def available(self) -> str | None:
        """Return None where there is a counter, and otherwise the reason why there is none."""

    def begin(self, key: str) -> None:
        """Begin a window; several may be open at once, each with its key."""

    def end(self, key: str) -> EnergyReading:
        """End the window and return what was spent in it."""


class EnergyCounter:
    """The energy counters of GPUs (NVML) and CPU packages (RAPL), read by zeus.

    GPUs are waited for at both edges of a window. A chosen GPU without a counter (older than Volta, or a MIG slice)
    leaves no meter at all, since the rest would pass for the whole. CPU packages without readable counters are left out
    where a GPU is counted: see ``not_counted``. A package includes everything else that runs on the machine. Whole
    platforms (the zone ``psys``) are left out, since they hold the packages once more, and so are Apple's and Jetson's
    counters.

    zeus follows the wrap-around of each RAPL counter in a process of its own, which imports the main script again: a
    script needs ``if __name__ == "__main__":``.

    Args:
        gpus: Which GPUs, as ``torch.cuda`` numbers them; None counts all that torch sees.
        cpus: Whether to count CPU packages and their memory.

    Attributes:
        devices: Names of what is counted, once ``available`` was asked.
        not_counted: What was asked for and is left out, with the reason.

    Example:
        >>> EnergyCounter(gpus=[], cpus=False).available()
        'no GPU is used, and CPUs are not asked for'
    """

    def __init__(self, gpus: Sequence[int] | None = None, cpus: bool = True) -> None:
        self.gpus = tuple(range(torch.cuda.device_count()) if gpus is None else gpus)
        self.cpus = cpus
        self.devices: tuple[str, ...] = ()
        self.not_counted: dict[str, str] = {}
        self._monitor: Any = None
        self._began: dict[str, float] = {}
        self._reason: str | None = None

    def available(self) -> str | None:
        """Return None where something can be counted, and otherwise the reason in one line; looks once."""
        if self._monitor is None and self._reason is None:
            with _quiet():
                self._reason = self._start()
        return self._reason

    def begin(self, key: str) -> None:
        """Begin a window.

        Raises:
            MeterError: there is no meter, a window of this key is open, or a counter cannot be read.
        """
        if (reason := self.available()) is not None:
            raise MeterError(f"no meter ({reason})")
        self._wait()
        with _quiet(), _as_meter_error():
            self._monitor.begin_window(key, sync_execution=False)
        self._began[key] = perf_counter()

    def end(self, key: str) -> EnergyReading:
        """End a window.

        Raises:
            MeterError: no window of this key is open, or a counter cannot be read or ran backwards.
        """
        if self._monitor is None:
            raise MeterError(f"no window {key!r} is open")
        self._wait()
        with _quiet(), _as_meter_error():
            measured = self._monitor.end_window(key, sync_execution=False)
        # not measured.time, which is of the clock on the wall, that may be set in between
        seconds = perf_counter() - self._began.pop(key)
        by_device = {
            f"{kind}:{index}": float(joules)
            for kind, each in (
                ("gpu", measured.gpu_energy),
                ("cpu", measured.cpu_energy),
                ("dram", measured.dram_energy),
            )
            for index, joules in (each or {}).items()
        }
        if wrong := [name for name, joules in by_device.items() if not joules >= 0]:
            raise MeterError(f"the counter of {wrong[0]} ran backwards ({by_device[wrong[0]]:g} J)")
        return EnergyReading(sum(by_device.values()), seconds, by_device)

    def _wait(self) -> None:
        for gpu in self.gpus:
            torch.cuda.synchronize(gpu)

    def _start(self) -> str | None:
        if not self.gpus and not self.cpus:
            return "no GPU is used, and CPUs are not asked for"
        try:
            monitor = require("zeus.monitor", "energy")
        except MissingExtraError as error:
            return str(error)
        if self.gpus and (problem := _gpu_problem(self.gpus)) is not None:
            return problem
        packages, problem = _packages() if self.cpus else ([], None)
        if problem is not None:
            self.not_counted = {"cpu": problem}
        if not self.gpus and not packages:
            return f"no GPU is used, and {problem}"
        try:
            self._monitor = monitor.ZeusMonitor(gpu_indices=list(self.gpus), cpu_indices=packages)
        except Exception as error:
            return f"zeus does not start: {_line(error)}"
        self.devices = (*(f"gpu:{index}" for index in self.gpus), *(f"cpu:{index}" for index in packages))
        return None


def energy_per_call(
    call: Callable[[], object], *, samples: int, min_time: float = 2.0, counter: CountsEnergy | None = None
) -> EnergyReading | None:
    """Measure the energy of one sample at inference, over as many calls as fill ``min_time``.

    One call goes before. What the devices draw when idle is part of it, and so is whatever else runs on them.

    Args:
        call: Runs the model once; the caller sees to evaluation and inference mode.
        samples: Samples in one call, 1 or more.
        min_time: Seconds of measuring; GPU counters move ten times a second at the slowest, so much less shows nothing.
        counter: Counter to read; by default an ``EnergyCounter`` of all GPUs that torch sees and all CPU packages.

    Returns:
        Joules and seconds of one sample, or None where there is no meter, or none that moved.

    Raises:
        ConfigurationError: ``samples`` or ``min_time`` is not positive.
        MeterError: a counter fails in between.

    Example:
        >>> reading = energy_per_call(lambda: None, samples=8, min_time=0.1)
        >>> reading is None or reading.joules > 0
        True
    """
    if samples < 1 or not min_time > 0:
        message = f"samples must be 1 or more and min_time positive, got samples={samples} and min_time={min_time}"
        raise ConfigurationError(message)
    counter = EnergyCounter() if counter is None else counter
    if counter.available() is not None:
        return None
    call()
    counter.begin(_WINDOW)
    calls, end = 0, perf_counter() + min_time
    try:
        while calls == 0 or perf_counter() < end:
            call()
            calls += 1
    finally:
        reading = counter.end(_WINDOW)
    count = calls * samples
    if not reading.joules > 0:
        return None
    shares = {name: joules / count for name, joules in reading.by_device.items()}
    return EnergyReading(reading.joules / count, reading.seconds / count, shares)


def carbon_grams(joules: float, intensity_g_per_kwh: float) -> float:
    """Return the grams of CO2 equivalent of an amount of energy.

    Args:
        joules: Energy; one kilowatt-hour is 3.6 million joules.
        intensity_g_per_kwh: Carbon intensity of the electricity, which only the operator of the grid knows.

    Raises:
        ConfigurationError: the intensity is not a positive number.

    Example:
        >>> carbon_grams(3.6e6, intensity_g_per_kwh=400)
        400.0
    """
    check_intensity(intensity_g_per_kwh, "intensity_g_per_kwh")
    return joules / 3.6e6 * intensity_g_per_kwh


def check_intensity(given: float, option: str) -> None:
    """Raise ``ConfigurationError`` unless a carbon intensity is a positive number."""
    if not 0 < given < math.inf:
        raise ConfigurationError(f"{option} must be a positive number of grams of CO2 per kWh, got {given}")


def _gpu_problem(gpus: Sequence[int]) -> str | None:
    """Read each counter once, and say which cannot be read."""
    from zeus.device import get_gpus

    try:
        found = get_gpus()
        for index in gpus:
            if index >= len(found):
                return f"GPU {index} is not among the {len(found)} that NVML shows"
            # zeus would poll the power of these, and call the sum energy
            if not found.supports_get_total_energy_consumption(index):
                return f"GPU {index} has no energy counter"
            found.get_total_energy_consumption(index)
    except Exception as error:
        return f"the energy counters of the GPUs cannot be read: {_line(error)}"
    return None


def _packages() -> tuple[list[int], str | None]:
    """Return which RAPL zones of zeus are CPU packages, and why there is none."""
    from zeus.device import get_cpus
    from zeus.device.cpu.common import ZeusCPUNoPermissionError
    from zeus.device.cpu.rapl import rapl_is_available

    if not rapl_is_available():
        return [], f"this machine or container has no RAPL counters of the CPU: {_RAPL} is not there"
    try:
        zones = get_cpus().cpus
    except ZeusCPUNoPermissionError:
        return [], f"this user may not read the RAPL counters of the CPU: {_RAPL}/*/energy_uj"
    except Exception as error:
        return [], f"the RAPL counters of the CPU cannot be read: {_line(error)}"
    names = [getattr(getattr(zone, "rapl_file", None), "name", "package") for zone in zones]
    found = [index for index, name in enumerate(names) if name != "psys"]
    return found, None if found else f"RAPL shows no CPU package in {_RAPL}"


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _as_meter_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise MeterError(_line(error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what zeus says of devices that are not there, and of windows that are short on purpose."""
    logger = logging.getLogger("zeus")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Failed to initialize subpackage")
            warnings.filterwarnings("ignore", message="The energy consumption of one or more GPUs was measured as zero")
            yield
    finally:
        logger.setLevel(level)
