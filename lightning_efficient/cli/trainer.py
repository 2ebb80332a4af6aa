"""The Trainer behind the command line: Lightning's, with one more verb."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_efficient.cli.output import say
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling import profile_module
from lightning_efficient.reporting import model_name


class EfficientTrainer(Trainer):
    """A Trainer that can also profile a model."""

    def profile(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        batch_sizes: list[int] | None = None,
        threads: int | None = None,
        input_shape: list[int] | None = None,
        min_run_time_s: float = 0.5,
        json_file: str | None = None,
    ) -> None:
        """Print what a model costs: parameters, size on disk, MACs, latency percentiles and peak memory.

        Args:
            model: The module whose ``forward`` is measured.
            datamodule: Tells the shape of a sample, if ``input_shape`` does not.
            batch_sizes: Batch sizes for the latency; by default 1.
            threads: Intra-op threads of torch; by default as many as torch uses by itself.
            input_shape: Shape of one sample, such as ``[3, 224, 224]``; by default the data module's, else the model's.
            min_run_time_s: Seconds of timing for each batch size.
            json_file: Also write the figures to this file; ``-`` prints them instead of the table.
        """
        from rich.console import Console

        from lightning_efficient.cli.footprint_page import footprint_page

        shape = _sample_shape(model, datamodule, input_shape)
        model.to(self.strategy.root_device)
        try:
            footprint = profile_module(
                model,
                input_shape=shape,
                name=model_name(model),
                batch_sizes=batch_sizes or [1],
                threads=threads,
                min_run_time=min_run_time_s,
            )
        except (RuntimeError, AssertionError) as error:
            message = f"the model does not run on an input of shape {list(shape)} ({error}); give another --input_shape"
            raise ConfigurationError(message) from error
        text = json.dumps(footprint.to_dict(), indent=2)
        if json_file == "-":
            say(text)
            return
        Console().print(footprint_page(footprint))
        if json_file:
            _write(Path(json_file), text)
            say(json_file)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"json_file: {file} cannot be written ({error.strerror})") from error


def _sample_shape(
    model: LightningModule, datamodule: LightningDataModule | None, given: list[int] | None
) -> tuple[int, ...]:
    if given:
        return tuple(given)
    if (shape := getattr(datamodule, "input_shape", None)) is not None:
        return tuple(shape)
    if (config := getattr(model, "data_config", None)) is not None:
        return tuple(config["input_size"])
    if model.example_input_array is not None:
        return tuple(model.example_input_array.shape[1:])  # type: ignore[union-attr]
    raise ConfigurationError(f"{type(model).__name__} does not tell the shape of its input; give --input_shape")
