"""The smartphone recordings of UCI HAR, from the public archive's folders or from one ``.npz`` file of streams."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_efficient.datamodules._files import damaged, find_npz, read_npz
from lightning_efficient.errors import ConfigurationError, DataNotFoundError

STEPS = 128
"""Steps per window: 2.56 s at 50 Hz."""

CHANNELS = tuple(f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")

ACTIVITIES = ("walking", "walking_upstairs", "walking_downstairs", "sitting", "standing", "laying")
"""In the order of the archive's labels 1 to 6."""

FOLDER = "UCI HAR Dataset"

Part = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Windows:
    """One part of the archive.

    Attributes:
        values: Accelerations in g and angular velocities in rad/s, shape ``(N, 128, 9)``, float32.
        activity: 0 to 5, shape ``(N,)``, int64.
        subject: Who was recorded, shape ``(N,)``, int64.
    """

    values: NDArray[np.float32]
    activity: NDArray[np.int64]
    subject: NDArray[np.int64]


def find_source(root: Path) -> Path:
    """Return the archive's folder or the ``.npz`` file in ``root``.

    Raises:
        DataNotFoundError: neither is there.
    """
    for folder in (root, root / FOLDER):
        if (folder / "train" / "y_train.txt").is_file():
            return folder
    path = find_npz(root)
    if path is None:
        raise DataNotFoundError(
            f"there are no recordings in '{root}': point --data.root at the unpacked archive, the folder that holds "
            f"'{FOLDER}/train/Inertial Signals/{CHANNELS[0]}_train.txt' and the rest, or at the folder of an .npz(.xz) "
            "file of its streams"
        )
    return path


def read_windows(source: Path) -> dict[Part, Windows]:
    """Read both parts from what :func:`find_source` returned.

    Raises:
        ConfigurationError: a file is damaged.
    """
    if source.is_dir():
        return {part: _check(source / part, _from_folder(source / part, part)) for part in ("train", "test")}
    names = [f"{name}_{part}" for name in ("diff", "start", "y", "subject") for part in ("train", "test")]
    arrays = read_npz(source, [*names, "scale"])
    return {part: _check(source, _from_streams(source, arrays, part)) for part in ("train", "test")}


def _from_folder(folder: Path, part: Part) -> Windows:
    signals = [_numbers(folder / "Inertial Signals" / f"{channel}_{part}.txt", np.float32) for channel in CHANNELS]
    labels, subject = (_numbers(folder / f"{name}_{part}.txt", np.int64).ravel() for name in ("y", "subject"))
    if len({signal.shape for signal in signals}) != 1:
        raise damaged(folder / "Inertial Signals", "the nine signals have different sizes")
    return Windows(np.stack(signals, axis=-1), labels - 1, subject)


def _numbers(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    if not path.is_file():
        raise ConfigurationError(f"'{path}' is missing; unpack the whole archive, or point --data.root elsewhere")
    try:
        return np.loadtxt(path, dtype=dtype, ndmin=2)
    except (ValueError, OSError) as error:
        raise damaged(path, error) from error


def _from_streams(path: Path, arrays: dict[str, NDArray[Any]], part: Part) -> Windows:
    # Windows overlap by half, so they are stored once, as differences in whole steps of `scale`.
    streams = np.cumsum(arrays[f"diff_{part}"], axis=1, dtype=np.int16).T
    positions = arrays[f"start_{part}"][:, None].astype(np.int64) + np.arange(STEPS)
    if positions.size and not 0 <= positions.min() <= positions.max() < len(streams):
        raise damaged(path, f"start_{part} points beyond diff_{part}")
    values = streams[positions] * np.float32(arrays["scale"])
    return Windows(values, arrays[f"y_{part}"].astype(np.int64), arrays[f"subject_{part}"].astype(np.int64))


def _check(path: Path, windows: Windows) -> Windows:
    count = len(windows.activity)
    if not count or windows.values.shape != (count, STEPS, len(CHANNELS)) or windows.subject.shape != (count,):
        raise damaged(path, f"{windows.values.shape} values, {count} labels and {len(windows.subject)} subjects")
    if not 0 <= windows.activity.min() <= windows.activity.max() < len(ACTIVITIES):
        raise damaged(path, f"labels go from {windows.activity.min()} to {windows.activity.max()}")
    return windows
