"""The YAML files that come with the package and with plugins, found by name. Loads neither torch nor YAML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_efficient import plugins
from lightning_efficient.errors import ConfigurationError, did_you_mean

OWN = "lightning-efficient"
FRAGMENTS = ("trainer", "logger", "data")
"""Folders of files that are no whole experiments: they compose with one."""
SEARCHES = "search"
"""Folder of files that are no configs of ``fit``: what ``search`` and W&B sweeps vary."""


@dataclass(frozen=True)
class ConfigFile:
    """A config by name: ``trainer/ddp``, its file, and the package that brings it."""

    name: str
    path: Path
    owner: str = OWN

    @property
    def summary(self) -> str:
        """The first line of the file, which says what it is."""
        with self.path.open(encoding="utf-8") as file:
            first = file.readline().strip()
        return first.removeprefix("#").strip() if first.startswith("#") else ""


def shipped() -> dict[str, ConfigFile]:
    """Return every config that can be named, our own first."""
    package = Path(__file__).parents[1]
    # beside the package in a checkout, inside it in a wheel
    own = next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())
    found = _read(own, "", OWN)
    for entry, folder in plugins.config_folders():
        found |= _read(folder, f"{entry.name}/", plugins.owner(entry))
    return found


def find(name: str) -> Path:
    """Return the file of a config given by path or by name, with or without ``.yaml``.

    Raises:
        ConfigurationError: it is neither; the message names the closest configs.
    """
    if Path(name).is_file():
        return Path(name)
    known = shipped()
    config = known.get(name.removesuffix(".yaml"))
    if config is None:
        raise ConfigurationError(
            f"no file and no shipped config is named {name!r}.{did_you_mean(name, known)} "
            "All names: lightning-efficient configs ls"
        )
    return config.path


def is_fragment(file: Path) -> bool:
    """Tell whether a config only works together with a whole experiment."""
    return file.resolve().parent.name in FRAGMENTS


def find_for_fit(name: str) -> Path:
    """Return the file of a config, as ``find`` does, unless it is for another command.

    Raises:
        ConfigurationError: it is for ``search`` or for a W&B sweep.
    """
    file = find(name)
    if is_search(file):
        raise ConfigurationError(f"--config {name}: this file is for search --space, or for wandb sweep, not for fit")
    return file


def is_search(file: Path) -> bool:
    """Tell whether a file is for ``search`` or for a W&B sweep, and not for ``fit``."""
    return file.resolve().parent.name == SEARCHES


def _read(folder: Path, prefix: str, owner: str) -> dict[str, ConfigFile]:
    files = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.relative_to(folder).parts), path))
    names = [f"{prefix}{path.relative_to(folder).with_suffix('').as_posix()}" for path in files]
    return {name: ConfigFile(name, path, owner) for name, path in zip(names, files, strict=True)}
