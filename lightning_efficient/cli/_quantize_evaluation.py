"""One evaluation after the other of a module, with another network in it each time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from lightning_efficient._trainer import remove_callbacks
from lightning_efficient._unwrapped import uncompiled
from lightning_efficient.callbacks._quantization_network import network_before
from lightning_efficient.callbacks.quantization_aware import QuantizationAware
from lightning_efficient.cli.evaluation import listen_only
from lightning_efficient.inference.calibration_file import Split
from lightning_efficient.nn.main_network import main_network
from lightning_efficient.nn.quantization.aware import AwareNetwork


class Watch(Callback):
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


class Evaluation:
    """Evaluate whatever network the module has now, without loggers and callbacks that write.

    Args:
        trainer: Evaluates; changed in place.
        model: The module.
        datamodule: Has the split.
        split: ``val`` or ``test``.
        network: Dotted name of the network, if it is given.
        progress: Whether the progress bar stays.
    """

    def __init__(
        self,
        trainer: Trainer,
        model: LightningModule,
        datamodule: LightningDataModule | None,
        split: Split,
        network: str | None,
        *,
        progress: bool,
    ) -> None:
        self.trainer, self.model, self.datamodule = trainer, model, datamodule
        self.watch = Watch(network)
        self.run = trainer.validate if split == "val" else trainer.test
        listen_only(trainer, self.watch, progress=progress)

    def __call__(self, **options: Any) -> dict[str, float]:
        """Return the metrics that the module logs; ``options`` are further ones of the Trainer's verb."""
        # with a checkpoint comes its callback, which puts the rounding graph in place; after that it has no part
        if not options:
            remove_callbacks(self.trainer, (QuantizationAware,))
        with warnings.catch_warnings():
            for message in ("Be aware that when using `ckpt_path`", "You're using the WeightAveraging callback"):
                warnings.filterwarnings("ignore", message=message)
            found = self.run(self.model, datamodule=self.datamodule, verbose=False, **options)
        return {key: float(value) for loader in found for key, value in loader.items()}


def float_network(network: nn.Module) -> nn.Module:
    """Return a copy in floating point, without rounding and compilation."""
    if isinstance(network, AwareNetwork):
        before = network_before(network)
        assert before is not None, "the callback that put the graph there keeps what was there before"
        return before
    plain = copy.deepcopy(uncompiled(network))
    plain._compiled_call_impl = None
    return plain.eval()


@contextmanager
def in_place(model: LightningModule, name: str, network: nn.Module) -> Iterator[None]:
    """Put a network into a module for a while."""
    before = model.get_submodule(name)
    model.set_submodule(name, network)
    try:
        yield
    finally:
        model.set_submodule(name, before)


def agreement(ours: Tensor | None, theirs: Tensor | None) -> float | None:
    """Return the share of equal predictions; None where there are none to compare."""
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return None
    return (ours == theirs).double().mean().item()
