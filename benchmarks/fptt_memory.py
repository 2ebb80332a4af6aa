"""What training in parts costs: peak memory against the length of the sequences, and time per sequence.

An LSTM on the adding problem is trained by plain back-propagation through time, by ``ChunkedBackprop`` and by
``FPTT``, each on a Trainer, with parts of 100 time steps. Memory is what one whole training step needs beyond
weights, the states of Adam and FPTT, and batch: every tensor from the operator that makes it until it is freed,
gradients among them, the same on every run; and, as a check from outside, the growth of the resident set of a fresh
process in its third step. On CUDA, with ``--device cuda``, it is what the allocator handed out.

Goals: flat in the length for the last two; at 1,000 time steps and 10 parts at least 8 times below plain
back-propagation. Time, in turns, at 1,000 time steps: FPTT within 1.1 times of ChunkedBackprop, and no slower than
plain back-propagation. One thread. Writes ``results/fptt_memory.json`` and ``docs/images/fptt_memory.png``.

Run: ``python benchmarks/fptt_memory.py [--device cpu|cuda] [--rounds N] [--no-processes]``
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from harness import device_name, paired, ratio, save, table
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_efficient.callbacks import FPTT, ChunkedBackprop
from lightning_efficient.datamodules.adding_problem import AddingProblem
from lightning_efficient.modules import SequenceRegressor
from lightning_efficient.profiling.memory import LiveTensors

LENGTHS = (200, 1_000, 5_000, 20_000)
PART = 100
HIDDEN, BATCH = 128, 16
METHODS: Mapping[str, Callable[[], list[Callback]]] = {
    "BPTT": list,
    "ChunkedBackprop": lambda: [ChunkedBackprop(part_length=PART)],
    "FPTT": lambda: [FPTT(part_length=PART)],
}
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "fptt_memory.png"


def fit(method: str, length: int, batch_size: int, watch: Callback, steps: int, device: str) -> None:
    torch.manual_seed(0)
    data = AddingProblem(length, batch_size=batch_size, train_samples=steps * batch_size)
    data.setup("fit")
    batches = list(data.train_dataloader())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    shared = {"max_epochs": 1, "devices": 1, "enable_checkpointing": False}
    engine = Trainer(accelerator=device, callbacks=[*METHODS[method](), watch], **shared, **quiet)
    engine.fit(SequenceRegressor(input_size=2, hidden_size=HIDDEN), DataLoader(batches, batch_size=None))


class PeakOfAStep(Callback):
    """Peak bytes of the second step beyond what is there before it: weights, states of Adam and FPTT, batch."""

    bytes = 0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx != 1:
            return
        if module.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        state = [value for each in trainer.optimizers[0].state.values() for value in each.values()]
        fptt = [callback.regularizer for callback in trainer.callbacks if isinstance(callback, FPTT)]
        kept = [tensor for one in fptt for tensor in (*one.means, *one.duals)]
        resident = [*module.parameters(), *(x for x in state if isinstance(x, torch.Tensor)), *kept, *batch]
        self.live = LiveTensors(resident)
        self.before = self.live.peak
        self.live.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx != 1:
            return
        if module.device.type == "cuda":
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        else:
            self.live.__exit__(None, None, None)
            self.bytes = self.live.peak - self.before


class ResidentGrowth(Callback):
    """Growth of the process's largest resident set over the first three steps."""

    bytes = 0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.before = largest_resident_set()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.bytes = largest_resident_set() - self.before


def largest_resident_set() -> int:
    """Bytes, from the kernel's account of this process; getrusage would start from the parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


class Clock(Callback):
    """Seconds of each step but the first."""

    def __init__(self, device: str) -> None:
        self.now = perf_counter if device == "cuda" else process_time
        self.steps: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.start = self.now()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        if batch_idx:
            self.steps.append(self.now() - self.start)


def peaks(device: str) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {method: {} for method in METHODS}
    for length in LENGTHS:
        for method, by_length in found.items():
            watch = PeakOfAStep()
            fit(method, length, BATCH, watch, 2, device)
            by_length[length] = watch.bytes
    return found


def resident_sets() -> dict[str, dict[int, int]]:
    def of_a_process(method: str, length: int) -> int:
        command = [sys.executable, __file__, "--child", method, str(length)]
        return int(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    return {method: {length: of_a_process(method, length) for length in LENGTHS} for method in METHODS}


def times(rounds: int, device: str, batch_size: int, length: int = 1_000) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}

    def once(method: str) -> Callable[[], None]:
        def run() -> None:
            clock = Clock(device)
            fit(method, length, batch_size, clock, 4, device)
            seconds[method].append(statistics.median(clock.steps) / batch_size)

        return run

    paired({method: once(method) for method in METHODS}, rounds)
    seconds = {method: values[-rounds:] for method, values in seconds.items()}
    return {
        "length": length,
        "batch_size": batch_size,
        "seconds_per_sequence": seconds,
        "FPTT over ChunkedBackprop": ratio(seconds, "FPTT", "ChunkedBackprop"),
        "FPTT over BPTT": ratio(seconds, "FPTT", "BPTT"),
        "ChunkedBackprop over BPTT": ratio(seconds, "ChunkedBackprop", "BPTT"),
    }


def draw(found: Mapping[str, Mapping[int, int]], target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for (method, by_length), marker in zip(found.items(), "os^", strict=True):
        axes.plot(list(by_length), [value / 1e6 for value in by_length.values()], marker=marker, label=method)
    axes.set(xscale="log", yscale="log", xlabel="time steps of a sequence", ylabel="peak memory of a training step, MB")
    axes.set_title(f"LSTM {HIDDEN}, batch {BATCH}, parts of {PART} steps; beyond weights and batch", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if arguments.child:
        watch = ResidentGrowth()
        fit(arguments.child[0], int(arguments.child[1]), BATCH, watch, 3, "cpu")
        sys.stdout.write(json.dumps(watch.bytes))
        return
    found = peaks(arguments.device)
    at = {method: by_length[1_000] for method, by_length in found.items()}
    record: dict[str, Any] = {
        "model": f"LSTM {HIDDEN}",
        "batch_size": BATCH,
        "part_length": PART,
        "device": device_name(arguments.device),
        "peak_bytes": found,
        "times_below_bptt_at_1000": {method: at["BPTT"] / at[method] for method in METHODS},
        "growth_from_shortest_to_longest": {
            method: by_length[LENGTHS[-1]] / by_length[LENGTHS[0]] for method, by_length in found.items()
        },
        "times": [times(arguments.rounds, arguments.device, size) for size in (16, 128)],
    }
    if arguments.processes and arguments.device == "cpu":
        record["resident_bytes"] = resident_sets()
    report(record)
    if arguments.device == "cpu":
        draw(found, PICTURE)
    save("fptt_memory" if arguments.device == "cpu" else "fptt_memory_cuda", record, script="fptt_memory")


def report(record: Mapping[str, Any]) -> None:
    kinds = {"peak of a step, MB": "peak_bytes", "resident set of a process, MB": "resident_bytes"}
    for title, kind in kinds.items():
        if kind in record:
            rows = [
                [method, *(f"{value / 1e6:,.1f}" for value in by_length.values())]
                for method, by_length in record[kind].items()
            ]
            table(f"{title} (LSTM {HIDDEN}, batch {BATCH})", ["time steps", *(f"{x:,}" for x in LENGTHS)], rows)
    below = {method: f"{value:.1f}" for method, value in record["times_below_bptt_at_1000"].items()}
    table("times below BPTT at 1,000 steps, goal 8", ["", *below], [["", *below.values()]])
    for timed in record["times"]:
        rows = [
            [name, "{median:.3f} ({low:.3f} to {high:.3f})".format(**timed[name])] for name in timed if " over " in name
        ]
        milliseconds = {m: f"{1000 * statistics.median(s):.2f}" for m, s in timed["seconds_per_sequence"].items()}
        title = f"time per sequence, {timed['length']} steps, batch {timed['batch_size']}: ms {milliseconds}"
        table(title, ["", "ratio"], rows)


if __name__ == "__main__":
    main()
