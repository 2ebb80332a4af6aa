"""Tiny stand-ins for the real data sets, in the files that torchvision reads."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, SVHN, FashionMNIST

TRAIN, TEST = 60, 20


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def fashion_root(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 + 20 random garments as idx ``.gz`` files; sample i of a part has class i % 10."""
    raw = tmp_path / "original" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for prefix, count in (("train", TRAIN), ("t10k", TEST)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, header, values in (
            ("images-idx3-ubyte", struct.pack(">IIII", 2051, count, 28, 28), images),
            ("labels-idx1-ubyte", struct.pack(">II", 2049, count), labels),
        ):
            path = raw / f"{prefix}-{kind}.gz"
            path.write_bytes(gzip.compress(header + values.tobytes()))
            resources.append((path.name, _md5(path)))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    return tmp_path / "original"


@pytest.fixture
def cifar_root(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 + 20 random colour images as CIFAR-10 pickles."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, _md5(folder / name)]

    def batch(count: int) -> dict:
        return {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(count)]}

    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(TRAIN // 5)) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(TEST))])
    name, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


@pytest.fixture
def svhn_root(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 + 20 random house numbers as MATLAB files, where the digit 0 has label 10."""
    from scipy.io import savemat

    listed = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        path = tmp_path / f"{split}_32x32.mat"
        pixels = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(path, {"X": pixels, "y": np.arange(count)[:, None] % 10 + 1})
        listed[split] = ["", path.name, _md5(path)]
    monkeypatch.setattr(SVHN, "split_list", listed)
    return tmp_path


@pytest.fixture
def write_folder(tmp_path: Path, rng: np.random.Generator) -> Callable[..., Path]:
    """A function that writes PNG files: ``write_folder(train={"cat": 5, "dog": 4}, ...) -> root``."""

    def write(**parts: dict[str, int]) -> Path:
        for part, classes in parts.items():
            for name, count in classes.items():
                folder = tmp_path / part / name
                folder.mkdir(parents=True)
                for index in range(count):
                    pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{index}.png")
        return tmp_path

    return write
