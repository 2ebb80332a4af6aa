"""Several networks, from cheap to dear, of which each answers what it is sure of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_efficient._lightning_compat import hyperparameters_are_given
from lightning_efficient._trainer import refuse_shards
from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional.routing import QueryScore
from lightning_efficient.modules._cascading import CascadingClassifier
from lightning_efficient.nn.backbones import data_config
from lightning_efficient.nn.checkpoints import load_weights
from lightning_efficient.nn.input_fit import InputFit
from lightning_efficient.nn.model_cascade import ModelCascade
from lightning_efficient.nn.networks import as_network

_ENTRY = ("name", "image_size", "pretrained", "kwargs", "checkpoint")


class CascadeClassifier(CascadingClassifier):
    """Train or load several networks and let each answer the inputs that those before it were not sure of.

    Steps, logged values and tables are those of ``EarlyExitClassifier`` with networks in the place of exits. The
    networks learn together, each from its own cross-entropy, and share nothing. An input that the third network answers
    costs all three. ``predict`` with thresholds asks each network once per batch, about the inputs that are left.

    Args:
        models: The networks, the cheapest first: names of timm models, modules, or mappings with ``name`` and, if
            wanted, ``image_size`` (height and width to which its inputs are resized), ``pretrained``, ``kwargs`` (of
            ``timm.create_model``) and ``checkpoint`` (file with its weights). A network that brings weights sees its
            inputs with the mean and deviation that it was trained with.
        num_classes: Number of classes; by default what the networks have.
        in_chans: Channels of the images; ``null`` for inputs that are no images.
        model_weights: Weights of the cross-entropies, one per network; 1 by default, and 0 for one that stays as it is.
        distill: Weight of the divergence of the other networks from the last, which they then also learn from.
        score: How unsure a network is: ``msp``, ``margin``, ``logit_margin``, ``entropy``, ``gini``, ``energy``,
            ``energy_softmax``, ``max_logit``, or a function from class scores ``(N, C)`` to confidence ``(N,)``.
        thresholds: What ``predict`` routes by where nothing is calibrated: the first network answers whose query score,
            the negative of the confidence, is at most this; one number, or one per network but the last.
        latency_batch_size: Batch size of the latencies that ``test`` measures beside that of one; 0 for none.
        optimizer: From parameters to an optimiser; AdamW as torch has it when not given.
        lr_scheduler: From an optimiser to a learning rate scheduler.
        lr_interval: Whether the scheduler counts epochs or steps.

    Raises:
        ConfigurationError: an unknown name or entry, classes that differ, or a value that cannot work.
    """

    network: ModelCascade

    def __init__(
        self,
        models: list[Any],
        num_classes: int | None = None,
        in_chans: int | None = 3,
        model_weights: list[float] | None = None,
        distill: float = 0.0,
        score: QueryScore = "msp",
        thresholds: float | list[float] | None = None,
        latency_batch_size: int = 64,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        entries = [_entry(given, place) for place, given in enumerate(models)]
        # given as Python objects they could not be loaded from a checkpoint; from a config they are plain values
        objects = ["models"] if any(isinstance(each["name"], nn.Module) for each in entries) else []
        objects += [] if isinstance(score, str) else ["score"]
        ignored = () if hyperparameters_are_given() else ("optimizer", "lr_scheduler", *objects)
        self.save_hyperparameters(ignore=ignored)
        self.in_chans = in_chans
        networks = [_network(each, place, num_classes, in_chans) for place, each in enumerate(entries)]
        fits = [InputFit(in_chans or 1, each.get("image_size")) for each in entries]
        self.network = ModelCascade(networks, num_classes, fits)
        self.data_config = data_config(networks[-1], in_chans or 3) if isinstance(entries[-1]["name"], str) else {}
        self._names = tuple(_name(each["name"]) for each in entries)
        self._brings_weights = [
            isinstance(each["name"], str) and bool(each.get("pretrained") or each.get("checkpoint")) for each in entries
        ]
        # no default in the signature: a config that names another class would inherit AdamW's weight decay
        self.optimizer: OptimizerCallable = torch.optim.AdamW if optimizer is None else optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self._checkpoints = [each.get("checkpoint") for each in entries]
        self.set_up(
            score=score,
            weights=model_weights,
            weights_option="model.model_weights",
            distill=distill,
            thresholds=thresholds,
            latency_batch_size=latency_batch_size,
        )
        for network, weight in zip(networks, self.stage_weights, strict=True):
            if not weight:
                network.requires_grad_(False)
        self.train(self.training)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the networks, numbered where two are alike."""
        alike = len(set(self._names)) < len(self._names)
        return tuple(f"{name}_{k + 1}" for k, name in enumerate(self._names)) if alike else self._names

    def train(self, mode: bool = True) -> CascadeClassifier:
        """Set the mode; networks that do not learn stay in evaluation mode."""
        super().train(mode)
        if mode and hasattr(self, "stage_weights"):
            for network, weight in zip(self.network.models, self.stage_weights, strict=True):
                if not weight:
                    network.eval()
        return self

    def setup(self, stage: str) -> None:
        """Compare the data with the networks, and load first weights where no checkpoint brings all."""
        super().setup(stage)
        if stage == "fit":
            refuse_shards(self.trainer, "CascadeClassifier")
        self._settle_inputs()
        if self.trainer.ckpt_path is None:
            for place, path in enumerate(self._checkpoints):
                if path is not None:
                    load_weights(self.network.models[place], path, option=f"model.models[{place}].checkpoint")
        self._checkpoints = [None] * len(self._checkpoints)  # a second run goes on with the weights of the first

    def _settle_inputs(self) -> None:
        """Normalise for each network that brings weights, where its statistics are not those of the data."""
        data = getattr(self.trainer, "datamodule", None)
        mean, std = (getattr(data, key, None) or self.data_config.get(key) for key in ("mean", "std"))
        for brings, network, fit in zip(self._brings_weights, self.network.models, self.network.fits, strict=True):
            if brings and mean and std:
                wanted = data_config(network, self.in_chans or 3)
                assert isinstance(fit, InputFit)
                fit.renormalize(tuple(mean), tuple(std), tuple(wanted["mean"]), tuple(wanted["std"]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what was kept; files of first weights have no part in it any more."""
        super().on_load_checkpoint(checkpoint)
        self._checkpoints = [None] * len(self._checkpoints)


def _entry(given: Any, place: int) -> dict[str, Any]:
    option = f"model.models[{place}]"
    if isinstance(given, str | nn.Module):
        return {"name": given}
    if not isinstance(given, Mapping) or "name" not in given:
        raise ConfigurationError(f"{option} is {given!r}; give the name of a timm model, a module, or {{name: ...}}")
    if unknown := [key for key in given if key not in _ENTRY]:
        raise ConfigurationError(
            f"{option} has the unknown entry {unknown[0]!r}.{did_you_mean(str(unknown[0]), _ENTRY)} It may have "
            f"{', '.join(_ENTRY)}"
        )
    return dict(given)


def _network(entry: Mapping[str, Any], place: int, num_classes: int | None, in_chans: int | None) -> nn.Module:
    return as_network(
        entry["name"],
        f"models[{place}]",
        num_classes=num_classes,
        in_chans=in_chans,
        pretrained=bool(entry.get("pretrained", False)),
        options=entry.get("kwargs"),
    )


def _name(given: str | nn.Module) -> str:
    return given if isinstance(given, str) else type(given).__name__
