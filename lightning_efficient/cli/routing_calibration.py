"""What ``calibrate --max_drop`` does: thresholds of a hybrid or cascade from what its steps said of a split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.drop_control import DROP_RULES
from lightning_efficient.inference.calibration_file import Split, hash_checkpoint
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.routing_thresholds import RoutingRule, calibrate_routing, meant_routing_rule
from lightning_efficient.inference.sample_hashes import hash_samples, overlap

if TYPE_CHECKING:
    from rich.console import Group

    from lightning_efficient.cli.calibration import Gathering, Request

_NEEDED = ("query_score", "stage_predictions", "target")


class RoutingSamples:
    """Gathers what routing is calibrated on: query scores, each stage's answers, labels, and a hash of each input."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, ...]] = []
        self._hashes: list[Tensor] = []

    def add(self, outputs: Any, batch: Any) -> None:
        """Take a batch, if its step tells of routing."""
        if isinstance(outputs, Mapping) and all(isinstance(outputs.get(name), Tensor) for name in _NEEDED):
            self._batches.append(tuple(outputs[name].detach().cpu() for name in _NEEDED))
            inputs = batch[0] if isinstance(batch, list | tuple) else batch
            if isinstance(inputs, Tensor):
                self._hashes.append(hash_samples(inputs))

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def samples(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query scores, predictions of each stage, and labels."""
        scores, predictions, target = (torch.cat(column) for column in zip(*self._batches, strict=True))
        return scores, predictions, target

    def check_apart(self, trained_on: Tensor | None) -> None:
        """Raise where samples have trained the router or a model.

        Args:
            trained_on: Hashes of the training samples, int64, if they are known.

        Raises:
            ConfigurationError: some of them are among these.
        """
        if trained_on is None or not self._hashes:
            rank_zero_info(
                "it was not checked whether the calibration samples have trained the model, as it does not know its "
                "training samples; the promise assumes that they have not"
            )
            return
        hashes = torch.cat(self._hashes)
        if common := overlap(hashes, trained_on):
            raise ConfigurationError(
                f"{common} of the {len(hashes)} calibration samples have trained the model, so that no promise holds; "
                "calibrate on other samples"
            )


def check_routing(request: Request, model: object, world_size: int) -> bool:
    """Tell whether a module passes inputs on from one model to the next, or raise where the options do not fit it.

    Raises:
        ConfigurationError: a drop of what does not route, a risk of what does, or several processes.
    """
    routes, name = hasattr(model, "threshold_path"), type(model).__name__
    if request.max_drop is not None and not routes:
        raise ConfigurationError(
            f"--max_drop is of models that ask a larger one, and {name} does not; take HybridClassifier, "
            "CascadeClassifier or EarlyExitClassifier, or give --risk"
        )
    if request.kind is not None and routes:
        raise ConfigurationError(f"--kind is of models that may not answer, and {name} always does; leave it out")
    if request.risk is not None and routes:
        raise ConfigurationError(
            f"--risk is of models that may not answer, and {name} always does; give --max_drop or --coverage"
        )
    if routes and world_size > 1:
        raise ConfigurationError(f"{name} is calibrated in one process; set trainer.devices to 1")
    return routes


def calibrated_routing(
    request: Request, gathering: Gathering, model: Any, checkpoint: Path, split: Split
) -> RoutingFile:
    """Choose the thresholds on what was gathered.

    Raises:
        ConfigurationError: no samples or too few, or some that trained the router.
    """
    samples = gathering.routing
    if not samples:
        other = "test" if split == "val" else "val"
        raise ConfigurationError(
            f"--split {split} has no samples; see --trainer.limit_{split}_batches, or take --split {other}"
        )
    samples.check_apart(getattr(model, "training_samples", None))
    path: Tensor = model.threshold_path
    rule = request.rule or meant_routing_rule(request.coverage, request.confidence)
    uses_path = rule in DROP_RULES and not bool(path.isnan().any())
    found = calibrate_routing(
        *samples.samples,
        max_drop=request.max_drop,
        coverage=request.coverage,
        confidence_level=request.confidence,
        rule=cast("RoutingRule | None", request.rule),
        path=path.cpu() if uses_path else None,
    )
    name = getattr(model, "router_name", None)
    return RoutingFile(found, split, gathering.data_sha256, hash_checkpoint(checkpoint), name, gathering.precision)


def routing_page(file: RoutingFile, checkpoint: Path) -> Group:
    """Return the thresholds, what they give on the calibration split, and what they promise, for 80 columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = file.calibrated
    shown = ", ".join(f"{each:.5g}" if math.isfinite(each) else _WORDS[each > 0] for each in found.thresholds)
    shares = " / ".join(f"{100 * each:.1f}" for each in found.shares)
    cells = {
        "ask if score >": shown,
        "answered by each, %": shares,
        "accuracy": f"{100 * found.accuracy:.2f} %",
        "full model": f"{100 * found.full_accuracy:.2f} %",
        "drop": f"{100 * found.drop:+.2f}",
        "bound": "—" if found.bound is None else f"{100 * found.bound:.2f}",
        "samples": str(found.samples),
    }
    table = Table(box=box.SIMPLE_HEAD)
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    title = f"  {checkpoint.name} · {file.split} split · rule {found.rule}"
    return Group(Text(title, style="bold"), table, Text(found.promise))


_WORDS = {False: "always", True: "never"}
