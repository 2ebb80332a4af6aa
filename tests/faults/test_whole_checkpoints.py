"""A checkpoint is written whole or not at all, wherever the folder for temporary files is."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from lightning_efficient._checkpoint_io import WholeCheckpointIO, write_whole_checkpoints


def trainer(**options: Any) -> L.Trainer:
    return L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **options)


def test_no_folder_for_temporary_files_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # from there, Lightning's own copies a checkpoint byte by byte if it lies on another disk
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    file = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(FileNotFoundError):
        TorchCheckpointIO().save_checkpoint({"epoch": 1}, file)
    WholeCheckpointIO().save_checkpoint({"epoch": 1}, file)
    assert WholeCheckpointIO().load_checkpoint(file, weights_only=True) == {"epoch": 1}
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]


def test_what_was_there_stays_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"epoch": 1}, file)
    write = Path.write_bytes

    def half(path: Path, data: memoryview) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        WholeCheckpointIO().save_checkpoint({"epoch": 2}, file)
    assert torch.load(file, weights_only=True) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_an_address_is_left_to_lightning() -> None:
    WholeCheckpointIO().save_checkpoint({"epoch": 3}, "memory://whole/last.ckpt")
    assert WholeCheckpointIO().load_checkpoint("memory://whole/last.ckpt", weights_only=True) == {"epoch": 3}


def test_a_trainer_gets_it_unless_it_was_given_another() -> None:
    plain = trainer()
    write_whole_checkpoints(plain)
    assert isinstance(plain.strategy.checkpoint_io, WholeCheckpointIO)
    own = AsyncCheckpointIO()
    given = trainer(plugins=[own])
    write_whole_checkpoints(given)
    assert given.strategy.checkpoint_io is own
