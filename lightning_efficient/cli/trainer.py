"""The Trainer behind the command line: Lightning's, with three more verbs."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_efficient._trainer import is_rehearsal, sample_shape
from lightning_efficient.cli.calibration import Request, calibrated, chose_checkpoint, listen, threshold_page
from lightning_efficient.cli.output import say
from lightning_efficient.cli.routing_calibration import calibrated_routing, check_routing, routing_page
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import RiskKind
from lightning_efficient.functional.thresholds import ThresholdRule
from lightning_efficient.inference.calibration_file import Split
from lightning_efficient.inference.exported import ExportFormat
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.routing_thresholds import RoutingRule
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.profiling import profile_module
from lightning_efficient.reporting import model_name

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lightning_efficient.inference.export import ExportReport
    from lightning_efficient.profiling import SurgeryCosts
    from lightning_efficient.profiling.budget import TimeBudget


class EfficientTrainer(Trainer):
    """A Trainer that can also profile and export a model, and choose from where on it answers or asks a larger one."""

    def calibrate(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        risk: float | None = None,
        coverage: float | None = None,
        confidence: float | None = None,
        kind: RiskKind | None = None,
        rule: ThresholdRule | RoutingRule | None = None,
        max_drop: float | None = None,
        split: Split = "val",
        out: str | None = None,
        json_file: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Choose from where on a model answers, or asks a larger one; print what that promises, write it to a file.

        Nothing else is written: loggers, checkpoints and other callbacks that write are taken out of the Trainer.

        Args:
            model: The module, whose validation or test step returns logits and target.
            datamodule: Has the split; by default the module's own loaders.
            ckpt_path: Checkpoint to calibrate; ``best`` and ``last`` mean that of the newest run.
            risk: Share of errors that is allowed, such as 0.01; give this, ``coverage`` or ``max_drop``.
            coverage: Share of samples to answer, such as 0.9; of a hybrid, by the base.
            confidence: How sure the promise shall be, such as 0.95: 1 minus the chance of an unlucky calibration set.
            kind: Errors among the answered (``selective``, the default), or answered errors among all samples
                (``generalized``).
            rule: ``coverage``, ``empirical`` (no promise), ``sgr``, ``fixed_sequence``, ``rcps`` or ``conformal``; with
                ``max_drop`` ``betting``, ``binomial``, ``difference``, ``conformal``, ``empirical`` or ``published``;
                by default what fits the other options.
            max_drop: Of a hybrid or cascade: by how much its accuracy may lie below that of its largest model, such as
                0.01 for one point.
            split: ``val`` or ``test``; the samples must not have chosen the checkpoint.
            out: Where the threshold goes; by default ``<name>.threshold.json`` beside the checkpoint, of a hybrid or
                cascade ``<name>.routing.json``, where predict finds it.
            json_file: Also write the same to this file; ``-`` prints it instead of the page.
            weights_only: Whether to load tensors and plain values only.
        """
        request = Request(risk, coverage, confidence, kind, rule, max_drop)
        routes = check_routing(request, model, self.world_size)
        if ckpt_path is None or not Path(ckpt_path).is_file():
            given = "missing --ckpt_path" if ckpt_path is None else f"ckpt_path: there is no checkpoint {ckpt_path!r}"
            raise ConfigurationError(f"{given}; give the file of a checkpoint")
        checkpoint = Path(ckpt_path)
        gathering = listen(self, progress=json_file != "-")
        run = self.validate if split == "val" else self.test
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
            run(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=weights_only)
        file: ThresholdFile | RoutingFile
        if routes:
            file = calibrated_routing(request, gathering, model, checkpoint, split)
            page, beside = routing_page(file, checkpoint), RoutingFile.beside(checkpoint)
        else:
            file = calibrated(request, gathering, checkpoint, split)
            page, beside = threshold_page(file, checkpoint), ThresholdFile.beside(checkpoint)
        if not self.is_global_zero:
            return
        if split == "val" and chose_checkpoint(checkpoint):
            rank_zero_info(
                f"{checkpoint.name} was chosen on the validation split; the promise assumes that these samples did not "
                "choose it: see --split test"
            )
        if gathering.left_out and not is_rehearsal(self):
            rank_zero_info(gathering.left_out)
        path = Path(out) if out else beside
        if is_rehearsal(self):
            _show(page, file.to_dict(), json_file)
            return
        _write(json_file, file.to_dict())  # before the other, which would be in force already
        file.write(path)
        _show(page, file.to_dict(), json_file)
        _say_file(json_file)
        if json_file != "-":
            say(str(path))

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        out: str | None = None,
        formats: list[ExportFormat] | None = None,
        routing_file: str | None = None,
        input_shape: list[int] | None = None,
        tolerance: float = 1e-4,
        overwrite: bool = False,
        json_file: str | None = None,
    ) -> ExportReport:
        """Write graphs of a model for deployment, and check each file against the model.

        A hybrid becomes two parts: ``edge``, base and router with the threshold outside, and ``global``; any other
        module becomes ``model``. Each is loaded again and compared at several batch sizes before anything is kept.

        Args:
            model: The module.
            datamodule: Tells the shape of a sample and how it was normalised.
            ckpt_path: Checkpoint to export; ``best`` and ``last`` mean that of the newest run.
            out: Folder; by default ``<name>.export`` beside the checkpoint.
            formats: ``torch`` (torch.export) and ``onnx``; by default both.
            routing_file: Thresholds that ``calibrate`` wrote; by default the file beside the checkpoint.
            input_shape: Shape of one sample; by default the data module's, else the model's.
            tolerance: Largest difference from the model, relative above 1.
            overwrite: Whether the folder may hold files that are no export.
            json_file: Also write the description to this file; ``-`` prints it instead of the page.

        Returns:
            What was written and compared.
        """
        from lightning_efficient.cli.exporting import export_model, export_page
        from lightning_efficient.inference.exported import FORMATS

        report = export_model(
            model,
            sample_shape(model, datamodule, input_shape),
            datamodule=datamodule,
            ckpt_path=ckpt_path,
            out=out,
            formats=formats or FORMATS,
            routing_file=routing_file,
            overwrite=overwrite,
            tolerance=tolerance,
        )
        _write(json_file, report.metadata)
        _show(export_page(report), report.metadata, json_file)
        _say_file(json_file)
        if json_file != "-":
            folder, here = report.folder, Path.cwd()
            say(str(folder.relative_to(here) if folder.is_relative_to(here) else folder))
        return report

    def profile(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        batch_sizes: list[int] | None = None,
        threads: int | list[int] | None = None,
        input_shape: list[int] | None = None,
        min_run_time_s: float = 0.5,
        layers: int = 0,
        training_memory: bool = False,
        variants: list[str] | None = None,
        energy: bool = False,
        time_budget_s: float | None = None,
        figure: str | None = None,
        json_file: str | None = None,
    ) -> None:
        """Print what a model costs: parameters, size on disk, MACs, memory, memory traffic and latency percentiles.

        For a model that surgery has changed also what that saves, block by block: MACs, and time against the network
        before, the two in turns.

        Args:
            model: The module whose ``forward`` is measured.
            datamodule: Tells the shape of a sample, if ``input_shape`` does not.
            batch_sizes: Batch sizes for the latency; by default 1.
            threads: Intra-op threads of torch, one number or several, such as ``[1, 2]``; by default as many as torch
                uses by itself.
            input_shape: Shape of one sample, such as ``[3, 224, 224]``; by default the data module's, else the model's.
            min_run_time_s: Seconds of timing for each batch size, number of threads and variant.
            layers: How many of the layers with most MACs are listed; the JSON has all.
            training_memory: Also the memory of a training step, at the largest batch size and at least 2 samples.
            variants: Also compare with other forms of the model, in turns: ``channels_last``, ``bf16``, ``compile``,
                ``int8_weights``, ``int8_static``, ``onnx`` or ``all``.
            energy: Also the energy of a sample, where the machine has counters.
            time_budget_s: Seconds for all measurements, without the start of the program; what does not fit is told.
            figure: Also draw this picture: a file that ends in ``.png``, ``.pdf`` or ``.svg``.
            json_file: Also write the figures to this file; ``-`` prints them instead of the table.
        """
        from rich.console import Group

        from lightning_efficient.cli.footprint_page import check_picture, footprint_page, progress_line, save_picture
        from lightning_efficient.cli.surgery_page import surgery_page
        from lightning_efficient.profiling.budget import TimeBudget

        if not min_run_time_s > 0:
            raise ConfigurationError(f"min_run_time_s must be above 0, got {min_run_time_s:g}")
        if layers < 0:
            raise ConfigurationError(f"layers must be 0 or more, got {layers}")
        check_picture(figure)
        for option, file in (("figure", figure), ("json_file", json_file)):
            if file and file != "-" and not Path(file).parent.is_dir():  # before minutes of measuring
                raise ConfigurationError(f"{option}: {file} cannot be written, there is no folder {Path(file).parent}")
        shape = sample_shape(model, datamodule, input_shape)
        tell, wipe = progress_line()
        budget = TimeBudget(time_budget_s, tell)
        model.to(self.strategy.root_device)
        try:
            footprint = profile_module(
                model,
                input_shape=shape,
                name=model_name(model),
                batch_sizes=batch_sizes or [1],
                threads=threads,
                min_run_time=min_run_time_s,
                training=training_memory,
                variants=variants or (),
                energy=energy,
                time_budget_s=budget.part(0.6) if hasattr(model, "network_before_surgery") else budget,
            )
        except (RuntimeError, AssertionError) as error:
            message = f"the model does not run on an input of shape {list(shape)} ({error}); give another --input_shape"
            raise ConfigurationError(message) from error
        finally:
            wipe()
        costs = _surgery_costs(model, shape, batch_sizes or [1], threads, min_run_time_s, budget)
        wipe()
        footprint = replace(footprint, left_out=tuple(budget.left_out))
        figures = footprint.to_dict() | ({"surgery": [each.to_dict() for each in costs]} if costs else {})
        _show(Group(footprint_page(footprint, layers), *map(surgery_page, costs)), figures, json_file)
        _write(json_file, figures)
        if figure:
            save_picture(footprint, figure)
        _say_file(json_file)
        if figure and json_file != "-":
            say(figure)

    def quantize(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        schemes: list[str] | str | None = None,
        calibration_batches: int = 16,
        split: Split = "val",
        network: str | None = None,
        batch_sizes: list[int] | None = None,
        threads: int | None = None,
        min_run_time_s: float = 0.5,
        out: str | None = None,
        json_file: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Write 8-bit forms of a trained network, and compare each with it: accuracy, agreement, size and time.

        Ranges are learned from training samples, never from the split that is evaluated. The checkpoint stays as it is.
        One of a run with QuantizationAware is also converted by the ranges that it learned.

        Args:
            model: The module around the network.
            datamodule: Has the split and the training data; by default the module's own loaders.
            ckpt_path: Checkpoint to quantise; ``best`` and ``last`` mean that of the newest run.
            schemes: ``weight_only`` (a smaller file) and ``static`` (also integer arithmetic); by default both.
            calibration_batches: Training batches from which static ranges are learned.
            split: ``val`` or ``test``.
            network: Dotted name of the network; by default the module's backbone.
            batch_sizes: Batch sizes for the times; by default 1 and 32.
            threads: Intra-op threads of torch; by default as many as torch uses by itself.
            min_run_time_s: About the seconds of timing for each network and batch size.
            out: Folder; by default ``<name>.quantized`` beside the checkpoint.
            json_file: Also write the figures to this file; ``-`` prints them instead of the tables.
            weights_only: Whether to load tensors and plain values only.
        """
        from lightning_efficient.cli._quantize_page import quantize_page
        from lightning_efficient.cli.footprint_page import progress_line
        from lightning_efficient.cli.quantizing import QuantizeRequest, quantize_checkpoint, schemes_of

        sizes = (1, 32) if batch_sizes is None else tuple(batch_sizes)
        chosen = schemes_of(schemes)
        request = QuantizeRequest(chosen, calibration_batches, split, network, sizes, threads, min_run_time_s)
        tell, wipe = progress_line()
        try:
            report = quantize_checkpoint(
                self,
                model,
                datamodule,
                ckpt_path,
                request,
                out=out,
                weights_only=weights_only,
                progress=json_file != "-",
                tell=tell,
            )
        finally:
            wipe()
        if report.folder is not None:
            _write(json_file, report.to_dict())
        _show(quantize_page(report), report.to_dict(), json_file)
        if report.folder is not None:
            _say_file(json_file)
            if json_file != "-":
                say(str(report.folder))


def _surgery_costs(
    model: LightningModule,
    shape: tuple[int, ...],
    batch_sizes: list[int],
    threads: int | list[int] | None,
    min_run_time_s: float,
    budget: TimeBudget,
) -> list[SurgeryCosts]:
    """Return what surgery saves, within what is left of a time budget."""
    from lightning_efficient.cli.surgery_page import surgery_costs_of
    from lightning_efficient.profiling.budget import TimeIsUp, interrupted_after

    first = threads[0] if isinstance(threads, list) else threads
    # a fifth of that for each of some thirty blocks
    seconds = max(budget.share(6 * len(batch_sizes), most=min_run_time_s), 1e-3)
    budget.tell("surgery, block by block")
    try:
        with interrupted_after(budget.remaining()):
            return surgery_costs_of(model, shape, batch_sizes, first, seconds)
    except TimeIsUp:
        budget.leave_out("what surgery saves")
    return []


def _show(page: RenderableType, figures: dict[str, Any], json_file: str | None) -> None:
    """Print a page, or JSON in its place."""
    from rich.console import Console

    if json_file == "-":
        say(json.dumps(figures, indent=2))
    else:
        Console().print(page)


def _write(json_file: str | None, figures: dict[str, Any]) -> None:
    """Write the JSON, if a file is given."""
    if not json_file or json_file == "-":
        return
    try:
        Path(json_file).write_text(f"{json.dumps(figures, indent=2)}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"json_file: {json_file} cannot be written ({error.strerror})") from error


def _say_file(json_file: str | None) -> None:
    if json_file and json_file != "-":
        say(json_file)
