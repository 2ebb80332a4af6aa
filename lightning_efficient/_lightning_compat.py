"""The only file that touches private names of Lightning or jsonargparse; each function has a test of its own."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch.utils._pytree import tree_leaves


def train_loaders_given_to_fit(trainer: Trainer) -> list[Any]:
    """Return the loaders passed as ``Trainer.fit(train_dataloaders=...)``, before Lightning has set them up.

    Empty where they come from a ``train_dataloader`` hook, which has not been called yet.
    """
    given = trainer.fit_loop._data_source.instance
    return [] if given is None or isinstance(given, LightningModule | LightningDataModule) else tree_leaves(given)


def hyperparameters_are_given() -> bool:
    """Tell whether LightningCLI or a checkpoint builds the module, with hyper-parameters that are plain values."""
    return _given_hyperparameters.get() is not None


class ExplicitArgumentsWin(LightningCLI):
    """A LightningCLI in which configs and options win over the hyper-parameters stored in a checkpoint.

    Lightning merges a checkpoint's hyper-parameters over what was typed, so ``fit --model.lr 0.9 --ckpt_path x`` would
    train with the old rate. Here they are parsed as a config file before all others.
    """

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse once for ``ckpt_path``, and again on top of the hyper-parameters that it holds."""
        super().parse_arguments(parser, args)
        verb = self.config.get("subcommand")
        stored = _stored_model(self.config[verb].get("ckpt_path")) if verb and not isinstance(args, dict) else None
        if stored is None:
            return
        words = list(sys.argv[1:] if args is None else args)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "checkpoint_hyper_parameters.yaml"
            file.write_text(yaml.safe_dump({"model": stored}))
            self.config = parser.parse_args([verb, "--config", str(file), *words[words.index(verb) + 1 :]])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: ``parse_arguments`` has done it in the other order."""


def _stored_model(ckpt_path: Any) -> dict[str, Any] | None:
    if not ckpt_path or not Path(ckpt_path).is_file():
        return None
    # a checkpoint that executes code is refused here
    stored = torch.load(ckpt_path, weights_only=True, map_location="cpu", mmap=True).get("hyper_parameters", {})
    stored = {key: value for key, value in stored.items() if key != "_instantiator"}
    class_path = stored.pop("_class_path", None)
    return {"class_path": class_path, "init_args": stored} if class_path else None


def option_names(parser: LightningArgumentParser) -> list[str]:
    """Return the names of all options of a parser and of its verbs, such as ``trainer.max_epochs``."""
    verbs = parser._subcommands_action._name_parser_map if parser._subcommands_action else {}
    names = [action.dest for one in (parser, *verbs.values()) for action in one._actions]
    return sorted({name.partition(":")[0] for name in names})
