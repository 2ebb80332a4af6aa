"""Notice that weights are no longer those a threshold was calibrated for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_efficient.nn.checkpoints import hash_weights


class WeightsGuard:
    """Remember the weights of modules, and tell cheaply whether they are still the same.

    A look costs a few attributes of each parameter, buffer and submodule; only where one of them differs are all
    weights hashed again. So it sees in-place changes, ``load_state_dict``, casts, new storage, and parameters or
    submodules that were replaced. It does not see what is written through ``.data`` or a NumPy view, which leaves no
    trace; ``changed(thorough=True)`` does. It sees nothing of a model behind a network.

    Args:
        modules: What to watch.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> guard = WeightsGuard([network])
        >>> before = guard.changed()
        >>> _ = nn.init.constant_(network.weight, 3.0)
        >>> before, guard.changed()
        (False, True)
    """

    _tensors: list[tuple[dict[str, Any], str, Any, int, int]]
    _children: list[tuple[dict[str, Any], str, Any]]

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = nn.ModuleList(dict.fromkeys(modules))
        self.sha256 = self._hash()
        self._look()

    def changed(self, *, thorough: bool = False) -> bool:
        """Tell whether the weights differ from those that were remembered."""
        if not thorough and self._untouched():
            return False
        if self._hash() != self.sha256:
            return True
        self._look()
        return False

    def _untouched(self) -> bool:
        for held, name, tensor, address, version in self._tensors:
            same = held.get(name) is tensor
            if not same or tensor.data_ptr() != address or _version(tensor) != version:
                return False
        return all(held.get(name) is child for held, name, child in self._children)

    def _look(self) -> None:
        places = [module.__dict__ for module in self.modules.modules()]
        named = [(held, name, tensor) for each in places for held, name, tensor in _entries(each, _TENSORS)]
        self._tensors: list[tuple[dict[str, Any], str, Any, int, int]] = [
            (*place, place[2].data_ptr(), _version(place[2])) for place in named
        ]
        self._children = [entry for each in places for entry in _entries(each, ("_modules",))]

    def _hash(self) -> str:
        digest = hashlib.sha256()
        hash_weights(digest, self.modules.state_dict())
        return digest.hexdigest()


_TENSORS = ("_parameters", "_buffers")


def _entries(place: dict[str, Any], kinds: tuple[str, ...]) -> list[tuple[dict[str, Any], str, Any]]:
    found = [(place[kind], name, value) for kind in kinds for name, value in place[kind].items()]
    return [entry for entry in found if entry[2] is not None]


def _version(tensor: Any) -> int:
    # those made in inference mode count no versions
    return -1 if tensor.is_inference() else int(tensor._version)
