"""Pickles of public value objects, and files beside checkpoints, of earlier minor versions: they say what they said."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import objects
import pytest
import torch
from kept import SETS, by_newer_torch, needs, read
from make_fixtures import FILES, NEEDS

READERS = [(kind, reader) for kind, (_, readers) in FILES.items() for reader in readers]
OF_TORCH = ("export_of_torch", "quantized")
"""Graphs of torch.export, which an older torch cannot read."""

every_set = pytest.mark.parametrize("kept", SETS, ids=[kept.name for kept in SETS])
every_pickle = pytest.mark.parametrize(
    "file",
    [
        pytest.param(path, id=f"{kept.name}-{path.stem}")
        for kept in SETS
        for path in sorted(kept.glob("pickles/*.pickle"))
    ],
)


def assert_says(found: Any, recorded: Any, where: str) -> None:
    """Compare with what was recorded; entries that were not yet there do not count."""
    if isinstance(recorded, Mapping):
        assert isinstance(found, Mapping), where
        for name, value in recorded.items():
            assert name in found, f"{where}.{name}"
            assert_says(found[name], value, f"{where}.{name}")
    elif isinstance(recorded, list):
        assert isinstance(found, list), where
        assert len(found) == len(recorded), where
        for number, value in enumerate(recorded):
            assert_says(found[number], value, f"{where}[{number}]")
    elif isinstance(recorded, float):
        assert found == pytest.approx(recorded, rel=1e-4, abs=1e-5), where
    else:
        assert found == recorded, where


@every_pickle
def test_a_pickled_object_says_what_it_said(file: Path) -> None:
    recorded = read(file.with_name("expected.json"))["objects"][file.stem]
    assert_says(objects.observe(pickle.loads(file.read_bytes())), recorded, file.stem)


@every_set
def test_every_object_that_was_recorded_is_kept(kept: Path) -> None:
    recorded = set(read(kept / "pickles" / "expected.json")["objects"])
    assert {path.stem for path in kept.glob("pickles/*.pickle")} == recorded
    assert recorded


@every_set
@pytest.mark.parametrize(("kind", "reader"), READERS)
def test_a_file_beside_a_checkpoint_holds_what_it_held(kept: Path, kind: str, reader: str, tmp_path: Path) -> None:
    folder = kept / "files" / kind
    recorded = read(folder / "expected.json")
    if f"files/{kind}" in NEEDS:
        needs(NEEDS[f"files/{kind}"])
    if reader in OF_TORCH and by_newer_torch(folder):
        pytest.skip(f"written with torch {recorded['written_with']['torch']}, and this is {torch.__version__}")
    shutil.copytree(folder, tmp_path / "files")
    assert_says(FILES[kind][1][reader](tmp_path / "files"), recorded[reader], kind)
