"""Statistics of batch normalisation, estimated again for a network whose layers were changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import is_integer


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Any], max_batches: int = 200) -> int:
    """Estimate the running statistics of batch normalisation anew; no weight changes.

    For a network that was trained and then changed: pooling, for one, changes the distribution of what later layers
    see. Statistics become the mean over the batches, each of which counts the same. Layers that are frozen, in
    evaluation mode while the model trains or without running statistics, keep what they have, and so do those that the
    model's ``forward`` never calls. After an error all layers have their old statistics.

    Args:
        model: Any module; its training flags and the momenta of its layers are afterwards what they were.
        batches: Input tensors ``(N, ...)``, tuples or lists whose first item is one, or mappings whose first
            floating-point tensor is one, such as a data loader yields. They are moved to the device of the model's
            first parameter; those of a floating-point dtype get its dtype.
        max_batches: Batches to take at most, 1 or more.

    Returns:
        How many batches were used.

    Raises:
        ConfigurationError: there are no batches or no tensors in them, the model has no batch normalisation with
            running statistics, or ``max_batches`` is below 1.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.BatchNorm1d(1)).eval()
        >>> recalibrate_batch_norm(network, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        2
        >>> network[0].running_mean
        tensor([4.])
    """
    if not is_integer(max_batches) or max_batches < 1:
        raise ConfigurationError(f"max_batches={max_batches!r} must be 1 or more.")
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
    frozen = [each for each in norms if model.training and not each.training]
    updated = [each for each in norms if each.running_mean is not None and each not in frozen]
    if not updated:
        raise ConfigurationError(f"{type(model).__name__} has no batch normalisation with statistics to estimate")
    taken = itertools.islice(batches, max_batches)
    first = next(taken, None)
    if first is None:
        raise ConfigurationError("batches is empty; give an iterable of at least one batch")

    flags = [(each, each.training) for each in model.modules()]
    momenta = [(each, each.momentum) for each in norms]
    kept = {norm: [(buffer, buffer.clone()) for buffer in norm.buffers()] for norm in norms}
    tensors = itertools.chain(model.parameters(), model.buffers())
    reference = next(each for each in tensors if each.is_floating_point())
    seen = 0

    def loader() -> Iterator[Any]:
        nonlocal seen
        # update_bn has emptied every layer and set the whole model to training; here, before its first batch, what
        # must not take part goes back: dropout and stochastic depth are off, frozen layers hold their statistics
        _restore(kept, frozen)
        model.eval()
        for each in updated:
            each.training = True
        for batch in itertools.chain([first], taken):
            seen += 1
            images = _input_of(batch)
            yield images.to(reference.dtype) if images.is_floating_point() else images

    try:
        update_bn(loader(), model, reference.device)
        _restore(kept, [each for each in updated if not each.num_batches_tracked])
    except BaseException:
        _restore(kept, norms)
        raise
    finally:
        for each, training in flags:
            each.training = training
        for norm, momentum in momenta:
            norm.momentum = momentum
    return seen


def _restore(kept: Mapping[_BatchNorm, list[tuple[Tensor, Tensor]]], norms: Iterable[_BatchNorm]) -> None:
    with torch.no_grad():
        for buffer, value in (pair for norm in norms for pair in kept[norm]):
            buffer.copy_(value)


def _input_of(batch: Any) -> Tensor:
    found = batch
    if isinstance(batch, Mapping):
        values = [each for each in batch.values() if isinstance(each, Tensor)]
        found = next((each for each in values if each.is_floating_point()), values[0] if values else None)
    elif isinstance(batch, list | tuple) and batch:
        found = _input_of(batch[0])
    if not isinstance(found, Tensor):
        raise ConfigurationError(
            f"batches: a {type(batch).__name__} holds no input; give tensors, tuples or lists that begin with one, or "
            "mappings with one"
        )
    return found
