"""Measure what the model costs once it predicts, and log it beside the accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_efficient._trainer import is_rehearsal, refuse_shards
from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.profiling import Footprint, profile_module, undisturbed
from lightning_efficient.profiling.budget import TimeBudget
from lightning_efficient.profiling.inputs import arguments, random_example, rebatch
from lightning_efficient.profiling.latency import check_options
from lightning_efficient.profiling.variants import variant_names
from lightning_efficient.reporting import log_figure, log_scalars, log_table, model_name, run_dir
from lightning_efficient.reporting.footprint import footprint_figure

_WHEN = ("fit_end", "fit_start", "both")
_AUTOCAST = ("bf16-mixed", "16-mixed")


class LatencyProfiler(Callback):
    """Log parameters, bytes, MACs, memory, memory traffic and latency of the module's ``forward``.

    One sample is taken from the first batch; after that a step costs nothing. The measurement takes about
    ``min_run_time_s`` for each batch size and number of threads, runs on the first rank in the Trainer's precision
    while the others wait, and leaves the module and all random states as they were. It is logged as ``profile/...``,
    as a table and a picture, and as ``profile.json`` and ``profile.png`` in the run folder; the JSON has the costs of
    every layer. Without a fit it runs at the end of testing. A ``fast_dev_run`` makes no variants.

    Args:
        batch_sizes: Batch sizes for the latency.
        threads: Intra-op threads of torch for the latency, one number or several; None keeps the current number.
        min_run_time_s: Seconds of timing for each batch size, number of threads and variant.
        input_shape: Shape of one sample, such as ``(3, 224, 224)``, to use instead of a sample from the data.
        when: ``"fit_end"``, ``"fit_start"`` (at the first training batch) or ``"both"``.
        input: Which part of a batch goes into ``forward``: a key of a dict batch, or a function of the batch. By
            default the batch itself if it is a tensor, and the first element of a tuple or list.
        layers: How many of the layers with most MACs get a bar in the picture; 0 draws none.
        variants: Also compare with other forms of the module, see ``compare_variants``; ``"all"`` means all.
        training_memory: Also measure the memory of a training step, at the largest batch size and at least 2 samples.
        energy: Also measure the energy of a sample, where the machine has counters (extra ``energy``).
        time_budget_s: Seconds for the whole measurement; what does not fit is told in a warning.

    Attributes:
        footprint: The last ``Footprint`` measured, None before the first and on other ranks than the first.

    Raises:
        ConfigurationError: an option is unknown or out of range, the strategy shards the model, the input cannot be
            told from the batch, or ``forward`` does not take it. The last two come at the first batch.

    Example:
        >>> LatencyProfiler(batch_sizes=[1, 32], threads=1).footprint is None
        True
    """

    def __init__(
        self,
        batch_sizes: Sequence[int] = (1,),
        threads: int | Sequence[int] | None = None,
        min_run_time_s: float = 0.5,
        input_shape: Sequence[int] | None = None,
        when: Literal["fit_end", "fit_start", "both"] = "fit_end",
        input: str | Callable[[Any], Any] | None = None,
        layers: int = 15,
        variants: Sequence[str] = (),
        training_memory: bool = False,
        energy: bool = False,
        time_budget_s: float | None = None,
    ) -> None:
        if when not in _WHEN:
            message = f"LatencyProfiler: when must be one of {list(_WHEN)}, got {when!r}.{did_you_mean(when, _WHEN)}"
            raise ConfigurationError(message)
        check_options(batch_sizes, threads, min_run_time_s, warmup=0, precision=None)
        if layers < 0:
            raise ConfigurationError(f"LatencyProfiler: layers must be 0 or more, got {layers}")
        TimeBudget(time_budget_s)  # refuses what is not above 0
        self.batch_sizes = tuple(batch_sizes)
        self.threads = threads
        self.min_run_time_s = min_run_time_s
        self.input_shape = input_shape
        self.when = when
        self.input = input
        self.layers = layers
        self.variants = variant_names(variants)
        self.training_memory = training_memory
        self.energy = energy
        self.time_budget_s = time_budget_s
        self.footprint: Footprint | None = None
        self._sample: Any = None
        self._due = False

    def measure(self, trainer: Trainer | None, pl_module: LightningModule, example: Any = None) -> Footprint:
        """Measure now, without logging, and keep the result in ``footprint``.

        Args:
            trainer: Gives the precision, None measures the module as it is.
            pl_module: The module whose ``forward`` is measured.
            example: Input of ``forward`` with the batch in dimension 0. By default ``input_shape``, else the sample
                that was taken from the data, else ``pl_module.example_input_array``.

        Raises:
            ConfigurationError: there is no input to measure with.
        """
        if example is None:
            example = self._default_example(pl_module)
        precision = trainer.precision if trainer is not None and trainer.precision in _AUTOCAST else None
        rehearsal = trainer is not None and is_rehearsal(trainer)
        self.footprint = profile_module(
            pl_module,
            example,
            name=model_name(pl_module),
            batch_sizes=self.batch_sizes,
            threads=self.threads,
            min_run_time=min(self.min_run_time_s, 0.01) if rehearsal else self.min_run_time_s,
            precision=precision,
            training=self.training_memory,
            variants=() if rehearsal else self.variants,
            energy=self.energy and not rehearsal,
            time_budget_s=self.time_budget_s,
        )
        return self.footprint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last run; refuse strategies under which no rank holds the whole model."""
        refuse_shards(trainer, "LatencyProfiler")
        self._sample = None
        self._due = self.when != "fit_end"
        if stage == "fit":
            self.footprint = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the sample; at the first batch measure if the start is asked for."""
        self._take_sample(trainer, pl_module, batch)
        if self._due:
            self._due = False
            self._measure_and_log(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *indices: Any, **more_indices: Any
    ) -> None:
        """Take the sample, usually during the sanity check."""
        self._take_sample(trainer, pl_module, batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *indices: Any, **more_indices: Any
    ) -> None:
        """Take the sample."""
        self._take_sample(trainer, pl_module, batch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure if the end is asked for; by ``on_fit_end`` the module has left its device."""
        if self.when != "fit_start":
            self._measure_and_log(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure if no fit has done so."""
        # every rank must come to the same decision, and only the first has a footprint
        if trainer.strategy.broadcast(self.footprint is None):
            self._measure_and_log(trainer, pl_module)

    def _measure_and_log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            footprint = self.measure(trainer, pl_module)
            if footprint.uncounted:
                rank_zero_warn(
                    f"LatencyProfiler: the MACs leave out {', '.join(footprint.uncounted)}: no known formula"
                )
            if footprint.left_out:
                rank_zero_warn(f"LatencyProfiler: left out: {'; '.join(footprint.left_out)}")
            log_scalars(trainer, {f"profile/{key}": value for key, value in footprint.scalars().items()})
            log_table(trainer, "profile", footprint.columns, footprint.rows())
            if self.layers:
                log_figure(trainer, "profile", lambda: footprint_figure(footprint, self.layers))
            if not is_rehearsal(trainer):
                _write(run_dir(trainer) / "profile.json", footprint)
        trainer.strategy.barrier("LatencyProfiler")

    def _take_sample(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if self._sample is not None:
            return
        chosen = random_example(pl_module, self.input_shape) if self.input_shape else self._choose(batch)
        sample = rebatch(chosen, 1)
        args, kwargs = arguments(sample)
        # a mistake here should not wait until the training is over
        with undisturbed(pl_module), torch.inference_mode(), trainer.precision_plugin.forward_context():
            pl_module.eval()
            try:
                pl_module(*args, **kwargs)
            except Exception as error:
                raise ConfigurationError(
                    f"LatencyProfiler: {type(pl_module).__name__}.forward does not take {self._source()} "
                    f"({str(error).partition(chr(10))[0]}); set input= or input_shape="
                ) from error
        self._sample = sample

    def _choose(self, batch: Any) -> Any:
        if isinstance(self.input, str):
            keys = list(batch) if isinstance(batch, Mapping) else []
            if self.input not in keys:
                message = f"LatencyProfiler: input={self.input!r} is not a key of the batch, a {_describe(batch)}."
                raise ConfigurationError(message + did_you_mean(self.input, map(str, keys)))
            return batch[self.input]
        if self.input is not None:
            return self.input(batch)
        if isinstance(batch, (tuple, list)) and batch:
            return batch[0]
        if isinstance(batch, Tensor):
            return batch
        message = (
            f"LatencyProfiler: which part of the batch, a {_describe(batch)}, is the model's input? Name it with input="
        )
        raise ConfigurationError(message)

    def _source(self) -> str:
        if self.input_shape:
            return f"an input of shape {tuple(self.input_shape)}"
        return "what input= picks from a batch" if self.input else "a batch or its first element"

    def _default_example(self, pl_module: LightningModule) -> Any:
        if self.input_shape:
            return random_example(pl_module, self.input_shape)
        example = pl_module.example_input_array if self._sample is None else self._sample
        if example is None:
            message = (
                "LatencyProfiler has seen no batch to measure with; set input_shape=, pass example=, "
                f"or give {type(pl_module).__name__} an example_input_array"
            )
            raise ConfigurationError(message)
        return example


def _describe(batch: Any) -> str:
    keys = f" with keys {list(batch)}" if isinstance(batch, Mapping) else ""
    return f"{type(batch).__name__}{keys}"


def _write(path: Path, footprint: Footprint) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(footprint.to_dict(), indent=2) + "\n")
    except OSError as error:
        rank_zero_warn(f"{path} could not be written ({error.strerror or error}); the profile is in the logs only")
