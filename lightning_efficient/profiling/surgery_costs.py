"""What surgery on a network costs and saves: MACs and latency of every changed block, before and after, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.benchmark import timer

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.inputs import device_of, dtype_of, random_example, rebatch
from lightning_efficient.profiling.latency import MIN_RUNS, check_options
from lightning_efficient.profiling.undisturbed import undisturbed

if TYPE_CHECKING:
    from lightning_efficient.nn.surgery import Plan

NOTHING = "-"
"""What stands for the new module where a block was deleted, and for the old one where a layer was added."""
WARMUP = 3
_ABSENT = (NOTHING, "", None)
_SPREAD = torch.tensor([0.1, 0.5, 0.9], dtype=torch.double)

_Call = Callable[[], object]


@dataclass(frozen=True)
class BlockCost:
    """What one block, or the whole network, costs before and after.

    Attributes:
        name: Of the block in the network before; in the one after where the block is new. Empty for the network.
        old: Name of the type before; ``"-"`` where there was none.
        new: Name of the type after; ``"-"`` where the block is gone.
        macs_before: Multiply-accumulate operations per sample.
        macs_after: The same, after.
        ms_before: Median of a forward pass in milliseconds; 0 where there was no block.
        ms_after: The same, after.
        speed_up: Median over the pairs of the time before over the time after; None without a block on either side.
        low: The 10th percentile of that ratio.
        high: The 90th percentile of that ratio.
        pairs: How many pairs were timed.
    """

    name: str
    old: str
    new: str
    macs_before: int
    macs_after: int
    ms_before: float
    ms_after: float
    speed_up: float | None
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class SurgeryCosts:
    """What surgery costs and saves.

    Attributes:
        rows: One for each changed block.
        total: The whole network.
        params_before: Parameters of the network before.
        params_after: Parameters of the network after.
        batch_size: Samples per forward pass of the times; MACs are per sample.
        input_shape: Of one sample.
        threads: Intra-op threads of torch.
        device: Where the networks were.
        precision: Data type of their weights.
        channels_last: Whether weights and inputs lay with the channels last.

    Example:
        >>> total = BlockCost("", "A", "A", 100, 61, 2.0, 1.0, 2.0, 1.9, 2.1, 10)
        >>> costs = SurgeryCosts((), total, 10, 12, 1, (3, 8, 8), 1, "cpu", "float32", False)
        >>> SurgeryCosts.from_dict(costs.to_dict()) == costs, round(costs.macs_change, 2), costs.gained
        (True, -0.39, True)
    """

    rows: tuple[BlockCost, ...]
    total: BlockCost
    params_before: int
    params_after: int
    batch_size: int
    input_shape: tuple[int, ...]
    threads: int
    device: str
    precision: str
    channels_last: bool

    @property
    def macs_change(self) -> float:
        """Relative change of the network's MACs: -0.39 where 39 % are gone; 0 for a network without any."""
        before = self.total.macs_before
        return self.total.macs_after / before - 1 if before else 0.0

    @property
    def gained(self) -> bool:
        """Whether the network is faster: by 5 % at least, and in nine of ten pairs."""
        return (self.total.speed_up or 0) >= 1.05 and (self.total.low or 0) > 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, numbers and strings, ready for JSON."""
        content = asdict(self)
        return content | {key: list(content[key]) for key in ("rows", "input_shape")}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SurgeryCosts:
        """Rebuild what ``to_dict`` returned, also after a round trip through JSON."""
        rows = tuple(BlockCost(**row) for row in content["rows"])
        built = {"rows": rows, "total": BlockCost(**content["total"]), "input_shape": tuple(content["input_shape"])}
        return cls(**{**content, **built})


def surgery_costs(
    before: nn.Module,
    after: nn.Module,
    plan: Plan,
    *,
    batch_size: int = 1,
    min_run_time: float = 0.5,
    threads: int | None = None,
    channels_last: bool = False,
) -> SurgeryCosts:
    """Time every changed block, and the whole network, before and after surgery.

    Each block runs on the input that it gets within its network. The two of a pair take turns in one process and change
    places every time, so that what disturbs the machine disturbs both. Takes about ``min_run_time`` seconds for each
    row and for the whole; networks and random states are left as they were.

    Args:
        before: The network before surgery.
        after: The network after it, on the same device.
        plan: What was done: what ``nn.surgery.preview`` or ``plan`` returned for ``before``.
        batch_size: Samples per forward pass.
        min_run_time: Seconds of timing for each row.
        threads: Intra-op threads of torch; None keeps the current number.
        channels_last: Time with weights and images whose channels lie last in memory.

    Returns:
        MACs per sample, times and speed-ups.

    Raises:
        ConfigurationError: a number is out of range, or a network has not the modules of the plan.
    """
    check_options([batch_size], threads, min_run_time, WARMUP, None)
    threads, device = threads or torch.get_num_threads(), device_of(before)
    if device_of(after) != device:
        raise ConfigurationError(f"before and after must be on one device, got {device} and {device_of(after)}")
    shape = tuple(plan.example_shape[1:])
    parts = [_parts(before, after, row) for row in plan]
    with ExitStack() as stack:
        for network in {id(each): each for each in (before, after)}.values():
            stack.enter_context(undisturbed(network))
            if channels_last:
                stack.enter_context(_channels_last(network))
            network.eval()
        stack.enter_context(torch.inference_mode())
        torch.set_num_threads(threads)
        images = rebatch(random_example(before, shape), batch_size)
        if channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        old_calls = _calls(before, [old for old, _ in parts], images)
        new_calls = _calls(after, [new for _, new in parts], images)
        rows = []
        for row, old, new in zip(plan, old_calls, new_calls, strict=True):
            name, macs = row.name or row.new_name, (row.macs_before, row.macs_after)
            rows.append(_cost(name, row.old or NOTHING, row.new or NOTHING, macs, old, new, min_run_time))
        kinds = type(before).__name__, type(after).__name__
        macs = plan.macs_before, plan.macs_after
        total = _cost("", *kinds, macs, partial(before, images), partial(after, images), min_run_time)
    return SurgeryCosts(
        rows=tuple(rows),
        total=total,
        params_before=plan.params_before,
        params_after=plan.params_after,
        batch_size=batch_size,
        input_shape=shape,
        threads=threads,
        device=str(device),
        precision=str(dtype_of(before)).removeprefix("torch."),
        channels_last=channels_last,
    )


def _parts(before: nn.Module, after: nn.Module, row: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the modules of a row in either network: several where blocks were merged, none where there was none."""
    old = [] if row.old in _ABSENT else [_module(before, name, "before") for name in row.name.split(", ")]
    return old, [] if row.new in _ABSENT else [_module(after, row.new_name, "after")]


def _module(network: nn.Module, name: str, which: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        message = f"{which}: {type(network).__name__} has no module {name!r}; give the networks of the plan"
        raise ConfigurationError(message) from None


def _calls(network: nn.Module, parts: Sequence[Sequence[nn.Module]], images: Tensor) -> list[_Call | None]:
    """Run the network once, and return for each part a function that repeats the calls which its modules got."""
    got: dict[int, list[_Call]] = {id(module): [] for modules in parts for module in modules}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        # copies, since a later layer may write into its input
        args, kwargs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        got[id(module)].append(partial(module, *args, **kwargs))

    unique = {id(module): module for modules in parts for module in modules}
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in unique.values()]
    network(images)
    for handle in handles:
        handle.remove()
    return [_in_turn([call for module in modules for call in got[id(module)]]) for modules in parts]


def _in_turn(calls: list[_Call]) -> _Call | None:
    def run() -> None:
        for call in calls:
            call()

    return (calls[0] if len(calls) == 1 else run) if calls else None


def _cost(
    name: str, old: str, new: str, macs: tuple[int, int], before: _Call | None, after: _Call | None, min_run_time: float
) -> BlockCost:
    sides = [(place, call) for place, call in enumerate((before, after)) if call is not None]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _, call in sides * WARMUP:
        call()
    spent, pairs = 0.0, 0
    while sides and (spent < min_run_time or pairs < MIN_RUNS):
        for place, call in sides if pairs % 2 == 0 else reversed(sides):
            start = timer()
            call()
            seconds[place].append(timer() - start)
            spent += seconds[place][-1]
        pairs += 1
    times = [torch.tensor(each, dtype=torch.double) for each in seconds]
    ms_before, ms_after = (1000 * each.median().item() if len(each) else 0.0 for each in times)
    low, middle, high = (times[0] / times[1]).quantile(_SPREAD).tolist() if len(sides) == 2 else (None,) * 3
    return BlockCost(name, old, new, *macs, ms_before, ms_after, middle, low, high, pairs)


@contextmanager
def _channels_last(network: nn.Module) -> Iterator[None]:
    """Lay the weights out with the channels last for a while; the parameters stay the same objects."""
    before = {parameter: parameter.data for parameter in network.parameters() if parameter.ndim == 4}
    try:
        for parameter, data in before.items():
            parameter.data = data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for parameter, data in before.items():
            parameter.data = data
