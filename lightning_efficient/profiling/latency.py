"""Latency of a module: torch's benchmark timer, and the conditions under which it ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import timer

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.profiling.budget import TimeBudget
from lightning_efficient.profiling.footprint import Latency
from lightning_efficient.profiling.inputs import arguments, device_of, dtype_of, rebatch, to_device
from lightning_efficient.profiling.undisturbed import undisturbed

_AUTOCAST = {
    "bf16-mixed": torch.bfloat16,
    "bf16": torch.bfloat16,
    "16-mixed": torch.float16,
    "16": torch.float16,
}
MIN_RUNS = 10
LEAST_RUNS = 3
"""Timed calls where the time is limited."""
_TRUE = {torch.float64: "64-true", torch.float32: "32-true", torch.bfloat16: "bf16-true", torch.float16: "16-true"}


def measure_latency(
    module: nn.Module,
    example: Any,
    batch_sizes: Sequence[int] = (1,),
    threads: int | Sequence[int] | None = None,
    min_run_time: float = 0.5,
    warmup: int = 5,
    precision: str | None = None,
    budget: TimeBudget | None = None,
) -> tuple[Latency, ...]:
    """Time the forward pass in evaluation and inference mode at several batch sizes and numbers of threads.

    Takes about ``min_run_time`` seconds and the warm-up for each combination. On an accelerator every reading of the
    clock waits for the device. To compare two models, interleave their measurements in one process.

    Args:
        module: The module, as it would be deployed: on its device, compiled or not.
        example: Input with the batch in dimension 0: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. Its first sample is repeated to each batch size.
        batch_sizes: Samples per forward pass, one measurement for each.
        threads: Intra-op threads of torch, one number or several; None keeps the current number.
        min_run_time: Seconds of measuring for each batch size.
        warmup: Forward passes before the first measurement of each batch size.
        precision: ``"bf16-mixed"`` or ``"16-mixed"`` to run under autocast; None runs the module as it is.
        budget: Seconds for all together: each combination gets its share, down to 3 forward passes after 1 as a
            warm-up, and what does not fit is left out and written down in the budget.

    Returns:
        One ``Latency`` per number of threads and batch size, in the order given.

    Raises:
        ConfigurationError: a number is out of range or the precision is unknown.

    Example:
        >>> latency, = measure_latency(nn.Linear(4, 2), torch.zeros(1, 4), threads=1, min_run_time=0.01)
        >>> 0 < latency.p50_ms <= latency.p95_ms
        True
    """
    check_options(batch_sizes, threads, min_run_time, warmup, precision)
    device, budget = device_of(module), budget or TimeBudget()
    conditions = {"device": str(device), "precision": _words(module, precision)}
    cells = [(number, size) for number in thread_counts(threads) for size in batch_sizes]
    latencies: list[Latency] = []
    with undisturbed(module), torch.inference_mode(), _autocast(device, precision), _current(device):
        module.eval()
        for place, (number, size) in enumerate(cells):
            what = f"latency at batch {size}, threads {number}"
            if not budget.suffices(what, _forecast(latencies, size)):
                continue
            budget.tell(what)
            torch.set_num_threads(number)
            args, kwargs = arguments(to_device(rebatch(example, size), device))
            limit = budget.share(len(cells) - place, most=float("inf"))
            calls = _Calls(partial(module, *args, **kwargs), limit)
            calls.warm_up(warmup)
            if not budget.suffices(what, LEAST_RUNS * calls.last):
                continue
            calls.measure(min(min_run_time, limit))
            latencies.append(_latency(size, calls.seconds, {"warmup": calls.warmed, "threads": number, **conditions}))
    return tuple(latencies)


def thread_counts(threads: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the numbers of threads that are asked for; None means the current one."""
    if threads is None:
        return (torch.get_num_threads(),)
    return (threads,) if isinstance(threads, int) else tuple(threads)


def _forecast(measured: Sequence[Latency], batch_size: int) -> float:
    """Return the seconds of the fewest calls at a batch size, judged by a smaller one."""
    smaller = [each.p50_ms * batch_size / each.batch_size for each in measured if each.batch_size <= batch_size]
    return LEAST_RUNS * min(smaller, default=0.0) / 1000


class _Calls:
    """Times a call again and again, within a limit of seconds for all its calls."""

    def __init__(self, call: Callable[[], object], limit: float) -> None:
        self._call = call
        self._end, self._warm = timer() + limit, timer() + limit / 3
        self.limited = limit < float("inf")
        self.seconds: list[float] = []
        self.warmed = 0
        self.last = 0.0

    def warm_up(self, times: int) -> None:
        while self.warmed < times and not (self.warmed and self.limited and timer() + self.last > self._warm):
            self._timed()
            self.warmed += 1

    def measure(self, min_run_time: float) -> None:
        # blocked_autorange would time a fast model in blocks, whose means have no percentiles
        spent = 0.0
        while not self._up() and (spent < min_run_time or len(self.seconds) < MIN_RUNS):
            self.seconds.append(self._timed())
            spent += self.last

    def _up(self) -> bool:
        return self.limited and len(self.seconds) >= LEAST_RUNS and timer() + self.last > self._end

    def _timed(self) -> float:
        start = timer()
        self._call()
        self.last = timer() - start
        return self.last


def _latency(batch_size: int, seconds: list[float], conditions: dict[str, Any]) -> Latency:
    times_ms = torch.tensor(seconds, dtype=torch.double) * 1000
    p50, p95 = times_ms.quantile(torch.tensor([0.5, 0.95], dtype=torch.double)).tolist()
    return Latency(
        batch_size=batch_size,
        p50_ms=p50,
        p95_ms=p95,
        mean_ms=times_ms.mean().item(),
        throughput=1000 * batch_size / p50,
        runs=len(times_ms),
        **conditions,
    )


def check_options(
    batch_sizes: Sequence[int],
    threads: int | Sequence[int] | None,
    min_run_time: float,
    warmup: int,
    precision: str | None,
) -> None:
    """Raise ``ConfigurationError`` for options that ``measure_latency`` cannot work with."""
    if any(size < 1 for size in batch_sizes):
        raise ConfigurationError(f"batch sizes must be 1 or more, got {list(batch_sizes)}")
    if threads is not None and not (thread_counts(threads) and min(thread_counts(threads)) >= 1):
        raise ConfigurationError(f"threads must be 1 or more, or None for the current number, got {threads}")
    if not min_run_time > 0 or warmup < 0:
        message = f"min_run_time must be positive and warmup 0 or more, got {min_run_time} and {warmup}"
        raise ConfigurationError(message)
    if precision is not None and precision not in _AUTOCAST:
        message = f"precision must be None or one of {list(_AUTOCAST)}, got {precision!r}."
        raise ConfigurationError(message + did_you_mean(precision, _AUTOCAST))


def _words(module: nn.Module, precision: str | None) -> str:
    if precision is None:
        return _TRUE.get(dtype_of(module), str(dtype_of(module)))
    return precision if precision.endswith("-mixed") else f"{precision}-mixed"


def _autocast(device: torch.device, precision: str | None) -> AbstractContextManager[object]:
    return torch.autocast(device.type, _AUTOCAST[precision]) if precision else nullcontext()


def _current(device: torch.device) -> AbstractContextManager[object]:
    # the timer synchronises the current device only
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
