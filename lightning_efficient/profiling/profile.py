"""Everything about one module at once."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.footprint import Footprint
from lightning_efficient.profiling.inputs import first_tensor, random_example, rebatch
from lightning_efficient.profiling.latency import measure_latency
from lightning_efficient.profiling.macs import count_macs
from lightning_efficient.profiling.memory import peak_memory
from lightning_efficient.profiling.undisturbed import uncompiled


def profile_module(
    module: nn.Module,
    example: Any = None,
    *,
    input_shape: Sequence[int] | None = None,
    name: str | None = None,
    batch_sizes: Sequence[int] = (1,),
    threads: int | None = None,
    min_run_time: float = 0.5,
    warmup: int = 5,
    precision: str | None = None,
) -> Footprint:
    """Measure what a module costs when it predicts, and leave the module and all random states as they were.

    Takes about ``min_run_time`` seconds for each batch size, and little more.

    Args:
        module: Any module, in any mode, on any device, compiled or not.
        example: Input with the batch in dimension 0: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. Its first sample is used.
        input_shape: Instead of ``example``, the shape of one sample, such as ``(3, 224, 224)``.
        name: What to call the model in tables; by default its class.
        batch_sizes: Batch sizes for the latency; none skips it.
        threads: Intra-op threads of torch for the latency; None keeps the current number.
        min_run_time: Seconds of timing for each batch size.
        warmup: Forward passes before the timing of each batch size.
        precision: ``"bf16-mixed"`` or ``"16-mixed"`` to time under autocast; None runs the module as it is.

    Returns:
        The footprint of one sample, with a latency per batch size.

    Raises:
        ConfigurationError: not exactly one of ``example`` and ``input_shape``, or an option is out of range.

    Example:
        >>> footprint = profile_module(nn.Linear(4, 2), input_shape=(4,), batch_sizes=(1, 8), min_run_time=0.01)
        >>> footprint.parameters, footprint.macs, footprint.peak_memory_bytes
        (10, 8, 64)
    """
    if (example is None) == (input_shape is None):
        raise ConfigurationError("profile_module needs either an example or an input_shape, and not both")
    original = uncompiled(module)
    # what is copied inside inference mode could not be written to by an in-place layer outside of it
    with torch.inference_mode(False):
        sample = rebatch(random_example(original, input_shape) if input_shape is not None else example, 1)
    latencies = measure_latency(module, sample, batch_sizes, threads, min_run_time, warmup, precision)
    count = count_macs(module, sample)
    memory, method = peak_memory(module, sample)
    parameters = list(original.parameters())
    return Footprint(
        name=name or type(original).__name__,
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        bytes=sum(tensor.nbytes for tensor in (*parameters, *original.buffers())),
        bytes_on_disk=_bytes_on_disk(original),
        macs=count.macs,
        flops=count.flops,
        uncounted=count.uncounted,
        peak_memory_bytes=memory,
        peak_memory_method=method,
        input_shape=tuple(first_tensor(sample).shape[1:]),
        latencies=latencies,
    )


class _ByteCounter(io.BytesIO):
    """A file that forgets what is written to it, and knows how much that was."""

    size = 0

    def write(self, content: Any) -> int:
        written = memoryview(content).nbytes
        self.size += written
        return written


def _bytes_on_disk(module: nn.Module) -> int:
    counter = _ByteCounter()
    torch.save(module.state_dict(), counter)
    return counter.size
