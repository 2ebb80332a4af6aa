"""Read the file of a W&B run that was not sent: ``offline-run-*/run-*.wandb``.

W&B offers no reader of it, so the format is here: blocks of records as in LevelDB's log, each a protobuf message. What
is private to W&B, the name of the message's module and the names of its fields, appears in this file only.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_efficient.errors import ConfigurationError

_MAGIC, _HEADER_BYTES, _BLOCK_BYTES = b":W&B", 7, 32768
_CHUNK = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _LAST = 1, 4


@dataclass
class WandbRun:
    """What a run logged.

    Attributes:
        id: The run's own name for itself.
        name: What W&B shows, empty if none was given.
        project: It belongs to.
        config: As given to ``wandb.init`` or the logger.
        rows: What each call of ``log`` logged, numbers only.
        summary: The last value of each key, or what the run wrote there.
        finished: Whether the file says that the run has ended; W&B writes this a moment after ``finish`` returns.
    """

    id: str = ""
    name: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    finished: bool = False


def read_wandb_file(file: Path) -> WandbRun:
    """Read one ``.wandb`` file, also of a run that was killed.

    Raises:
        ConfigurationError: the file is not one, or damaged.
    """
    from wandb.proto import wandb_internal_pb2 as protobuf

    run = WandbRun()
    for message in _messages(file):
        record = protobuf.Record.FromString(message)  # type: ignore[attr-defined]  # made at run time
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name, run.project = record.run.run_id, record.run.display_name, record.run.project
            run.config |= _values(record.run.config.update)
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "history":
            row = _numbers(_values(record.history.item))
            run.rows.append(row)
            run.summary |= row
        elif kind == "summary":
            run.summary |= _numbers(_values(record.summary.update))
        elif kind == "exit":
            run.finished = True
    run.config.pop("_wandb", None)
    return run


def _messages(file: Path) -> Iterator[bytes]:
    content = file.read_bytes()
    if not content.startswith(_MAGIC):
        raise ConfigurationError(f"{file} is no file of a W&B run: it does not begin with {_MAGIC.decode()}")
    position, message = _HEADER_BYTES, b""
    while position + _CHUNK.size <= len(content):
        if (left := _BLOCK_BYTES - position % _BLOCK_BYTES) < _CHUNK.size:
            position += left  # the rest of a block that holds no header is padding
            continue
        checksum, length, kind = _CHUNK.unpack_from(content, position)
        position += _CHUNK.size
        chunk = content[position : position + length]
        if len(chunk) < length:
            return  # the run was killed as it wrote this
        if zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum:
            raise ConfigurationError(f"{file} is damaged at byte {position}")
        position += length
        message += chunk
        if kind in (_FULL, _LAST):
            yield message
            message = b""


def _values(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not key.startswith("_")
    }
