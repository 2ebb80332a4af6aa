"""The only file that touches private names of Lightning or jsonargparse; each function has a test of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch.utils._pytree import tree_leaves

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.checkpoints import read_checkpoint

_FOUND_BY_LIGHTNING = ("best", "last", "hpc", "registry")


def train_loaders_given_to_fit(trainer: Trainer) -> list[Any]:
    """Return the loaders passed as ``Trainer.fit(train_dataloaders=...)``, before Lightning has set them up.

    Empty where they come from a ``train_dataloader`` hook, which has not been called yet.
    """
    given = trainer.fit_loop._data_source.instance
    return [] if given is None or isinstance(given, LightningModule | LightningDataModule) else tree_leaves(given)


def hyperparameters_are_given() -> bool:
    """Tell whether LightningCLI is building a module, from hyper-parameters that are plain values."""
    return _given_hyperparameters.get() is not None


class ExplicitArgumentsWin(LightningCLI):
    """A LightningCLI in which configs and options win over the hyper-parameters stored in a checkpoint.

    Lightning merges a checkpoint's hyper-parameters over what was typed, so ``fit --model.lr 0.9 --ckpt_path x`` would
    train with the old rate. Here they are the defaults, and ``test --data NAME --ckpt_path x`` needs no model.

    Only the parser of the verb that is given gets its options: making those of the others takes a third of the time
    until training begins.
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        *,
        args: ArgsType = None,
        **options: Any,
    ) -> None:
        words = sys.argv[1:] if args is None else args
        self._given_verb = words[0] if isinstance(words, list) and words else None
        super().__init__(model_class, args=args, **options)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if self._given_verb in self.subcommands() and subcommand != self._given_verb:
            return self.init_parser(**kwargs)
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse with the model of the checkpoint, if there is one, as the default."""
        typed = _typed_ckpt_path(sys.argv[1:] if args is None else args)
        self._default_to_model_of(typed)
        super().parse_arguments(parser, args)
        verb = self.config.get("subcommand")
        configured = self.config[verb].get("ckpt_path") if verb else None
        if configured != typed:
            self._default_to_model_of(configured)
            super().parse_arguments(parser, args)

    def _default_to_model_of(self, ckpt_path: str | None) -> None:
        if ckpt_path and (stored := _stored_model(ckpt_path)):
            for verb, parser in self._subcommand_parsers.items():
                if verb in self._subcommand_method_arguments:
                    parser.set_defaults({"model": stored})

    def _parse_ckpt_path(self) -> None:
        """Do nothing: ``parse_arguments`` has done it in the other order."""


class ParsesOnly(LightningCLI):
    """Mixed into a LightningCLI: it parses its arguments, and seeds, builds and runs nothing."""

    def _set_seed(self) -> None:
        """Leave the random states alone."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Look at nothing, since nothing was built."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def _typed_ckpt_path(args: ArgsType) -> str | None:
    if not isinstance(args, list):
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path", nargs="?")
    return parser.parse_known_args(args)[0].ckpt_path


def _stored_model(ckpt_path: str) -> dict[str, Any] | None:
    path = Path(ckpt_path)
    if not path.is_file():
        if path.is_dir() or "://" in ckpt_path or ckpt_path.partition(":")[0] in _FOUND_BY_LIGHTNING:
            return None
        raise ConfigurationError(f"ckpt_path: there is no checkpoint {ckpt_path!r}")
    checkpoint = read_checkpoint(path, "ckpt_path")
    if not isinstance(checkpoint, dict):
        raise ConfigurationError(f"ckpt_path: {ckpt_path!r} is no checkpoint, or it is damaged")
    stored = checkpoint.get("hyper_parameters", {})
    arguments = {key: value for key, value in stored.items() if key not in ("_class_path", "_instantiator")}
    return {"class_path": stored["_class_path"], "init_args": arguments} if "_class_path" in stored else None


def check_checkpoint(path: str) -> None:
    """Raise ``ConfigurationError`` for a file that is no checkpoint, is damaged, or could run code when loaded."""
    _stored_model(path)


def option_names(parser: LightningArgumentParser, verb: str) -> list[str]:
    """Return the names of the options of a parser and of one of its verbs, such as ``trainer.max_epochs``."""
    verbs = parser._subcommands_action._name_parser_map if parser._subcommands_action else {}
    own = [verbs[verb]] if verb in verbs else list(verbs.values())
    names = {action.dest.partition(":")[0] for one in (parser, *own) for action in one._actions}
    return sorted(name for name in names if not name.endswith(".help"))
