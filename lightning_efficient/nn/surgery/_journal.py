"""What a surgery changes in modules, so that it can be taken back."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import nn

Change: TypeAlias = tuple[nn.Module, str, Any, Any]
"""Module, attribute, its value before, and, of a dict, its content before."""

_CONTENT = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
_ABSENT = object()


class Journal:
    """A shallow copy of all attributes of all modules of a model.

    Args:
        model: The model as it is before.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> journal = Journal(model)
        >>> model[0] = nn.Identity()
        >>> restore(journal.changes())
        >>> model
        Sequential(
          (0): ReLU()
        )
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._attributes = [dict(module.__dict__) for module in self._modules]
        self._content = [{name: _copied(module.__dict__[name]) for name in _CONTENT} for module in self._modules]

    def changes(self) -> list[Change]:
        """Return what is different now."""
        found: list[Change] = []
        for module, attributes, content in zip(self._modules, self._attributes, self._content, strict=True):
            for name in {**attributes, **module.__dict__}:
                before, now = attributes.get(name, _ABSENT), module.__dict__.get(name, _ABSENT)
                if before is not now or (name in content and not _same(content[name], now)):
                    found.append((module, name, before, content.get(name)))
        return found


def restore(changes: list[Change]) -> None:
    """Give attributes the values that they had."""
    for module, name, value, content in changes:
        if value is _ABSENT:
            module.__dict__.pop(name, None)
            continue
        if content is not None:
            value.clear()
            value.update(content)
        module.__dict__[name] = value


def _copied(content: Any) -> Any:
    return set(content) if isinstance(content, set) else dict(content)


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, set):
        return before == now
    return list(before) == list(now) and all(before[key] is now[key] for key in before)
