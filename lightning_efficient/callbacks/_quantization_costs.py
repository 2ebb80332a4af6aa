"""What quantised networks cost beside the float network: bytes on disk, and time, all in turns."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.in_turns import time_in_turns
from lightning_efficient.profiling.inputs import rebatch

Compiler = Callable[[nn.Module], Callable[[Tensor], Any]]
FLOAT = "float"
"""What the network before is called; the first of those that are timed."""

_FEWEST, _MOST = 10, 1000
_SPREAD = torch.tensor([0.1, 0.5, 0.9])


@dataclass(frozen=True)
class Timed:
    """How long one network takes for a batch.

    Attributes:
        name: Of the network.
        compiled: Whether ``torch.compile`` with frozen weights made its code.
        batch_size: Samples of a batch.
        ms: Median of a forward pass in milliseconds.
        speed_up: Median over the rounds of the float network's time over this one's, both compiled or both not.
        low: The 10th percentile of that ratio.
        high: The 90th percentile of that ratio.
        speed_up_over_eager: The median over the float network that is not compiled.
        rounds: How many were timed.
    """

    name: str
    compiled: bool
    batch_size: int
    ms: float
    speed_up: float
    low: float
    high: float
    speed_up_over_eager: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a file.

    Attributes:
        bytes: As it lies on the disk.
        compressed: After ``zlib``.
    """

    bytes: int
    compressed: int

    @classmethod
    def of_file(cls, file: Path) -> Sizes:
        """Measure a file."""
        return cls(file.stat().st_size, _compressed(file.read_bytes()))

    @classmethod
    def of_weights(cls, network: nn.Module) -> Sizes:
        """Measure what ``torch.save`` makes of a network's state dict."""
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        return cls(buffer.tell(), _compressed(buffer.getvalue()))


def _compressed(content: bytes) -> int:
    return len(zlib.compress(content))


def timed(
    networks: Mapping[str, nn.Module],
    example: Tensor,
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: int | None = None,
    min_run_time_s: float = 0.5,
    compiler: Compiler | None = None,
) -> tuple[list[Timed], str | None]:
    """Time networks in turns, as they are and compiled.

    Args:
        networks: By name, ``float`` first; on the CPU, in evaluation mode.
        example: A batch, whose first sample is repeated.
        batch_sizes: Samples of a batch.
        threads: Intra-op threads of torch; None keeps the current number.
        min_run_time_s: About the seconds of timing for each batch size and network.
        compiler: Compiles a network; None leaves the compiled ones out.

    Returns:
        The times, and in one line why nothing is compiled where compiling failed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        rows: list[Timed] = []
        problem: str | None = None
        for size in batch_sizes:
            batch = rebatch(example, size)
            calls = {(name, False): network for name, network in networks.items()}
            if compiler is not None and problem is None:
                compiled, problem = _compiled(networks, batch, compiler)
                calls |= compiled
            rows += _rows(calls, batch, min_run_time_s)
        return rows, problem
    finally:
        torch.set_num_threads(before)


def _compiled(
    networks: Mapping[str, nn.Module], batch: Tensor, compiler: Compiler
) -> tuple[dict[tuple[str, bool], Any], str | None]:
    calls: dict[tuple[str, bool], Any] = {}
    try:
        torch.compiler.reset()  # or a second batch size would be compiled for any, which is slower
        for name, network in networks.items():
            calls[name, True] = compiler(network)
            calls[name, True](batch)
    except ConfigurationError as error:
        return {}, str(error)
    except Exception as error:  # a compiler may fail in many ways, and what is not compiled can still be timed
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {}, f"nothing is compiled, torch.compile failed: {reason}"
    return calls, None


def _rows(
    calls: Mapping[tuple[str, bool], Callable[[Tensor], Any]], batch: Tensor, min_run_time_s: float
) -> list[Timed]:
    def run(call: Callable[[Tensor], Any]) -> Callable[[], object]:
        def once() -> object:
            with torch.no_grad():
                return call(batch)

        return once

    named = {f"{name}/{compiled}": run(call) for (name, compiled), call in calls.items()}
    trial = time_in_turns(named, rounds=2, warmup=2)
    longest = max(min(seconds) for seconds in trial.values())
    rounds = int(min(max(min_run_time_s / max(longest, 1e-9), _FEWEST), _MOST))
    seconds = {name: torch.tensor(each) for name, each in time_in_turns(named, rounds=rounds, warmup=1).items()}
    rows = []
    for name, compiled in calls:
        own = seconds[f"{name}/{compiled}"]
        low, alike, high = (seconds[f"{FLOAT}/{compiled}"] / own).quantile(_SPREAD).tolist()
        eager = (seconds[f"{FLOAT}/False"] / own).median().item()
        rows.append(Timed(name, compiled, len(batch), 1000 * own.median().item(), alike, low, high, eager, rounds))
    return rows


def slower(rows: Iterable[Timed]) -> list[str]:
    """Return a line for each network that is slower than the float one, compiled or, if nothing is, as it is."""
    rows = list(rows)
    deployed = any(row.compiled for row in rows)
    return [
        f"{row.name} is slower than float here (batch {row.batch_size}, {'compiled' if deployed else 'eager'}): "
        f"{row.speed_up:.2f}x its speed"
        for row in rows
        if row.compiled == deployed and row.name != FLOAT and row.speed_up < 1
    ]
