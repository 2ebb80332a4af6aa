"""The config that a search starts from: read by the parser of ``fit``, and made into that of a trial."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lightning_efficient.cli._search_keys import Place, locate, put
from lightning_efficient.cli.search_space import Parameter, SearchSpace
from lightning_efficient.errors import ConfigurationError

PROFILER = "LatencyProfiler"


@dataclass(frozen=True)
class Protocol:
    """How every trial's model is timed.

    Attributes:
        batch_size: Samples per forward pass.
        threads: Intra-op threads of torch.
        energy: Whether to measure the energy of a sample, too.
    """

    batch_size: int = 1
    threads: int = 1
    energy: bool = False


class BaseConfig:
    """All options of a ``fit``, defaults included, and the parser that knows what they take.

    Args:
        words: What would follow ``lightning-efficient fit``.

    Raises:
        ConfigurationError: ``fit`` would refuse them.
    """

    def __init__(self, words: Sequence[str]) -> None:
        from lightning_efficient.cli.arguments import expand
        from lightning_efficient.cli.configs_check import ConfigParser
        from lightning_efficient.cli.run import _is_timm_model

        arguments = expand(["fit", *words], _is_timm_model)
        with warnings.catch_warnings(), _no_arguments():
            cli = ConfigParser(args=arguments)
            warnings.filterwarnings("ignore", message="[\\s\\S]*skip_none parameter was deprecated")
            dumped = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
        self._cli = cli
        self.config: dict[str, Any] = dumped["fit"]

    def fitted(self, space: SearchSpace) -> SearchSpace:
        """Return the space with whole-number ranges of options that are no whole numbers made real ones.

        Raises:
            ConfigurationError: a key is not in the config, two keys are the same option, or an option does not take a
                value of the space.
        """
        places: dict[Place, str] = {}
        parameters = []
        for parameter in space.parameters:
            place = locate(self.config, parameter.key)
            if place in places:
                raise ConfigurationError(f"{parameter.key} and {places[place]} are the same option")
            places[place] = parameter.key
            real = not parameter.choices and parameter.whole and isinstance(self.value(place), float)
            parameters.append(parameter.as_float() if real else parameter)
        fitted = replace(space, parameters=tuple(parameters))
        for parameter in fitted.parameters:
            for end in parameter.ends():
                self._try(fitted, parameter, end)
        return fitted

    def value(self, place: Place) -> Any:
        """Return what the config has at a place, None where it has nothing."""
        node: Any = self.config
        for step in place:
            try:
                node = node[step]
            except (KeyError, IndexError, TypeError):
                return None
        return node

    def with_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole config with values in place of some of its own; of nested keys the outer goes first."""
        config = copy.deepcopy(self.config)
        placed = sorted((len(locate(self.config, key)), key) for key in values)
        for _, key in placed:
            put(config, locate(self.config, key), copy.deepcopy(values[key]))
        return config

    def _try(self, space: SearchSpace, parameter: Parameter, end: Any) -> None:
        chosen = {parameter.key: end}
        for key, allowed in parameter.when.items():
            chosen[key] = allowed[0]
        problem = self._problem(self.with_values(space.values(chosen)))
        if problem is not None:
            raise ConfigurationError(f"{parameter.key} cannot be {end!r}: {problem}")

    def _problem(self, config: Mapping[str, Any]) -> str | None:
        from lightning_efficient.cli.problems import explain

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._cli.parser.parse_args(["fit", "--config", yaml.safe_dump(dict(config), sort_keys=False)])
            except Exception as error:  # whatever the parser raises, it is about the value
                return explain(error)
        return None


def trial_config(config: Mapping[str, Any], folder: Path, protocol: Protocol | None) -> dict[str, Any]:
    """Return the config of one trial: its files in a folder, no progress bar, the model timed as all others are.

    Args:
        config: Whole config.
        folder: Of the trial.
        protocol: How to time the model; None to leave the callbacks as they are.
    """
    trial = copy.deepcopy(dict(config))
    trainer = trial["trainer"]
    trainer |= {"default_root_dir": str(folder), "enable_progress_bar": False}
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and "save_dir" in (logger.get("init_args") or {}):
            logger["init_args"]["save_dir"] = str(folder)
    return timed(trial, protocol) if protocol else trial


def timed(config: dict[str, Any], protocol: Protocol) -> dict[str, Any]:
    """Let the model be timed in one way, after every callback that may still change it."""
    callbacks = config["trainer"].get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    profilers = [one for one in callbacks if _is_profiler(one)]
    options = dict(profilers[-1].get("init_args") or {}) if profilers else {}
    options |= {"batch_sizes": [protocol.batch_size], "threads": protocol.threads, "when": "fit_end"}
    options |= {"energy": True} if protocol.energy else {}
    others = [one for one in callbacks if not _is_profiler(one)]
    config["trainer"]["callbacks"] = [*others, {"class_path": PROFILER, "init_args": options}]
    return config


def _is_profiler(callback: Any) -> bool:
    return isinstance(callback, dict) and str(callback.get("class_path", "")).rpartition(".")[2] == PROFILER


@contextmanager
def _no_arguments() -> Any:
    """Hide the arguments of this command from Lightning, which warns that there are some besides those given."""
    argv = sys.argv
    sys.argv = argv[:1]
    try:
        yield
    finally:
        sys.argv = argv
