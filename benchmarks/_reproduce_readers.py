"""Read from the JSON of a study, pair by pair, what a method and its baseline reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

SEEDS = "*"
"""Stands in a path for every seed."""
Path_ = Sequence[str | int]
"""Keys from the top of a record; a number is an index into keys that are numbers, sorted."""


class Pairs(NamedTuple):
    """Values of a method and of its baseline that belong together, and what each pair is of."""

    method: list[float]
    baseline: list[float]
    over: str = "seeds"


Reader = Callable[[Mapping[str, Any]], Pairs]


def percent(value: Any) -> float:
    return 100 * value


def same(value: Any) -> float:
    return value


def selective_error(found: Mapping[str, float]) -> float:
    """Return the share of wrong answers among those given, in percent, of a record with coverage and joint risk."""
    return 100 * found["risk"] / found["coverage"]


def paired(method: Path_, baseline: Path_, of: Callable[[Any], float] = percent) -> Reader:
    """Return a reader of two paths, each with one ``SEEDS`` in it; of the seeds that both have.

    Args:
        method: Where the method's values are.
        baseline: Where those of the baseline are.
        of: Makes a number of what is found there.
    """

    def read(record: Mapping[str, Any]) -> Pairs:
        found, other = (by_seed(record, path) for path in (method, baseline))
        seeds = sorted(found.keys() & other.keys(), key=int)
        return checked(Pairs([of(found[seed]) for seed in seeds], [of(other[seed]) for seed in seeds]))

    return read


def by_seed(record: Mapping[str, Any], path: Path_) -> dict[str, Any]:
    """Return what is found at the end of a path, by seed; seeds that do not have all of it are left out."""
    place = list(path).index(SEEDS)
    found: dict[str, Any] = {}
    for seed, run in walk(record, path[:place]).items():
        try:
            found[seed] = walk(run, path[place + 1 :])
        except KeyError:
            continue
    return found


def walk(found: Any, path: Path_) -> Any:
    for key in path:
        found = found[sorted(found, key=int)[key] if isinstance(key, int) else key]
    return found


def checked(pairs: Pairs) -> Pairs:
    """Return pairs that are there and finite.

    Raises:
        ValueError: there are none, or a value is no finite number.
    """
    values = [*pairs.method, *pairs.baseline]
    if not values:
        raise ValueError("no seed has both the method and its baseline")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"not every value is finite: {values}")
    return pairs


def batches_until(record: Mapping[str, Any], length: int, method: str, limit: str = "0.05") -> dict[str, float]:
    """Return after how many batches the error of the adding problem was below a limit; the most there are, if never."""
    most = walk(record, ("most_batches", length))
    return {
        seed: float(found if found is not None else most)
        for seed, found in by_seed(record, ("runs", length, method, SEEDS, "first_below", limit)).items()
    }


def adding_speed(method: str, baseline: str) -> Reader:
    """Read the batches that the shorter adding problem took."""

    def read(record: Mapping[str, Any]) -> Pairs:
        found, other = (batches_until(record, 0, name) for name in (method, baseline))
        seeds = sorted(found.keys() & other.keys(), key=int)
        return checked(Pairs([found[seed] for seed in seeds], [other[seed] for seed in seeds]))

    return read


def memory(method: str, baseline: str, length: str = "1000") -> Reader:
    """Read the peak memory of a training step, in percent of the baseline's."""

    def read(record: Mapping[str, Any]) -> Pairs:
        peaks = record["peak_bytes"]
        return checked(Pairs([100 * peaks[method][length] / peaks[baseline][length]], [100.0], "runs"))

    return read


def violations(rule: str, baseline: str, *setting: str) -> Reader:
    """Read how often a rule for thresholds breaks its target, and how often another does, by setting, in percent.

    Args:
        rule: The rule's name in the rows of the study.
        baseline: The other's.
        setting: Keys of a row that say which two belong together.
    """

    def read(record: Mapping[str, Any]) -> Pairs:
        rows = [row for row in record["rows"] if row["violations"] is not None]
        by_rule = {
            name: {tuple(row[key] for key in setting): 100 * row["violations"] for row in rows if row["rule"] == name}
            for name in (rule, baseline)
        }
        both = [key for key in by_rule[rule] if key in by_rule[baseline]]
        values = ([by_rule[name][key] for key in both] for name in (rule, baseline))
        return checked(Pairs(*values, over="settings"))

    return read


def of_bound(count: str) -> Reader:
    """Read the means of the online rule, in percent of the bound on them."""

    def read(record: Mapping[str, Any]) -> Pairs:
        cells = [cell for by_length in record["strict"].values() for cell in by_length.values() if "bounds" in cell]
        found = [100 * cell[count]["mean"] / cell["bounds"][count] for cell in cells]
        return checked(Pairs(found, [100.0] * len(found), "settings"))

    return read
