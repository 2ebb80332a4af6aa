"""Measure what a run draws from the socket, as far as the hardware counts it."""

from __future__ import annotations

import json
import socket
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_efficient._trainer import callbacks_of, gather_objects, is_rehearsal
from lightning_efficient.callbacks._energy_totals import COLUMNS, Counts, EnergyTotals, nothing, ratios
from lightning_efficient.errors import ConfigurationError, require
from lightning_efficient.profiling.energy import CountsEnergy, EnergyCounter, carbon_grams, check_intensity
from lightning_efficient.reporting import log_figure, log_scalars, log_table, run_dir
from lightning_efficient.reporting.energy import energy_figure
from lightning_efficient.typing import Batch

DEFAULT_NAME = "energy"


class EnergyMeter(Callback):
    """Log the energy of a fit: per optimiser step, per sample, per epoch, and in all.

    Counters of the hardware are read by zeus (extra ``energy``): of the GPU that each rank uses, and of the CPU packages
    of each machine, which its local rank 0 reads, so that nothing is counted twice. Every rank adds to the sum. Where
    any rank has no counter, one line says why and nothing is measured: no number is estimated. The same holds from the
    moment at which a counter fails; what was measured until then stays, marked as incomplete.

    Logged every ``every_n_steps`` optimiser steps: ``energy/joules_per_step``, ``energy/watts``; each epoch:
    ``energy/train_joules``, ``energy/val_joules``, ``energy/joules_per_sample`` (of training), ``energy/total_joules``
    and, with an intensity, ``energy/carbon_g``. The run folder gets ``energy.json``, ``energy.csv`` (a row per epoch)
    and ``energy.png``. Totals go into checkpoints and go on after a resume.

    Training counts from the first batch to the last, with what lies between (loading, logging, saving); validation is
    apart; the sanity check is in neither. CPU packages include whatever else runs on the machine. Observes only. Without
    a meter it costs nothing; with one, a GPU is waited for once every ``every_n_steps`` steps.

    Args:
        carbon_intensity_g_per_kwh: Grams of CO2 equivalent per kWh of your electricity; None leaves CO2 out.
        every_n_steps: Optimiser steps in one window.
        counter: Another counter, such as that of a rack; each rank reads its own copy, so let it count what is its.
        name: First part of the logged names; give each its own to use several.

    Attributes:
        totals: What was spent so far.

    Raises:
        ConfigurationError: a value is out of range, or two callbacks have one name.
        MissingExtraError: zeus is not installed, and no counter was given.

    Example:
        >>> EnergyMeter(carbon_intensity_g_per_kwh=-1)
        Traceback (most recent call last):
        ...
        lightning_efficient.errors.ConfigurationError: EnergyMeter: carbon_intensity_g_per_kwh must be a positive number of grams of CO2 per kWh, got -1
    """  # noqa: E501

    def __init__(
        self,
        carbon_intensity_g_per_kwh: float | None = None,
        every_n_steps: int = 50,
        counter: CountsEnergy | None = None,
        name: str = DEFAULT_NAME,
    ) -> None:
        if carbon_intensity_g_per_kwh is not None:
            check_intensity(carbon_intensity_g_per_kwh, "EnergyMeter: carbon_intensity_g_per_kwh")
        if every_n_steps < 1:
            raise ConfigurationError(f"EnergyMeter: every_n_steps must be 1 or more, got {every_n_steps}")
        self.carbon_intensity_g_per_kwh = carbon_intensity_g_per_kwh
        self.every_n_steps = every_n_steps
        self.counter = counter
        self.name = name
        self._meter: CountsEnergy | None
        self._pending: Counts
        self._window: Counts
        self._forget()

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: two callbacks of one Trainer have two names."""
        return f"{type(self).__qualname__}[{self.name}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last run; refuse a second callback of the same name, and a missing package."""
        if stage != "fit":
            return
        self._forget()
        if [callback.name for callback in callbacks_of(trainer, EnergyMeter)].count(self.name) > 1:
            raise ConfigurationError(f"two EnergyMeter callbacks are named {self.name!r}; give each its own name")
        if self.counter is None:
            require("zeus", "energy")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for meters, on all ranks; begin the first window."""
        self._meter, reason = self._find_meter(trainer)
        reasons = gather_objects(trainer, reason)
        if missing := [(rank, each) for rank, each in enumerate(reasons) if each is not None]:
            where = f" on rank {missing[0][0]}" if trainer.world_size > 1 else ""
            rank_zero_info(f"EnergyMeter: no meter{where} ({missing[0][1]}); nothing is measured")
            self._meter = None
            if self.totals.epochs:
                self.totals.gaps.append(f"no meter from step {trainer.global_step}: {missing[0][1]}")
            return
        if trainer.global_step and not self._resumed:
            self.totals.gaps.append(f"not measured before step {trainer.global_step}")
        for what, why in getattr(self._meter, "not_counted", {}).items():
            rank_zero_info(f"EnergyMeter: {what} is not counted ({why})")
        if self.carbon_intensity_g_per_kwh is not None:
            given = f"{self.carbon_intensity_g_per_kwh:g} g/kWh"
            rank_zero_info(f"EnergyMeter: CO2 at {given}, as the option carbon_intensity_g_per_kwh says")
        self._active, self._step, self._window_step = True, trainer.global_step, trainer.global_step
        self._epoch = max(self.totals.epochs, default=trainer.current_epoch)
        self._switch("train")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the samples; close the window every so many steps."""
        if not self._active:
            return
        self._epoch = trainer.current_epoch
        self._pending["samples"] += _samples(batch)
        if trainer.global_step - self._window_step >= self.every_n_steps:
            self._collect(trainer)
            values = ratios(self._window)
            # a counter that has not moved yet will, so the window grows
            if values.get("joules_per_step", 0) > 0:
                named = {"joules_per_step": values["joules_per_step"], "watts": values["average_watts"]}
                log_scalars(trainer, self._named(named))
                self._window, self._window_step = nothing(), trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Spend on validation from now on."""
        if self._active and not trainer.sanity_checking:
            self._switch("val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Spend on training again."""
        if self._active and not trainer.sanity_checking:
            self._switch("train")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch, and write what is known so far."""
        if not self._active:
            return
        self._collect(trainer)
        row = self.totals.epochs[self._epoch]
        values = {name: row[name] for name in ("train_joules", "val_joules")}
        values |= {name: value for name, value in ratios(row).items() if name == "joules_per_sample"}
        values |= {"total_joules": self.totals.joules, **self._carbon()}
        log_scalars(trainer, self._named(values))
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the last window, and draw."""
        if self._active:
            self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was spent until now; the other ranks are not waited for."""
        if self._active:
            self._finish(trainer)
        self._meter, self._active = None, False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the counter."""
        self._meter, self._active = None, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put what was spent until now into the checkpoint."""
        if self._active:
            self._collect(trainer)
        if self.totals.epochs:
            checkpoint["callbacks"][self.state_key] = self.totals.state()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from what the checkpoint says."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is not None:
            self.totals.load(state)
            self._resumed = True

    def _forget(self) -> None:
        self.totals = EnergyTotals()
        self._meter = None
        # the same on every rank, or one would wait for the others
        self._active = self._resumed = False
        self._failure: str | None = None
        self._phase: str | None = None
        self._pending, self._window, self._devices = nothing(), nothing(), dict[str, float]()
        self._epoch = self._step = self._window_step = 0

    def _find_meter(self, trainer: Trainer) -> tuple[CountsEnergy | None, str | None]:
        """Return the meter of this rank, None where another rank has all there is to read; and why there is none."""
        device = trainer.strategy.root_device
        if self.counter is not None:
            return self.counter, self.counter.available()
        if device.type not in ("cpu", "cuda"):
            return None, f"zeus reads no counter of a device of type {device.type}"
        gpus, reads_cpus = [device.index or 0] if device.type == "cuda" else [], trainer.local_rank == 0
        if not gpus and not reads_cpus:
            return None, None
        meter = EnergyCounter(gpus, reads_cpus)
        return meter, meter.available()

    def _switch(self, phase: str | None) -> None:
        """End the window, if one is open, and begin that of another phase."""
        ended, self._phase = self._phase, phase
        if self._meter is None or self._failure is not None:
            return
        # whatever a counter raises, training goes on
        try:
            if ended is not None:
                reading = self._meter.end(self._key)
                self._pending[f"{ended}_joules"] += reading.joules
                self._pending[f"{ended}_seconds"] += reading.seconds
                for name, joules in reading.by_device.items():
                    self._devices[name] = self._devices.get(name, 0.0) + joules
            if phase is not None:
                self._meter.begin(self._key)
        except Exception as error:
            self._failure = str(error).partition("\n")[0] or type(error).__name__

    def _collect(self, trainer: Trainer, go_on: bool = True) -> None:
        """Add what all ranks have spent since the last time to the totals."""
        self._switch(self._phase if go_on else None)
        self._pending["steps"] = trainer.global_step - self._step
        everyone = gather_objects(trainer, (self._pending, self._named_devices(trainer), self._failure))
        spent = _sum(trainer, [counts for counts, _, _ in everyone])
        for index, (_, devices, _) in enumerate(everyone):
            self.totals.add(self._epoch, {} if index else spent, devices)
        self._window = {name: value + spent[name] for name, value in self._window.items()}
        self._pending, self._devices, self._step = nothing(), {}, trainer.global_step
        if failures := [failure for _, _, failure in everyone if failure is not None]:
            self._stop(trainer, failures[0])

    def _stop(self, trainer: Trainer, failure: str) -> None:
        rank_zero_warn(
            f"EnergyMeter: a counter failed before step {trainer.global_step} ({failure}); nothing more is measured, "
            "and training goes on"
        )
        self.totals.gaps.append(f"a counter failed before step {trainer.global_step}: {failure}")
        self._active, self._phase = False, None
        self._write(trainer)

    def _finish(self, trainer: Trainer) -> None:
        self._collect(trainer, go_on=False)
        self._active = False
        self._write(trainer)
        rows = sorted(self.totals.epochs.items())
        train, val = ([row[f"{phase}_joules"] for _, row in rows] for phase in ("train", "val"))
        log_figure(trainer, self._artefact, lambda: energy_figure([epoch for epoch, _ in rows], train, val))

    def _write(self, trainer: Trainer) -> None:
        log_table(trainer, self._artefact, COLUMNS, self.totals.rows())
        if not trainer.is_global_zero or is_rehearsal(trainer):
            return
        file = run_dir(trainer) / f"{self._artefact.rpartition('/')[2]}.json"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self.report(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            rank_zero_warn(f"{file} could not be written ({error.strerror or error}); training goes on without it")

    def report(self) -> dict[str, Any]:
        """Return what ``energy.json`` holds: totals, epochs, devices, and what was not measured."""
        sums = self.totals.sums()
        intensity = self.carbon_intensity_g_per_kwh
        return {
            "joules": self.totals.joules,
            **sums,
            **ratios(sums),
            **({} if intensity is None else {"carbon_intensity_g_per_kwh": intensity, **self._carbon()}),
            "complete": not self.totals.gaps,
            "gaps": self.totals.gaps,
            "devices": self.totals.devices,
            "epochs": [{"epoch": epoch, **row, **ratios(row)} for epoch, row in sorted(self.totals.epochs.items())],
        }

    def _carbon(self) -> dict[str, float]:
        intensity = self.carbon_intensity_g_per_kwh
        return {} if intensity is None else {"carbon_g": carbon_grams(self.totals.joules, intensity)}

    def _named(self, values: dict[str, float]) -> dict[str, float]:
        return {f"{self.name}/{key}": value for key, value in values.items()}

    def _named_devices(self, trainer: Trainer) -> dict[str, float]:
        host = f"{socket.gethostname()}/" if trainer.num_nodes > 1 else ""
        return {f"{host}{name}": joules for name, joules in self._devices.items()}

    @property
    def _artefact(self) -> str:
        return f"{self.name}/{'energy' if self.name == DEFAULT_NAME else f'{self.name}_energy'}"

    @property
    def _key(self) -> str:
        return f"EnergyMeter[{self.name}]"


def _sum(trainer: Trainer, everyone: list[Counts]) -> Counts:
    """Add up joules and samples; the steps and the time are everybody's."""
    # ranks that share the parts of one model see the same samples
    shares = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    copies = trainer.world_size / shares.get("num_replicas", trainer.world_size)
    added = {name: sum(counts[name] for counts in everyone) for name in ("train_joules", "val_joules", "samples")}
    added["samples"] = round(added["samples"] / copies)
    longest = {name: max(each[name] for each in everyone) for name in ("train_seconds", "val_seconds", "steps")}
    return {**added, **longest}


def _samples(batch: Batch) -> int:
    """Return the length of the first tensor of a batch, 0 where it has none."""
    return next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), 0)
