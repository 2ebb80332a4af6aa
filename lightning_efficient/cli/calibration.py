"""What ``lightning-efficient calibrate`` does: one pass over a split, and the threshold that keeps a promise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_efficient._trainer import callbacks_of, gather_objects
from lightning_efficient.callbacks import SelectiveCoverage
from lightning_efficient.cli.evaluation import listen_only
from lightning_efficient.cli.routing_calibration import RoutingSamples
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import RiskKind
from lightning_efficient.functional.drop_control import DROP_RULES, DROP_RULES_WITH_LEVEL
from lightning_efficient.functional.thresholds import RISK_OF_RULE, RULES, RULES_WITH_LEVEL, ThresholdRule
from lightning_efficient.inference.calibration_file import Split, hash_checkpoint
from lightning_efficient.inference.routing_thresholds import RoutingRule
from lightning_efficient.inference.threshold_file import ScoreSource, ThresholdFile, score_name
from lightning_efficient.inference.thresholds import calibrate_threshold, meant_rule
from lightning_efficient.nn.checkpoints import add_bytes, read_checkpoint
from lightning_efficient.typing import Batch, Predictions

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Request:
    """What the options of ``calibrate`` ask for; each mistake is told before the model runs.

    Raises:
        ConfigurationError: neither risk nor coverage or both, a value outside its range, or options that exclude each
            other.
    """

    risk: float | None = None
    coverage: float | None = None
    confidence: float | None = None
    kind: RiskKind | None = None
    rule: ThresholdRule | RoutingRule | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        targets = {"risk": self.risk, "coverage": self.coverage, "max_drop": self.max_drop}
        given = [f"--{name} {value:g}" for name, value in targets.items() if value is not None]
        if len(given) != 1:
            got = f"got {' and '.join(given)}" if given else "none is given"
            raise ConfigurationError(f"calibrate needs one of --risk, --coverage and --max_drop; {got}")
        _check("max_drop", self.max_drop, lambda value: 0 < value < 1, "between 0 and 1, such as 0.01 for one point")
        _check("risk", self.risk, lambda value: 0 <= value < 1, "at least 0 and below 1, such as 0.01 for 1 %")
        _check("coverage", self.coverage, lambda value: 0 < value <= 1, "above 0 and at most 1, such as 0.9 for 90 %")
        _check("confidence", self.confidence, lambda value: 0 < value < 1, "between 0 and 1, such as 0.95 for 95 %")
        if self.coverage is not None and self.confidence is not None:
            raise ConfigurationError("--confidence goes with --risk or --max_drop; a coverage is met without it")
        if self.max_drop is not None:
            self._check_drop(self.rule)
            return
        if self.rule is not None:
            self._check_rule(self.rule)
        rule = cast("ThresholdRule | None", self.rule) or meant_rule(self.coverage, self.confidence, self.risk_kind)
        if self.risk == 0 and rule in RISK_OF_RULE:
            raise ConfigurationError(
                f"--risk is 0, and no number of samples shows that by the rule {rule}; give a risk above 0, such "
                "as 0.01, or --rule empirical without --confidence"
            )

    def _check_drop(self, rule: str | None) -> None:
        if self.kind is not None:
            raise ConfigurationError("--kind goes with --risk; a drop of accuracy has one kind")
        if rule is not None and rule not in (*DROP_RULES, "published"):
            allowed = ", ".join((*DROP_RULES, "published"))
            raise ConfigurationError(
                f"--rule {rule} does not bound a drop; with --max_drop it must be one of {allowed}"
            )
        if rule in DROP_RULES_WITH_LEVEL and self.confidence is None:
            raise ConfigurationError(f"--rule {rule} needs --confidence, such as 0.9")
        if rule is not None and rule not in DROP_RULES_WITH_LEVEL and self.confidence is not None:
            known = ", ".join(DROP_RULES_WITH_LEVEL)
            raise ConfigurationError(f"--rule {rule} takes no --confidence; those that do are {known}")

    def _check_rule(self, rule: str) -> None:
        if rule not in RULES:
            raise ConfigurationError(f"--rule {rule} goes with --max_drop; without it one of {', '.join(RULES)}")
        if (rule == "coverage") != (self.coverage is not None):
            needed = "--coverage" if rule == "coverage" else "--risk"
            raise ConfigurationError(f"--rule {rule} needs {needed}")
        if rule in RULES_WITH_LEVEL and self.confidence is None:
            raise ConfigurationError(f"--rule {rule} needs --confidence, such as 0.95")
        if rule not in RULES_WITH_LEVEL and self.confidence is not None:
            allowed = ", ".join(RULES_WITH_LEVEL)
            raise ConfigurationError(f"--rule {rule} takes no --confidence; those that do are {allowed}")
        if (bounds := RISK_OF_RULE.get(rule)) and self.kind not in (None, bounds):
            raise ConfigurationError(f"--rule {rule} bounds the {bounds} risk; leave out --kind {self.kind}")

    @property
    def risk_kind(self) -> RiskKind:
        """The kind of risk: as given, or what the rule bounds, or the selective risk."""
        bounds = None if self.rule is None else RISK_OF_RULE.get(cast(ThresholdRule, self.rule))
        return self.kind or bounds or "selective"


class Gathering(SelectiveCoverage):
    """Keep confidence and error of every sample of the first loader, and the SHA-256 of its data; log nothing.

    What has no entry per sample, such as a number beside the tensors of a batch, does not count for the SHA-256, as it
    comes as often as there are batches.

    Args:
        predictions: Of the ``SelectiveCoverage`` that it takes the place of.
    """

    def __init__(self, predictions: Predictions | None) -> None:
        super().__init__(predictions=predictions, name="calibration")
        self.samples: tuple[Tensor, Tensor] | None = None
        self.source: ScoreSource = "msp"
        self.data_sha256 = ""
        self.module_score: str | None = None
        self.precision: str | None = None
        self.left_out: str | None = None
        self.routing = RoutingSamples()
        self._digests: list[Any] = []

    def _update(self, module: LightningModule, loaders: Any, outputs: Any, batch: Batch, index: int) -> None:
        super()._update(module, loaders, outputs, batch, index)
        if index:
            return
        self.routing.add(outputs, batch)
        if self.predictions is None and isinstance(outputs, Mapping) and outputs.get("confidence") is not None:
            self.source = "confidence"
        leaves = [leaf for leaf in tree_leaves(batch, is_leaf=_are_words) if _has_samples(leaf)]
        for number, leaf in enumerate(leaves):
            if number == len(self._digests):
                self._digests.append(hashlib.sha256(_kind(leaf).encode()))
            if isinstance(leaf, Tensor):
                add_bytes(self._digests[number], leaf)
            else:
                self._digests[number].update("".join(map(repr, leaf)).encode())

    def _log(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Gather over processes, and log nothing."""
        confidence, loss = (values.cpu() for values in self.confidence_and_loss())
        digest = hashlib.sha256()
        for own in gather_objects(trainer, [digest.hexdigest() for digest in self._digests]):
            digest.update(repr(own).encode())
        # not the confidences, whose last bits depend on the batch size
        errors = loss.float()
        digest.update(_kind(errors).encode())
        add_bytes(digest, errors)
        self.module_score, self.precision = score_name(module), str(trainer.precision)
        loaders, limits = (getattr(trainer, name) for name in (f"{stage}_dataloaders", f"num_{stage}_batches"))
        self.left_out = _left_out(stage, loaders, limits)
        self.samples, self.data_sha256 = (confidence, loss.to(confidence.dtype)), digest.hexdigest()


def listen(trainer: Trainer, *, progress: bool) -> Gathering:
    """Put a ``Gathering`` into a Trainer, in the place of its loggers and of what writes into a run folder.

    Args:
        trainer: The Trainer; changed in place.
        progress: Whether its progress bar stays.
    """
    predictions = [callback.predictions for callback in callbacks_of(trainer, SelectiveCoverage)]
    gathering = Gathering(next(filter(None, predictions), None))
    listen_only(trainer, gathering, progress=progress)
    return gathering


def calibrated(request: Request, gathering: Gathering, checkpoint: Path, split: Split) -> ThresholdFile:
    """Choose the threshold on what was gathered.

    Raises:
        ConfigurationError: there are no samples.
    """
    if gathering.samples is None or not len(gathering.samples[0]):
        other = "test" if split == "val" else "val"
        raise ConfigurationError(
            f"--split {split} has no samples; see --trainer.limit_{split}_batches, or take --split {other}"
        )
    threshold = calibrate_threshold(
        *gathering.samples,
        risk=request.risk,
        coverage=request.coverage,
        confidence_level=request.confidence,
        kind=request.risk_kind,
        rule=cast("ThresholdRule | None", request.rule),
    )
    return ThresholdFile(
        threshold,
        split,
        gathering.data_sha256,
        hash_checkpoint(checkpoint),
        gathering.module_score,
        gathering.precision,
        score=gathering.source,
    )


def chose_checkpoint(checkpoint: Path) -> bool:
    """Tell whether a checkpoint was kept because it was best on the validation split."""
    callbacks = read_checkpoint(checkpoint, "ckpt_path").get("callbacks") or {}
    states = [state for state in callbacks.values() if isinstance(state, Mapping)]
    watching = [state for state in states if "best_model_path" in state and "val" in str(state.get("monitor"))]
    kept = [path for state in watching for path in (state["best_model_path"], *(state.get("best_k_models") or ()))]
    best = {Path(str(path)).name for path in kept}
    places = checkpoint, checkpoint.resolve()
    return bool(watching) and any(place.stem == "best" or place.name in best for place in places)


def threshold_page(file: ThresholdFile, checkpoint: Path) -> Group:
    """Return the threshold, what it gives on the calibration split, and what it promises, for 80 columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = file.calibrated
    cells = {
        "answer if confidence ≥": f"{found.threshold:.6g}" if math.isfinite(found.threshold) else "never",
        "coverage": f"{100 * found.coverage:.2f} %",
        f"{found.kind} risk": f"{100 * found.risk:.2f} %" if found.coverage else "—",
        "bound": "—" if found.bound is None else f"{100 * found.bound:.2f} %",
        "samples": str(found.samples),
    }
    table = Table(box=box.SIMPLE_HEAD)
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    return Group(
        Text(f"  {checkpoint.name} · {file.split} split · rule {found.rule}", style="bold"),
        table,
        Text(found.promise),
    )


def _check(option: str, value: float | None, fits: Any, allowed: str) -> None:
    if value is not None and not fits(value):
        raise ConfigurationError(f"--{option} is {value:g}; it must be {allowed}")


def _left_out(split: str, loaders: Any, limits: Sequence[int | float]) -> str | None:
    """Return the note that a limit leaves batches of the first loader out, if it does."""
    try:
        batches, limit = len(next(iter(tree_leaves(loaders)))), limits[0]
    except (TypeError, StopIteration):  # a stream, or no loader
        return None
    if not 0 < limit < batches:
        return None
    return f"trainer.limit_{split}_batches: calibrated on {limit} of the {batches} batches of the {split} split"


def _are_words(part: Any) -> bool:
    return isinstance(part, list | tuple) and len(part) > 0 and all(isinstance(each, str) for each in part)


def _has_samples(leaf: Any) -> bool:
    return leaf.ndim > 0 if isinstance(leaf, Tensor) else _are_words(leaf)


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype} {tuple(leaf.shape[1:])}" if isinstance(leaf, Tensor) else type(leaf).__name__
