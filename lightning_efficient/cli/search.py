"""``lightning-efficient search``: try configurations and keep the best trade-offs."""

from __future__ import annotations

import argparse
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

from lightning_efficient.cli._search_objectives import NAMED, Aims, parse_aims
from lightning_efficient.cli._search_study import PRUNERS, SAMPLERS, Finished, Study
from lightning_efficient.cli._search_workers import Outcome, Processes, Report, TrialJob
from lightning_efficient.cli.option_parser import OptionParser
from lightning_efficient.cli.output import complain, say
from lightning_efficient.cli.quiet import quiet
from lightning_efficient.cli.search_space import load_space
from lightning_efficient.errors import ConfigurationError, MissingExtraError, did_you_mean, require

if TYPE_CHECKING:
    from lightning_efficient.cli._search_base import BaseConfig

_ABOUT = "Try configurations of a search space, and keep the one that is best or those that no other beats."
_MORE = """\
Options of fit, such as --trainer.max_epochs 2 or --timm NAME, hold for every trial. The same command goes on where it
stopped. Several machines search together when each runs the same command with one --storage: a database URL, or a
file on a shared disk that ends in .journal. See also: lightning-efficient configs cat search/digits
"""
_STUDY = "search"
_OF_FIT = ("--model", "--data", "--timm", "--seed_everything", "--trainer", "--ckpt_path", "--weights_only")


class Runner(Interface):
    """Runs trials, each until it has ended."""

    def run(self, job: TrialJob, report: Report) -> Outcome:
        """Run one, from any thread."""

    def stop(self) -> None:
        """End all that are running."""


def run_search(arguments: Sequence[str], runner: Runner | None = None) -> int:
    """Search and return the exit status: 0, 1 if no trial succeeded, 2 for a mistake, 130 after Ctrl-C.

    Args:
        arguments: What follows ``search`` on the command line.
        runner: Runs the trials; by default each in a process of its own.
    """
    try:
        return _Search(_options(arguments), runner).run()
    except (ConfigurationError, MissingExtraError, OSError) as error:
        complain(" ".join(str(error).split()))
        return 2


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OptionParser(
        prog="lightning-efficient search",
        usage="%(prog)s --config NAME --space NAME [OPTIONS] [OPTIONS OF FIT]",
        description=_ABOUT,
        epilog=_MORE,
    )
    add = parser.add_argument
    add("--config", "-c", action="append", default=[], help="what every trial starts from; may be given again")
    add("--space", required=True, help="YAML of keys and their values; a file, or a name such as search/digits")
    add("--trials", type=int, default=20, help="how many in all, with those of earlier commands (20)")
    add(
        "--objectives",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(NAMED)}, or a metric such as val/aurc:min (accuracy latency_ms)",
    )
    add("--reward", choices=("mnasnet",), help="one number of accuracy and latency instead of objectives")
    add("--target_latency_ms", type=float, help="latency at which the reward is the accuracy")
    add("--exponent", type=float, default=-0.07, help="of the latency in the reward (-0.07)")
    add("--sampler", choices=SAMPLERS, default="tpe", help="what to try next (tpe)")
    add("--pruner", choices=PRUNERS, help="ends hopeless trials of one objective early (median; none for several)")
    add("--seed", type=int, default=0, help="of the sampler (0)")
    add("--workers", type=int, default=1, help="trials at the same time (1)")
    add("--timeout_s", type=float, help="begin no trial after that many seconds")
    add("--latency_batch", type=int, default=1, help="batch size at which latency is measured (1)")
    add("--threads", type=int, default=1, help="threads of torch while latency is measured (1)")
    add("--out", type=Path, help="folder of the search (runs/search/NAME OF CONFIG)")
    add("--storage", help="database URL, FILE.db, or FILE.journal (study.db in the folder)")
    add("--study", default=_STUDY, help="name of the study; another than search has a folder in that of the search")
    options, rest = parser.parse_known_args(list(arguments))
    for word in rest:
        name = word.partition("=")[0]
        if re.match(r"--?[a-zA-Z]", word) and name.partition(".")[0] not in _OF_FIT:
            known = [option for action in parser._actions for option in action.option_strings]
            more = "".join(name.partition(".")[1:])
            hint = did_you_mean(name, [*known, *(f"{one}{more}" for one in _OF_FIT)])
            raise ConfigurationError(f"unknown option {name}.{hint}")
    if rest and not rest[0].startswith("-"):
        raise ConfigurationError(f"{rest[0]!r} is no option; see {parser.prog} --help")
    options.fit = [word for config in options.config for word in ("--config", config)] + rest
    return options


class _Search:
    def __init__(self, options: argparse.Namespace, runner: Runner | None) -> None:
        for name, least in {"trials": 1, "workers": 1, "latency_batch": 1, "threads": 1, "seed": 0}.items():
            if (given := getattr(options, name)) < least:
                raise ConfigurationError(f"--{name} is {given}; it must be {least} or more")
        if options.timeout_s is not None and not options.timeout_s > 0:
            raise ConfigurationError(f"--timeout_s is {options.timeout_s}; it must be above 0")
        if not options.study.strip(".") or Path(options.study).name != options.study:
            raise ConfigurationError(f"--study {options.study!r}: it must be a name without slashes, and not empty")
        self.options = options
        self.aims = parse_aims(options.objectives, options.reward, options.target_latency_ms, options.exponent)
        self.pruner = _pruner(options.pruner, self.aims)
        require("optuna", "hpo")
        space = load_space(options.space)
        if options.sampler == "grid":
            space.grid()
        self.runner = runner or _processes()
        quiet()  # before the import: torch may have something to say as it loads
        from lightning_efficient.cli._search_base import Protocol

        self.base = parsed(options.fit)
        self.space = self.base.fitted(space)
        energy = any(objective.name == "energy_mj" for objective in self.aims.objectives)
        if energy and (reason := _no_meter()):
            raise ConfigurationError(f"--objectives has energy_mj, and there is no meter here: {reason}")
        profiled = self.aims.profiled
        self.protocol = Protocol(options.latency_batch, options.threads, energy) if profiled else None
        name = Path(options.config[-1]).stem if options.config and "{" not in options.config[-1] else "fit"
        home: Path = options.out or Path("runs") / "search" / name
        # two studies must not write over each other's files
        self.out = home if options.study == _STUDY else home / options.study
        try:
            (self.out / "trials").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"--out {home}: it cannot be written ({error.strerror or error})") from error
        self.study = self._open_study(home)
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.problem: BaseException | None = None
        self.began = time.monotonic()

    def _open_study(self, home: Path) -> Study:
        options = self.options
        timing = {"latency_batch": options.latency_batch, "threads": options.threads} if self.protocol else None
        return Study(
            options.storage or str(home / "study.db"),
            options.study,
            self.aims,
            self.space,
            {"timing": timing, "config": self.base.config},
            sampler=options.sampler,
            pruner=self.pruner,
            seed=options.seed,
            epochs=self.base.config["trainer"].get("max_epochs"),
        )

    def run(self) -> int:
        wanted = self.options.trials
        before = self.study.counted()
        if self.study.left:
            numbers = ", ".join(map(str, self.study.left))
            say(f"trials that were cut short are run again: {numbers}")
        if before:
            say(f"{before} of {wanted} trials are there already")
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self.options.workers)]
        interrupted = False
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.2)
        except KeyboardInterrupt:
            interrupted = True
            self.stopping.set()
            say("interrupted: ending the trials that run")
            sys.stdout.flush()
            self.runner.stop()
            for worker in workers:
                worker.join()
        if self.problem is not None:
            raise self.problem
        finished = self._conclude()
        if (reason := self.study.same_failure()) is not None:
            complain(f"the first trials all failed: {reason}")
            return 2
        if interrupted:
            return 130
        return 0 if any(trial.state == "complete" for trial in finished) else 1

    def _work(self) -> None:
        try:
            while self._one_trial():
                pass
        except BaseException as error:  # raised again by the main thread
            self.problem = self.problem or error
            self.stopping.set()
            self.runner.stop()

    def _one_trial(self) -> bool:
        """Run a trial; false when there shall be no other."""
        options = self.options
        with self.lock:
            late = options.timeout_s is not None and time.monotonic() - self.began > options.timeout_s
            if self.stopping.is_set() or late or self.study.counted() >= options.trials:
                return False
            asked = self.study.ask()
            if asked is None:
                return False
            trial, chosen = asked
            job = self._prepare(trial, chosen)
        since = time.monotonic()

        def report(step: int, metrics: Any, footprint: Any) -> bool:
            if self.pruner == "none":
                return False
            values = self.aims.read(metrics, footprint, options.latency_batch)
            with self.lock:
                return self.study.report(trial, step, self.aims.optimised(values)[0])

        try:
            outcome = self.runner.run(job, report)
        except ConfigurationError as error:
            outcome = Outcome("failed", reason=str(error))
        with self.lock:
            finished = self.study.tell(
                trial, outcome, time.monotonic() - since, options.latency_batch, str(job.config.parent)
            )
            if outcome.kind != "interrupted":
                self._say(finished)
            if self.study.same_failure() is not None:
                self.stopping.set()
        return True

    def _prepare(self, trial: Any, chosen: dict[str, Any]) -> TrialJob:
        from lightning_efficient.cli._search_base import trial_config
        from lightning_efficient.cli._search_report import as_yaml

        folder = self.out / "trials" / f"{trial.number:04}"
        folder.mkdir(parents=True, exist_ok=True)
        config = trial_config(self.base.with_values(self.space.values(chosen)), folder, self.protocol)
        (folder / "config.yaml").write_text(as_yaml(config), encoding="utf-8")
        threads = max(1, (os.cpu_count() or 1) // self.options.workers) if self.options.workers > 1 else None
        early = self.aims.scalar and self.pruner != "none"
        return TrialJob(trial.number, folder / "config.yaml", folder / "trial.log", threads, early)

    def _say(self, trial: Finished) -> None:
        from lightning_efficient.cli._search_report import line

        say(line(trial, self.study.all_finished(), self.aims, self.space))
        sys.stdout.flush()

    def _conclude(self) -> list[Finished]:
        from rich.console import Console

        from lightning_efficient.cli import _search_report as report

        trials = self.study.all_finished()
        report.write_csv(self.out / "trials.csv", trials, self.aims, self.space)
        files = [self.out / "trials.csv"]
        if any(trial.state == "complete" for trial in trials):
            Console().print(report.table(trials, self.aims, self.space))
            files += report.write_pictures(self.out, trials, self.aims)
            files += report.write_configs(self.out, trials, self.aims, self._config_of)
        for file in files:
            say(str(file))
        return trials

    def _config_of(self, chosen: Any) -> str:
        from lightning_efficient.cli._search_report import as_yaml

        return as_yaml(self.base.with_values(self.space.values(chosen)))


def parsed(words: Sequence[str]) -> BaseConfig:
    """Return the config that ``fit`` would run."""
    from lightning_efficient.cli._search_base import BaseConfig

    return BaseConfig(words)


def _no_meter() -> str | None:
    from lightning_efficient.profiling.energy import EnergyCounter

    return EnergyCounter().available()


def _processes() -> Processes:
    processes = Processes()
    processes.warm_up()  # loads torch while this process does
    return processes


def _pruner(given: str | None, aims: Aims) -> str:
    if aims.prunable:
        return given or "median"
    if given in (None, "none"):
        return "none"
    if len(aims.names) > 1:
        raise ConfigurationError(
            f"--pruner {given}: Optuna cannot prune a study of several objectives; give --pruner none or one objective"
        )
    raise ConfigurationError(
        f"--pruner {given}: {aims.names[0]} is known at the end of a trial only; give --pruner none"
    )
