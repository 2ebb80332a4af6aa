"""Peak memory of one forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_efficient._unwrapped import uncompiled
from lightning_efficient.profiling.inputs import arguments, device_of, to_device
from lightning_efficient.profiling.undisturbed import decomposing, undisturbed


def peak_memory(module: nn.Module, example: Any) -> tuple[int, str]:
    """Return the largest memory that the module needs at once during a forward pass, and how that was found.

    Parameters, buffers and the input are included, gradients are not. On CUDA it is what the allocator handed out
    (``"cuda allocator"``; its peak statistics are reset). Elsewhere every tensor is followed from the operator that
    makes it until it is freed (``"live tensors"``): the same on every run, and blind to what happens inside an
    operator, such as the scratch space of a convolution, and to what the allocator keeps in reserve.

    Args:
        module: Any module; what ``torch.compile`` wrapped is measured uncompiled.
        example: Input with the batch in dimension 0: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments.

    Returns:
        Bytes and the method, ``"live tensors"`` or ``"cuda allocator"``.

    Example:
        >>> peak_memory(nn.Sequential(nn.ReLU(), nn.ReLU()), torch.zeros(1, 25))  # input, and one tensor per layer
        (300, 'live tensors')
    """
    module, device = uncompiled(module), device_of(module)
    args, kwargs = arguments(to_device(example, device))
    resident = [*module.parameters(), *module.buffers(), *tensors_of((args, kwargs))]
    with undisturbed(module), decomposing():
        module.eval()
        if device.type == "cuda":
            return allocated(partial(module, *args, **kwargs), resident, device), "cuda allocator"
        with LiveTensors(resident) as live:
            module(*args, **kwargs)
        return live.peak, "live tensors"


class LiveTensors(TorchDispatchMode):
    """Adds up the storages of ``resident`` tensors and of all that operators return, for as long as they live.

    Used as a context. Backward passes on the CPU run in the same thread, so they are followed too.

    Args:
        resident: Tensors that are there before and stay, such as parameters and the batch.

    Attributes:
        peak: The largest number of bytes alive at once so far, ``resident`` included.
    """

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__()
        self._resident = storages(resident)
        self._alive: dict[int, weakref.finalize[..., Any]] = {}
        self._bytes = self.peak = sum(storage.nbytes() for storage in self._resident.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for key, storage in storages(tensors_of(result)).items():
            if key not in self._resident and key not in self._alive:
                self._alive[key] = weakref.finalize(storage, self._freed, key, storage.nbytes())
                self._bytes += storage.nbytes()
        self.peak = max(self.peak, self._bytes)
        return result

    def __exit__(self, *exception: Any) -> None:
        for alive in self._alive.values():
            alive.detach()
        super().__exit__(*exception)

    def _freed(self, key: int, size: int) -> None:
        del self._alive[key]
        self._bytes -= size


def allocated(call: Callable[[], object], resident: Iterable[Tensor], device: torch.device) -> int:
    """Return the bytes of ``resident`` tensors and the most that a call allocates on CUDA beside them."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    grown = torch.cuda.max_memory_allocated(device) - before
    return grown + sum(storage.nbytes() for storage in storages(resident).values())


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the dense tensors of nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def storages(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    """Return the memory of tensors by its identity, what they share once."""
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage for storage in found}
