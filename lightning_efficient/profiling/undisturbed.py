"""Measure a module in the middle of somebody's training and leave no trace."""

from __future__ import annotations

import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put back everything that a forward pass may change, also when it raises.

    Restored are every submodule's training flag, hooks and attributes, which tensors are its parameters and buffers,
    the values of the buffers, ``requires_grad``, gradients (unset inside the block), the random states of torch, CUDA,
    NumPy and Python, and the number of threads. Costs a copy of the buffers. Not restored are the values of
    parameters, which no inference changes.

    Args:
        module: The module that is about to be run.

    Example:
        >>> norm = nn.BatchNorm1d(3)
        >>> with undisturbed(norm):
        ...     _ = norm.eval()(torch.randn(2, 3))
        >>> norm.training
        True
    """
    threads = torch.get_num_threads()
    restore = [*map(_attributes, module.modules()), *map(_gradient, module.parameters())]
    restore += [_values(buffer) for buffer in module.buffers() if not buffer.is_meta]
    with _random_states(module):
        try:
            yield
        finally:
            for step in restore:
                step()
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


@contextmanager
def decomposing() -> Iterator[None]:
    """Show every operator of a forward pass to a dispatch mode: nothing compiled, no gradients, no inference mode."""
    # inference mode hands composite operators over in one piece
    with torch.inference_mode(False), torch.no_grad(), _eager():
        yield


@contextmanager
def training_eagerly() -> Iterator[None]:
    """Show a training step to a dispatch mode: nothing compiled, gradients on."""
    with torch.inference_mode(False), torch.enable_grad(), _eager():
        yield


@contextmanager
def _eager() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using `torch.compile")
        # nothing is compiled before dynamo is loaded, and loading it takes seconds
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            yield


def _attributes(module: nn.Module) -> Callable[[], None]:
    attributes = dict(vars(module))
    containers = [held for held in attributes.values() if type(held) in (dict, OrderedDict, list, set)]
    contents = [held.copy() for held in containers]

    def restore() -> None:
        for added in vars(module).keys() - attributes.keys():
            del vars(module)[added]
        vars(module).update(attributes)
        # in place: handles of hooks refer to the very dict that holds the hook
        for held, content in zip(containers, contents, strict=True):
            held.clear()
            held.extend(content) if isinstance(held, list) else held.update(content)

    return restore


def _gradient(parameter: nn.Parameter) -> Callable[[], None]:
    gradient, wanted = parameter.grad, parameter.requires_grad
    parameter.grad = None

    def restore() -> None:
        if parameter.requires_grad != wanted:
            parameter.requires_grad_(wanted)
        parameter.grad = gradient

    return restore


def _values(buffer: Tensor) -> Callable[[], None]:
    values = buffer.detach().clone()

    def restore() -> None:
        # an unneeded write would raise the version that autograd checks
        if not torch.equal(buffer, values):
            with torch.no_grad():
                buffer.copy_(values)

    return restore


@contextmanager
def _random_states(module: nn.Module) -> Iterator[None]:
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers()) if tensor.is_cuda}
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with ExitStack() as stack:
        stack.callback(random.setstate, python_state)
        stack.callback(np.random.set_state, numpy_state)
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        yield
