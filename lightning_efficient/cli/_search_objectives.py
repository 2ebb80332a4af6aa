"""What a search wants: objectives by name, the reward, and their values in what a trial has left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_efficient.errors import ConfigurationError, did_you_mean

NAMED = {
    "accuracy": True,
    "loss": False,
    "latency_ms": False,
    "macs": False,
    "bytes": False,
    "parameters": False,
    "energy_mj": False,
}
"""Objectives with a name of their own, and whether more is better."""

_OF_A_METRIC = {"accuracy": "val/accuracy", "loss": "val/loss"}
_PROFILED = ("latency_ms", "macs", "bytes", "parameters", "energy_mj")
_DIRECTIONS = {"max": True, "min": False}


@dataclass(frozen=True)
class Objective:
    """A number to make large or small.

    Attributes:
        name: As it was given, without the direction.
        maximize: Whether more is better.
    """

    name: str
    maximize: bool

    @property
    def profiled(self) -> bool:
        """Whether the number comes from the model's profile and not from a metric."""
        return self.name in _PROFILED

    @property
    def metric(self) -> str:
        """Name of the logged metric."""
        return _OF_A_METRIC.get(self.name, self.name)

    def __str__(self) -> str:
        return self.name if self.name in NAMED else f"{self.name}:{'max' if self.maximize else 'min'}"


@dataclass(frozen=True)
class Reward:
    """The scalar of MnasNet: ``accuracy * (latency_ms / target_ms) ** exponent``.

    Attributes:
        target_ms: The latency that changes nothing.
        exponent: 0 or less; 0 ignores the latency.
    """

    target_ms: float
    exponent: float = -0.07

    def __post_init__(self) -> None:
        if not 0 < self.target_ms < math.inf:
            raise ConfigurationError(f"--target_latency_ms is {self.target_ms}; it must be above 0")
        if not -math.inf < self.exponent <= 0:
            raise ConfigurationError(f"--exponent is {self.exponent}; it must be 0 or less, such as -0.07")

    def of(self, values: Mapping[str, float]) -> float | None:
        """Return the reward, or None where accuracy or latency is missing."""
        if "accuracy" not in values or "latency_ms" not in values:
            return None
        from lightning_efficient.functional.pareto import mnasnet_reward

        return mnasnet_reward(values["accuracy"], values["latency_ms"], self.target_ms, self.exponent)


@dataclass(frozen=True)
class Aims:
    """What is optimised, and what is shown beside it.

    Attributes:
        objectives: Numbers that are read from every trial.
        reward: Computed of accuracy and latency, if asked for.
        scalar: Whether the reward is the one thing that is optimised; the objectives are then only shown.
    """

    objectives: tuple[Objective, ...]
    reward: Reward | None = None
    scalar: bool = False

    @property
    def directions(self) -> list[bool]:
        """Whether more is better, for each number that is optimised."""
        return [True] if self.scalar else [one.maximize for one in self.objectives]

    @property
    def names(self) -> list[str]:
        """Names of the numbers that are optimised."""
        return ["reward"] if self.scalar else [one.name for one in self.objectives]

    @property
    def profiled(self) -> bool:
        """Whether the profile of a trial's model is needed."""
        return any(one.profiled for one in self.objectives)

    @property
    def shown(self) -> list[str]:
        """Names of all numbers that are shown."""
        return [*(["reward"] if self.scalar else []), *(one.name for one in self.objectives)] + (
            ["reward"] if self.reward and not self.scalar else []
        )

    @property
    def prunable(self) -> bool:
        """Whether there is one number, known after each epoch."""
        return self.scalar or (len(self.objectives) == 1 and not self.objectives[0].profiled)

    def read(self, metrics: Mapping[str, float], footprint: Mapping[str, Any] | None, batch: int) -> dict[str, float]:
        """Return the numbers of a trial by name.

        Raises:
            ConfigurationError: one is missing or is not finite.
        """
        values = {one.name: _value(one, metrics, footprint, batch) for one in self.objectives}
        if self.reward and (reward := self.reward.of(values)) is not None:
            values["reward"] = reward
        return values

    def optimised(self, values: Mapping[str, float]) -> list[float]:
        """Return those numbers that Optuna gets."""
        return [values[name] for name in self.names]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "objectives": ["reward"] if self.scalar else [str(one) for one in self.objectives],
            "reward": asdict(self.reward) if self.reward and self.scalar else None,
        }


def parse_aims(
    objectives: Sequence[str] | None, reward: str | None, target_latency_ms: float | None, exponent: float
) -> Aims:
    """Read the options of the command.

    Raises:
        ConfigurationError: an unknown objective, one without a direction, one of the test split, one that is given
            twice, or a reward without its target.
    """
    if reward and objectives:
        raise ConfigurationError("--reward and --objectives both say what to optimise; give one of them")
    if reward and target_latency_ms is None:
        raise ConfigurationError(f"--reward {reward} needs --target_latency_ms, such as 1.0")
    wanted = None if target_latency_ms is None else Reward(target_latency_ms, exponent)
    found = tuple(_objective(text) for text in objectives or ("accuracy", "latency_ms"))
    names = [one.metric for one in found]
    if double := [one.name for index, one in enumerate(found) if one.metric in names[:index]]:
        raise ConfigurationError(f"--objectives names {double[0]} twice")
    if wanted and not {"accuracy", "latency_ms"} <= {one.name for one in found}:
        raise ConfigurationError(
            "--target_latency_ms needs the objectives accuracy and latency_ms, of which the reward is computed"
        )
    return Aims(found, wanted, scalar=reward is not None)


def _objective(text: str) -> Objective:
    name, colon, direction = text.rpartition(":")
    if not colon:
        name, direction = text, ""
    if direction and direction not in _DIRECTIONS:
        raise ConfigurationError(f"--objectives {text}: the direction must be min or max, such as {name}:min")
    if name in NAMED:
        if direction and _DIRECTIONS[direction] != NAMED[name]:
            raise ConfigurationError(f"--objectives {text}: {name} is made {'large' if NAMED[name] else 'small'}")
        return Objective(name, NAMED[name])
    if name.startswith("test/") or "/test_" in name:
        raise ConfigurationError(f"--objectives {text}: a search must not look at the test split; take val/...")
    if "/" not in name:
        raise ConfigurationError(
            f"--objectives {text}: it must be one of {', '.join(NAMED)}, or a logged metric such as val/aurc:min."
            f"{did_you_mean(name, NAMED)}"
        )
    if not direction:
        raise ConfigurationError(f"--objectives {text}: say which is better, {name}:min or {name}:max")
    return Objective(name, _DIRECTIONS[direction])


def _value(
    objective: Objective, metrics: Mapping[str, float], footprint: Mapping[str, Any] | None, batch: int
) -> float:
    if objective.profiled:
        if footprint is None:
            raise ConfigurationError(f"{objective.name}: the trial has no profile of its model")
        if objective.name != "latency_ms":
            if footprint.get(objective.name) is None:
                raise ConfigurationError(f"{objective.name}: the profile of the model has none")
            return float(footprint[objective.name])
        latencies = [one["p50_ms"] for one in footprint["latencies"] if one["batch_size"] == batch]
        if not latencies:
            raise ConfigurationError(f"latency_ms: the profile has no latency of batch size {batch}")
        return float(latencies[0])
    if objective.metric not in metrics:
        hint = did_you_mean(objective.metric, metrics) or f" Logged: {', '.join(sorted(metrics)) or 'nothing'}"
        raise ConfigurationError(f"{objective.metric} was not logged.{hint}")
    value = float(metrics[objective.metric])
    if not math.isfinite(value):
        raise ConfigurationError(f"{objective.metric} is {value}")
    return value
