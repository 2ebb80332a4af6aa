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
_TRUE = {torch.float64: "64-true", torch.float32: "32-true", torch.bfloat16: "bf16-true", torch.float16: "16-true"}


def measure_latency(
    module: nn.Module,
    example: Any,
    batch_sizes: Sequence[int] = (1,),
    threads: int | None = None,
    min_run_time: float = 0.5,
    warmup: int = 5,
    precision: str | None = None,
) -> tuple[Latency, ...]:
    """Time the forward pass in evaluation and inference mode at several batch sizes.

    Takes about ``min_run_time`` seconds and the warm-up for each batch size. On an accelerator every reading of the
    clock waits for the device. To compare two models, interleave their measurements in one process.

    Args:
        module: The module, as it would be deployed: on its device, compiled or not.
        example: Input with the batch in dimension 0: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. Its first sample is repeated to each batch size.
        batch_sizes: Samples per forward pass, one measurement for each.
        threads: Intra-op threads of torch; None keeps the current number.
        min_run_time: Seconds of measuring for each batch size.
        warmup: Forward passes before the first measurement of each batch size.
        precision: ``"bf16-mixed"`` or ``"16-mixed"`` to run under autocast; None runs the module as it is.

    Returns:
        One ``Latency`` per batch size, in the order given.

    Raises:
        ConfigurationError: a number is out of range or the precision is unknown.

    Example:
        >>> latency, = measure_latency(nn.Linear(4, 2), torch.zeros(1, 4), threads=1, min_run_time=0.01)
        >>> 0 < latency.p50_ms <= latency.p95_ms
        True
    """
    check_options(batch_sizes, threads, min_run_time, warmup, precision)
    threads, device = threads or torch.get_num_threads(), device_of(module)
    conditions = {"warmup": warmup, "threads": threads, "device": str(device), "precision": _words(module, precision)}
    latencies = []
    with undisturbed(module), torch.inference_mode(), _autocast(device, precision), _current(device):
        module.eval()
        torch.set_num_threads(threads)
        for batch_size in batch_sizes:
            args, kwargs = arguments(to_device(rebatch(example, batch_size), device))
            for _ in range(warmup):
                module(*args, **kwargs)
            seconds = _seconds_of_calls(partial(module, *args, **kwargs), min_run_time)
            latencies.append(_latency(batch_size, seconds, conditions))
    return tuple(latencies)


def _seconds_of_calls(call: Callable[[], object], min_run_time: float) -> list[float]:
    # blocked_autorange would time a fast model in blocks, whose means have no percentiles
    seconds: list[float] = []
    spent = 0.0
    while spent < min_run_time or len(seconds) < MIN_RUNS:
        start = timer()
        call()
        seconds.append(timer() - start)
        spent += seconds[-1]
    return seconds


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
    batch_sizes: Sequence[int], threads: int | None, min_run_time: float, warmup: int, precision: str | None
) -> None:
    """Raise ``ConfigurationError`` for options that ``measure_latency`` cannot work with."""
    if any(size < 1 for size in batch_sizes):
        raise ConfigurationError(f"batch sizes must be 1 or more, got {list(batch_sizes)}")
    if threads is not None and threads < 1:
        raise ConfigurationError(f"threads must be 1 or more, or None for the current number, got {threads}")
    if min_run_time <= 0 or warmup < 0:
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
