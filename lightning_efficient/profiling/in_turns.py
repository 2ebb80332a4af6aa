"""Calls timed in turns, so that whatever disturbs the machine disturbs them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import torch

from lightning_efficient.errors import ConfigurationError


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 2,
    device: torch.device | str = "cpu",
) -> dict[str, list[float]]:
    """Time several calls, one after the other in each round; odd rounds go backwards.

    Args:
        calls: Functions without arguments by name.
        rounds: Timed calls of each.
        warmup: Untimed rounds before.
        device: Waited for after each call, where it is an accelerator.

    Returns:
        Seconds of each call, in the order of the rounds.

    Raises:
        ConfigurationError: no call, ``rounds`` below 1 or ``warmup`` below 0.

    Example:
        >>> times = time_in_turns({"short": lambda: None, "long": lambda: sum(range(100_000))}, rounds=3)
        >>> len(times["short"]), min(times["long"]) > min(times["short"])
        (3, True)
    """
    if not calls or rounds < 1 or warmup < 0:
        raise ConfigurationError(
            f"time_in_turns needs calls, rounds >= 1 and warmup >= 0, got {len(calls)}, {rounds} and {warmup}"
        )
    cuda = torch.device(device).type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-warmup, rounds):
        for name in calls if number % 2 == 0 else reversed(list(calls)):
            start = perf_counter()
            calls[name]()
            if cuda:
                torch.cuda.synchronize(device)
            if number >= 0:
                seconds[name].append(perf_counter() - start)
    return seconds
