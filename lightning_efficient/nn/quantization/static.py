"""Quantisation after training: 8-bit weights and activations, with ranges from calibration data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient._graph_problems import quiet
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_count
from lightning_efficient.nn.quantization._graph import (
    check_example,
    converted,
    copied,
    difference,
    layers_of,
    quantizer,
    traced,
)
from lightning_efficient.nn.quantization._norms import fold_norms
from lightning_efficient.nn.quantization._problems import graph_problem, require_torchao
from lightning_efficient.nn.quantization.result import Quantized
from lightning_efficient.rng import rng_untouched


def quantize_static(
    network: nn.Module,
    calibration: Iterable[Any],
    *,
    batches: int | None = None,
    reduce_range: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Quantized:
    """Quantise weights and activations to 8 bits without training.

    Batch normalisation is folded into convolutions first. Weights are int8, symmetric, one scale per output channel;
    activations are uint8, one scale per tensor, from the histograms of the calibration data.

    The module that comes back computes what the integers give, but slowly: rounding is simulated. Only after
    :func:`~lightning_efficient.nn.quantization.compiled.compile_quantized` do integer kernels run.

    Args:
        network: Any module that ``torch.export`` can trace, from a tensor; it stays as it is.
        calibration: Batches: tensors ``(N, ...)``, tuples or lists that begin with one, or mappings with one, such as a
            data loader yields. A few hundred samples like those of training are usual.
        batches: How many to take at most; ``None`` takes all.
        reduce_range: Use 7 bits for activations, against saturation on CPUs without VNNI.
        on_batch: Called with the number of batches so far.

    Raises:
        ConfigurationError: no batches, values that are not finite, a network that cannot be traced or that has no
            layer to quantise.
        MissingExtraError: torchao is not installed.
    """
    require_torchao()
    if batches is not None:
        check_count("batches", batches)
    taken = itertools.islice(calibration, batches)
    first = next(taken, None)
    if first is None:
        raise ConfigurationError("calibration is empty; give at least one batch.")
    example = check_example(input_of(first), "calibration").cpu()
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), rng_untouched():
        module = copied(network, "cpu").eval()
        expected = module(_cast(example))
        prepared = _prepared(module, _cast(example), reduce_range)
        quantized, skipped = layers_of(prepared)
        for number, batch in enumerate(itertools.chain([first], taken), 1):
            found = _observe(prepared, _cast(check_example(input_of(batch), "calibration").cpu()), number)
            if number == 1 and not (apart := difference(found, expected)) <= 1e-3:
                raise ConfigurationError(
                    f"the traced network answers differently, by {apart:.3g}: does its forward depend on values?"
                )
            if on_batch is not None:
                on_batch(number)
        module = converted(prepared)
    return Quantized(module, "static", quantized, skipped, tuple(example.shape[1:]), _cast(example).dtype)


def _prepared(module: nn.Module, example: Tensor, reduce_range: bool) -> Any:
    graph = traced(module, example)
    fold_norms(graph)
    try:
        with quiet():
            from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

            return prepare_pt2e(graph, quantizer(aware=False, reduce_range=reduce_range))
    except Exception as error:
        raise graph_problem("torchao", error) from error


def _observe(prepared: nn.Module, inputs: Tensor, number: int) -> Any:
    if not inputs.isfinite().all():
        raise ConfigurationError(f"calibration: batch {number} has values that are not finite.")
    try:
        found = prepared(inputs)
    except Exception as error:
        raise graph_problem(f"batch {number} of the calibration", error) from error
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    if not all(leaf.isfinite().all() for leaf in leaves):
        raise ConfigurationError(f"calibration: the network's output for batch {number} is not finite.")
    return found


def _cast(inputs: Tensor) -> Tensor:
    return inputs.detach().float() if inputs.is_floating_point() else inputs.detach()


def input_of(batch: Any) -> Any:
    """Return the first tensor of a batch."""
    if isinstance(batch, Mapping):
        return next((each for each in batch.values() if isinstance(each, Tensor)), None)
    if isinstance(batch, list | tuple) and batch:
        return input_of(batch[0])
    return batch
