"""What changes while a guide trains: whose turn it is, the price of help, its budget, the temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_efficient._trainer import callbacks_of, gather_objects, refuse_shards
from lightning_efficient.callbacks._guide_statistics import BINS, GuideStatistics
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.phases import Alternation, Unit
from lightning_efficient.functional.primal_dual import PrimalDual
from lightning_efficient.functional.schedules import Schedule, as_schedule
from lightning_efficient.losses.guided import GuidedDistillation
from lightning_efficient.reporting import log_figure, log_scalars, log_table
from lightning_efficient.reporting.guide import guide_figure
from lightning_efficient.typing import Batch

Interval = Literal["step", "epoch", "cycle"]
SATURATED = 0.98
PATIENCE = 3
"""Epochs in a row in which the budget is exceeded before a warning says so."""


class GuideSchedule(Callback):
    """Vary what a module that distils with DiSK trains with, and log what its guide does.

    For ``Distiller(objective="disk")``; what is left out stays as the module has it, so that without arguments this
    only watches. Logged for each epoch, under ``guide/``: ``mean`` help and the share of samples ``below_half``;
    ``help_cost`` (nats) and its ``budget``; the ``multiplier``; the shares of samples that student and teacher get
    right, ``both_right``, ``only_student_right``, ``only_teacher_right``, ``both_wrong``, and their ``agreement``. At
    the end the histogram of the help over the epochs goes to the loggers and to ``<run folder>/guide_histogram.png``.
    Warns when the guide saturates, and when the budget is exceeded for three epochs. Costs a few sums per step.

    Args:
        multiplier: Price of the help beyond the budget, λ: a number, a schedule, or a ``PrimalDual``, which raises it
            while the help costs more than the budget and lowers it otherwise.
        budget: Allowed cost of the help, δ, nats: a number or a schedule.
        temperature: Of student and teacher alike: a number or a schedule.
        phases: Train student and guide in turns.
        interval: What schedules count: ``step`` or ``epoch`` of the run, or ``cycle``: whole cycles of ``phases``, as
            in the released code.
        name: First part of the logged names.

    Raises:
        ConfigurationError: a value outside its range, a module without a guide, or a run without an end.

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023, and its released code.
    """

    def __init__(
        self,
        multiplier: float | Schedule | PrimalDual | None = None,
        budget: float | Schedule | None = None,
        temperature: float | Schedule | None = None,
        phases: Alternation | None = None,
        interval: Interval = "epoch",
        name: str = "guide",
    ) -> None:
        check_choice(f"{type(self).__name__}: interval", interval, get_args(Interval))
        self.dual = multiplier if isinstance(multiplier, PrimalDual) else None
        given = {"multiplier": None if self.dual else multiplier, "budget": budget, "temperature": temperature}
        self.schedules = {
            key: as_schedule(value)  # type: ignore[arg-type]
            for key, value in given.items()
            if value is not None
        }
        for key in ("multiplier", "budget"):
            self._check_ends(key, lambda value: value >= 0, "0 or more")
        self._check_ends("temperature", lambda value: value > 0, "above 0")
        self.phases = phases
        self.interval = interval
        self.name = name
        self._statistics = GuideStatistics()
        self._history: list[dict[str, Any]] = []
        self._residuals: list[Tensor] = []
        self._steps = 0
        self._warned: list[str] = []
        self._drawn = 0
        self._found: GuidedDistillation | None = None

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: two callbacks of one Trainer have two names."""
        return f"{type(self).__qualname__}[{self.name}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last run; refuse what cannot work."""
        if stage != "fit":
            return
        refuse_shards(trainer, type(self).__name__)
        self._statistics, self._history, self._residuals, self._warned = GuideStatistics(), [], [], []
        self._steps, self._drawn, self._found = 0, 0, None
        if self.dual is not None:
            self.dual.reset()
        others = [other for other in callbacks_of(trainer, GuideSchedule) if other is not self]
        for other in others:
            if other.name == self.name:
                raise ConfigurationError(f"two guide callbacks are named {self.name!r}; give each its own name")
            if both := self._sets() & other._sets():
                raise ConfigurationError(
                    f"the guide callbacks {self.name!r} and {other.name!r} both set {sorted(both)[0]}; let one do it"
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module that has no guide, or no turns to take."""
        guided = self.guided(pl_module)
        if self.phases is not None and isinstance(getattr(pl_module, "phases", 0), Alternation | None):
            pl_module.phases = self.phases  # type: ignore[assignment]
        if self.interval == "cycle" and self._phases(pl_module) is None:
            raise ConfigurationError(
                f"{type(self).__name__}: interval 'cycle' counts the cycles of phases; give phases"
            )
        # asking for the number of steps here would load the data before a resumed run has their state
        if trainer.max_steps == -1 or self._unit(trainer, pl_module) == "epoch":
            self._check_length(trainer.max_epochs)
        if self.dual is not None:
            guided.loss.signed = True

    def guided(self, module: LightningModule) -> GuidedDistillation:
        """Return the guide and its loss.

        Raises:
            ConfigurationError: the module has none.
        """
        if self._found is not None:
            return self._found
        found = [each for each in module.modules() if isinstance(each, GuidedDistillation)]
        if not found:
            raise ConfigurationError(
                f"{type(self).__name__}: {type(module).__name__} has no guide; use Distiller with objective 'disk', or "
                "add the callback DiSK in its place"
            )
        self._found = found[0]
        return found[0]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Set the numbers of this step."""
        loss = self.guided(pl_module).loss
        if self.schedules:
            progress = self._progress(trainer, pl_module)
            values = {key: schedule(progress) for key, schedule in self.schedules.items()}
            loss.multiplier = values.get("multiplier", loss.multiplier)
            loss.budget = values.get("budget", loss.budget)
            if "temperature" in values:
                loss.student_temperature = loss.teacher_temperature = values["temperature"]
        if self.dual is not None:
            loss.multiplier = self.dual.multiplier

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Watch the guide, and move the multiplier after its steps."""
        if not isinstance(outputs, Mapping) or "guide" not in outputs:
            return
        self._statistics.add(outputs)
        if self.dual is not None and outputs["phase"] != "student":
            self._residuals.append(outputs["residual"].detach())
            if trainer.global_step > self._steps:
                mean = trainer.strategy.reduce(sum(self._residuals) / len(self._residuals), reduce_op="mean")
                self.dual.step(float(mean))
                self._residuals = []
        self._steps = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch, and warn of a guide that helps everywhere, nowhere, or beyond its budget."""
        found = self._statistics.take(lambda sums: trainer.strategy.reduce(sums, reduce_op="sum"))
        if found is None:
            return
        means, histogram = found
        guided = self.guided(pl_module)
        numbers = {"budget": float(guided.loss.budget), "multiplier": float(guided.loss.multiplier)}
        log_scalars(trainer, {f"{self.name}/{key}": value for key, value in (means | numbers).items()}, pl_module)
        self._history.append({"epoch": trainer.current_epoch, "histogram": histogram, **means, **numbers})
        if guided.learns:
            self._warn(means["mean"], numbers["multiplier"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the histograms."""
        self._draw(trainer)
        self._found = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the histograms of a run that was stopped."""
        self._draw(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the multiplier and the histograms so far."""
        dual = {} if self.dual is None else {"dual": self.dual.state_dict()}
        return {"history": list(self._history), "warned": list(self._warned), **dual}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a run was stopped."""
        self._history, self._warned = state_dict["history"], state_dict["warned"]
        if self.dual is not None and "dual" in state_dict:
            self.dual.load_state_dict(state_dict["dual"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the sums of the epoch under way into the checkpoint, those of all processes together."""
        found = [sums for sums in gather_objects(trainer, self._statistics.sums()) if sums is not None]
        if found:
            checkpoint["callbacks"][self.state_key]["sums"] = torch.stack(found).sum(0)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the sums of the epoch, on the first process for all."""
        sums = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("sums")
        if sums is not None:
            own = sums if trainer.is_global_zero else torch.zeros_like(sums)
            self._statistics.go_on(own.to(trainer.strategy.root_device))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know how many steps were taken before, and how many there will be."""
        self._steps = trainer.global_step
        if self.schedules:
            self._check_length(self._total(trainer, pl_module))

    def _sets(self) -> set[str]:
        more = {"multiplier": self.dual, "phases": self.phases}
        return set(self.schedules) | {key for key, value in more.items() if value is not None}

    def _check_ends(self, key: str, fits: Any, allowed: str) -> None:
        if key in self.schedules:
            for value in (self.schedules[key](0.0), self.schedules[key](1.0)):
                if not (math.isfinite(value) and fits(value)):
                    raise ConfigurationError(f"{type(self).__name__}: {key} becomes {value:g}; it must be {allowed}")

    def _phases(self, module: LightningModule) -> Alternation | None:
        found = self.phases or getattr(module, "phases", None)
        return found if isinstance(found, Alternation) else None

    def _unit(self, trainer: Trainer, module: LightningModule) -> Unit:
        phases = self._phases(module)
        if self.interval == "cycle" and phases is not None:
            return phases.unit
        return "epoch" if self.interval == "epoch" and trainer.max_epochs != -1 else "step"

    def _total(self, trainer: Trainer, module: LightningModule) -> float:
        by_epoch = self._unit(trainer, module) == "epoch"
        return float(trainer.max_epochs or 0) if by_epoch else float(trainer.estimated_stepping_batches)

    def _check_length(self, length: float | None) -> None:
        if self.schedules and length is not None and not 0 <= length < math.inf:
            raise ConfigurationError(
                f"{type(self).__name__}: a schedule needs the length of the run; set trainer.max_epochs or max_steps"
            )

    def _progress(self, trainer: Trainer, module: LightningModule) -> float:
        total = self._total(trainer, module)
        done = trainer.current_epoch if self._unit(trainer, module) == "epoch" else trainer.global_step
        phases = self._phases(module)
        if self.interval == "cycle" and phases is not None:
            return phases.progress(done, int(total))
        return min(1.0, done / max(1.0, total))

    def _warn(self, mean: float, multiplier: float) -> None:
        if not 1 - SATURATED <= mean <= SATURATED and "saturated" not in self._warned:
            self._warned.append("saturated")
            where, remedy = (
                ("everywhere", "lower temperatures (1), guide_nll_scale='one', or a PrimalDual multiplier")
                if mean > SATURATED
                else ("nowhere", "a larger budget or normalizer=False, if the student needs help at all")
            )
            rank_zero_warn(
                f"{type(self).__name__}: the guide is saturated, its mean help is {mean:.3f}: it helps {where}; try "
                f"{remedy}"
            )
        last = self._history[-PATIENCE:]
        over = len(last) == PATIENCE and all(each["help_cost"] > 1.1 * each["budget"] for each in last)
        at_most = self.dual is None or self.dual.at_maximum
        if over and at_most and "budget" not in self._warned:
            self._warned.append("budget")
            rank_zero_warn(
                f"{type(self).__name__}: the help costs {last[-1]['help_cost']:.3g}, more than its budget of "
                f"{last[-1]['budget']:.3g}, for {PATIENCE} epochs: with a multiplier of {multiplier:.3g} this budget "
                "is not met; raise the budget or the multiplier, or lower the temperatures"
            )

    def _draw(self, trainer: Trainer) -> None:
        if len(self._history) <= self._drawn:
            return
        self._drawn = len(self._history)
        history, key = self._history, f"{self.name}/{self.name}_histogram"
        edges = [f"{index / BINS:g}" for index in range(BINS)]
        log_table(trainer, key, ["epoch", *edges], [[each["epoch"], *each["histogram"]] for each in history])
        histograms, means, costs, budgets = (
            [each[name] for each in history] for name in ("histogram", "mean", "help_cost", "budget")
        )
        log_figure(trainer, key, lambda: guide_figure(histograms, means, costs, budgets, history[0]["epoch"]))
