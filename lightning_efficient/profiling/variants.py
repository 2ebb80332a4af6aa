"""One model in several forms side by side: what each saves in time and bytes, and how far its outputs move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_efficient._graph_problems import without_warnings
from lightning_efficient._unwrapped import uncompiled
from lightning_efficient.errors import ConfigurationError, MissingExtraError, did_you_mean
from lightning_efficient.profiling.budget import TimeBudget, TimeIsUp, interrupted_after
from lightning_efficient.profiling.in_turns import time_in_turns
from lightning_efficient.profiling.inputs import device_of, rebatch, to_device
from lightning_efficient.profiling.latency import LEAST_RUNS, MIN_RUNS, check_options
from lightning_efficient.profiling.undisturbed import undisturbed
from lightning_efficient.profiling.variant_costs import FLOAT, VariantComparison, VariantCost, VariantTime
from lightning_efficient.profiling.variant_forms import (
    MAKERS,
    SLOW_TO_IMPORT,
    Form,
    float_form,
    import_what_is_slow,
)

VARIANTS = tuple(MAKERS)
"""What a model can be compared as: images with the channels last in memory, weights and inputs in bfloat16, compiled
by ``torch.compile``, weights stored in int8, weights and activations in int8 and compiled, and ONNX Runtime."""
_MAKING, _LEAST_SECONDS = 0.7, 3.0
"""The share of a time budget for making forms, and the seconds without which none is begun that compiles."""
_SPREAD = torch.tensor([0.1, 0.5, 0.9], dtype=torch.double)
_LONGEST = 160


def compare_variants(
    module: nn.Module,
    example: Any,
    names: Sequence[str] = VARIANTS,
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: int | None = None,
    min_run_time: float = 0.5,
    budget: TimeBudget | None = None,
) -> VariantComparison:
    """Bring a module into other forms and time all of them in turns, each round every form once.

    The ratio of a form is its time over that of the module itself in the same round, so that what disturbs the machine
    disturbs both. Everything runs in evaluation mode without gradients. A form that cannot be made or run has the
    reason in its row. Static int8 is calibrated on the example alone: good for latency and size, not for accuracy.

    Args:
        module: Any module; what ``torch.compile`` wrapped is compared uncompiled. It stays as it is.
        example: Input with the batch in dimension 0: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. Its first sample is repeated to each batch size.
        names: Of ``VARIANTS``; ``"all"`` means all of them.
        batch_sizes: Samples per forward pass, one comparison for each.
        threads: Intra-op threads of torch and ONNX Runtime; None keeps the current number.
        min_run_time: Seconds of timing for each form and batch size.
        budget: Seconds for all together. A form that takes too long to make is interrupted, where the system can.

    Returns:
        The module itself first, then the forms in the order given.

    Raises:
        ConfigurationError: a name is unknown or a number out of range.

    Example:
        >>> comparison = compare_variants(nn.Linear(4, 2), torch.zeros(1, 4), ["bf16"], min_run_time=0.01)
        >>> [row.name for row in comparison.rows], comparison.rows[1].timings[0].ratio > 0
        (['float', 'bf16'], True)
    """
    asked, module = variant_names(names), uncompiled(module)
    check_options(batch_sizes, threads, min_run_time, 0, None)
    budget, device, count = budget or TimeBudget(), device_of(module), threads or torch.get_num_threads()
    already = len(budget.left_out)
    with undisturbed(module), torch.inference_mode(False), torch.no_grad(), without_warnings():
        module.eval()
        torch.set_num_threads(count)
        sample = to_device(rebatch(example, 1), device)
        making = _Making(module, sample, count, budget.part(_MAKING))
        making.make(asked)
        timings = _timed(making.forms, sample, batch_sizes, min_run_time, device, budget)
    rows = [making.cost(name, timings) for name in (FLOAT, *asked) if making.tried(name)]
    return VariantComparison(tuple(rows), count, str(device), tuple(budget.left_out[already:]))


def variant_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the forms that are meant, each once.

    Raises:
        ConfigurationError: a name is unknown.

    Example:
        >>> variant_names(["bf16", "bf16"]), len(variant_names(["all"])) == len(VARIANTS)
        (('bf16',), True)
    """
    for name in names:
        if name not in (*VARIANTS, "all"):
            message = f"variants must be of {[*VARIANTS, 'all']}, got {name!r}."
            raise ConfigurationError(message + did_you_mean(str(name), VARIANTS))
    return VARIANTS if "all" in names else tuple(dict.fromkeys(names))


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference between two outputs as a share of the largest expected number."""
    ours, theirs = _floats(found), _floats(expected)
    apart = [float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True) if other.numel()]
    largest = max((float(each.abs().max()) for each in theirs if each.numel()), default=0.0)
    return max(apart, default=0.0) / largest if largest else max(apart, default=0.0)


class _Making:
    """Makes forms one by one and runs each once; notes outputs, and why one cannot be made."""

    def __init__(self, module: nn.Module, sample: Any, threads: int, budget: TimeBudget) -> None:
        self._module, self._sample, self._threads, self._budget = module, sample, threads, budget
        self.forms: dict[str, Form] = {FLOAT: float_form(module, sample, threads)}
        self._outputs: dict[str, Any] = {FLOAT: self.forms[FLOAT].call(sample)}
        self._reasons: dict[str, str] = {}

    def make(self, names: Sequence[str]) -> None:
        # those that are quick to make come first, so that a short budget suffices for them
        order = sorted(names, key=lambda name: name in SLOW_TO_IMPORT)
        for place, name in enumerate(order):
            what = f"variant {name}"
            if not self._budget.suffices(what, _LEAST_SECONDS if name in SLOW_TO_IMPORT else 0.0):
                continue
            self._budget.tell(f"{what}: made and run for the first time")
            import_what_is_slow(name)
            try:
                with interrupted_after(self._budget.share(1 + 0.3 * (len(order) - place - 1), most=float("inf"))):
                    form = MAKERS[name](self._module, self._sample, self._threads)
                    self._outputs[name] = form.call(form.convert(self._sample))
                    self.forms[name] = form
            except TimeIsUp:
                self._budget.leave_out(what)
            except Exception as error:  # torch, compilers and ONNX Runtime have classes of their own
                self._reasons[name] = _reason(error)

    def tried(self, name: str) -> bool:
        return name in self.forms or name in self._reasons

    def cost(self, name: str, timings: Mapping[str, Sequence[VariantTime]]) -> VariantCost:
        if name in self._reasons:
            return VariantCost(name, reason=self._reasons[name])
        form, apart = self.forms[name], difference(self._outputs[name], self._outputs[FLOAT])
        return VariantCost(name, tuple(timings[name]), form.bytes_on_disk, apart, None, form.note)


def _timed(
    forms: Mapping[str, Form],
    sample: Any,
    batch_sizes: Sequence[int],
    min_run_time: float,
    device: torch.device,
    budget: TimeBudget,
) -> dict[str, list[VariantTime]]:
    timings: dict[str, list[VariantTime]] = {name: [] for name in forms}
    for place, size in enumerate(batch_sizes):
        what = f"variants at batch {size}"
        if not budget.suffices(what):
            continue
        budget.tell(what)
        part = budget.part(1 / (len(batch_sizes) - place))
        calls = _warm_calls(forms, rebatch(sample, size), size, part)
        try:
            with interrupted_after(part.remaining()):
                seconds = _in_turns(calls, min_run_time * len(calls), part, device)
        except TimeIsUp:
            budget.leave_out(what)
            continue
        baseline = torch.tensor(seconds[FLOAT], dtype=torch.double)
        for name, each in seconds.items():
            times = torch.tensor(each, dtype=torch.double)
            low, middle, high = (times / baseline).quantile(_SPREAD).tolist()
            timings[name].append(VariantTime(size, 1000 * times.median().item(), middle, low, high, len(each)))
    return timings


def _warm_calls(
    forms: Mapping[str, Form], batch: Any, size: int, budget: TimeBudget
) -> dict[str, Callable[[], object]]:
    """Run each form at a batch size, for which a compiler may compile anew, and return those that can."""
    calls: dict[str, Callable[[], object]] = {}
    for place, (name, form) in enumerate(forms.items()):
        what = f"variant {name} at batch {size}"
        call = partial(form.call, form.convert(batch))
        try:
            with interrupted_after(budget.share(2 + 0.3 * (len(forms) - place), most=float("inf"))):
                call()
            calls[name] = call
        except TimeIsUp:
            budget.leave_out(what)
        except Exception as error:
            budget.left_out.append(f"{what}: {_reason(error)}")
    if FLOAT not in calls:
        calls = {FLOAT: partial(forms[FLOAT].call, batch)}
    return calls


def _in_turns(
    calls: Mapping[str, Callable[[], object]], wanted: float, budget: TimeBudget, device: torch.device
) -> dict[str, list[float]]:
    """Time in turns for ``wanted`` seconds, or less where the budget is nearer its end."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    limited = budget.remaining() < float("inf")
    last, spent, rounds = 0.0, 0.0, 0
    while rounds < (LEAST_RUNS if limited else MIN_RUNS) or spent < wanted:
        if limited and rounds >= LEAST_RUNS and budget.remaining() < 1.5 * last:
            break
        # two rounds, one in each direction
        found = time_in_turns(calls, rounds=2, warmup=0, device=device)
        last = sum(map(sum, found.values()))
        spent, rounds = spent + last, rounds + 2
        for name, each in found.items():
            seconds[name] += each
    return seconds


def _floats(outputs: Any) -> list[Tensor]:
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return [leaf.detach().cpu().double() for leaf in leaves if leaf.is_floating_point()]


def _reason(error: Exception) -> str:
    if isinstance(error, MissingExtraError):
        return f"needs the extra {str(error).partition('[')[2].partition(']')[0]}"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
