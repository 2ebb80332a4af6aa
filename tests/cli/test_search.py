"""The verb ``search``, with trials that are made up, and once with two that train."""

from __future__ import annotations

import _thread
import csv
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from lightning_efficient.cli import _search_report, search
from lightning_efficient.cli._search_objectives import parse_aims
from lightning_efficient.cli._search_workers import Outcome, Processes, Report, TrialJob
from lightning_efficient.cli.config_files import find
from lightning_efficient.errors import ConfigurationError

optuna = pytest.importorskip("optuna")

TINY: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "ImageClassifier",
        "init_args": {"backbone": "test_byobnet", "num_classes": 10, "optimizer": {"class_path": "torch.optim.SGD"}},
    },
    "data": {"class_path": "Digits", "init_args": {"batch_size": 4, "image_size": 16}},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": 1,
        "limit_val_batches": 2,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "logger": [
            {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": "tiny"}}
        ],
    },
}
SPACE = """\
model.optimizer.lr: {low: 1e-3, high: 1e-1, log: true}
data.image_size: {low: 16, high: 64, step: 16}
model.surgery: {choices: {none: null, half: [SpatialInterpolation]}}
"""


class FakeTrials:
    """Trials whose accuracy grows with the image size, and whose latency grows faster.

    Attributes:
        jobs: Configs of the trials that were run.
        act: Called with the number of a trial; what it returns, if anything, is how the trial ends.
    """

    def __init__(self, act: Callable[[int], Outcome | None] = lambda number: None) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.act = act
        self.stopped = threading.Event()

    def run(self, job: TrialJob, report: Report) -> Outcome:
        config = yaml.safe_load(job.config.read_text())
        self.jobs.append(config)
        if (ended := self.act(job.number)) is not None:
            return ended
        size = config["data"]["init_args"]["image_size"]
        metrics = {"val/accuracy": 0.5 + size / 200 - job.number / 1000, "val/loss": 1.0, "val/aurc": 0.1}
        latency = {"batch_size": 1, "p50_ms": (size / 16) ** 2}
        footprint = {"macs": size**2, "bytes": 4000, "parameters": 1000, "latencies": [latency]}
        for step in (1, 2, 3):
            if report(step, metrics, footprint):
                return Outcome("pruned")
        return Outcome("done", metrics, footprint)

    def stop(self) -> None:
        self.stopped.set()

    @property
    def samples(self) -> list[tuple[Any, ...]]:
        return [
            (job["model"]["init_args"]["optimizer"]["init_args"]["lr"], job["data"]["init_args"]["image_size"])
            for job in self.jobs
        ]


@pytest.fixture(autouse=True, scope="module")
def _fast_storage() -> Iterator[None]:
    """Do not wait for the disk after each of the thousands of entries of this file."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def do_not_wait(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", do_not_wait)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield
    event.remove(Engine, "connect", do_not_wait)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lightning_efficient.cli._search_base import BaseConfig

    file = tmp_path_factory.mktemp("base") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    base = BaseConfig(["--config", str(file)])
    parse, known = base._problem, {}

    def problem(config: dict[str, Any]) -> str | None:  # parsed once: most searches here have the same space
        return known[text] if (text := repr(config)) in known else known.setdefault(text, parse(config))

    base._problem = problem  # type: ignore[method-assign,assignment]
    return base


@pytest.fixture
def run(
    tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., SimpleNamespace]]:
    """A function that searches with made-up trials and returns status, output and those trials."""
    monkeypatch.setattr(search, "parsed", lambda words: tiny_base)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "space.yaml").write_text(SPACE)

    draw = _search_report.write_pictures

    def run(
        *words: object,
        trials: FakeTrials | None = None,
        out: str = "out",
        pictures: bool = False,
        default_storage: bool = False,
    ) -> SimpleNamespace:
        monkeypatch.setattr(_search_report, "write_pictures", draw if pictures else lambda *arguments: [])
        trials = trials or FakeTrials()
        # a journal takes a tenth of the time of a database
        storage = [] if default_storage else ["--storage", f"{out}/study.journal"]
        given = ["--config", "tiny", "--space", "space.yaml", "--out", out, *storage, *map(str, words)]
        status = search.run_search(given, trials)
        return SimpleNamespace(status=status, trials=trials, **capsys.readouterr()._asdict())

    return run


def rows(out: str = "out") -> list[dict[str, str]]:
    with Path(out, "trials.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_two_objectives_leave_the_front_of_what_was_tried(run: Callable[..., Any]) -> None:
    result = run("--trials", 8, pictures=True, default_storage=True)
    assert (result.status, result.err) == (0, "")
    assert Path("out/study.db").is_file()
    found = rows()
    assert [row["state"] for row in found] == ["complete"] * 8
    points = [(float(row["accuracy"]), float(row["latency_ms"])) for row in found]
    front = [not any((a > p[0] and t <= p[1]) or (a >= p[0] and t < p[1]) for a, t in points) for p in points]
    assert [row["best"] == "1" for row in found] == front
    assert len(result.out.split("front: ")[0].splitlines()) == 8
    assert f"front: {sum(front)} of 8 trials" in result.out
    assert Path("out/pareto.png").stat().st_size > 1000
    assert len(list(Path("out/front").iterdir())) == sum(front)


def test_a_config_of_the_front_is_whole_and_as_the_base_but_for_the_space(
    run: Callable[..., Any], tiny_base: Any, parse: Callable[..., Any]
) -> None:
    run("--trials", 4)
    best = max((row for row in rows()), key=lambda row: float(row["accuracy"]))
    file = sorted(Path("out/front").iterdir())[0]
    config = yaml.safe_load(file.read_text())
    assert config["trainer"] == tiny_base.config["trainer"]
    assert config["data"]["init_args"]["image_size"] == int(best["data.image_size"])
    parsed = parse("--config", file)
    assert parsed.model.init_args.optimizer.init_args.lr == pytest.approx(float(best["model.optimizer.lr"]))


def test_a_trial_keeps_its_files_in_its_folder_and_is_timed_last_and_as_asked(run: Callable[..., Any]) -> None:
    trainer = run("--trials", 1, "--latency_batch", 1, "--threads", 2).trials.jobs[0]["trainer"]
    assert trainer["default_root_dir"] == trainer["logger"][0]["init_args"]["save_dir"] == "out/trials/0000"
    assert trainer["callbacks"][-1]["class_path"] == "LatencyProfiler"
    options = trainer["callbacks"][-1]["init_args"]
    assert (options["batch_sizes"], options["threads"], options["when"]) == ([1], 2, "fit_end")


def test_a_search_for_accuracy_alone_times_nothing(run: Callable[..., Any]) -> None:
    result = run("--trials", 2, "--objectives", "accuracy", pictures=True)
    assert result.trials.jobs[0]["trainer"]["callbacks"] is None
    assert Path("out/best.yaml").read_text().startswith("# trial ")
    assert Path("out/history.png").is_file()


@pytest.mark.parametrize(("sampler", "most"), [("tpe", 12), ("random", 4), ("nsga2", 4)])
def test_the_same_seed_tries_the_same_also_after_an_interruption(
    run: Callable[..., Any], sampler: str, most: int
) -> None:
    whole = run("--trials", most, "--sampler", sampler, "--seed", 3, out="whole").trials.samples
    parts = [
        sample
        for trials in (most // 2, most)
        for sample in run("--trials", trials, "--sampler", sampler, "--seed", 3, out="parts").trials.samples
    ]
    assert parts == whole
    assert len(set(whole)) == most
    other = run("--trials", 2, "--sampler", sampler, "--seed", 4, out="other").trials.samples
    assert other != whole[:2]


def test_a_grid_tries_every_combination_once_and_ends(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("data.image_size: [16, 32, 48]\nmodel.optimizer.nesterov: [true, false]")
    first = run("--trials", 4, "--sampler", "grid").trials
    rest = run("--trials", 99, "--sampler", "grid").trials
    tried = [
        (job["data"]["init_args"]["image_size"], job["model"]["init_args"]["optimizer"]["init_args"]["nesterov"])
        for job in (*first.jobs, *rest.jobs)
    ]
    assert len(tried) == len(set(tried)) == 6


def test_finished_trials_count_and_nothing_runs_when_there_are_enough(run: Callable[..., Any]) -> None:
    run("--trials", 3)
    again = run("--trials", 3)
    assert (again.status, again.trials.jobs) == (0, [])
    assert again.out.startswith("3 of 3 trials are there already\n")
    assert len(run("--trials", 5).trials.jobs) == 2


@pytest.mark.parametrize(
    ("words", "space", "says"),
    [
        (["--objectives", "accuracy"], SPACE, "objectives was ['accuracy', 'latency_ms'] and is ['accuracy']"),
        (["--objectives", "accuracy", "macs"], SPACE, "objectives was ['accuracy', 'latency_ms'] and is"),
        (["--threads", "2"], SPACE, "timing threads was 1 and is 2"),
        ([], SPACE.replace("64", "48"), "space data.image_size high was 64 and is 48"),
        ([], "data.image_size: [16]", "space model.optimizer.lr was {"),
    ],
    ids=["fewer objectives", "other objectives", "timing", "range", "keys"],
)
def test_a_study_that_wants_something_else_is_refused(
    run: Callable[..., Any], tmp_path: Path, words: list[str], space: str, says: str
) -> None:
    run("--trials", 1)
    (tmp_path / "space.yaml").write_text(space)
    refused = run("--trials", 2, *words)
    assert (refused.status, refused.trials.jobs) == (2, [])
    assert refused.err.count("\n") == 1
    assert "the study 'search' was begun with other terms" in refused.err
    assert says in refused.err
    assert run("--trials", 1, *words, "--study", "other").status == 0


def test_another_study_leaves_the_files_of_the_first_alone(run: Callable[..., Any]) -> None:
    run("--trials", 1)
    first = Path("out/trials/0000/config.yaml").read_text()
    run("--trials", 2, "--seed", 5, "--study", "other")
    assert Path("out/trials/0000/config.yaml").read_text() == first
    assert (len(rows()), len(rows("out/other"))) == (1, 2)


def test_a_study_of_another_config_is_refused(
    run: Callable[..., Any], tiny_base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--trials", 1)
    longer = tiny_base.config | {"trainer": tiny_base.config["trainer"] | {"max_epochs": 9}}
    monkeypatch.setattr(tiny_base, "config", longer)
    assert "config trainer max_epochs was 1 and is 9" in run("--trials", 2).err


def test_a_failed_trial_is_kept_with_its_reason_and_the_search_goes_on(run: Callable[..., Any]) -> None:
    def act(number: int) -> Outcome | None:
        return {1: Outcome("failed", reason="no such model"), 2: Outcome("done", {"val/accuracy": math.nan})}.get(
            number
        )

    result = run("--trials", 4, "--objectives", "accuracy", trials=FakeTrials(act))
    assert result.status == 0
    assert [row["state"] for row in rows()] == ["complete", "failed", "failed", "complete"]
    assert [row["reason"] for row in rows()[1:3]] == ["no such model", "val/accuracy is nan"]
    assert "trial   1  failed: no such model" in result.out


def test_three_first_trials_that_fail_alike_end_the_search(run: Callable[..., Any]) -> None:
    trials = FakeTrials(lambda number: Outcome("failed", reason=f"the loss is nan at step {number}"))
    result = run("--trials", 20, trials=trials)
    assert (result.status, len(trials.jobs)) == (2, 3)
    assert result.err == "error: the first trials all failed: the loss is nan at step 0\n"


def test_a_search_without_a_success_says_so_by_its_status(run: Callable[..., Any]) -> None:
    assert run("--trials", 2, trials=FakeTrials(lambda number: Outcome("failed", reason="no"))).status == 1


def test_a_hopeless_trial_is_pruned(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("data.image_size: [32]\nmodel.optimizer.nesterov: [true, false]")
    result = run("--trials", 8, "--objectives", "accuracy", "--sampler", "random")  # each is a little worse
    assert [row["state"] for row in rows()] == ["complete"] * 5 + ["pruned"] * 3
    assert "best by accuracy: 5 of 8 trials (3 pruned)" in result.out
    assert {row["state"] for row in rows()} == {"complete", "pruned"}
    run("--trials", 8, "--objectives", "accuracy", "--pruner", "none", out="unpruned")
    assert {row["state"] for row in rows("unpruned")} == {"complete"}


def test_the_reward_is_optimised_with_accuracy_and_latency_beside_it(run: Callable[..., Any]) -> None:
    result = run("--trials", 4, "--reward", "mnasnet", "--target_latency_ms", 4, "--exponent", "-0.5", pictures=True)
    assert result.status == 0
    for row in rows():
        expected = float(row["accuracy"]) * (float(row["latency_ms"]) / 4) ** -0.5
        assert float(row["reward"]) == pytest.approx(expected)
    best = max(rows(), key=lambda row: float(row["reward"]))
    assert Path("out/best.yaml").read_text().startswith(f"# trial {best['trial']} of out: reward ")
    assert Path("out/pareto.png").is_file()
    assert "reward" in result.out


def test_a_target_shows_the_reward_beside_the_front(run: Callable[..., Any]) -> None:
    assert "reward" in run("--trials", 2, "--target_latency_ms", 4).out
    assert all(row["reward"] for row in rows())


def test_several_workers_run_every_trial_once(run: Callable[..., Any]) -> None:
    together = threading.Barrier(2, timeout=20)
    trials = FakeTrials(lambda number: (together.wait(), None)[1] if number < 2 else None)
    result = run("--trials", 7, "--workers", 2, trials=trials)
    assert result.status == 0
    assert sorted(int(row["trial"]) for row in rows()) == list(range(7))
    assert len(set(trials.samples)) == 7


def test_ctrl_c_keeps_what_is_done_and_the_same_command_runs_the_rest(run: Callable[..., Any]) -> None:
    def act(number: int) -> Outcome | None:
        if number != 2:
            return None
        _thread.interrupt_main()
        assert trials.stopped.wait(20)
        return Outcome("interrupted")

    trials = FakeTrials(act)
    first = run("--trials", 5, trials=trials)
    assert first.status == 130
    assert "interrupted: ending the trials that run" in first.out
    assert "of 2 trials" in first.out
    again = run("--trials", 5)
    assert again.status == 0
    assert "trials that were cut short are run again: 2\n" in again.out
    assert again.trials.samples[0] == trials.samples[2]
    assert len(again.trials.jobs) == 3
    assert [row["state"] for row in rows()] == ["complete"] * 5


@pytest.mark.parametrize("storage", ["out/study.db", "out/study.journal"])
def test_a_trial_of_a_killed_process_is_run_again_and_one_elsewhere_is_left_alone(
    run: Callable[..., Any], storage: str
) -> None:
    from lightning_efficient.cli._search_study import Study

    run("--trials", 2, "--storage", storage)
    opened = Study.__new__(Study)
    opened.optuna = optuna
    study = optuna.load_study(study_name="search", storage=opened._storage(storage))
    killed, elsewhere = study.ask(), study.ask()
    killed.suggest_float("model.optimizer.lr", 1e-3, 1e-1, log=True)
    killed.set_user_attr("owner", {"host": os.uname().nodename, "pid": 1, "mark": "of another start"})
    elsewhere.set_user_attr("owner", {"host": "another", "pid": 1, "mark": "1"})
    result = run("--trials", 5, "--storage", storage)
    assert f"trials that were cut short are run again: {killed.number}\n" in result.out
    assert result.trials.samples[0][0] == pytest.approx(killed.params["model.optimizer.lr"])
    assert len(result.trials.jobs) == 2  # two are there, one runs elsewhere


def test_no_trial_begins_after_the_time_is_up(run: Callable[..., Any]) -> None:
    trials = FakeTrials(lambda number: time.sleep(0.3))
    assert run("--trials", 50, "--timeout_s", 0.2, trials=trials).status == 0
    assert len(trials.jobs) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--trials", "0"], "--trials is 0; it must be 1 or more"),
        (["--workers", "0"], "--workers is 0; it must be 1 or more"),
        (["--timeout_s", "0"], "--timeout_s is 0.0; it must be above 0"),
        (["--trails", "3"], "unknown option --trails. Did you mean '--trials'"),
        (["--trainr.max_epochs", "3"], "unknown option --trainr.max_epochs. Did you mean '--trainer.max_epochs'"),
        (["--sampler", "tp"], "invalid choice: 'tp'"),
        (["--objectives", "acuracy"], "Did you mean 'accuracy'?"),
        (["--objectives", "val/aurc"], "say which is better, val/aurc:min or val/aurc:max"),
        (["--objectives", "val/aurc:up"], "the direction must be min or max"),
        (["--objectives", "accuracy:min"], "accuracy is made large"),
        (["--objectives", "test/accuracy:max"], "a search must not look at the test split"),
        (["--objectives", "macs", "macs"], "--objectives names macs twice"),
        (["--objectives", "accuracy", "val/accuracy:max"], "--objectives names val/accuracy twice"),
        (["--reward", "mnasnet"], "--reward mnasnet needs --target_latency_ms"),
        (["--reward", "mnasnet", "--target_latency_ms", "0"], "--target_latency_ms is 0.0; it must be above 0"),
        (["--reward", "mnasnet", "--target_latency_ms", "1", "--exponent", "1"], "--exponent is 1.0; it must be 0 or"),
        (["--reward", "mnasnet", "--objectives", "macs"], "--reward and --objectives both say what to optimise"),
        (["--objectives", "macs", "--target_latency_ms", "1"], "needs the objectives accuracy and latency_ms"),
        (["--pruner", "median"], "Optuna cannot prune a study of several objectives"),
        (["--objectives", "macs", "--pruner", "median"], "macs is known at the end of a trial only"),
        (["--sampler", "grid"], "model.optimizer.lr: a grid needs choices"),
        (["--space", "search/digit"], "Did you mean 'search/digits'"),
        (["--storage", "nowhere://x"], "--storage nowhere://x: "),
        (["--study", "a/b"], "--study 'a/b': it must be a name without slashes"),
        (["--study", ""], "--study '': it must be"),
        (["--out", "space.yaml"], "--out space.yaml: it cannot be written"),
        (["--storage", "/nowhere/study.db"], "--storage /nowhere/study.db: "),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(run: Callable[..., Any], words: list[str], says: str) -> None:
    result = run(*words)
    assert (result.status, result.out, result.trials.jobs) == (2, "", [])
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert says in result.err


def test_energy_is_refused_without_a_meter_and_measured_with_one(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_efficient.profiling.energy import EnergyCounter

    monkeypatch.setattr(EnergyCounter, "available", lambda self: "no counters here")
    result = run("--objectives", "energy_mj")
    assert (result.status, result.trials.jobs) == (2, [])
    assert "--objectives has energy_mj, and there is no meter here: no counters here" in result.err
    monkeypatch.setattr(EnergyCounter, "available", lambda self: None)
    [job] = run("--objectives", "energy_mj", "--trials", "1").trials.jobs
    assert job["trainer"]["callbacks"][-1]["init_args"]["energy"] is True


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ("model.backbne: [a]", "model.backbne is no key of the config. Did you mean 'model.backbone'"),
        ("trainer.max_epoch: [1]", "Did you mean 'trainer.max_epochs'"),
        ("trainer.callbacks.GradualPruning.sparsity: [0.5]", "is no key of the config"),
        ("model.backbone: [a]\nmodel.init_args.backbone: [b]", "are the same option"),
        ("data.image_size: [16, big]", "data.image_size cannot be 'big': data.image_size is 'big'; it must be int"),
        ("data.image_size: {low: 16.0, high: 20.5}", "data.image_size cannot be 16.0: "),
        ("model.optimizer.momentun: [0.5]", "Did you mean 'model.optimizer.momentum'"),
        ("model.loss: [bce, bec]", "model.loss cannot be 'bec': model.loss is 'bec'; it must be one of"),
    ],
)
def test_a_space_that_does_not_fit_the_config_is_refused_before_anything_runs(
    run: Callable[..., Any], tmp_path: Path, space: str, says: str
) -> None:
    (tmp_path / "space.yaml").write_text(space)
    result = run()
    assert (result.status, result.out, result.trials.jobs) == (2, "", [])
    assert result.err.count("\n") == 1
    assert says in result.err
    assert not Path("out").exists()


def test_whole_numbers_of_an_option_that_takes_fractions_are_fractions(tiny_base: Any) -> None:
    from lightning_efficient.cli.search_space import read_space

    space = tiny_base.fitted(read_space({"model.label_smoothing": {"low": 0, "high": 1}}))
    assert not space.parameters[0].whole


def test_help_is_given_without_torch() -> None:
    code = (
        "import sys; from lightning_efficient.cli.search import run_search\n"
        "try: run_search(['--help'])\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("0 False\n")
    assert "--target_latency_ms" in done.stdout


def test_the_shipped_space_fits_the_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_efficient.cli.search_space import load_space

    base = search.parsed(["--config", "quickstart"])
    space = base.fitted(load_space("search/digits"))
    assert [parameter.key.rpartition(".")[2] for parameter in space.parameters] == [
        "backbone",
        "lr",
        "image_size",
        "surgery",
    ]


def test_the_shipped_sweep_is_a_command_that_fit_accepts(
    parse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load(find("search/wandb_sweep").read_text())
    sampled = {
        name: {"value": one["values"][-1] if "values" in one else math.sqrt(one["min"] * one["max"])}
        for name, one in sweep["parameters"].items()
    }
    known = create_sweep_command_args({"args": sampled}) | {"env": ["/usr/bin/env"], "program": [sweep["program"]]}
    words: list[str] = []
    for word in create_sweep_command(sweep["command"]):  # as the agent does
        macro = re.fullmatch(r"\$\{(\w+)\}", word)
        words += known[macro[1]] if macro else [word]
    assert words[:3] == ["/usr/bin/env", "lightning-efficient", "fit"]
    config = parse(*words[3:])
    assert config.model.init_args.backbone == "mnasnet_small"
    assert config.data.init_args.image_size == 64
    assert config.trainer.logger[-1].init_args.offline is False
    assert sweep["metric"] == {"name": "val/accuracy", "goal": "maximize"}


def test_the_metrics_of_a_trial_are_those_of_the_checkpoint_kept() -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from lightning_efficient.cli._search_trial import TrialReporter

    reporter = TrialReporter(None)
    reporter.history = [{"val/accuracy": value, "val/aurc": index} for index, value in enumerate([0.2, 0.9, 0.9, 0.1])]
    trainer: Any = SimpleNamespace(
        callbacks=[ModelCheckpoint(monitor="val/accuracy", mode="max")],
        callback_metrics={"val/accuracy": 0.1, "val/aurc": 3.0, "train/loss": 0.4},
    )
    assert reporter.kept(trainer) == {"val/accuracy": 0.9, "val/aurc": 1, "train/loss": 0.4}
    trainer.callbacks = []
    assert reporter.kept(trainer)["val/aurc"] == 3


def test_a_metric_that_was_not_logged_names_the_closest() -> None:
    aims = parse_aims(["val/aurcc:min"], None, None, 0.0)
    with pytest.raises(ConfigurationError, match=r"val/aurcc was not logged. Did you mean 'val/aurc'"):
        aims.read({"val/aurc": 0.1}, None, 1)
    with pytest.raises(ConfigurationError, match="energy_mj: the profile of the model has none"):
        parse_aims(["energy_mj"], None, None, 0.0).read({}, {"energy_mj": None}, 1)


def test_while_one_model_is_timed_the_processes_of_the_others_stand_still() -> None:
    def process() -> Any:
        sleeper = subprocess.Popen(["sleep", "60"], process_group=0)
        return SimpleNamespace(pid=sleeper.pid, is_alive=lambda: sleeper.poll() is None, end=sleeper.kill)

    def state(one: Any) -> str:
        return Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def wait_for(one: Any, wanted: str) -> bool:
        until = time.monotonic() + 10
        while state(one) not in wanted and time.monotonic() < until:
            time.sleep(0.01)
        return state(one) in wanted

    timed, other = process(), process()
    try:
        processes = Processes()
        processes._running = [timed, other]  # type: ignore[assignment]
        with processes._others_stopped(timed):
            assert wait_for(other, "T")
            assert state(timed) != "T"
        assert wait_for(other, "SR")
    finally:
        for one in (timed, other):
            one.end()


@pytest.mark.slow
def test_two_trials_train_in_processes_of_their_own_and_one_that_dies_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], tiny_base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "parsed", lambda words: tiny_base)
    (tmp_path / "space.yaml").write_text("model.backbone: [test_byobnet, no_such_model]")
    words = ["--config", "tiny", "--space", "space.yaml", "--out", "out", "--sampler", "grid", "--workers", "2"]
    assert search.run_search(words) == 0
    found = {row["model.backbone"]: row for row in rows()}
    assert found["no_such_model"]["state"] == "failed"
    assert "no_such_model" in found["no_such_model"]["reason"]
    good = found["test_byobnet"]
    assert 0 <= float(good["accuracy"]) <= 1
    assert float(good["latency_ms"]) > 0
    assert list(Path(good["folder"]).glob("tiny/version_0/checkpoints/*.ckpt"))
    assert "Trainer.fit" in Path(good["folder"], "trial.log").read_text()
    captured = capfd.readouterr()
    assert captured.err == ""
    assert "Trainer.fit" not in captured.out


def test_a_process_that_was_killed_is_told_by_its_signal() -> None:
    from lightning_efficient.cli._search_workers import _died

    assert _died(-signal.SIGKILL) == "the process was ended by SIGKILL, as when memory runs out"
    assert _died(3) == "the process ended with status 3 and said nothing"
