"""What each kind of compression costs in accuracy, and what it saves: timm networks on digits and FashionMNIST.

A network is trained from scratch (``float32``). From its weights, all of these go on for as many epochs again with the
same recipe: the network as it is (``float32, as long``, the control), with half of its channels pruned step by step
and removed, with 80 % of its weights pruned, and with fake quantisation to int8. What needs no training is made of the
control: bfloat16, int8 weights, and static int8, calibrated on training images; static int8 also of the pruned network.
Trained from scratch for both lengths together are the pruned network's shape with new weights, the other control of
pruning, and the network with interpolated blocks. AdamW with a cosine per length; nothing is chosen by any accuracy, so
the validation part is not used. Reported is the accuracy on the test part, seed by seed against the control, the
MACs, the size of the state dict as saved and after zlib, and the latency on this CPU, one thread, in turns with the
float network run in the same way: eagerly, and compiled by inductor with frozen weights. Static int8 is integer
arithmetic only when compiled. The networks of seed 0 are timed, one of each shape and arithmetic. ``digits`` are
scikit-learn's, scaled to 32 pixels; ``fashion-2k`` and ``fashion-6k`` are 2,000 and 6,000 images of FashionMNIST from
the folder that ``LIGHTNING_EFFICIENT_DATA`` names, ``fashion`` all of them. With ``--jobs N`` so many runs go on at the
same time. Writes ``results/compression_<task>.json`` after each run; ``--draw FILE`` draws and prints what was saved.

The compiled times of the static int8 networks are in question: compiled by itself, such a network of the same shape ran
several times faster than here. They are saved, and neither drawn nor quoted; ask ``lightning-efficient quantize`` or
``profile --variants int8_static`` for these.

Run: ``LIGHTNING_EFFICIENT_DATA=FOLDER python benchmarks/compression.py digits fashion-2k --jobs 2``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _compression_variants import (
    AS_FAST_AS,
    AWARE,
    CHANNELS,
    CHANNELS_STATIC,
    CONTROLS,
    FAKE,
    FLOAT,
    HALF,
    INTERPOLATED,
    LONGER,
    RESHAPED,
    STATIC,
    TIMED,
    VARIANTS,
    WEIGHT_ONLY,
    WEIGHTS,
    Images,
    Task,
    accuracy,
    classifier,
    images,
    latencies,
    macs_of,
    size_of,
    size_of_file,
)
from harness import RESULTS, command_line, resumed, save, steady_allocator, table
from images import quiet_trainer, settle
from torch import nn

from lightning_efficient.callbacks import GradualPruning, QuantizationAware
from lightning_efficient.nn.quantization import load_quantized, quantize_static, quantize_weights, save_quantized

TASKS = {
    "digits": Task("Digits", 1, 32, epochs=20, more_epochs=20, batch=64, shift=2, flips=False),
    "fashion-6k": Task("FashionMNIST", 1, 32, epochs=8, more_epochs=8, batch=64, shift=2, flips=True, samples=6_000),
    "fashion-2k": Task("FashionMNIST", 1, 32, epochs=10, more_epochs=10, batch=64, shift=2, flips=True, samples=2_000),
    "fashion": Task("FashionMNIST", 1, 32, epochs=10, more_epochs=10, batch=256, shift=2, flips=True),
}
NETWORKS = ("mobilenetv3_small_050", "resnet10t")
RATE = 2e-3
CHANNEL_SPARSITY, WEIGHT_SPARSITY = 0.5, 0.8
CALIBRATION_BATCHES = 16
ROUNDS = 20
COLORS = (
    "#343a40", "#868e96", "#1098ad", "#3b5bdb", "#7048e8", "#ae3ec9",
    "#e8590c", "#f08c00", "#c2255c", "#0ca678", "#66a80f",
)  # fmt: skip
MARKERS = dict(zip(VARIANTS, "oshv^<DdPX*", strict=True))


def fit(module: nn.Module, data: Images, epochs: int, rate: float, *callbacks: Any) -> nn.Module:
    """Train a classifier and return its network, in evaluation mode."""
    steps = epochs * len(data.train_dataloader())
    module.optimizer = partial(torch.optim.AdamW, lr=rate, weight_decay=0.05)
    module.lr_scheduler = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps)
    module.lr_interval = "step"
    with tempfile.TemporaryDirectory() as folder:  # callbacks leave their pictures in it
        engine = quiet_trainer(epochs, "cpu", callbacks=[*callbacks], limit_val_batches=0, default_root_dir=folder)
        engine.fit(module, datamodule=data)
    return module.backbone.eval()


def run(task: Task, backbone: str, seed: int, keep: str | None = None) -> dict[str, Any]:
    """Make and judge every variant of a network with one seed.

    Args:
        task: The data and the lengths of training.
        backbone: Name of a timm model.
        seed: Of weights, order and shifts.
        keep: Folder for the networks, to be timed later.

    Returns:
        By variant accuracy, MACs, parameters and bytes.
    """
    settle(seed)
    data = Images(task, seed, "cpu")
    networks = trained(task, backbone, seed, data)
    calibration = [batch for batch, _ in data.train_dataloader()][:CALIBRATION_BATCHES]
    quantized = {
        WEIGHT_ONLY: (quantize_weights(networks[LONGER], images(task, 8)), LONGER),
        STATIC: (quantize_static(networks[LONGER], calibration), LONGER),
        CHANNELS_STATIC: (quantize_static(networks[CHANNELS], calibration), CHANNELS),
        AWARE: (networks.pop(AWARE), LONGER),
    }
    networks[HALF] = deepcopy(networks[LONGER]).to(torch.bfloat16)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(keep or temporary)
        for name in VARIANTS:
            file = folder / f"{VARIANTS.index(name)}.pt2"
            if name in quantized:
                result, of = quantized[name]
                save_quantized(result, file)
                network: nn.Module = result.module
                layers = {"int8_layers": len(result.quantized), "float_layers": dict(result.skipped)}
                sizes = size_of_file(file)
            else:
                network, of, layers = networks[name], name, {}
                torch.save(network, file.with_suffix(".pt"))
                sizes = size_of(network)
            shape = networks[LONGER if of == HALF else of]
            found[name] = {
                "accuracy": accuracy(network, data, dtype=torch.bfloat16 if name == HALF else None),
                "macs": macs_of(shape, task),
                "parameters": sum(parameter.numel() for parameter in shape.parameters()),
                **sizes,
                **layers,
            }
    return found


def trained(task: Task, backbone: str, seed: int, data: Images) -> dict[str, Any]:
    """Return all networks that training makes, and what fake quantisation was converted to."""
    start = classifier(backbone, task)
    networks: dict[str, Any] = {FLOAT: deepcopy(fit(start, data, task.epochs, RATE))}

    def further(*callbacks: Any) -> nn.Module:
        torch.manual_seed(seed)
        module = classifier(backbone, task)
        module.backbone.load_state_dict(networks[FLOAT].state_dict())
        return fit(module, data, task.more_epochs, RATE, *callbacks)

    def from_scratch(module: Any) -> nn.Module:
        fit(module, data, task.epochs, RATE)
        return fit(module, data, task.more_epochs, RATE)

    networks[LONGER] = further()
    shape = (task.channels, task.side, task.side)
    channels = GradualPruning(
        CHANNEL_SPARSITY,
        structure="channels",
        schedule="iterative",
        rounds=5,
        end=0.5,
        input_shape=shape,
        measure=False,
    )
    further(channels)
    networks[CHANNELS] = channels.pruned.eval()
    networks[WEIGHTS] = further(
        GradualPruning(WEIGHT_SPARSITY, schedule="cubic", end=0.5, input_shape=shape, measure=False)
    )
    aware = QuantizationAware(input_shape=shape, measure=False)
    further(aware)
    networks[AWARE] = aware.quantized
    torch.manual_seed(seed)
    reshaped = classifier(backbone, task)
    reshaped.backbone = with_new_weights(networks[CHANNELS])
    networks[RESHAPED] = from_scratch(reshaped)
    torch.manual_seed(seed)
    networks[INTERPOLATED] = from_scratch(classifier(backbone, task, surgery=[INTERPOLATED]))
    return networks


def with_new_weights(network: nn.Module) -> nn.Module:
    """Return a network of the same shape that has learnt nothing."""
    fresh = deepcopy(network).train()
    for module in fresh.modules():
        if callable(getattr(module, "reset_parameters", None)):
            module.reset_parameters()
    return fresh


def study(
    name: str, networks: Sequence[str], seeds: int, jobs: int, task: Task | None = None, resume: bool = False
) -> dict[str, Any]:
    """Run a task, save what there is after each run, and time the networks of seed 0, where that run was made now."""
    task = task or TASKS[name]
    settings = {"task": vars(task), "pruned": {"channels": CHANNEL_SPARSITY, "weights": WEIGHT_SPARSITY}}
    before = resumed(result_name(name), settings) if resume else {}
    record: dict[str, Any] = {**settings, "latency": {}, **before, "runs": dict(before.get("runs", {}))}
    for network in networks:
        record["runs"].setdefault(network, {})
    with tempfile.TemporaryDirectory() as folder:
        kept = {network: Path(folder) / network for network in networks}
        for path in kept.values():
            path.mkdir()
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            pending: dict[tuple[str, int], Future[dict[str, Any]]] = {
                (network, seed): pool.submit(run, task, network, seed, None if seed else str(kept[network]))
                for seed in range(seeds)
                for network in networks
                if str(seed) not in record["runs"][network]
            }
            for (network, seed), future in pending.items():
                record["runs"][network][str(seed)] = future.result()
                save(result_name(name), record, script="compression")
        fresh = {network: path for network, path in kept.items() if any(path.iterdir())}
        time_networks(name, record, task, fresh)  # after the runs, which would disturb it
    report(name, record)
    return record


def measure(name: str, jobs: int, task: Task | None = None) -> dict[str, Any]:
    """Train the networks of seed 0 of what was saved once more, and time them anew."""
    task, record = task or TASKS[name], saved(name)
    with tempfile.TemporaryDirectory() as folder:
        kept = {network: Path(folder) / network for network in record["runs"]}
        for path in kept.values():
            path.mkdir()
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            again = {network: pool.submit(run, task, network, 0, str(path)) for network, path in kept.items()}
        for network, future in again.items():
            before = record["runs"][network]["0"]
            if any(each["accuracy"] != before[variant]["accuracy"] for variant, each in future.result().items()):
                raise SystemExit(f"{name}, {network}: the run is another one than was saved; run the task anew")
        record["latency_command"] = command_line("compression")
        time_networks(name, record, task, kept)
    report(name, record)
    return record


def time_networks(name: str, record: dict[str, Any], task: Task, kept: Mapping[str, Path]) -> None:
    """Time the networks that were kept, and save the record after each."""
    torch.set_num_threads(1)
    for network, path in kept.items():
        ready = {variant: loaded(path, variant) for variant in TIMED}
        record["latency"][network] = {
            way: latencies(ready, task, ROUNDS, compiled=way == "compiled") for way in ("eager", "compiled")
        }
        save(result_name(name), record, script="compression")


def loaded(folder: Path, variant: str) -> nn.Module:
    """Return a network that ``run`` has kept; the files are ours, so they may hold whole modules."""
    file = folder / f"{VARIANTS.index(variant)}.pt2"
    if file.exists():
        return load_quantized(file)
    network: nn.Module = torch.load(file.with_suffix(".pt"), weights_only=False)
    return network.eval()


def report(name: str, record: Mapping[str, Any]) -> None:
    """Print what each variant reaches, what it costs, and how far it is from its controls, seed by seed."""
    for network, seeds in record["runs"].items():
        rows = []
        for variant in VARIANTS:
            runs = [each[variant] for each in seeds.values()]
            scores = [100 * each["accuracy"] for each in runs]
            deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
            timed = [
                f"{found['median']:.2f}" if found else "-"
                for way in ("eager", "compiled")
                for batch in ("1", "64")
                for found in [
                    record["latency"].get(network, {}).get(way, {}).get(AS_FAST_AS.get(variant, variant), {}).get(batch)
                ]
            ]
            rows.append(
                [
                    variant,
                    f"{statistics.mean(scores):.2f} ± {deviation:.2f}",
                    f"{statistics.mean(each['macs'] for each in runs) / 1e6:.2f}",
                    f"{statistics.mean(each['bytes'] for each in runs) / 1e3:.0f}",
                    f"{statistics.mean(each['compressed_bytes'] for each in runs) / 1e3:.0f}",
                    *timed,
                ]
            )
        title = (
            f"{name}, {network}: {len(seeds)} seeds, mean ± deviation; kB as saved and after zlib; times faster than "
            "float32 run in the same way"
        )
        heads = ["", "accuracy, %", "MACs, M", "kB", "zlib", "eager 1", "eager 64", "compiled 1", "compiled 64"]
        table(title, heads, rows)
        rows = [
            [variant, control, f"{statistics.mean(ahead):+.2f}", f"{min(ahead):+.2f} to {max(ahead):+.2f}"]
            for variant, control, ahead in comparisons(seeds)
        ]
        table(
            f"{name}, {network}: points of accuracy over a control, seed by seed", ["", "over", "points", "range"], rows
        )


def comparisons(seeds: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, list[float]]]:
    """Return each variant, one that it is compared with, and by how many points it is ahead on each seed."""
    return [
        (variant, control, [100 * (each[variant]["accuracy"] - each[control]["accuracy"]) for each in seeds.values()])
        for variant in VARIANTS
        for control in CONTROLS.get(variant, (LONGER,))
        if variant != control
    ]


def result_name(task: str) -> str:
    return f"compression_{task.replace('-', '_')}"


def saved(task: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{result_name(task)}.json").read_text())
    return record


def draw(names: Sequence[str], file: Path) -> None:
    """Draw accuracy against size and against the latency of the better way to run, a row of panels per task."""
    from matplotlib.figure import Figure

    records = {name: saved(name) for name in names}
    rows = [(name, network) for name, record in records.items() for network in record["runs"]]
    figure = Figure(figsize=(9.4, 3.0 * len(rows) + 1.2), dpi=80, layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False, sharey="row")
    colors = dict(zip(VARIANTS, COLORS, strict=True))
    for (name, network), row in zip(rows, panels, strict=True):
        seeds, latency = records[name]["runs"][network], records[name]["latency"][network]
        for variant in VARIANTS:
            scores = [100 * each[variant]["accuracy"] for each in seeds.values()]
            middle = statistics.mean(scores)
            size = statistics.mean(each[variant]["compressed_bytes"] for each in seeds.values()) / 1e3
            timed = AS_FAST_AS.get(variant, variant)
            fastest = min(latency[way][timed]["64"]["ms"] for way in latency if timed in latency[way])
            # of static int8 the times here are in question, see the top of this file
            for ax, position in zip(row, (size,) if variant in FAKE else (size, fastest), strict=False):
                whiskers = [[middle - min(scores)], [max(scores) - middle]]
                ax.errorbar(
                    position, middle, yerr=whiskers, fmt=MARKERS[variant], color=colors[variant], markersize=7,
                    capsize=2, linewidth=1, label=variant,
                )  # fmt: skip
        row[0].set_title(f"{name}, {network}", loc="left", fontsize=10, fontweight="bold", color="#343a40")
        row[0].set_ylabel("test accuracy, %")
        row[0].set_xlabel("kB of the file after zlib")
        row[1].set_xlabel("ms for 64 images, eager or compiled, the faster")
        for ax in row:
            ax.set_xlim(left=0)
            ax.grid(color="#e9ecef", linewidth=0.8)
            ax.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="names of timm models")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="keep the seeds that were saved with these settings")
    parser.add_argument("--measure", action="store_true", help="only time the networks of what was saved anew")
    parser.add_argument("--draw", metavar="FILE", help="draw and print what was saved of these tasks")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(arguments.tasks, Path(arguments.draw))
    for name in arguments.tasks:
        if arguments.draw:
            report(name, saved(name))
        elif arguments.measure:
            measure(name, arguments.jobs)
        else:
            study(name, arguments.networks, arguments.seeds, arguments.jobs, resume=arguments.resume)


if __name__ == "__main__":
    steady_allocator()
    main()
