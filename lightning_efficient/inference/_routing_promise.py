"""The sentence that says what calibrated thresholds of a cascade promise."""

from __future__ import annotations

import math
from decimal import ROUND_DOWN, ROUND_UP

from lightning_efficient.functional.drop_control import DROP_RULES_WITH_LEVEL
from lightning_efficient.inference._calibrated import percent


def routing_promise(
    rule: str,
    *,
    max_drop: float | None,
    coverage_target: float | None,
    confidence: float | None,
    samples: int,
    pilot: int,
    first: int,
    kept: int,
) -> str:
    """Return the promise.

    Args:
        rule: One of ``ROUTING_RULES``.
        max_drop: Tolerated drop, a fraction.
        coverage_target: Wanted share, a fraction.
        confidence: Probability of the promise.
        samples: How many samples it was calibrated on.
        pilot: How many others made the path of thresholds.
        first: How many samples the first model answers.
        kept: How many samples the full model is not asked about.
    """
    others = f" ({pilot:,} others made the path of thresholds)" if pilot else ""
    of = f"{samples:,} calibration samples{others}"
    if rule == "coverage":
        assert coverage_target is not None
        wanted = min(max(math.ceil(coverage_target * samples - 1e-9), 1), first)
        # rounded down, as it is a lower bound
        expected = math.floor(10_000 * wanted / (samples + 1)) / 100
        return (
            f"On average over the draw of the {of}, the first model answers at least {expected:g} % of new samples, if "
            "they come from the same distribution; nothing is promised about the accuracy."
        )
    assert max_drop is not None
    drop = _points(max_drop)
    if kept == 0:
        tried = "no threshold is within" if confidence is None else "no threshold can be shown to be within"
        return f"Everything is asked of the full model: on these {of}, {tried} a drop of {drop}."
    if rule == "published":
        return (
            f"On these {of}, what each model but the last keeps on its own is at most {drop} below its best accuracy "
            "at any threshold; nothing is guaranteed for the cascade or for new samples."
        )
    what = f"accuracy is at most {drop} below that of the full model"
    if rule == "empirical":
        return f"On these {of}, {what}; nothing is guaranteed for new samples."
    when = "if new samples come from the same distribution and every query is answered"
    if rule not in DROP_RULES_WITH_LEVEL:
        return f"On average over the draw of the {of}, {what}, {when}; one draw alone may exceed it."
    assert confidence is not None
    return f"With probability at least {percent(confidence, ROUND_DOWN)} over the draw of the {of}, {what}, {when}."


def _points(share: float) -> str:
    number = percent(share, ROUND_UP).removesuffix(" %")
    return f"{number} percentage point{'' if number == '1' else 's'}"
