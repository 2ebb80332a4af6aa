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
        steps: W&B's own count of those calls, one for each row.
        media: Tables and pictures by key, as W&B describes them, in the order in which they were logged.
        summary: The last value of each key, or what the run wrote there.
        finished: Whether the file says that the run has ended; W&B writes this a moment after ``finish`` returns.
        exit_code: Of the process, if the run has ended.
        started: Seconds since 1970.
        seconds: From the start to the last row that was logged, or to the end.
        machine: System, Python and processor, as far as the file tells.
    """

    id: str = ""
    name: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    media: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    finished: bool = False
    exit_code: int | None = None
    started: float | None = None
    seconds: float = 0.0
    machine: dict[str, str] = field(default_factory=dict)


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
            run.started = record.run.start_time.seconds + record.run.start_time.nanos / 1e9 or None
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "history":
            values, media = _without_media(record.history.item)
            row = _numbers(values)
            run.rows.append(row)
            run.steps.append(float(values.get("_step", len(run.steps))))
            run.summary |= row
            run.seconds = float(values.get("_runtime") or run.seconds)
            for key, each in media.items():
                run.media.setdefault(key, []).append(each)
        elif kind == "summary":
            run.summary |= _numbers(_values(record.summary.update))
        elif kind == "exit":
            run.finished, run.exit_code = True, record.exit.exit_code
            run.seconds = max(run.seconds, float(record.exit.runtime))
        elif kind == "environment":
            run.machine |= _machine(record.environment)
    run.config = {key: value for key, value in run.config.items() if key.split("/")[0] != "_wandb"}
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


def _without_media(items: Iterable[Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return values, and apart from them what describes a table or a picture, which comes as several items."""
    parts: dict[str, dict[str, Any]] = {}
    for item in items:
        outer = "/".join(item.nested_key[:-1])
        parts.setdefault(outer, {})[item.key or item.nested_key[-1]] = json.loads(item.value_json)
    media = {key: part for key, part in parts.items() if key and "_type" in part}
    values = {
        f"{key}/{name}" if key else name: value
        for key, part in parts.items()
        if key not in media
        for name, value in part.items()
    }
    return values, media


def _machine(environment: Any) -> dict[str, str]:
    found = {"system": environment.os, "python": environment.python, "processor": environment.cpu.model}
    return {key: str(value) for key, value in found.items() if value}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not key.startswith("_")
    }
