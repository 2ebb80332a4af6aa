"""The fingerprint of a network, which a recipe keeps: what it was made on, whatever the number of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_efficient.errors import ConfigurationError

# present or absent by an option of training, not by the architecture
_REGULARISERS = ("Identity", "DropPath", "Dropout", "DropBlock2d")
_SYNCHRONISED = {"SyncBatchNorm": "BatchNorm2d", "SyncBatchNormAct": "BatchNormAct2d"}


def architecture_of(model: nn.Module) -> dict[str, str]:
    """Return type and fingerprint of a network: of names, types and parameter shapes of its modules.

    The classifier, as timm's ``get_classifier`` gives it, is left out, so that the number of classes may differ; so
    are dropout and stochastic depth. Values, dtypes and devices do not count.

    Example:
        >>> wide, narrow = (nn.Sequential(nn.Linear(4, width)) for width in (8, 4))
        >>> architecture_of(wide)["type"], architecture_of(wide) == architecture_of(narrow)
        ('Sequential', False)
    """
    parts = hashlib.sha256()
    skipped = tuple(_classifiers(model))
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in _REGULARISERS or any(module is each or name.startswith(f"{inside}.") for inside, each in skipped):
            continue
        shapes = [
            (key, None if is_lazy(each) else tuple(each.shape))
            for key, each in module._parameters.items()
            if each is not None
        ]
        parts.update(repr((name, _SYNCHRONISED.get(kind, kind), shapes)).encode())
    return {"type": type(model).__name__, "hash": parts.hexdigest()[:16]}


def check_architecture(wanted: Any, known: Sequence[Mapping[str, str]]) -> None:
    """Raise unless a recipe was made on one of the architectures that a network has or had.

    Raises:
        ConfigurationError: it was made on another one, or says so in no known form.
    """
    if not isinstance(wanted, Mapping) or not all(isinstance(wanted.get(key), str) for key in ("type", "hash")):
        raise ConfigurationError(f"recipe: architecture={wanted!r} must be a mapping with 'type' and 'hash'")
    if all(wanted["hash"] != each["hash"] for each in known):
        theirs, ours = (f"{each['type']} {each['hash'][:8]}" for each in (wanted, known[-1]))
        raise ConfigurationError(
            f"recipe: it was made on another architecture ({theirs}) than this one ({ours}); "
            "only the number of classes may differ"
        )


def _classifiers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    try:
        found: Any = model.get_classifier()  # type: ignore[operator]
    except (AttributeError, TypeError):  # no model of timm
        return
    heads = [each for each in (found if isinstance(found, tuple | list) else [found]) if isinstance(each, nn.Module)]
    for name, module in model.named_modules():
        if name and any(module is head for head in heads):
            yield name, module
