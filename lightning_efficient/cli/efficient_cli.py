"""LightningCLI with our names in reach and better manners."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

import lightning_efficient.callbacks
import lightning_efficient.datamodules
import lightning_efficient.modules  # noqa: F401  # imported classes can be given by their short names
from lightning_efficient import plugins
from lightning_efficient._checkpoint_io import write_whole_checkpoints
from lightning_efficient._lightning_compat import ExplicitArgumentsWin, option_names
from lightning_efficient._trainer import gather_objects, is_rehearsal
from lightning_efficient.cli.config_shape import check_shapes
from lightning_efficient.cli.latest_run import resolved
from lightning_efficient.cli.output import say
from lightning_efficient.cli.predictions import (
    abstaining,
    answered,
    count_answers,
    count_sources,
    not_used,
    routed,
    routing_beside,
    threshold_beside,
    write_predictions,
)
from lightning_efficient.cli.problems import explain
from lightning_efficient.cli.products import log_product
from lightning_efficient.cli.run_folder import RunFolder
from lightning_efficient.cli.trainer import EfficientTrainer
from lightning_efficient.errors import ConfigurationError, MissingExtraError
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.reporting import run_dir

VERBS = ("fit", "validate", "test", "calibrate", "predict", "export", "profile", "quantize")
LOADER = {
    "fit": "train_dataloader",
    "validate": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
_UNPARSED = (ArgumentError, TypeError, ValueError, ImportError, AttributeError, OSError, RecursionError)
STRICT = {"exit_on_error": False, "allow_abbrev": False}


class EfficientCLI(ExplicitArgumentsWin):
    """The command line of this package, also usable in a script of one's own.

    On top of LightningCLI: our classes and those of plugins by short name, no abbreviated options, explicit options win
    over a checkpoint's hyper-parameters, a seed by default, ``config.yaml`` in every run folder, exit status 130 after
    Ctrl-C, and the verbs ``calibrate``, ``export``, ``profile`` and ``quantize``.

    Args:
        args: Arguments; by default those of the process.
        run: Whether to run a verb; otherwise ``model``, ``datamodule`` and ``trainer`` are built and left alone.
    """

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        plugins.load_all()
        super().__init__(
            save_config_callback=RunFolder,
            trainer_class=EfficientTrainer,
            seed_everything_default=0,
            parser_kwargs=STRICT | (dict.fromkeys(VERBS, STRICT) if run else {}),
            auto_configure_optimizers=False,  # it would build the optimiser before callbacks can add parameters
            args=args,
            run=run,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and say in one line what does not fit."""
        words = args if isinstance(args, list) else sys.argv[1:]
        check_shapes(words)
        try:
            super().parse_arguments(parser, args)
        except (*_UNPARSED, yaml.YAMLError) as error:
            raise ConfigurationError(explain(error, option_names(parser, words[0] if words else ""))) from error

    def instantiate_classes(self) -> None:
        """Build model, data and Trainer, and say in one line what cannot be built."""
        try:
            super().instantiate_classes()
        except MissingExtraError:
            raise
        except Exception as error:  # whatever a class raises here, it was given by an option
            raise ConfigurationError(explain(error)) from error
        write_whole_checkpoints(self.trainer)

    def after_instantiate_classes(self) -> None:
        """Say that the data are missing, before Lightning looks for them."""
        verb = self.subcommand or ""
        if verb in ("calibrate", "quantize"):
            verb = "test" if self.config[verb]["split"] == "test" else "validate"
        hook = LOADER.get(verb)
        if hook and self.datamodule is None and getattr(type(self.model), hook) is getattr(LightningModule, hook):
            raise ConfigurationError("missing data: give --data NAME, such as Digits, or a --config that has it")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Add ``calibrate``, ``export``, ``profile`` and ``quantize`` to Lightning's verbs."""
        verbs = ExplicitArgumentsWin.subcommands()
        return {**verbs, **{verb: {"model", "datamodule"} for verb in ("calibrate", "export", "profile", "quantize")}}

    def fit(self, **kwargs: Any) -> None:
        """Run ``Trainer.fit`` and say where the run folder is."""
        self._run(self.trainer.fit, kwargs)
        if self.trainer.is_global_zero and not is_rehearsal(self.trainer):
            say(str(run_dir(self.trainer)))

    def validate(self, **kwargs: Any) -> None:
        """Run ``Trainer.validate``, by the thresholds that were calibrated."""
        self._route(kwargs)
        self._run(self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        """Run ``Trainer.test``, by the thresholds that were calibrated."""
        self._route(kwargs)
        self._run(self.trainer.test, kwargs)

    def calibrate(self, **kwargs: Any) -> None:
        """Run ``Trainer.calibrate``."""
        self._make("calibrate", kwargs)

    def export(self, **kwargs: Any) -> None:
        """Run ``Trainer.export``."""
        self._make("export", kwargs)

    def quantize(self, **kwargs: Any) -> None:
        """Run ``Trainer.quantize``."""
        self._make("quantize", kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Run ``Trainer.predict`` and write into the run folder the predictions, with a threshold what is answered."""
        kwargs["ckpt_path"] = resolved(kwargs.get("ckpt_path"), self.trainer)
        threshold = threshold_beside(kwargs["ckpt_path"], self.model)
        if threshold is not None and threshold.precision not in (None, precision := str(self.trainer.precision)):
            rank_zero_info(
                f"the threshold was calibrated with precision {threshold.precision}, and this run has {precision}: the "
                "confidences differ a little"
            )
        routing = self._route(kwargs)
        outputs = self._run(self.trainer.predict, kwargs) or []
        if is_rehearsal(self.trainer):
            return
        decided = None if threshold is None else abstaining(outputs, threshold)
        ranks = self.trainer.global_rank, self.trainer.world_size
        # a process may have no samples, and only the first knows the folder
        folder = self.trainer.strategy.broadcast(run_dir(self.trainer))
        file = write_predictions(decided or outputs, folder, *ranks) if outputs else None
        problem = None if threshold is None else not_used(outputs, threshold)
        said = gather_objects(self.trainer, (file, problem, count_answers(decided or []), count_sources(outputs)))
        files, problems, counts, sources = zip(*said, strict=True)
        if not self.trainer.is_global_zero or not any(files):
            return
        for written in filter(None, files):
            say(str(written))
        if line := routed(sources, routing):
            say(line)
        if threshold is not None:
            say(next(filter(None, problems), None) or answered(counts, threshold))

    def _route(self, kwargs: dict[str, Any]) -> RoutingFile | None:
        """Let a model that routes use the thresholds beside its checkpoint, and return their file."""
        kwargs["ckpt_path"] = resolved(kwargs.get("ckpt_path"), self.trainer)
        routing = routing_beside(kwargs["ckpt_path"], self.model)
        if routing is not None:
            self.model.use_routing(routing.calibrated)
        return routing

    def _make(self, verb: str, kwargs: dict[str, Any]) -> None:
        """Run a verb that makes files of a checkpoint, and let W&B keep them."""
        loggers, since = list(self.trainer.loggers), time.time()  # calibrate takes the loggers out
        report = self._run(getattr(self.trainer, verb), kwargs)
        if self.trainer.is_global_zero and not is_rehearsal(self.trainer):
            log_product(verb, loggers, kwargs, since, report)

    def _run(self, verb: Any, kwargs: dict[str, Any]) -> Any:
        if "ckpt_path" in kwargs:
            kwargs["ckpt_path"] = resolved(kwargs["ckpt_path"], self.trainer)
        try:
            return verb(**kwargs)
        except SystemExit:
            if self.trainer.interrupted:  # Lightning ends with 1; shells and schedulers expect the signal's number
                sys.exit(128 + (signal.SIGTERM if self.trainer.received_sigterm else signal.SIGINT))
            raise
        except (TypeError, ValueError) as error:
            # the callables of a module are called late, when callbacks have added their parameters
            frames = traceback.extract_tb(error.__traceback__)
            if isinstance(error, ConfigurationError) or all(one.name != "configure_optimizers" for one in frames):
                raise
            message = f"model.optimizer or model.lr_scheduler cannot be built: {error}"
            raise ConfigurationError(" ".join(message.split())) from error
