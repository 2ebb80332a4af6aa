"""Everything about one module at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_efficient._unwrapped import uncompiled
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.budget import TimeBudget
from lightning_efficient.profiling.energy import EnergyCounter, MeterError, energy_per_call
from lightning_efficient.profiling.footprint import Footprint
from lightning_efficient.profiling.inputs import arguments, device_of, first_tensor, random_example, rebatch, to_device
from lightning_efficient.profiling.latency import check_options, measure_latency, thread_counts
from lightning_efficient.profiling.machine import processor_of
from lightning_efficient.profiling.macs import count_macs
from lightning_efficient.profiling.memory import peak_memory
from lightning_efficient.profiling.saved_size import bytes_on_disk
from lightning_efficient.profiling.training_memory import TrainingMemory, training_memory
from lightning_efficient.profiling.undisturbed import undisturbed
from lightning_efficient.profiling.variant_costs import VariantComparison
from lightning_efficient.profiling.variants import compare_variants, variant_names

_VARIANT, _ENERGY, _LATENCIES = 3.0, 2.0, 0.25
"""What a form or the energy takes of a time budget, where one latency takes 1, and the least for all latencies."""


def profile_module(
    module: nn.Module,
    example: Any = None,
    *,
    input_shape: Sequence[int] | None = None,
    name: str | None = None,
    batch_sizes: Sequence[int] = (1,),
    threads: int | Sequence[int] | None = None,
    min_run_time: float = 0.5,
    warmup: int = 5,
    precision: str | None = None,
    training: bool = False,
    variants: Sequence[str] = (),
    energy: bool = False,
    time_budget_s: float | TimeBudget | None = None,
    tell: Callable[[str], None] | None = None,
) -> Footprint:
    """Measure what a module costs when it predicts, and leave the module and all random states as they were.

    Takes about ``min_run_time`` seconds for each batch size, number of threads and variant, and little more, but for
    what the making of variants takes.

    Args:
        module: Any module, in any mode, on any device, compiled or not.
        example: Input with the batch in dimension 0: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. Its first sample is used.
        input_shape: Instead of ``example``, the shape of one sample, such as ``(3, 224, 224)``.
        name: What to call the model in tables; by default its class.
        batch_sizes: Batch sizes for the latency; none skips it.
        threads: Intra-op threads of torch for the latency, one number or several; None keeps the current number.
            Variants and energy take the first.
        min_run_time: Seconds of timing for each batch size.
        warmup: Forward passes before the timing of each batch size.
        precision: ``"bf16-mixed"`` or ``"16-mixed"`` to time under autocast; None runs the module as it is.
        training: Also measure the memory of a training step, at the largest batch size and at least 2 samples.
        variants: Also compare the module with these forms of itself, see ``compare_variants``.
        energy: Also measure the energy of a sample at the largest batch size, where the machine has counters.
        time_budget_s: Seconds for all together. What they do not suffice for is in ``left_out``; a forward pass that
            has begun is not interrupted, and operations and memory are always measured.
        tell: Is told what is being measured.

    Returns:
        The footprint of one sample, with a latency per number of threads and batch size.

    Raises:
        ConfigurationError: not exactly one of ``example`` and ``input_shape``, or an option is out of range or unknown.

    Example:
        >>> footprint = profile_module(nn.Linear(4, 2), input_shape=(4,), batch_sizes=(1, 8), min_run_time=0.01)
        >>> footprint.parameters, footprint.macs, footprint.peak_memory_bytes
        (10, 8, 64)
    """
    if (example is None) == (input_shape is None):
        raise ConfigurationError("profile_module needs either an example or an input_shape, and not both")
    check_options(batch_sizes, threads, min_run_time, warmup, precision)
    asked = variant_names(variants)
    budget = time_budget_s if isinstance(time_budget_s, TimeBudget) else TimeBudget(time_budget_s, tell)
    original, largest = uncompiled(module), max(batch_sizes, default=1)
    # what is copied inside inference mode could not be written to by an in-place layer outside of it
    with torch.inference_mode(False):
        sample = rebatch(random_example(original, input_shape) if input_shape is not None else example, 1)
    budget.tell("operations and memory")
    count = count_macs(module, sample)
    memory, method = peak_memory(module, sample)
    learns = _training(module, sample, largest, budget) if training else None
    cells = len(batch_sizes) * len(thread_counts(threads))
    later = _VARIANT * len(asked) * len(batch_sizes) + _ENERGY * energy
    counter = _counter(device_of(module), budget) if energy else None
    latencies = measure_latency(
        module, sample, batch_sizes, threads, min_run_time, warmup, precision,
        budget.part(max(_LATENCIES, cells / (cells + later))) if later else budget,
    )  # fmt: skip
    compared: VariantComparison | None = None
    if asked:
        part = budget.part((later - _ENERGY * energy) / later)
        compared = compare_variants(
            module,
            sample,
            asked,
            batch_sizes=batch_sizes or (1,),
            threads=thread_counts(threads)[0],
            min_run_time=min_run_time,
            budget=part,
        )
    spent = _energy_mj(module, sample, largest, thread_counts(threads)[0], counter, budget) if counter else None
    parameters = list(original.parameters())
    return Footprint(
        name=name or type(original).__name__,
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        bytes=sum(tensor.nbytes for tensor in (*parameters, *original.buffers())),
        bytes_on_disk=bytes_on_disk(original),
        macs=count.macs,
        flops=count.flops,
        uncounted=count.uncounted,
        peak_memory_bytes=memory,
        peak_memory_method=method,
        input_shape=tuple(first_tensor(sample).shape[1:]),
        latencies=latencies,
        layers=count.layers,
        read_bytes=sum(layer.read_bytes for layer in count.layers),
        written_bytes=sum(layer.written_bytes for layer in count.layers),
        training=learns,
        variants=compared,
        energy_mj=spent,
        left_out=tuple(budget.left_out),
        processor=processor_of(device_of(module)),
    )


def _training(module: nn.Module, sample: Any, largest: int, budget: TimeBudget) -> TrainingMemory | None:
    if not budget.suffices("training memory"):
        return None
    budget.tell("memory of a training step")
    with torch.inference_mode(False):
        batch = rebatch(sample, max(2, largest))  # batch normalisation cannot learn from one sample
    try:
        return training_memory(module, batch)
    except ConfigurationError as error:
        budget.left_out.append(f"training memory: {error}")
    return None


def _counter(device: torch.device, budget: TimeBudget) -> EnergyCounter | None:
    gpus = [device.index or 0] if device.type == "cuda" else []
    counter = EnergyCounter(gpus=gpus)
    if (reason := counter.available()) is not None:
        budget.left_out.append(f"energy: no meter ({reason})")
        return None
    return counter


def _energy_mj(
    module: nn.Module, sample: Any, batch_size: int, threads: int, counter: EnergyCounter, budget: TimeBudget
) -> float | None:
    if not budget.suffices("energy"):
        return None
    budget.tell("energy")
    with undisturbed(module), torch.inference_mode():
        module.eval()
        torch.set_num_threads(threads)
        args, kwargs = arguments(to_device(rebatch(sample, batch_size), device_of(module)))
        call, time = partial(module, *args, **kwargs), budget.share(1, most=2.0)
        try:
            reading = energy_per_call(call, samples=batch_size, min_time=max(time, 0.1), counter=counter)
        except MeterError as error:
            budget.left_out.append(f"energy: {error}")
            return None
    if reading is None:
        budget.left_out.append("energy: the counter did not move")
        return None
    return 1000 * reading.joules
