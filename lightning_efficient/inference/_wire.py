"""How rows and logits travel between the edge and the server: a short JSON header, then the numbers as they are."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MEDIA_TYPE = "application/x-lightning-efficient"
KEY_VARIABLE = "LIT_SERVER_API_KEY"
"""The environment variable with the key that clients send and servers ask for."""
VERSION = 1
MAX_HEADER_BYTES = 4096

_MAGIC = b"LEFX"
_PREFIX = struct.Struct("<4sHI")  # magic, version, bytes of the header
# little-endian whatever the machine is
_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "uint8": np.dtype("u1")}
_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.uint8: "uint8"}
_ENCODINGS = ("raw", "zlib")


class WireError(ValueError):
    """A message that cannot be used.

    Attributes:
        status: The HTTP status that says why: 400 damaged, 413 too large, 422 not what the model takes.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def pack(tensor: Tensor, *, compress: bool = False, **fields: Any) -> bytes:
    """Return a tensor as a message.

    Args:
        tensor: float32, float16 or uint8, any shape with at least one dimension.
        compress: Whether to compress the numbers by zlib, at its fastest level.
        fields: More entries of the header, of JSON's types.

    Raises:
        WireError: another dtype, or no dimension.

    Example:
        >>> rows, header = unpack(pack(torch.ones(2, 3), note="hello"), max_bytes=1000)
        >>> tuple(rows.shape), rows.dtype, header["note"]
        ((2, 3), torch.float32, 'hello')
    """
    name = _NAMES.get(tensor.dtype)
    if name is None or tensor.ndim == 0:
        raise WireError(f"a {tensor.dtype} tensor of {tensor.ndim} dimensions; only {sorted(_DTYPES)} travel", 422)
    array = tensor.detach().cpu().contiguous().numpy().astype(_DTYPES[name], copy=False)
    numbers = zlib.compress(array.tobytes(), 1) if compress else array.tobytes()
    encoding = "zlib" if compress else "raw"
    header = json.dumps({**fields, "dtype": name, "shape": list(tensor.shape), "encoding": encoding}).encode()
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"the header has {len(header)} bytes; at most {MAX_HEADER_BYTES} travel", 413)
    return _PREFIX.pack(_MAGIC, VERSION, len(header)) + header + numbers


def unpack(body: bytes, *, max_bytes: int) -> tuple[Tensor, dict[str, Any]]:
    """Return the tensor and the header of a message; nothing in it is trusted.

    Args:
        body: What :func:`pack` returned, or anything else.
        max_bytes: Most bytes that the numbers may have, also once decompressed.

    Raises:
        WireError: a message that is damaged, of another version, or too large.
    """
    if len(body) < _PREFIX.size:
        raise WireError(f"the message has {len(body)} bytes and no header; send {MEDIA_TYPE}")
    magic, version, length = _PREFIX.unpack_from(body)
    if magic != _MAGIC:
        raise WireError(f"the message does not begin as {MEDIA_TYPE} does")
    if version != VERSION:
        raise WireError(f"the message has version {version}; this side speaks {VERSION}")
    start = _PREFIX.size + length
    if length > MAX_HEADER_BYTES or start > len(body):
        raise WireError("the header is longer than the message")
    header = _header(body[_PREFIX.size : start])
    dtype, shape = _DTYPES[header["dtype"]], header["shape"]
    if 0 in shape[1:]:  # numpy counts the other sizes of an empty array as well, and they may be too large for it
        raise WireError(f"shape={shape!r:.40} has a 0 beyond the first size", 422)
    expected = math.prod(shape) * dtype.itemsize
    if expected > max_bytes:
        raise WireError(f"the numbers have {expected} bytes; at most {max_bytes} are taken", 413)
    numbers = body[start:] if header["encoding"] == "raw" else _decompressed(body[start:], expected)
    if len(numbers) != expected:
        held = f"{header['dtype']} of shape {tuple(shape)}"
        raise WireError(f"{held} has {expected} bytes, but the message holds {len(numbers)}")
    try:
        array = np.frombuffer(numbers, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=True)
    except ValueError as error:
        raise WireError(f"shape={shape!r:.40} is too large", 422) from error
    return torch.from_numpy(array), header


def check_rows(rows: Tensor, *, shape: Sequence[int], dtype: str, max_rows: int) -> None:
    """Raise unless rows ``(m, *shape)`` can be given to a model: 1 to ``max_rows`` of them, all finite.

    Args:
        rows: What arrived.
        shape: Of one row, such as ``(3, 224, 224)``.
        dtype: ``float32``, for which float16 is taken as well, or ``uint8``.
        max_rows: Most rows of one request.

    Raises:
        WireError: with status 413 for too many rows, else 422.
    """
    given = _NAMES[rows.dtype]
    allowed = ("float32", "float16") if dtype == "float32" else (dtype,)
    if given not in allowed:
        raise WireError(f"the rows are {given}; this model takes {' or '.join(allowed)}", 422)
    if tuple(rows.shape[1:]) != tuple(shape):
        raise WireError(f"a row has shape {tuple(rows.shape[1:])}; this model takes {tuple(shape)}", 422)
    if not rows.shape[0]:
        raise WireError("the request has no rows", 422)
    if rows.shape[0] > max_rows:
        raise WireError(f"the request has {rows.shape[0]} rows; at most {max_rows} are taken", 413)
    if not bool(rows.isfinite().all()):
        bad = int((~rows.isfinite().flatten(1).all(1)).nonzero()[0])
        raise WireError(f"row {bad} holds numbers that are not finite", 422)


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError("the header is no JSON") from error
    if not isinstance(header, dict):
        raise WireError("the header is no JSON object")
    if not isinstance(header.get("dtype"), str) or header["dtype"] not in _DTYPES:
        raise WireError(f"dtype={header.get('dtype')!r:.40} is not one of {sorted(_DTYPES)}", 422)
    if header.get("encoding") not in _ENCODINGS:
        raise WireError(f"encoding={header.get('encoding')!r:.40} is not one of {list(_ENCODINGS)}", 422)
    shape = header.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 8 or not all(_is_size(size) for size in shape):
        raise WireError(f"shape={shape!r:.40} is not a list of 1 to 8 sizes", 422)
    return header


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**31


def _decompressed(numbers: bytes, expected: int) -> bytes:
    """Decompress at most one byte more than expected: a small message may hold terabytes of zeros."""
    stream = zlib.decompressobj()
    try:
        return stream.decompress(numbers, expected + 1)
    except zlib.error as error:
        raise WireError("the numbers are no zlib stream") from error
