"""Multiply-accumulate operations of a forward pass, counted by torch's own operator formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lightning_efficient._unwrapped import uncompiled
from lightning_efficient.profiling.inputs import arguments, device_of, first_tensor, to_device
from lightning_efficient.profiling.layers import LayerCost, LayerRecorder
from lightning_efficient.profiling.undisturbed import decomposing, undisturbed

# their weights are looked up or scale elementwise, which no convention counts as a multiply-accumulate
_FREE = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, ParametrizationList)


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    flops: int = sdpa_flop_count(query, key, value)
    return flops


# the attention of CPUs, which torch 2.8 does not count by itself
_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


@dataclass(frozen=True)
class MacCount:
    """Operations of one sample.

    Attributes:
        macs: Multiply-accumulate operations of convolutions, matrix products and attention.
        flops: ``2 * macs``.
        by_module: MACs of every submodule that has some, its children's included, by dotted name.
        uncounted: Submodules that own weights of two or more dimensions, ran, and count nothing. A module whose
            children are counted passes as counted.
        layers: What each module does itself, in the order of the forward: their MACs add up to ``macs``.
    """

    macs: int
    flops: int
    by_module: Mapping[str, int]
    uncounted: tuple[str, ...]
    layers: tuple[LayerCost, ...] = ()


def count_macs(module: nn.Module, example: Any) -> MacCount:
    """Count the MACs of one sample (1 MAC = 2 FLOPs).

    Runs the forward on the meta device with stand-ins for the weights: nothing is computed, nothing is copied, and
    kernels that hide their arithmetic (fused attention, oneDNN's and cuDNN's LSTM) fall apart into operators that
    count. A forward that needs real values runs once on the module's device, with such kernels switched off.

    Args:
        module: Any module; what ``torch.compile`` wrapped is counted uncompiled.
        example: Input with the batch in dimension 0: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments.

    Returns:
        The counts, those of the batch divided by its size.

    Raises:
        ConfigurationError: ``example`` holds no tensor with a batch dimension.

    Example:
        >>> count_macs(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(5, 4)).macs
        48
    """
    module, batch_size = uncompiled(module), len(first_tensor(example))
    try:
        counter, recorder = _run(module, example, _on_meta)
    except Exception:  # whatever meta tensors cannot do; an error of the forward itself comes back from the second run
        counter, recorder = _run(module, to_device(example, device_of(module)), _as_it_is)
    root = f"{type(module).__name__}."
    per_sample = {name: _macs(counts, batch_size) for name, counts in counter.get_flop_counts().items()}
    by_module = {name.removeprefix(root): macs for name, macs in per_sample.items() if name.startswith(root) and macs}
    total = per_sample.get("Global", 0)
    counted = {*by_module, *([""] if total else [])}
    uncounted = tuple(_uncounted(module, recorder.ran, counted))
    return MacCount(total, 2 * total, by_module, uncounted, recorder.layers(batch_size))


def _macs(counts: Mapping[Any, int], batch_size: int) -> int:
    return round(sum(counts.values()) / (2 * batch_size))


def _run(
    module: nn.Module, example: Any, prepared: Callable[[nn.Module, Any], Callable[[], object]]
) -> tuple[FlopCounterMode, LayerRecorder]:
    with undisturbed(module), decomposing(), _open_kernels():
        module.eval()
        counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
        recorder, call = LayerRecorder(module, counter), prepared(module, example)
        with counter, recorder:
            call()
    return counter, recorder


def _on_meta(module: nn.Module, example: Any) -> Callable[[], object]:
    def stand_in(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="meta", requires_grad=False)

    tensors = {name: stand_in(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    return partial(functional_call, module, tensors, *arguments(to_device(example, "meta")))


def _as_it_is(module: nn.Module, example: Any) -> Callable[[], object]:
    args, kwargs = arguments(example)
    return partial(module, *args, **kwargs)


def _uncounted(module: nn.Module, ran: set[int], counted: set[str]) -> Iterator[str]:
    names: dict[int, list[str]] = {}
    for name, submodule in module.named_modules(remove_duplicate=False):
        names.setdefault(id(submodule), []).append(name)
    for name, submodule in module.named_modules():
        if id(submodule) in ran and _owns_weights(submodule) and counted.isdisjoint(names[id(submodule)]):
            yield name or type(module).__name__


def _owns_weights(module: nn.Module) -> bool:
    # quantised layers pack their weights away and hand them out by a method
    packed = callable(getattr(module, "weight", None))
    return not isinstance(module, _FREE) and (packed or any(p.ndim >= 2 for p in module.parameters(recurse=False)))


@contextmanager
def _open_kernels() -> Iterator[None]:
    mha = torch.backends.mha
    kernels: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = mha.get_fastpath_enabled(), *(kernel.enabled for kernel in kernels)
    try:
        mha.set_fastpath_enabled(False)
        for kernel in kernels:
            kernel.enabled = False
        yield
    finally:
        mha.set_fastpath_enabled(before[0])
        for kernel, enabled in zip(kernels, before[1:], strict=True):
            kernel.enabled = enabled
