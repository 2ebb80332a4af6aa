"""Memory of a training step: one forward and one backward pass, without knowing the loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from lightning_efficient._unwrapped import uncompiled
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.inputs import arguments, device_of, first_tensor, to_device
from lightning_efficient.profiling.memory import LiveTensors, allocated, storages, tensors_of
from lightning_efficient.profiling.undisturbed import training_eagerly, undisturbed

STATES_OF_ADAM = 2
"""Numbers that Adam and AdamW keep for each trainable parameter."""


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of one training step in bytes.

    Attributes:
        batch_size: Samples of the step.
        peak_bytes: The largest at once in the forward and the backward pass: parameters, buffers, batch, activations
            and gradients. The state of an optimiser comes on top.
        method: ``"live tensors"`` or ``"cuda allocator"``, as in ``peak_memory``.
        saved_bytes: What the forward pass keeps for the backward pass, parameters and buffers left out.
        gradient_bytes: Gradients of the parameters, a part of the peak.
        adam_bytes: State that Adam or AdamW would keep, two numbers for each trainable parameter; not part of the
            peak.
    """

    batch_size: int
    peak_bytes: int
    method: str
    saved_bytes: int
    gradient_bytes: int
    adam_bytes: int

    @property
    def with_adam_bytes(self) -> int:
        """The peak with the state of Adam."""
        return self.peak_bytes + self.adam_bytes


def training_memory(module: nn.Module, example: Any) -> TrainingMemory:
    """Run a forward and a backward pass of the sum of all floating-point outputs, and follow the memory.

    The module is in training mode meanwhile and left as it was: weights, gradients, buffers and random states. The
    backward pass ends in copies of the parameters that share their memory, so that no hook on a parameter runs. What
    a loss needs is not included, nor what an operator needs inside.

    Args:
        module: Any module; what ``torch.compile`` wrapped is measured uncompiled.
        example: A batch: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.

    Raises:
        ConfigurationError: no output depends on a parameter that requires a gradient.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))
        >>> memory = training_memory(net, torch.zeros(3, 4))
        >>> memory.saved_bytes, memory.gradient_bytes  # the input and the output of Sigmoid
        (144, 232)
    """
    module, device = uncompiled(module), device_of(module)
    batch = to_device(example, device)
    args, kwargs = arguments(batch)
    resident = [*module.parameters(), *module.buffers(), *tensors_of((args, kwargs))]
    with undisturbed(module), training_eagerly():
        module.train()
        saved = _Saved([*module.parameters(), *module.buffers()])
        # random numbers and statistics of a first pass do not change what a second one needs
        step = partial(_step, module, args, kwargs)
        with saved.noted():
            gradients = sum(tensor.nbytes for tensor in step())
        if device.type == "cuda":
            peak, method = allocated(step, resident, device), "cuda allocator"
        else:
            with LiveTensors(resident) as live:
                step()
            peak, method = live.peak, "live tensors"
    trainable = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
    batch_size = len(first_tensor(batch))
    return TrainingMemory(batch_size, peak, method, saved.bytes, gradients, STATES_OF_ADAM * trainable)


def _step(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the gradients."""
    leaves = {
        name: parameter.detach().requires_grad_(parameter.requires_grad)
        for name, parameter in module.named_parameters()
    }
    outputs = functional_call(module, leaves, args, kwargs)
    wanted = [tensor for tensor in tensors_of(outputs) if tensor.requires_grad]
    del outputs
    if not wanted:
        raise ConfigurationError(f"no output of {type(module).__name__} depends on a parameter that can be trained")
    totals = [tensor.sum() for tensor in wanted]
    wanted.clear()
    torch.autograd.backward(totals)
    return [leaf.grad for leaf in leaves.values() if leaf.grad is not None]


class _Saved:
    """Adds up the memory of tensors that are saved for the backward pass, each storage once."""

    bytes = 0

    def __init__(self, known: list[Tensor]) -> None:
        self._known = storages(known)

    @contextmanager
    def noted(self) -> Iterator[None]:
        found: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.layout == torch.strided:
                found.update(storages([tensor]))
            return tensor.detach()

        with saved_tensors_hooks(pack, _as_packed):
            yield
        self.bytes = sum(storage.nbytes() for key, storage in found.items() if key not in self._known)


def _as_packed(tensor: Tensor) -> Tensor:
    return tensor
