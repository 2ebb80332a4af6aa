"""What pruning has left of a network: the smaller copy, its costs beside the dense ones, a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_efficient.callbacks._pruner import Pruner
from lightning_efficient.callbacks._pruning_figure import pruning_figure
from lightning_efficient.callbacks._pruning_measure import (
    bytes_of,
    filled,
    largest_difference,
    latency_in_turns,
    made_of,
)
from lightning_efficient.callbacks._pruning_units import ChannelUnits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.macs import count_macs
from lightning_efficient.reporting import log_figure, log_scalars, log_table, run_dir

History = Sequence[Mapping[str, float]]


def without_channels(pruner: Pruner, module: LightningModule) -> nn.Module | None:
    """Return a copy of the network without the channels that are zero, in eval mode; None where weights were pruned."""
    if not isinstance(pruner.units, ChannelUnits):
        return None
    from lightning_efficient.nn.pruning.shrink import remove_channels

    network = module.get_submodule(pruner.path)
    keep = {name: mask.cpu() for name, mask in pruner.keep.items()}
    return remove_channels(network, pruner.units.groups, keep).eval()


def channel_costs(pruner: Pruner, module: LightningModule, example: Tensor | None) -> dict[str, float]:
    """Return the channels that are left, and the MACs if there is an example; nothing where weights were pruned."""
    if not isinstance(pruner.units, ChannelUnits):
        return {}
    costs: dict[str, float] = {"channels": sum(int(mask.sum()) for mask in pruner.keep.values())}
    smaller = None if example is None else without_channels(pruner, module)
    return costs if smaller is None else {**costs, "macs": count_macs(smaller, example).macs}


def report(
    trainer: Trainer,
    module: LightningModule,
    pruner: Pruner,
    pruned: nn.Module | None,
    example: Tensor | None,
    history: History,
    name: str,
) -> None:
    """Log, draw and write what is left, and measure it if there is an example; for the first process alone."""
    network = module.get_submodule(pruner.path)
    dense = sum(each.numel() for each in network.parameters())
    found: dict[str, Any] = {
        "structure": "unstructured" if pruned is None else "channels",
        "schedule": pruner.plan.schedule,
        "saliency": pruner.kind,
        "sparsity": pruner.sparsity,
        "target": pruner.target.sparsity,
        "rounds": pruner.round,
        "parameters": {"dense": dense, "left": pruner.entries},
        **channel_costs(pruner, module, None),
    }
    measured = {} if example is None else _measured(trainer, network, pruned, pruner, example)
    found |= measured
    columns, rows = _layers(pruner)
    log_table(trainer, f"{name}/{name}_layers", columns, rows)
    log_figure(trainer, f"{name}/{name}", lambda: pruning_figure(rows, history, trainer.global_step, columns[1]))
    ratios = {f"{name}/{key}": value for key, value in measured.items() if key.startswith("latency_ratio")}
    if ratios:
        log_scalars(trainer, ratios)
    folder = run_dir(trainer)
    file = folder / ("pruned.pt" if name == "pruning" else f"{name}_pruned.pt")
    layers = [dict(zip(columns, row, strict=True)) for row in rows]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if pruned is not None:
            from lightning_efficient.nn.pruning.pruned_file import save_pruned

            found["file"] = file.name
            save_pruned(file, pruned, made_of=made_of(module, network), report=found)
        content = {**found, "layers": layers, "history": [dict(entry) for entry in history]}
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    except (OSError, ConfigurationError) as error:
        rank_zero_warn(f"GradualPruning: {folder} could not be written to ({error}); the network is in callback.pruned")
    for line in _lines(found, pruned is None, str(file)):
        rank_zero_info(f"GradualPruning: {line}")


def _measured(
    trainer: Trainer, network: nn.Module, pruned: nn.Module | None, pruner: Pruner, example: Tensor
) -> dict[str, Any]:
    device = trainer.strategy.root_device
    found: dict[str, Any] = {}
    # with zeros in place of weights the dense network is as fast as with any numbers, if it can be run at all
    other = network if pruned is not None else filled(network, pruner.masks)
    new = pruned if pruned is not None else network
    try:
        found |= latency_in_turns(new, other, example, device)
        found["macs"] = {"dense": count_macs(network, example).macs, "left": count_macs(new, example).macs}
        if pruned is not None:
            found["largest_output_difference"] = largest_difference(pruned, network, example)
    except Exception as error:  # a network that takes other inputs than images; the training is not lost for that
        rank_zero_warn(
            f"GradualPruning: no latency, as {type(network).__name__} does not run on an input of shape "
            f"{tuple(example.shape)} ({str(error).partition(chr(10))[0]}); set input_shape=, or measure=False"
        )
    found["bytes"] = bytes_of(new)
    return found


def _layers(pruner: Pruner) -> tuple[list[str], list[list[Any]]]:
    what = "channels" if isinstance(pruner.units, ChannelUnits) else "weights"
    rows = []
    for name, mask in pruner.keep.items():
        kept = int(mask.sum())
        rows.append([name, mask.numel(), kept, kept / mask.numel()])
    return ["layer", what, "kept", "share"], rows


def _lines(found: Mapping[str, Any], unstructured: bool, file: str) -> list[str]:
    what = "weights" if unstructured else "channels"
    left, dense = found["parameters"]["left"], found["parameters"]["dense"]
    words = [f"{100 * found['sparsity']:.1f} % of the {what} are gone, {left:,} of {dense:,} parameters are left"]
    if "macs" in found and not unstructured:
        words.append(f"{found['macs']['left'] / 1e6:.3g} of {found['macs']['dense'] / 1e6:.3g} million MACs")
    if "bytes" in found:
        each = found["bytes"]
        words.append(f"{each['on_disk']:,} bytes on disk, {each['compressed']:,} compressed")
    lines = ["; ".join(words)]
    ratios = [
        f"{value:.2f} at batch size {key.removeprefix('latency_ratio_b')}"
        for key, value in found.items()
        if key.startswith("latency_ratio_b")
    ]
    if ratios and unstructured:
        lines.append(
            "this hardware multiplies by zeros as by other numbers, so they make it no faster: latency with over "
            f"without them {', '.join(ratios)}; structure='channels' makes a network faster"
        )
    elif ratios:
        lines.append(f"latency of the smaller over the dense network: {', '.join(ratios)} ({found['device']})")
    if "largest_output_difference" in found:
        lines.append(
            f"the smaller network is saved as {file}; its outputs differ by at most "
            f"{found['largest_output_difference']:.2g} from those of the network with zeros"
        )
    return lines
