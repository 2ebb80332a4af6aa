"""What ``lightning-efficient quantize`` does: a trained network in 8 bits, and what that costs in accuracy and time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lightning_efficient._trainer import is_rehearsal
from lightning_efficient.callbacks._quantization_costs import FLOAT, Sizes, Timed, timed
from lightning_efficient.callbacks._quantization_ranges import ranges_are_known
from lightning_efficient.cli._calibration_batches import calibration_batches
from lightning_efficient.cli._quantize_evaluation import Evaluation, agreement, float_network, in_place
from lightning_efficient.cli.products import ENDINGS
from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import check_count
from lightning_efficient.inference.calibration_file import Split, hash_checkpoint
from lightning_efficient.nn.quantization import (
    Quantized,
    compile_quantized,
    convert_aware,
    quantize_static,
    quantize_weights,
    save_quantized,
)
from lightning_efficient.nn.quantization.aware import AwareNetwork

AFTER_TRAINING = ("weight_only", "static")
"""Schemes that need no training of their own."""


@dataclass(frozen=True)
class QuantizeRequest:
    """What the options of ``quantize`` ask for; each mistake is told before the model runs.

    Raises:
        ConfigurationError: an unknown scheme, or a number outside its range.
    """

    schemes: tuple[str, ...] = AFTER_TRAINING
    calibration_batches: int = 16
    split: Split = "val"
    network: str | None = None
    batch_sizes: tuple[int, ...] = (1, 32)
    threads: int | None = None
    min_run_time_s: float = 0.5

    def __post_init__(self) -> None:
        for scheme in self.schemes:
            if scheme == "aware":
                raise ConfigurationError(
                    "--schemes aware is trained: fit with the callback QuantizationAware; quantize then compares its "
                    "checkpoints by themselves"
                )
            if scheme not in AFTER_TRAINING:
                raise ConfigurationError(
                    f"--schemes has {scheme!r}; it must be of {', '.join(AFTER_TRAINING)}."
                    f"{did_you_mean(scheme, AFTER_TRAINING)}"
                )
        if not self.schemes:
            raise ConfigurationError(f"--schemes is empty; give at least one of {', '.join(AFTER_TRAINING)}")
        check_count("--calibration_batches", self.calibration_batches)
        for size in self.batch_sizes:
            check_count("--batch_sizes", size)
        if self.threads is not None:
            check_count("--threads", self.threads)
        if not self.min_run_time_s > 0:
            raise ConfigurationError(f"--min_run_time_s is {self.min_run_time_s:g}; it must be above 0 seconds")


@dataclass
class Evaluated:
    """One form of the network.

    Attributes:
        name: ``float``, or the scheme.
        metrics: What the module logged on the split.
        size: Bytes of its file.
        agreement: Share of the samples with the float network's prediction; None where it makes none.
        quantized: Names of the layers in integers.
        skipped: Names of the layers that stay in float, with the reason.
        file: Name of its file.
    """

    name: str
    metrics: dict[str, float]
    size: Sizes
    agreement: float | None = None
    quantized: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    file: str | None = None


@dataclass
class QuantizeReport:
    """What ``quantize`` found.

    Attributes:
        checkpoint: The file.
        weights_sha256: Of its weights.
        split: On which the forms were evaluated.
        samples: How many were seen.
        network: Dotted name of the network.
        input_shape: Of one sample of the network.
        forms: The float network first.
        latency: Times, in turns.
        threads: Intra-op threads of torch.
        calibrated_on: Whose ranges ``static`` has; None without it.
        notes: What a reader should know besides.
        folder: Where the files lie; None after a rehearsal.
    """

    checkpoint: Path
    weights_sha256: str
    split: Split
    samples: int
    network: str
    input_shape: tuple[int, ...]
    forms: list[Evaluated]
    latency: list[Timed]
    threads: int
    calibrated_on: str | None
    notes: list[str]
    folder: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings, ready for JSON."""
        content = asdict(self)
        content |= {"checkpoint": str(self.checkpoint), "folder": None if self.folder is None else str(self.folder)}
        content |= {"input_shape": list(self.input_shape), "latency": [row.to_dict() for row in self.latency]}
        for form in content["forms"]:
            form["quantized"] = list(form["quantized"])
        return {**content, "torch": torch.__version__}


def quantize_checkpoint(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    ckpt_path: str | None,
    request: QuantizeRequest,
    *,
    out: str | None = None,
    weights_only: bool | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> QuantizeReport:
    """Quantise the network of a checkpoint by several schemes, evaluate and time each beside the float network.

    Args:
        trainer: Evaluates; loggers and callbacks that write are taken out of it.
        model: The module, whose weights become those of the checkpoint.
        datamodule: Has the split and the training data; by default the module's own loaders.
        ckpt_path: Checkpoint.
        request: What to do.
        out: Folder; by default ``<name>.quantized`` beside the checkpoint.
        weights_only: Whether to load tensors and plain values only.
        progress: Whether the progress bar stays.
        tell: Is told what is being done.

    Raises:
        ConfigurationError: no checkpoint, no data, several processes, an accelerator, or a network that cannot be
            quantised.
        MissingExtraError: torchao is not installed.
    """
    if ckpt_path is None or not Path(ckpt_path).is_file():
        given = "missing --ckpt_path" if ckpt_path is None else f"ckpt_path: there is no checkpoint {ckpt_path!r}"
        raise ConfigurationError(f"{given}; give the file of a checkpoint")
    if trainer.world_size > 1:
        raise ConfigurationError(f"quantize works in one process, got {trainer.world_size}; add --trainer.devices 1")
    if trainer.strategy.root_device.type != "cpu":
        raise ConfigurationError("quantize makes integers for a CPU and evaluates there; add --trainer.accelerator cpu")
    checkpoint = Path(ckpt_path)
    folder = Path(out) if out is not None else checkpoint.with_suffix(ENDINGS["quantize"])
    evaluate = Evaluation(trainer, model, datamodule, request.split, request.network, progress=progress)
    watch = evaluate.watch
    metrics = evaluate(ckpt_path=ckpt_path, weights_only=weights_only)
    if watch.example is None:
        other = "test" if request.split == "val" else "val"
        raise ConfigurationError(
            f"--split {request.split} has no samples; see --trainer.limit_{request.split}_batches, or take --split "
            f"{other}"
        )
    found = model.get_submodule(watch.name)
    network = float_network(found)
    notes: list[str] = []
    with in_place(model, watch.name, network):
        if network is not found and isinstance(found, AwareNetwork):  # that was rounded
            metrics = evaluate()
        forms = [Evaluated(FLOAT, metrics, Sizes.of_weights(network))]
        predictions = watch.predictions()
        tell("making the 8-bit networks")
        made, calibrated_on = _made(trainer, model, datamodule, watch.name, watch.example, request)
    if isinstance(found, AwareNetwork) and ranges_are_known(found):
        made.append(convert_aware(found))
    elif isinstance(found, AwareNetwork):
        notes.append("the checkpoint has no ranges of QuantizationAware, so there is no network of that scheme")
    rehearsal = is_rehearsal(trainer)
    with _folder(folder, rehearsal) as place:
        for form in made:
            file = save_quantized(form, place / f"{form.scheme}.pt2")
            with in_place(model, watch.name, form.module):
                metrics = evaluate()
            agreed = agreement(predictions, watch.predictions())
            layers = form.quantized, form.skipped
            forms.append(Evaluated(form.scheme, metrics, Sizes.of_file(file), agreed, *layers, file.name))
        tell("compiling and timing, which takes from half a minute to some")
        latency, problem = timed(
            {FLOAT: network.eval(), **{form.scheme: form.module for form in made}},
            watch.example,
            batch_sizes=request.batch_sizes,
            threads=request.threads,
            min_run_time_s=0.01 if rehearsal else request.min_run_time_s,
            compiler=None if rehearsal else compile_quantized,
        )
        report = QuantizeReport(
            checkpoint=checkpoint,
            weights_sha256=hash_checkpoint(checkpoint),
            split=request.split,
            samples=watch.samples,
            network=watch.name,
            input_shape=tuple(watch.example.shape[1:]),
            forms=forms,
            latency=latency,
            threads=request.threads or torch.get_num_threads(),
            calibrated_on=calibrated_on,
            notes=[*notes, *([problem] if problem else [])],
            folder=None if rehearsal else folder,
        )
        content = f"{json.dumps(report.to_dict(), indent=2)}\n"
        (place / "quantization.json").write_text(content, encoding="utf-8")
    return report


def _made(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    name: str,
    example: Tensor,
    request: QuantizeRequest,
) -> tuple[list[Quantized], str | None]:
    """Quantise the network that the module has now, and say on what ranges were learned."""
    made: list[Quantized] = []
    calibrated_on = None
    network = model.get_submodule(name)
    for scheme in request.schemes:
        if scheme == "weight_only":
            made.append(quantize_weights(network, example))
        else:
            batches, calibrated_on = calibration_batches(trainer, model, datamodule, name, request.calibration_batches)
            made.append(quantize_static(network, batches))
    return made, calibrated_on


@contextmanager
def _folder(folder: Path, rehearsal: bool) -> Iterator[Path]:
    """Yield the folder, or in a rehearsal one that vanishes."""
    if rehearsal:
        with tempfile.TemporaryDirectory() as place:
            yield Path(place)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise ConfigurationError(f"--out: {folder} cannot be written ({error.strerror or error})") from error


def schemes_of(given: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return the schemes that an option names: a list, or text with commas.

    Example:
        >>> schemes_of("static, weight_only"), schemes_of(None)
        (('static', 'weight_only'), ('weight_only', 'static'))
    """
    if given is None:
        return AFTER_TRAINING
    words = given.replace(",", " ").split() if isinstance(given, str) else given
    return tuple(dict.fromkeys(words))
