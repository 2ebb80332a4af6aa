"""What every layer costs: operations and memory traffic, charged to the module in whose forward they happen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten
_ALLOCATE = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}
_LOOK_UP = {_aten.embedding, _aten.index, _aten.index_select, _aten.gather}
_OVERWRITE = {_aten.copy_, _aten.fill_, _aten.zero_}


@dataclass(frozen=True)
class LayerCost:
    """What one module does itself, without its children.

    Attributes:
        name: Dotted name, empty for the module that was asked about.
        kind: Its class.
        macs: Multiply-accumulate operations per sample.
        parameters: Number of parameters that it owns itself.
        output_shape: Shape of its first output tensor without the first dimension; of the last call.
        read_bytes: Read from memory in one forward pass of the example, operator by operator.
        written_bytes: Written to memory, likewise.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    output_shape: tuple[int, ...]
    read_bytes: int
    written_bytes: int

    @property
    def title(self) -> str:
        """The name, or the class of a module without one."""
        return self.name or self.kind


@dataclass
class _Running:
    macs: float = 0
    read: int = 0
    written: int = 0
    shape: tuple[int, ...] = ()


class LayerRecorder(TorchDispatchMode):
    """Charges each operator to the innermost module that runs. Used as a context, inside that of the counter.

    Memory traffic is an estimate: each operator reads all of its inputs and writes all of its outputs, a lookup reads
    what it returns, and views and allocations cost nothing. Caches and fused kernels lower it (a compiled network
    reads less, and so does fused attention, which is seen here in pieces); scratch space inside an operator raises it.

    Args:
        module: The module that is about to run.
        counter: Counts the operations, and is entered before.

    Attributes:
        ran: Ids of the modules that ran.
    """

    supports_higher_order_operators = True

    def __init__(self, module: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__()
        self.ran: set[int] = set()
        self._modules = {id(each): (name, each) for name, each in module.named_modules()}
        self._counter = counter
        self._stack: list[int] = []
        self._costs: dict[int, _Running] = {}
        self._root = id(module)

    def __enter__(self) -> LayerRecorder:
        self._hooks = [
            register_module_forward_pre_hook(self._enters),
            register_module_forward_hook(self._leaves, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*exception)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before = self._counted()
        result = func(*args, **(kwargs or {}))
        cost = self._cost(self._stack[-1] if self._stack else self._root)
        cost.macs += (self._counted() - before) / 2
        read, written = traffic(func, (args, kwargs), result)
        cost.read += read
        cost.written += written
        return result

    def layers(self, batch_size: int) -> tuple[LayerCost, ...]:
        """Return the modules that did something, in the order in which they began."""
        found = []
        for key, cost in self._costs.items():
            name, module = self._modules[key]
            parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            if parameters or cost.macs or cost.read or cost.written:
                macs, kind = round(cost.macs / batch_size), type(module).__name__
                found.append(LayerCost(name, kind, macs, parameters, cost.shape, cost.read, cost.written))
        return tuple(found)

    def _cost(self, key: int) -> _Running:
        return self._costs.setdefault(key, _Running())

    def _counted(self) -> int:
        return sum(self._counter.flop_counts["Global"].values())

    def _enters(self, module: nn.Module, inputs: Any) -> None:
        if id(module) in self._modules:
            self.ran.add(id(module))
            self._stack.append(id(module))
            self._cost(id(module))

    def _leaves(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if id(module) in self._modules and self._stack:
            self._stack.pop()
            shapes = (tuple(leaf.shape[1:]) for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            self._cost(id(module)).shape = next(shapes, ())


def traffic(func: Any, inputs: Any, outputs: Any) -> tuple[int, int]:
    """Return the bytes that an operator reads and writes, each tensor once.

    Args:
        func: The operator.
        inputs: Its arguments, in any nesting.
        outputs: What it returned.
    """
    if not isinstance(func, OpOverload) or func.overloadpacket in _ALLOCATE:
        return 0, 0
    given, made = _tensors(inputs), _tensors(outputs)
    mutated = _mutated(func, inputs)
    held = {_storage(tensor) for tensor in given}
    fresh = [tensor for tensor in made if _storage(tensor) not in held]
    if not fresh and not mutated:
        return 0, 0
    written = sum(map(_bytes, fresh)) + sum(map(_bytes, mutated))
    if func.overloadpacket in _LOOK_UP:
        return sum(map(_bytes, fresh)) + sum(map(_bytes, given[1:])), written
    skipped = {id(tensor) for tensor in mutated} if func.overloadpacket in _OVERWRITE else set()
    return sum(_bytes(tensor) for tensor in given if id(tensor) not in skipped), written


def _mutated(func: OpOverload, inputs: tuple[tuple[Any, ...], Mapping[str, Any] | None]) -> list[Tensor]:
    args, kwargs = inputs
    written = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else (kwargs or {}).get(argument.name)
            written += _tensors(given)
    return written


def _tensors(tree: Any) -> list[Tensor]:
    leaves: Iterable[Any] = tree_leaves(tree)
    return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _bytes(tensor: Tensor) -> int:
    size = tensor.numel() * tensor.element_size()
    # what is expanded lies in memory once
    return min(size, tensor.untyped_storage().nbytes()) if tensor.layout == torch.strided else size
