"""What ``lightning-efficient quantize`` does: a trained network in 8 bits, and what that costs in accuracy and time."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from torch import Tensor, nn

from lightning_efficient._trainer import is_rehearsal
from lightning_efficient.callbacks import LatencyProfiler, SelectiveCoverage
from lightning_efficient.callbacks._quantization_costs import FLOAT, Sizes, Timed, timed
from lightning_efficient.callbacks._quantization_network import network_before
from lightning_efficient.callbacks._quantization_ranges import ranges_are_known
from lightning_efficient.callbacks.quantization_aware import QuantizationAware
from lightning_efficient.cli._calibration_batches import calibration_batches
from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import check_count
from lightning_efficient.inference.threshold_file import Split, hash_checkpoint
from lightning_efficient.nn.main_network import main_network
from lightning_efficient.nn.quantization import (
    Quantized,
    compile_quantized,
    convert_aware,
    quantize_static,
    quantize_weights,
    save_quantized,
)
from lightning_efficient.nn.quantization.aware import AwareNetwork
from lightning_efficient.nn.views import uncompiled

AFTER_TRAINING = ("weight_only", "static")
"""Schemes that need no training of their own."""

_WRITERS = (Checkpoint, SaveConfigCallback, SelectiveCoverage, LatencyProfiler)


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
    watch = _prepared(trainer, request, progress)
    evaluate = _Evaluation(trainer, model, datamodule, request.split, watch)
    float_metrics = evaluate(ckpt_path=ckpt_path, weights_only=weights_only)
    if watch.example is None:
        other = "test" if request.split == "val" else "val"
        raise ConfigurationError(
            f"--split {request.split} has no samples; see --trainer.limit_{request.split}_batches, or take --split "
            f"{other}"
        )
    name = watch.name
    found = model.get_submodule(name)
    network = _float_network(found)
    with _in_place(model, name, network):
        if network is not found:  # rounding was in force; the float network is another
            float_metrics = evaluate()
        predictions = watch.predictions()
        notes: list[str] = []
        calibrated_on = None
        forms: list[Quantized] = []
        for scheme in request.schemes:
            if scheme == "weight_only":
                forms.append(quantize_weights(network, watch.example))
                continue
            batches, calibrated_on = calibration_batches(trainer, model, datamodule, name, request.calibration_batches)
            forms.append(quantize_static(network, batches))
        if isinstance(found, AwareNetwork):
            if ranges_are_known(found):
                forms.append(convert_aware(found))
            else:
                notes.append("the checkpoint has no ranges of QuantizationAware, so there is no network of that scheme")
        folder = Path(out) if out is not None else checkpoint.with_suffix(".quantized")
        with _folder(trainer, folder) as place:
            report = [Evaluated(FLOAT, float_metrics, Sizes.of_weights(network))]
            for form in forms:
                file = save_quantized(form, place / f"{form.scheme}.pt2")
                with _in_place(model, name, form.module):
                    metrics = evaluate()
                agreement = _agreement(predictions, watch.predictions())
                size = Sizes.of_file(file)
                found_here = Evaluated(form.scheme, metrics, size, agreement, form.quantized, form.skipped, file.name)
                report.append(found_here)
            modules: dict[str, nn.Module] = {FLOAT: network.eval()}
            modules |= {form.scheme: form.module for form in forms}
            rehearsal = is_rehearsal(trainer)
            latency, problem = timed(
                modules,
                watch.example,
                batch_sizes=request.batch_sizes,
                threads=request.threads,
                min_run_time_s=0.01 if rehearsal else request.min_run_time_s,
                compiler=None if rehearsal else compile_quantized,
            )
    notes += [problem] if problem else []
    result = QuantizeReport(
        checkpoint=checkpoint,
        weights_sha256=hash_checkpoint(checkpoint),
        split=request.split,
        samples=watch.samples,
        network=name,
        input_shape=tuple(watch.example.shape[1:]),
        forms=report,
        latency=latency,
        threads=request.threads or torch.get_num_threads(),
        calibrated_on=calibrated_on,
        notes=notes,
        folder=None if is_rehearsal(trainer) else folder,
    )
    if result.folder is not None:
        file = result.folder / "quantization.json"
        file.write_text(f"{json.dumps(result.to_dict(), indent=2)}\n", encoding="utf-8")
    return result


def _prepared(trainer: Trainer, request: QuantizeRequest, progress: bool) -> _Watch:
    out = _WRITERS if progress else (*_WRITERS, ProgressBar)
    watch = _Watch(request.network)
    kept = [callback for callback in trainer.callbacks if not isinstance(callback, out)]  # type: ignore[attr-defined]
    trainer.callbacks = [*kept, watch]  # type: ignore[attr-defined]
    trainer.loggers = []
    return watch


class _Watch(Callback):
    """See what the network gets and answers while a split is evaluated."""

    def __init__(self, network: str | None) -> None:
        self.network = network
        self.name = ""
        self.example: Tensor | None = None
        self.samples = 0
        self._answers: list[Tensor] = []
        self._handle: Any = None

    def predictions(self) -> Tensor | None:
        """Return the classes that were predicted, or None where the network's output is no ``(N, C)``."""
        return torch.cat(self._answers) if self._answers else None

    def _begin(self, module: LightningModule) -> None:
        self.name = main_network(module, self.network, option="--network")
        self.samples, self._answers = 0, []
        self._handle = module.get_submodule(self.name).register_forward_hook(self._see)

    def _see(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not args or not isinstance(args[0], Tensor):
            return
        self.samples += len(args[0])
        if self.example is None:
            self.example = args[0][:2].detach().cpu().clone()
        if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1:
            self._answers.append(output.detach().argmax(1).cpu())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look."""
        self._begin(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look."""
        self._begin(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look no longer."""
        if self._handle is not None:
            self._handle.remove()


class _Evaluation:
    """Evaluate whatever network the module has now."""

    def __init__(
        self,
        trainer: Trainer,
        model: LightningModule,
        datamodule: LightningDataModule | None,
        split: Split,
        watch: _Watch,
    ) -> None:
        self.trainer, self.model, self.datamodule, self.watch = trainer, model, datamodule, watch
        self.run = trainer.validate if split == "val" else trainer.test

    def __call__(self, **options: Any) -> dict[str, float]:
        # with a checkpoint comes its callback, which puts the rounding graph in place; after that it has no part
        if not options:
            kept = [each for each in self.trainer.callbacks if not isinstance(each, QuantizationAware)]  # type: ignore[attr-defined]
            self.trainer.callbacks = kept  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            for message in ("Be aware that when using `ckpt_path`", "You're using the WeightAveraging callback"):
                warnings.filterwarnings("ignore", message=message)
            found = self.run(self.model, datamodule=self.datamodule, verbose=False, **options)
        return {key: float(value) for loader in found for key, value in loader.items()}


def _float_network(network: nn.Module) -> nn.Module:
    """Return a copy in floating point, without rounding and compilation."""
    if isinstance(network, AwareNetwork):
        before = network_before(network)
        assert before is not None, "the callback that put the graph there keeps what was there before"
        return before
    plain = copy.deepcopy(uncompiled(network))
    plain._compiled_call_impl = None
    return plain.eval()


@contextmanager
def _in_place(model: LightningModule, name: str, network: nn.Module) -> Iterator[None]:
    before = model.get_submodule(name)
    model.set_submodule(name, network)
    try:
        yield
    finally:
        model.set_submodule(name, before)


@contextmanager
def _folder(trainer: Trainer, folder: Path) -> Iterator[Path]:
    """Yield the folder, or in a rehearsal one that vanishes."""
    if is_rehearsal(trainer):
        with tempfile.TemporaryDirectory() as place:
            yield Path(place)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--out: {folder} cannot be written ({error.strerror})") from error
    yield folder


def _agreement(ours: Tensor | None, theirs: Tensor | None) -> float | None:
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return None
    return (ours == theirs).double().mean().item()


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
