"""How soon an LSTM solves the adding problem: trained through all of time, in parts, and in parts with FPTT.

Per length (200 and 500 time steps), method and seed one run on a Trainer: LSTM of 64 units, Adam at 3e-3, batches of
64 new sequences, gradients clipped at 1.0, ten parts. Every 20 batches the error on 500 held-out sequences is taken.
A run ends at the first error below 0.01, or 300 batches after the first below 0.05, or after a number of batches that
is the same for all methods. Answering 1 to everything has an error of 1/6. The rate and the width are those of the
design study, for all methods; nothing was tuned here. One thread. Writes ``results/fptt_adding.json`` after every
run, and ``docs/images/fptt_adding.png``.

Published behaviour (Kag, Saligrama, 2021): plain back-propagation fails at 500 steps, training in parts solves it.

Run: ``python benchmarks/fptt_adding.py [--seeds N] [--lengths 200 500] [--most 200:3000 500:1500]``
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from harness import resumed, save, table
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lightning_efficient.callbacks import FPTT, ChunkedBackprop
from lightning_efficient.datamodules import AddingProblem
from lightning_efficient.modules import SequenceRegressor

METHODS: Mapping[str, Callable[[], list[Callback]]] = {
    "BPTT": list,
    "ChunkedBackprop": lambda: [ChunkedBackprop(10)],
    "FPTT": lambda: [FPTT(10, reset="never")],
}
EVERY = 20
THRESHOLDS = (0.1, 0.05, 0.01)
SOLVED, AFTERWARDS = 0.05, 300
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "fptt_adding.png"


class StopWhenSolved(Callback):
    """Keep the error of each validation; stop where the run is decided."""

    def __init__(self) -> None:
        self.curve: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        error = float(trainer.callback_metrics["val/mse"])
        self.curve.append((trainer.global_step, error))
        solved = next((step for step, below in self.curve if below < SOLVED), trainer.global_step)
        trainer.should_stop = error < THRESHOLDS[-1] or trainer.global_step >= solved + AFTERWARDS


def run(method: str, length: int, seed: int, most: int) -> dict[str, Any]:
    seed_everything(seed, verbose=False)
    samples = {"train_samples": 64 * most, "val_samples": 500}
    data = AddingProblem(length, batch_size=64, eval_batch_size=500, seed=seed, **samples)
    module = SequenceRegressor(input_size=2, hidden_size=64, optimizer=partial(torch.optim.Adam, lr=3e-3))
    watch, callbacks = StopWhenSolved(), METHODS[method]()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    engine = Trainer(
        max_epochs=1, accelerator="cpu", devices=1, gradient_clip_val=1.0, val_check_interval=EVERY,
        num_sanity_val_steps=0, enable_checkpointing=False, callbacks=[*callbacks, watch], **quiet
    )  # fmt: skip
    start = process_time()
    engine.fit(module, datamodule=data)
    first = {str(limit): next((step for step, error in watch.curve if error < limit), None) for limit in THRESHOLDS}
    return {
        "batches": engine.global_step,
        "optimizer_steps": callbacks[0].updates if callbacks else engine.global_step,
        "first_below": first,
        "final_mse": watch.curve[-1][1],
        "cpu_seconds": process_time() - start,
        "curve": watch.curve,
    }


def draw(record: Mapping[str, Any], target: Path) -> None:
    from matplotlib.figure import Figure

    lengths = sorted(map(int, record["runs"]))
    figure = Figure(figsize=(3.6 * len(lengths) + 1, 3.6), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for axes, length in zip(panels, lengths, strict=True):
        for color, method in zip(("C0", "C1", "C2"), METHODS, strict=True):
            for number, found in enumerate(record["runs"][str(length)].get(method, {}).values()):
                axes.plot(*zip(*found["curve"], strict=True), color=color, lw=1, label=None if number else method)
        axes.axhline(1 / 6, color="grey", lw=0.8, ls=":")
        axes.set(yscale="log", xlabel="batches of 64 sequences", title=f"{length} time steps")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean squared error, held out")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(target, dpi=110)


def report(record: Mapping[str, Any]) -> None:
    rows = []
    for length, methods in record["runs"].items():
        for method, seeds in methods.items():
            cells = [told([each["first_below"][str(limit)] for each in seeds.values()]) for limit in THRESHOLDS]
            errors = ", ".join(f"{each['final_mse']:.3f}" for each in seeds.values())
            per_batch = statistics.mean(1000 * each["cpu_seconds"] / each["batches"] for each in seeds.values())
            rows.append([f"{length} {method}", *cells, errors, f"{per_batch:.0f}"])
    names = [f"first below {limit}" for limit in THRESHOLDS]
    table("adding problem: batches, per seed", ["", *names, "last error", "CPU ms per batch"], rows)


def told(steps: Sequence[int | None]) -> str:
    return ", ".join("-" if step is None else str(step) for step in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 500])
    parser.add_argument("--most", nargs="+", default=["200:3000", "500:1500"], help="largest number of batches")
    parser.add_argument("--resume", action="store_true", help="keep the seeds that were saved with these settings")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    most = {int(length): int(batches) for length, _, batches in (pair.partition(":") for pair in arguments.most)}
    settings = {"chance_mse": 1 / 6, "parts": 10, "most_batches": most}
    record: dict[str, Any] = {**settings, "runs": {}, **(resumed("fptt_adding", settings) if arguments.resume else {})}
    for seed in range(arguments.seeds):
        for length in arguments.lengths:
            for method in METHODS:
                found = record["runs"].setdefault(str(length), {}).setdefault(method, {})
                if str(seed) in found:
                    continue
                found[str(seed)] = run(method, length, seed, most[length])
                save("fptt_adding", record)
                report(record)
    draw(record, PICTURE)


if __name__ == "__main__":
    main()
