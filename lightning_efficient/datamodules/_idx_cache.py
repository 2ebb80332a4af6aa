"""Read MNIST-like sets from their original ``.gz`` files without writing beside them."""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.utils import check_integrity

from lightning_efficient._files import replacing
from lightning_efficient.errors import ConfigurationError


def default_cache_dir() -> Path:
    """Return the folder for unpacked data: ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``lightning-efficient``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-efficient"


def unpacked_root(root: Path, name: str, resources: Sequence[tuple[str, str]], cache_dir: Path) -> Path:
    """Return a root from which torchvision reads the set ``name``, unpacking ``.gz`` files into a cache if need be.

    Args:
        root: Folder that holds ``name/raw``; never written to.
        name: Class name of the torchvision data set.
        resources: ``(file name, md5)`` of each ``.gz`` file, as torchvision lists them.
        cache_dir: Where unpacked files go; files that are there already are used as they are.

    Returns:
        ``root``, unless ``root`` holds all ``.gz`` files and not all unpacked ones; then ``cache_dir``.

    Raises:
        ConfigurationError: a ``.gz`` file is not the original one.
    """
    source, target = root / name / "raw", cache_dir / name / "raw"
    archives = [source / filename for filename, _ in resources]
    if all(path.with_suffix("").is_file() for path in archives) or not all(path.is_file() for path in archives):
        return root
    for archive, (_, md5) in zip(archives, resources, strict=True):
        unpacked = target / archive.stem
        if not unpacked.is_file():
            if not check_integrity(archive, md5):
                raise ConfigurationError(f"{archive} is damaged (its md5 is not {md5}); replace it by the original")
            _unpack(archive, unpacked)
    return cache_dir


def _unpack(archive: Path, target: Path) -> None:
    try:
        # other processes may unpack the same file
        with replacing(target) as partial, gzip.open(archive) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigurationError(f"{archive} cannot be unpacked into {target.parent}: {error}") from error
