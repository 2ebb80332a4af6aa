"""Training samples from which ranges are learned, as the network sees them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.rng import rng_untouched

_SEED = 0


def calibration_batches(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None, network: str, batches: int
) -> tuple[Iterator[Tensor], str]:
    """Return batches of training samples as they reach a network, and in words what they are.

    A data module with ``plain_samples`` gives samples as evaluation prepares them, drawn by a seed of their own;
    otherwise they are the first batches of the training loader, in training's augmentation.

    Args:
        trainer: Was used to evaluate, so that the data module knows it.
        model: Runs on the inputs, up to the network.
        datamodule: Has the training data; by default the module's own loader.
        network: Dotted name of the network.
        batches: How many.

    Raises:
        ConfigurationError: there are no training data, or the module does not run on them.
    """
    source: Any = model if datamodule is None else datamodule
    if datamodule is not None:
        datamodule.setup("fit")
    if callable(getattr(source, "plain_samples", None)):
        size = int(source.batch_size)
        order = torch.randperm(source.train_size, generator=torch.Generator().manual_seed(_SEED))
        keys = order[: batches * size].split(size)
        words = f"{sum(map(len, keys))} training samples, not augmented"
        return _captured(model, network, (source.plain_samples(each) for each in keys)), words
    if datamodule is None and type(model).train_dataloader is LightningModule.train_dataloader:
        raise ConfigurationError(
            "--schemes static learns ranges from training data, and there are none; give --data, or leave static out"
        )
    words = f"the first {batches} batches of the training loader, augmented where training is"
    return _captured(model, network, _loaded(source, batches)), words


def _loaded(source: Any, batches: int) -> Iterator[Tensor]:
    with rng_untouched():
        torch.manual_seed(_SEED)
        for batch in islice(iter(source.train_dataloader()), batches):
            first = next((leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)), None)
            if first is None:
                raise ConfigurationError(f"a training batch of {type(source).__name__} holds no tensor")
            yield first


def _captured(model: LightningModule, network: str, inputs: Iterator[Tensor]) -> Iterator[Tensor]:
    """Run a module on inputs and yield what its network got."""
    part: nn.Module = model.get_submodule(network)
    got: list[Any] = []
    for batch in inputs:
        got.clear()
        handle = part.register_forward_pre_hook(lambda _, args: got.extend(args[:1]))
        try:
            with torch.no_grad():
                model.eval()(batch)
        except Exception as error:
            raise ConfigurationError(
                f"calibration: {type(model).__name__}.forward does not take the first tensor of a training batch "
                f"({str(error).partition(chr(10))[0]})"
            ) from error
        finally:
            handle.remove()
        if not got or not isinstance(got[0], Tensor):
            raise ConfigurationError(f"calibration: {type(model).__name__}.forward does not reach {network!r}")
        yield got[0]
