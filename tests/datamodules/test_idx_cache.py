from __future__ import annotations

from pathlib import Path

import pytest
from torchvision.datasets import FashionMNIST

from lightning_efficient.datamodules._idx_cache import default_cache_dir, unpacked_root
from lightning_efficient.errors import ConfigurationError


@pytest.fixture
def unpack(fashion_root, tmp_path):
    return lambda: unpacked_root(fashion_root, "FashionMNIST", FashionMNIST.resources, tmp_path / "cache")


def test_files_that_are_there_already_are_not_unpacked_again(unpack):
    labels = unpack() / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte"
    before = labels.stat().st_mtime_ns
    unpack()
    assert labels.stat().st_mtime_ns == before


def test_unpacked_files_in_the_root_are_preferred(unpack, fashion_root, tmp_path):
    for archive in (fashion_root / "FashionMNIST" / "raw").glob("*.gz"):
        archive.with_suffix("").write_bytes(b"unpacked")
    assert unpack() == fashion_root
    assert not (tmp_path / "cache").exists()


def test_an_altered_archive_is_refused_and_leaves_nothing_behind(unpack, fashion_root, tmp_path):
    archive = fashion_root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(ConfigurationError, match=r"train-images-idx3-ubyte.gz is damaged \(its md5 is not"):
        unpack()
    assert not any((tmp_path / "cache").rglob("train-images*"))


def test_an_archive_that_cannot_be_unpacked_leaves_nothing_behind(unpack, fashion_root, tmp_path, monkeypatch):
    archive = fashion_root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-20])
    monkeypatch.setattr("lightning_efficient.datamodules._idx_cache.check_integrity", lambda path, md5: True)
    with pytest.raises(ConfigurationError, match="cannot be unpacked into"):
        unpack()
    assert not any((tmp_path / "cache").rglob("train-images*"))


def test_cache_follows_the_desktop_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "lightning-efficient"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "lightning-efficient"
