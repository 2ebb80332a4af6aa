"""Outputs of a frozen network, one row per sample, kept on disk so that each is computed once."""

from __future__ import annotations

import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice

_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16}
_CHECKS = "checks"
_MOST_OPEN = 4
_DAMAGE = (OSError, ValueError, TypeError, SyntaxError, OverflowError, EOFError, TokenError)
"""What numpy raises on the header of a damaged file, or where the file is shorter than it says."""


@dataclass(frozen=True)
class _Stream:
    """The files of one stream, mapped for reading; ``checks`` holds 0 for a row without outputs."""

    folder: Path
    columns: dict[str, np.memmap]
    checks: np.memmap


class OutputStore:
    """Keep what a frozen network said of each sample, and return it when the sample comes again.

    Samples are addressed by the keys of ``ShuffledSampler``, ``stream * rows + index``. Each stream is a folder of its
    own with one sparse ``.npy`` file per column, made when its first rows are put. A caller whose
    samples never change passes ``key % rows`` and fills stream 0 alone.

    Several processes may read and write one folder at the same time, and a process may be killed at any moment: a row
    counts once its values are written, by a checksum of them, and one that does not match is not returned. Reading
    costs a copy of the rows and their checksum, about a millisecond for a megabyte. Instances can be pickled and
    survive a fork.

    Args:
        folder: Where the outputs are; made when it is not there.
        columns: Shape of one sample's output by name, such as ``{"logits": (10,)}``.
        rows: Number of samples.
        dtype: How values are kept: ``float32``, or ``float16`` for half the disk and three significant digits.
        streams: How many streams the disk must have room for, such as the number of epochs with augmentation.

    Raises:
        ConfigurationError: an option cannot work, the folder holds outputs of another shape or a damaged file, or the
            disk has no room for all rows.

    Example:
        >>> from tempfile import mkdtemp
        >>> store = OutputStore(Path(mkdtemp()), {"logits": (2,)}, rows=5)
        >>> keys = torch.tensor([3, 1])
        >>> store.get(keys) is None
        True
        >>> store.put(keys, {"logits": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
        >>> store.get(keys.flip(0))["logits"].tolist(), store.filled
        ([[3.0, 4.0], [1.0, 2.0]], 2)
    """

    def __init__(
        self,
        folder: Path,
        columns: Mapping[str, tuple[int, ...]],
        rows: int,
        *,
        dtype: Literal["float32", "float16"] = "float32",
        streams: int = 1,
    ) -> None:
        check_choice("dtype", dtype, _DTYPES)
        for option, given in (("rows", rows), ("streams", streams)):
            if given < 1:
                raise ConfigurationError(f"{option}={given!r} must be at least 1.")
        for name, shape in columns.items():
            if not name.isidentifier() or name == _CHECKS or any(size < 1 for size in shape):
                raise ConfigurationError(
                    f"columns has {name!r}: {tuple(shape)}; give names that are words, not {_CHECKS!r}, and sizes "
                    "of 1 or more."
                )
        if not columns:
            raise ConfigurationError("columns is empty; name at least one output, such as {'logits': (10,)}.")
        self.folder = Path(folder).absolute()
        self.columns = {name: tuple(columns[name]) for name in sorted(columns)}
        self.rows = rows
        self.dtype = dtype
        self.streams = streams
        self._open: dict[int, _Stream] = {}
        self._stopped = False
        self._make_folder()
        self._check_disk()

    @property
    def nbytes(self) -> int:
        """Bytes that all ``streams`` take when they are full."""
        return self.streams * self.rows * self._row_bytes

    @property
    def filled(self) -> int:
        """How many rows of all streams have outputs."""
        return sum(int(np.count_nonzero(self._opened(number).checks)) for number in self._numbers())

    def get(self, keys: Tensor) -> dict[str, Tensor] | None:
        """Return the outputs of these samples, or ``None`` unless all are there.

        Args:
            keys: Shape ``(N,)``, int64.

        Returns:
            Copies on the CPU by column, shape ``(N, *shape)``, float32.

        Raises:
            ConfigurationError: a file is damaged.
        """
        found = {name: np.empty((len(keys), *shape), np.float32) for name, shape in self.columns.items()}
        for number, places, rows in self._by_stream(keys):
            if number not in self._open and not self._folder_of(number).is_dir():
                return None
            stream = self._opened(number)
            checks = stream.checks[rows]
            if not checks.all():
                return None
            values = {name: column[rows] for name, column in stream.columns.items()}
            if not np.array_equal(_checksums(values), checks):
                return None
            for name, value in values.items():
                found[name][places] = value
        return {name: torch.from_numpy(value) for name, value in found.items()}

    def put(self, keys: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Keep the outputs of these samples. A disk that is full costs one warning, and nothing more is kept.

        Args:
            keys: Shape ``(N,)``, int64.
            outputs: One tensor per column, shape ``(N, *shape)``, any float dtype and device.

        Raises:
            ConfigurationError: the outputs are not those of ``columns``, or a value is too large for ``float16``.
        """
        values = self._converted(len(keys), outputs)
        if self._stopped:
            return
        try:
            for number, places, rows in self._by_stream(keys):
                self._write(number, rows, {name: value[places] for name, value in values.items()})
        except OSError as error:
            self._stopped = True
            reason = error.strerror or type(error).__name__
            warnings.warn(
                f"outputs are no longer stored in '{self.folder}' ({reason}); those stored so far are still used",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped files out; a copy opens them anew."""
        return {**self.__dict__, "_open": {}}

    @property
    def _row_bytes(self) -> int:
        values = sum(prod(shape) for shape in self.columns.values())
        return values * np.dtype(self.dtype).itemsize + np.dtype(np.uint32).itemsize

    def _folder_of(self, number: int) -> Path:
        return self.folder / f"stream-{number}"

    def _numbers(self) -> list[int]:
        names = (path.name.removeprefix("stream-") for path in self.folder.glob("stream-*"))
        return [int(name) for name in names if name.isdecimal()]

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"'{self.folder}' cannot hold outputs ({error.strerror}); choose another folder"
            raise ConfigurationError(message) from error

    def _check_disk(self) -> None:
        needed = self.nbytes - self.filled * self._row_bytes
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ConfigurationError(
                f"the outputs of {self.streams} x {self.rows} samples need {needed} more bytes, and '{self.folder}' "
                f"has {free} bytes free; free some or choose another folder"
            )

    def _by_stream(self, keys: Tensor) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.int64]]]:
        streams, rows = np.divmod(keys.detach().cpu().numpy(), self.rows)
        if (streams < 0).any():
            raise ConfigurationError(f"keys has {int(keys.min())}; keys are 0 or more.")
        for number in np.unique(streams):
            places = streams == number
            yield int(number), places, rows[places]

    def _converted(self, count: int, outputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        given = {name: tuple(value.shape) for name, value in outputs.items()}
        expected = {name: (count, *shape) for name, shape in self.columns.items()}
        if given != expected:
            raise ConfigurationError(f"outputs has the shapes {given}; the store holds {expected}.")
        values = {name: outputs[name].detach().to("cpu", torch.float32).numpy() for name in self.columns}
        with np.errstate(over="ignore"):
            kept = {name: np.ascontiguousarray(value, _DTYPES[self.dtype]) for name, value in values.items()}
        for name, value in kept.items():
            if (np.isinf(value) & np.isfinite(values[name])).any():
                raise ConfigurationError(f"outputs has a value in {name!r} beyond {self.dtype}; use dtype='float32'.")
        return kept

    def _opened(self, number: int) -> _Stream:
        if number not in self._open:
            while len(self._open) >= _MOST_OPEN:
                del self._open[next(iter(self._open))]
            self._open[number] = self._mapped(self._folder_of(number))
        return self._open[number]

    def _files(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        files = {name: ((self.rows, *shape), np.dtype(self.dtype)) for name, shape in self.columns.items()}
        return {**files, _CHECKS: ((self.rows,), np.dtype(np.uint32))}

    def _mapped(self, folder: Path) -> _Stream:
        files = self._files()
        names = {path.stem for path in folder.glob("*.npy")}
        if different := sorted(names ^ set(files)):
            raise self._refused(f"'{different[0]}' is in one only of the columns asked for and of '{folder}'")
        arrays: dict[str, np.memmap] = {}
        for name, (shape, dtype) in files.items():
            path = folder / f"{name}.npy"
            try:
                array = open_memmap(path, mode="r")
            except _DAMAGE as error:
                raise self._refused(f"'{path}' is damaged") from error
            if (array.shape, array.dtype, array.flags.c_contiguous) != (shape, dtype, True):
                raise self._refused(f"'{path}' has {array.dtype} {array.shape}, not {dtype} {shape}")
            arrays[name] = array
        checks = arrays.pop(_CHECKS)
        return _Stream(folder, arrays, checks)

    def _refused(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"{reason}; delete the folder '{self.folder}' or choose another")

    def _create(self, number: int) -> None:
        # Made under another name: the rename is atomic, and where several processes are at it, the first one wins.
        target, partial = self._folder_of(number), self.folder / f".new-{uuid4().hex}"
        try:
            partial.mkdir(parents=True)
            for name, (shape, dtype) in self._files().items():
                open_memmap(partial / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, number: int, rows: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        if number not in self._open and not self._folder_of(number).is_dir():
            self._create(number)
        stream = self._opened(number)
        for name, column in stream.columns.items():
            _write_rows(stream.folder / f"{name}.npy", column, rows, values[name])
        _write_rows(stream.folder / f"{_CHECKS}.npy", stream.checks, rows, _checksums(values))


def _write_rows(path: Path, mapped: np.memmap, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
    # Not through the mapping: on a full disk that would kill the process, and here it raises.
    size = prod(mapped.shape[1:]) * mapped.dtype.itemsize
    with path.open("r+b") as file:
        for row, value in zip(rows.tolist(), values, strict=True):
            file.seek(mapped.offset + row * size)
            file.write(value.tobytes())


def _checksums(values: Mapping[str, NDArray[Any]]) -> NDArray[np.uint32]:
    """Return one number above 0 per row, of the bytes of all columns."""
    columns = [values[name] for name in sorted(values)]
    sums = np.zeros(len(columns[0]), np.uint32)
    for row in range(len(sums)):
        crc = 0
        for column in columns:
            crc = zlib.crc32(column[row].tobytes(), crc)
        sums[row] = crc or 1
    return sums
