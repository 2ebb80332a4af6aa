"""What a new module takes over from the block in whose place it stands."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery.meta import HOOKS

MARK = "_made_by_surgery"
"""Attribute of a module that took a block's place."""

_KIND = "_is_full_backward_hook"
"""Attribute of a module without which torch never calls its backward hooks."""


def is_replacement(module: nn.Module) -> bool:
    """Tell whether a surgery put this module where it is."""
    return bool(module.__dict__.get(MARK))


def named_originals(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the submodules that no surgery made, each once, without going into those that one did."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if is_replacement(module):
            inside.append(f"{name}." if name else "")
            continue
        yield name, module


def adopt(blocks: list[nn.Module], made: nn.Module) -> None:
    """Give what is new in a module the mode, device, dtype, memory format and frozenness of the blocks before it."""
    kept = {id(module) for block in blocks for module in block.modules()}
    theirs = {id(tensor): tensor for block in blocks for tensor in (*block.parameters(), *block.buffers())}
    pattern = next((each for each in theirs.values() if each.is_floating_point()), None)
    parameters = [each for block in blocks for each in block.parameters()]
    frozen = bool(parameters) and not any(each.requires_grad for each in parameters)
    maps = [each for each in theirs.values() if each.ndim == 4 and min(each.shape[1:]) > 1]
    last = bool(maps) and all(each.is_contiguous(memory_format=torch.channels_last) for each in maps)
    done: dict[int, Any] = {}
    for module in made.modules():
        if id(module) not in kept:
            module.training = blocks[0].training
        for store in (module._parameters, module._buffers):
            for name, tensor in list(store.items()):
                if tensor is None or id(tensor) in theirs:
                    continue
                if id(tensor) not in done:
                    done[id(tensor)] = _like(tensor, pattern, last, frozen)
                store[name] = done[id(tensor)]


def check_hooks(name: str, block: nn.Module, *, itself: bool, what: str) -> None:
    """Raise where a hook would see other tensors than before.

    Args:
        name: Of the block.
        block: What is to be replaced or deleted.
        itself: Whether hooks on the block itself are refused, too.
        what: What is about to happen, for the message.

    Raises:
        ConfigurationError: names the module that carries the hook.
    """
    for inner, module in block.named_modules(prefix=name):
        if (itself or module is not block) and any(_foreign(module.__dict__.get(hooks)) for hooks in HOOKS):
            raise ConfigurationError(
                f"{inner} carries a hook (a user's, or features_only's with feature_location='expansion'), which would "
                f"see other values once {name} is {what}; remove the hook, or leave this block out"
            )


def lifted_hooks(block: nn.Module) -> dict[str, Any]:
    """Take the hooks off a block and return them; the dicts themselves, so that their handles still remove them."""
    lifted = {name: block.__dict__[name] for name in HOOKS if _foreign(block.__dict__.get(name))}
    for name in lifted:
        block.__dict__[name] = OrderedDict()
    if "_backward_hooks" in lifted:
        lifted[_KIND] = block.__dict__.get(_KIND)
    return lifted


def hang_hooks(lifted: dict[str, Any], made: nn.Module, name: str) -> None:
    """Put hooks of a block on the module that took its place, with a warning."""
    if not lifted:
        return
    for kind, hooks in lifted.items():
        if kind != _KIND:
            hooks.update(made.__dict__.get(kind) or {})
        made.__dict__[kind] = hooks
    warnings.warn(
        f"hooks on {name} were moved to the {type(made).__name__} in its place, and see its inputs and outputs",
        UserWarning,
        stacklevel=2,
    )


def transplanted(blocks: Iterable[nn.Module], made: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Copy weights of equal name and shape into a new module that keeps none of the old; yield (old, new)."""
    theirs = {name: tensor for block in blocks for name, tensor in block.state_dict(keep_vars=True).items()}
    ours = made.state_dict(keep_vars=True)
    kept = {id(tensor) for tensor in theirs.values()}
    for name, tensor in ours.items():
        old = theirs.get(name)
        if old is None or id(tensor) in kept or not isinstance(old, Tensor) or old.shape != tensor.shape:
            continue
        if id(old) not in {id(each) for each in ours.values()}:
            with torch.no_grad():
                tensor.copy_(old)
            yield old, tensor


def _like(tensor: Tensor, pattern: Tensor | None, last: bool, frozen: bool) -> Tensor:
    if pattern is None:
        moved: Any = tensor.detach()
    else:
        dtype = pattern.dtype if tensor.is_floating_point() else tensor.dtype
        moved = tensor.detach().to(device=pattern.device, dtype=dtype)
    if last and moved.ndim == 4:
        moved = moved.contiguous(memory_format=torch.channels_last)
    if not isinstance(tensor, nn.Parameter):
        return moved
    wanted = tensor.requires_grad and not frozen
    if moved.device == tensor.device and moved.dtype == tensor.dtype:
        tensor.data = moved
        return tensor.requires_grad_(wanted)
    return nn.Parameter(moved, requires_grad=wanted)


def _foreign(hooks: Any) -> bool:
    # spectral norm and its kind are hooks, too, and belong to the module that carries them
    known = (getattr(hook, "__module__", None) or type(hook).__module__ for hook in (hooks or {}).values())
    return any(not str(module).startswith("torch.nn.utils") for module in known)
