"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How the system says that a disk, or one's share of it, is full, or that a file may not be so large."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside a file to write to, which takes the file's place at the end, and goes if that is not reached.

    Raises:
        OSError: the folder cannot be made, or the file cannot be replaced.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "new" / "notes.txt") as partial:
        ...         _ = partial.write_text("whole")
        ...     (Path(folder) / "new" / "notes.txt").read_text(), partial.exists()
        ('whole', False)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(content: Any, path: Path) -> None:
    """Write what ``torch.save`` takes, whole or not at all, by way of memory.

    On a full disk ``torch.save`` hides what went wrong, and the file that it could not close ends the process later.

    Raises:
        OSError: the file cannot be written; what was there is still there.
    """
    import torch

    whole = io.BytesIO()
    torch.save(content, whole)
    with replacing(path) as partial:
        partial.write_bytes(whole.getbuffer())
