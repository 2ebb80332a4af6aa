from __future__ import annotations

import csv
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_efficient.callbacks.guide_schedule import GuideSchedule
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.phases import Alternation
from lightning_efficient.functional.primal_dual import PrimalDual
from lightning_efficient.functional.schedules import CosineSchedule, LinearSchedule
from lightning_efficient.modules.distiller import Distiller

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "disk.npz")
FEATURES, CLASSES, BATCH = 6, 4, 16
by_step = partial(Alternation, unit="step")
pytestmark = pytest.mark.filterwarnings("ignore:GuideSchedule. the guide is saturated")


def network(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, CLASSES))


def distiller(**options: Any) -> Distiller:
    loss = {"top_k": 2, "budget": 0.2, **options.pop("loss", {})}
    defaults: dict[str, Any] = {"in_chans": None, "optimizer": partial(torch.optim.SGD, lr=0.1)}
    return Distiller(network(8, 0), network(12, 1), objective_kwargs=loss, **{**defaults, **options})


def loader(batches: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batches * BATCH, FEATURES, generator=generator)
    target = torch.randint(CLASSES, (len(inputs),), generator=generator)
    return DataLoader(TensorDataset(inputs, target), batch_size=BATCH)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
    return Trainer(**{**quiet, **defaults, "callbacks": list(callbacks), **options})


class Watch(Callback):
    """Keep the numbers that each step trained with, and what it returned."""

    def __init__(self, schedule: GuideSchedule | None = None) -> None:
        self.schedule = schedule
        self.numbers: list[tuple[float, ...]] = []
        self.outputs: list[dict[str, Any]] = []
        self.duals: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Distiller, outputs: Any, batch: Any, index: int) -> None:
        loss: Any = module.objective.loss  # type: ignore[union-attr]
        self.numbers.append((loss.multiplier, loss.budget, loss.student_temperature, loss.teacher_temperature))
        self.outputs.append(
            {name: value.clone() if isinstance(value, Tensor) else value for name, value in outputs.items()}
        )
        if self.schedule is not None and self.schedule.dual is not None:
            self.duals.append(self.schedule.dual.multiplier)


LINES = {
    "multiplier": LinearSchedule(1.0, 5.0),
    "budget": LinearSchedule(0.6, 0.2),
    "temperature": LinearSchedule(4.0, 2.0),
}


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_each_step_trains_with_what_the_schedules_say(interval: Any) -> None:
    schedule, watch = GuideSchedule(**LINES, interval=interval), Watch()
    trainer(schedule, watch, max_epochs=2).fit(distiller(), loader())
    progress = [step / 8 for step in range(8)] if interval == "step" else [0.0] * 4 + [0.5] * 4
    wanted = [[line(p) for line in LINES.values()] for p in progress]
    assert [list(numbers) for numbers in watch.numbers] == [pytest.approx([*row, row[-1]]) for row in wanted]


def test_what_is_left_out_stays_as_the_module_has_it() -> None:
    watch = Watch()
    module = distiller(loss={"multiplier": 3.0, "student_temperature": 2.5, "teacher_temperature": 1.5})
    trainer(GuideSchedule(budget=0.3), watch).fit(module, loader(1))
    assert watch.numbers == [(3.0, 0.3, 2.5, 1.5)]


def test_cycles_count_as_in_the_released_code() -> None:
    phases, golden = Alternation(3, 3, 5, "epoch"), GOLDEN["sched_lambda"]
    schedule = GuideSchedule(CosineSchedule(1.0, 5.0, cycles=4), phases=phases, interval="cycle")
    loss = SimpleNamespace(multiplier=0.0, budget=0.0)
    schedule._found = SimpleNamespace(loss=loss)  # type: ignore[assignment]
    module: Any = SimpleNamespace(phases=None)
    for cycle in (0, 7, 25, 49, 50, 123, 199):
        for epoch in (5 + 6 * cycle, 10 + 6 * cycle):
            run: Any = SimpleNamespace(current_epoch=epoch, global_step=-1, max_epochs=5 + 6 * 200)
            schedule.on_train_batch_start(run, module, (), 0)
            assert loss.multiplier == pytest.approx(golden[cycle], abs=1e-10)


def test_cycles_of_steps_count_over_the_steps_of_the_run() -> None:
    schedule, watch = GuideSchedule(LinearSchedule(0.0, 3.0), phases=by_step(1, 1, 2), interval="cycle"), Watch()
    trainer(schedule, watch, max_epochs=2).fit(distiller(), loader())
    assert [numbers[0] for numbers in watch.numbers] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert [outputs["phase"][0] for outputs in watch.outputs] == list("ggsgsgsg")


def test_the_dual_moves_after_the_guides_steps_by_their_mean_residual() -> None:
    dual = PrimalDual(0.5, initial=1.0)
    schedule = GuideSchedule(dual, phases=by_step(1, 1))
    watch = Watch(schedule)
    trainer(schedule, watch, accumulate_grad_batches=2).fit(distiller(), loader(8))
    expected, value = [], 1.0
    for window in range(4):
        residuals = [float(watch.outputs[2 * window + i]["residual"]) for i in (0, 1)]
        expected.append(value)
        if window % 2:
            value = max(0.0, value + 0.5 * sum(residuals) / 2)
        expected.append(value)
    assert watch.duals == pytest.approx(expected)
    assert [numbers[0] for numbers in watch.numbers] == pytest.approx([1.0, *expected[:-1]])
    assert dual.updates == 2
    assert watch.duals[-1] != 1.0


def test_a_joint_step_moves_the_dual_and_its_penalty_is_signed() -> None:
    schedule = GuideSchedule(PrimalDual(0.5, initial=1.0), budget=50.0)
    watch, module = Watch(schedule), distiller()
    trainer(schedule, watch).fit(module, loader(3))
    assert module.objective.loss.signed
    residuals = [float(outputs["residual"]) for outputs in watch.outputs]
    assert max(residuals) < 0
    assert watch.duals == [0.0] * 3  # far below its budget, help costs nothing


def test_the_state_has_the_dual_and_goes_on_with_it() -> None:
    schedule = GuideSchedule(PrimalDual(0.5, initial=1.0))
    run = trainer(schedule, max_epochs=2)
    run.fit(distiller(), loader())
    other = GuideSchedule(PrimalDual(0.5))
    other.load_state_dict(schedule.state_dict())
    assert other.dual.state_dict() == schedule.dual.state_dict()
    assert other.state_dict()["history"] == schedule.state_dict()["history"]
    assert [entry["epoch"] for entry in other.state_dict()["history"]] == [0, 1]
    run.fit_loop.max_epochs = 1
    schedule.setup(run, run.lightning_module, "fit")
    assert schedule.dual.multiplier == 1.0  # a new run begins anew


def test_logged_numbers_are_those_of_all_samples_of_the_epoch(tmp_path: Path) -> None:
    schedule, watch = GuideSchedule(2.0, LinearSchedule(0.6, 0.4)), Watch()
    logger = CSVLogger(tmp_path)
    run = trainer(schedule, watch, max_epochs=2, logger=logger, log_every_n_steps=1)
    run.fit(distiller(phases=Alternation(1, 1)), loader())
    rows = list(csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines()))
    epochs = [row for row in rows if row["guide/mean"]]
    assert [int(row["epoch"]) for row in epochs] == [0, 1]
    for row, outputs in zip(epochs, (watch.outputs[:4], watch.outputs[4:]), strict=True):
        joined = {name: torch.cat([out[name] for out in outputs]) for name in ("guide", "target")}
        student, teacher = (
            torch.cat([out[name] for out in outputs]).argmax(1) for name in ("logits", "teacher_logits")
        )
        right, taught = student == joined["target"], teacher == joined["target"]
        wanted = {
            "mean": joined["guide"],
            "below_half": joined["guide"] < 0.5,
            "help_cost": torch.stack([out["help_cost"] for out in outputs]),
            "both_right": right & taught,
            "only_student_right": right & ~taught,
            "only_teacher_right": ~right & taught,
            "both_wrong": ~right & ~taught,
            "agreement": student == teacher,
        }
        for name, values in wanted.items():
            assert float(row[f"guide/{name}"]) == pytest.approx(float(values.double().mean()), rel=1e-5), name
        quadrants = ("both_right", "only_student_right", "only_teacher_right", "both_wrong")
        assert sum(float(row[f"guide/{name}"]) for name in quadrants) == pytest.approx(1.0)
    assert [float(row["guide/budget"]) for row in epochs] == pytest.approx([0.6, 0.5])
    assert [float(row["guide/multiplier"]) for row in epochs] == [2.0, 2.0]


def test_the_run_folder_gets_the_histogram_as_table_and_picture(tmp_path: Path) -> None:
    logger, watch = CSVLogger(tmp_path), Watch()
    trainer(GuideSchedule(), watch, max_epochs=2, logger=logger).fit(distiller(), loader())
    assert Path(logger.log_dir, "guide_histogram.png").read_bytes().startswith(b"\x89PNG")
    header, *rows = csv.reader(Path(logger.log_dir, "guide_histogram.csv").read_text().splitlines())
    assert header == ["epoch", *(f"{index / 20:g}" for index in range(20))]
    for epoch, row in enumerate(rows):
        help_of_all = torch.cat([out["guide"] for out in watch.outputs[4 * epoch : 4 * epoch + 4]])
        counts = np.histogram(help_of_all.numpy(), bins=20, range=(0, 1))[0]
        assert [float(value) for value in row] == [epoch, *counts]
    assert len(rows) == 2


def test_a_stopped_run_draws_what_it_has(tmp_path: Path) -> None:
    class Stops(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise OSError("stopped")

    logger, schedule = CSVLogger(tmp_path), GuideSchedule()
    with pytest.raises(OSError, match="stopped"):
        trainer(schedule, Stops(), max_epochs=2, logger=logger).fit(distiller(), loader())
    assert len(Path(logger.log_dir, "guide_histogram.csv").read_text().splitlines()) == 2
    module = distiller(loss={"budget": 0.7})
    trainer(schedule, max_epochs=1, logger=False).fit(module, loader())  # the guide of the new module, not of the old
    assert schedule.state_dict()["history"][0]["budget"] == 0.7


def test_a_rehearsal_leaves_no_files(tmp_path: Path) -> None:
    trainer(GuideSchedule(), fast_dev_run=True, default_root_dir=tmp_path).fit(distiller(), loader())
    assert list(tmp_path.iterdir()) == []


def test_watching_leaves_training_as_it_was() -> None:
    states = []
    for callbacks in ([], [GuideSchedule()]):
        module = distiller()
        trainer(*callbacks, max_epochs=2).fit(module, loader())
        states.append(module.state_dict().values())
    pairs = zip(*states, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def warned(schedule: GuideSchedule, words: str, epochs: int = 1, **options: Any) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(schedule, max_epochs=epochs).fit(distiller(**options), loader())
    found = [str(each.message) for each in caught if words in str(each.message)]
    assert all("\n" not in each for each in found)
    return len(found)


@pytest.mark.parametrize(("bias", "where"), [(30.0, "everywhere"), (-30.0, "nowhere")])
def test_a_guide_that_always_says_the_same_is_warned_of_once(bias: float, where: str) -> None:
    options = {"guide_kwargs": {"output_bias": bias}, "guide_optimizer": {"lr": 0.0}}
    assert (
        warned(
            GuideSchedule(), f"the guide is saturated, its mean help is {bias > 0:.3f}: it helps {where}", 2, **options
        )
        == 1
    )
    assert warned(GuideSchedule(), "saturated", guide_optimizer={"lr": 0.0}) == 0
    assert warned(GuideSchedule(), "saturated", guide=1.0) == 0  # as it was told to


@pytest.mark.parametrize(("epochs", "count"), [(2, 0), (3, 1), (5, 1)])
def test_a_budget_that_is_not_met_for_three_epochs_is_warned_of_once(epochs: int, count: int) -> None:
    frozen = {"guide_optimizer": {"lr": 0.0}}
    words = "more than its budget of 0.01, for 3 epochs"
    assert warned(GuideSchedule(budget=0.01), words, epochs, **frozen) == count
    assert warned(GuideSchedule(PrimalDual(1e-6), budget=0.01), words, epochs, **frozen) == 0  # it still rises
    capped = PrimalDual(1.0, maximum=0.5)
    assert warned(GuideSchedule(capped, budget=0.01), words, epochs, **frozen) == count


def refused(
    words: str, *callbacks: Callback, module: LightningModule | None = None, data: Any = None, **options: Any
) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        trainer(*callbacks, **options).fit(module or distiller(), loader() if data is None else data)
    assert "\n" not in str(caught.value)


def test_a_module_without_a_guide_is_refused() -> None:
    module = Distiller(network(8, 0), network(12, 1), in_chans=None, objective="kd")
    refused(
        "Distiller has no guide; use Distiller with objective 'disk', or add the callback DiSK",
        GuideSchedule(),
        module=module,
    )


def test_two_that_set_the_same_number_are_refused() -> None:
    words = "the guide callbacks '.*' and '.*' both set budget; let one do it"
    refused(words, GuideSchedule(budget=0.1), GuideSchedule(budget=0.2, name="second"))
    words = "the guide callbacks '.*' and '.*' both set multiplier; let one do it"
    refused(words, GuideSchedule(PrimalDual()), GuideSchedule(1.0, name="second"))
    module = distiller()
    trainer(GuideSchedule(budget=0.1), GuideSchedule(multiplier=2.0, name="second")).fit(module, loader(1))
    assert (module.objective.loss.budget, module.objective.loss.multiplier) == (0.1, 2.0)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        yield from ((torch.randn(FEATURES), 0) for _ in range(64))


def test_a_schedule_needs_a_run_that_ends() -> None:
    words = "GuideSchedule: a schedule needs the length of the run; set trainer.max_epochs or max_steps"
    refused(words, GuideSchedule(budget=0.1), max_epochs=-1)
    refused(words, GuideSchedule(budget=0.1, interval="step"), data=DataLoader(Endless(), batch_size=16))
    cycles = GuideSchedule(budget=0.1, interval="cycle", phases=Alternation(1, 1))
    refused(words, cycles, max_epochs=-1, max_steps=3)
    watch = Watch()
    trainer(GuideSchedule(LinearSchedule(0.0, 4.0)), watch, max_epochs=-1, max_steps=4).fit(distiller(), loader())
    assert [numbers[0] for numbers in watch.numbers] == [0, 1, 2, 3]
    changing = GradientAccumulationScheduler({1: 2})  # with it Lightning refuses to count the steps of a run
    trainer(GuideSchedule(PrimalDual()), changing, max_epochs=2).fit(distiller(), loader())


def test_cycles_need_phases() -> None:
    refused("interval 'cycle' counts the cycles of phases; give phases", GuideSchedule(budget=0.1, interval="cycle"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interval": "epochs"}, r"interval='epochs' is not one of .*Did you mean 'epoch'"),
        ({"budget": -0.1}, "budget becomes -0.1; it must be 0 or more"),
        ({"multiplier": LinearSchedule(1.0, -1.0)}, "multiplier becomes -1; it must be 0 or more"),
        ({"temperature": LinearSchedule(1.0, 0.0)}, "temperature becomes 0; it must be above 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        GuideSchedule(**options)
    assert "\n" not in str(caught.value)
