"""Notice that models are no longer those a threshold was calibrated for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.checkpoints import hash_weights
from lightning_efficient.nn.views import ViewTap


class WeightsGuard:
    """Remember modules and their weights, and tell cheaply whether they are still the same.

    A look costs a few attributes of each parameter, buffer and submodule. A submodule that was replaced, added or
    removed, another number of forward hooks (those of a ``ViewTap`` do not count), another ``score`` or ``temperature``
    of a module, and another object among the parts are changes at once. In-place changes, ``load_state_dict``, casts,
    new storage, and parameters or buffers that were replaced, added or removed make it hash all weights again, which
    decides.

    A look does not see what is written through ``.data`` or a NumPy view, nor another class or setting of a module that
    stays in its place; ``changed(thorough=True)`` also sees the former, and of the latter what ``extra_repr`` shows.
    Neither sees buffers that are not in the ``state_dict``, other attributes, one hook in place of another, code that
    was patched, the inside of callables that are no modules, or a model behind a network.

    Args:
        modules: What to watch.
        parts: Objects that must stay the very same, such as callables.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> guard = WeightsGuard([network.eval()])
        >>> before = guard.changed()
        >>> _ = nn.init.constant_(network.weight, 3.0)
        >>> before, guard.changed()
        (False, True)
    """

    _values: list[tuple[dict[str, Any], str, Any]]
    _tensors: list[tuple[Any, int, int]]
    _sizes: list[tuple[dict[str, Any], int]]

    def __init__(self, modules: Iterable[nn.Module], parts: Sequence[object] = ()) -> None:
        self.modules = nn.ModuleList(dict.fromkeys(modules))
        self.parts = tuple(parts)
        self.sha256 = self._hash()
        self._places = [_Place.of(module) for each in self.modules for module in each.modules()]
        self._look()

    def changed(self, parts: Sequence[object] | None = None, *, thorough: bool = False) -> bool:
        """Tell whether modules or parts differ from those that were remembered.

        Args:
            parts: What the parts are now; ``None`` to leave them out.
            thorough: Whether to hash all weights, and the name, class and ``extra_repr`` of each module.

        Raises:
            ConfigurationError: a module is in training mode.
        """
        for place in self._places:
            if place.attributes["training"]:
                raise ConfigurationError(f"{place.kind} is in training mode; call eval()")
        other = parts is not None and any(now is not then for now, then in zip(parts, self.parts, strict=True))
        if other or any(place.changed() for place in self._places):
            return True
        if not thorough and self._untouched():
            return False
        if self._hash() != self.sha256:
            return True
        self._look()
        return False

    def _untouched(self) -> bool:
        for held, count in self._sizes:
            if len(held) != count:
                return False
        for held, name, value in self._values:
            if held.get(name, self) is not value:
                return False
        for tensor, address, version in self._tensors:
            if tensor.data_ptr() != address or _version(tensor) != version:
                return False
        return True

    def _look(self) -> None:
        held = [place.attributes[kind] for place in self._places for kind in ("_parameters", "_buffers")]
        self._sizes = [(each, len(each)) for each in held]
        self._values = [(each, name, value) for each in held for name, value in each.items()]
        tensors = [value for _, _, value in self._values if value is not None]
        self._tensors = [(tensor, tensor.data_ptr(), _version(tensor)) for tensor in tensors]

    def _hash(self) -> str:
        digest = hashlib.sha256()
        hash_weights(digest, self.modules.state_dict())
        for name, module in self.modules.named_modules():
            # those of containers of parameters name the device
            shown = "" if isinstance(module, nn.ParameterList | nn.ParameterDict) else module.extra_repr()
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            digest.update(repr((name, kind, _ADDRESS.sub("", shown))).encode())
        return digest.hexdigest()


class _Place(NamedTuple):
    """What a look sees of one module, beside its tensors."""

    kind: str
    attributes: dict[str, Any]
    children: dict[str, Any]
    own_children: dict[str, Any]
    hooks: dict[int, Any]
    pre_hooks: dict[int, Any]
    hook_counts: tuple[int, int]
    settings: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, module: nn.Module) -> _Place:
        attributes = module.__dict__
        children, hooks, pre_hooks = (attributes[name] for name in ("_modules", *_HOOKS))
        settings = tuple((name, attributes[name]) for name in _SETTINGS if name in attributes)
        counts = _others(hooks), _others(pre_hooks)
        return cls(type(module).__name__, attributes, children, dict(children), hooks, pre_hooks, counts, settings)

    def changed(self) -> bool:
        _, attributes, children, own_children, hooks, pre_hooks, counts, settings = self
        # the dictionaries compare their values by identity
        if children != own_children:
            return True
        if (hooks or pre_hooks or counts != _NO_HOOKS) and (_others(hooks), _others(pre_hooks)) != counts:
            return True
        return any(not _same(attributes.get(name), value) for name, value in settings) if settings else False


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_NO_HOOKS = (0, 0)
_SETTINGS = ("score", "temperature")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def _others(hooks: dict[int, Any]) -> int:
    """Count hooks that are no ``ViewTap``'s, which observe only, and come and go with each call."""
    return sum(not isinstance(getattr(hook, "__self__", None), ViewTap) for hook in list(hooks.values()))


def _same(now: object, then: object) -> bool:
    return now is then or (isinstance(then, str | int | float) and now == then)


def _version(tensor: Any) -> int:
    # those made in inference mode count no versions
    return -1 if tensor.is_inference() else int(tensor._version)
