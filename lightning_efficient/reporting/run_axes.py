"""Which number of a run an axis means, and which way is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.reporting.run_records import RunRecord, is_of_split

SPLITS = ("test", "val")
"""In the order in which a short name is looked for."""

_UP = {"accuracy", "coverage", "f1", "precision", "recall", "auroc", "throughput", "reward", "sparsity", "ratio"}
_DOWN = {"macs", "flops", "parameters", "bytes", "memory", "latency", "ms", "s", "seconds", "time", "energy", "mj"}
_DOWN |= {"j", "joules", "wh", "kwh", "co2", "g", "loss", "risk", "error", "aurc", "augrc", "perplexity", "cost"}
_DOWN |= {"watts", "rmse", "mse", "mae", "nll", "brier", "errors"}
_SHOWN = 40


def resolve_axis(name: str, records: Sequence[RunRecord], split: str | None = None) -> str:
    """Return the key that a name means for all runs alike.

    A key means itself. A short name is looked for among test metrics and those of validation, of which those count
    that more runs have, the test's where equally many do; then in the profile, where latency is that of the median
    with a batch of 1; then at the end of any other key.

    Args:
        name: Such as ``"accuracy"``, ``"macs"``, ``"latency_ms_p50"`` or ``"pruning/sparsity"``.
        records: The runs.
        split: ``"test"`` or ``"val"``, to take the metrics of that one only.

    Raises:
        ConfigurationError: no run has it, or the name means several keys.

    Example:
        >>> from pathlib import Path
        >>> resolve_axis("macs", [RunRecord("a", Path("a"), {"profile/macs": 8.0, "val/accuracy": 0.5})])
        'profile/macs'
    """
    runs = Counter(key for record in records for key in record.metrics)
    if name in runs:
        return name
    splits = (split,) if split else SPLITS
    of_splits = [key for each in splits for key in sorted(runs) if is_of_split(key, each) and _ends(key, each, name)]
    if of_splits:
        return max(of_splits, key=lambda key: runs[key])  # the first of the best
    for key in (f"profile/{name}", f"profile/{name}_b1", f"profile/{name}_p50_b1"):
        if key in runs:
            return key
    others = [key for key in runs if not any(is_of_split(key, each) for each in ("train", *SPLITS))]
    for ending in (name, f"{name}_b1"):
        found = sorted(key for key in others if key.rsplit("/", maxsplit=1)[-1] == ending)
        if len(found) > 1:
            raise ConfigurationError(f"axis {name!r} can mean {', '.join(found)}; give one of these")
        if found:
            return found[0]
    raise ConfigurationError(_unknown(name, records, split))


def more_is_better(key: str) -> bool | None:
    """Tell which way a number is better by the first word of its name that says so; None if none does.

    Where its name says nothing, as in ``pruning/macs/left``, the parts before it may, but for the first.

    Example:
        >>> more_is_better("selective/val_coverage_at_risk_0.01"), more_is_better("selective/val_risk_at_coverage_0.9")
        (True, False)
    """
    first, *rest = key.split("/")
    for part in reversed(rest or [first]):
        for word in part.split("_"):
            if word in _UP or word in _DOWN:
                return word in _UP
    return None


def _ends(key: str, split: str, name: str) -> bool:
    return key.rsplit("/", maxsplit=1)[-1].removeprefix(f"{split}_") == name


def _unknown(name: str, records: Sequence[RunRecord], split: str | None) -> str:
    keys = {key for record in records for key in record.metrics}
    common = sorted(
        key
        for key in keys
        if "/" in key and not is_of_split(key, "train") and all(key in record.metrics for record in records)
    )
    guess = did_you_mean(name, [*keys, *(key.rsplit("/", maxsplit=1)[-1] for key in keys)])
    where = f" of the split {split!r}" if split else ""
    have = f"all have {', '.join(common[:_SHOWN])}" if common else "there is none that all have"
    more = f" and {len(common) - _SHOWN} more" if len(common) > _SHOWN else ""
    return f"no run has an axis {name!r}{where}.{guess} Of the axes {have}{more}"
