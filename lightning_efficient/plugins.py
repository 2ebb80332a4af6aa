"""Other packages join in by an entry point; nothing here loads torch until a plugin is really used.

A package that declares::

    [project.entry-points."lightning_efficient.plugins"]
    tiny = "tiny_package.blocks"

has ``tiny_package.blocks`` imported by the command line, so that its callbacks, modules and blocks are found by
short class name, and the YAML files of ``tiny_package/configs/`` are found as ``tiny/<name>``.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_efficient.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from lightning.pytorch import Callback

GROUP = "lightning_efficient.plugins"
CALLBACKS_VARIABLE = "LIGHTNING_EFFICIENT_CALLBACKS"


def declared() -> list[EntryPoint]:
    """Return the entry points that installed packages declare, in the order of their names."""
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


def load_all() -> None:
    """Import every plugin, so that its classes are known; one that fails is named in a warning and left out."""
    for entry in declared():
        try:
            entry.load()
        except Exception as error:  # another package's code: whatever it raises must not stop this one
            warnings.warn(f"plugin {entry.name!r} ({owner(entry)}) could not be loaded: {error}", stacklevel=2)


def config_folders() -> Iterator[tuple[EntryPoint, Path]]:
    """Yield the plugins that bring configs, with the folder, found without importing the plugin."""
    for entry in declared():
        spec = importlib.util.find_spec(entry.module.split(".")[0])
        for location in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(location) / "configs"
            if folder.is_dir():
                yield entry, folder


def owner(entry: EntryPoint) -> str:
    """Return the name of the package that declares a plugin."""
    return entry.dist.name if entry.dist else entry.module.split(".")[0]


def callbacks_from_environment() -> list[Callback]:
    """Return the callbacks that ``LIGHTNING_EFFICIENT_CALLBACKS`` names, and none where it is unset.

    Lightning calls this for every Trainer of an environment in which the package is installed, so it stays silent
    unless asked: ``LIGHTNING_EFFICIENT_CALLBACKS=SelectiveCoverage,LatencyProfiler python train.py``.

    Raises:
        ConfigurationError: a name is no callback of ours or of a plugin.
    """
    names = [name.strip() for name in os.environ.get(CALLBACKS_VARIABLE, "").split(",") if name.strip()]
    if not names:
        return []
    from lightning.pytorch import Callback

    import lightning_efficient.callbacks  # noqa: F401  # defines the classes that the next lines look up

    load_all()
    known = {
        cls.__name__: cls for cls in _subclasses(Callback) if not cls.__module__.startswith(("lightning.", "pytorch_"))
    }
    for name in names:
        if name not in known:
            raise ConfigurationError(f"{CALLBACKS_VARIABLE}: no callback {name!r}.{did_you_mean(name, known)}")
    return [known[name]() for name in names]


def _subclasses(cls: type[Callback]) -> Iterator[type[Callback]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)
