"""Whatever file comes in, and through whichever door: one line says what is wrong with it, and nothing in it runs."""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hostile import DOORS, EXECUTED, PAYLOADS, Door, hostile_graphs, saved

from lightning_efficient.cli.main import main
from lightning_efficient.errors import ConfigurationError

FOREIGN = {
    "empty": b"",
    "one byte": b"\x80",
    "text": b"no such thing",
    "zeros": bytes(4096),
    "JSON": b'{"schema": 1, "format": 3, "config": [1, 2]}',
    "a list": b"[1, 2, 3]",
    "deep": b"[" * 5000,
    "another checkpoint": saved({"a": torch.ones(3), "b": [1, 2]}),
    "no mapping": saved([1, 2]),
    "archive": saved({}),
    "bytes": bytes(range(256)) * 20,
}
"""Files of the wrong kind, for every door."""
TEXTS = ("search space", "config.yaml of a run", "metrics.csv of a run", "profile.json of a run")
"""Doors to which some of these are no mistake: a text is what it says."""


def by_name(door: Door) -> str:
    return door.name


@pytest.fixture(scope="module")
def made() -> Iterator[Callable[[Door], tuple[Path, Path]]]:
    """``made(door) -> (folder, file)``: a good file, written once."""
    with tempfile.TemporaryDirectory() as root:

        @functools.cache
        def make(door: Door) -> tuple[Path, Path]:
            folder = Path(tempfile.mkdtemp(dir=root))
            return folder, door.make(folder).relative_to(folder)

        yield make


@pytest.fixture
def own(made: Callable[[Door], tuple[Path, Path]], tmp_path: Path) -> Callable[[Door], Path]:
    """``own(door) -> file``: a copy of the good file, to be broken."""

    def copy(door: Door) -> Path:
        folder, file = made(door)
        shutil.copytree(folder, tmp_path / "files", dirs_exist_ok=True)
        return tmp_path / "files" / file

    return copy


def refused(door: Door, file: Path) -> None:
    """Assert that the file is refused in one line that names it, and that nothing in it was run."""
    with pytest.raises(ConfigurationError) as caught:
        door.read(file)
    message = str(caught.value)
    assert "\n" not in message
    if door.name != "search space":  # that of a key which it has is named by the key
        assert any(place in message for place in (file.name, str(file.parent), str(file.parents[2])))
    assert not Path(EXECUTED).exists()


# ---- that the files are what they are said to be


@pytest.mark.parametrize("door", DOORS, ids=by_name)
def test_a_good_file_is_read(door: Door, own: Callable[[Door], Path]) -> None:
    door.read(own(door))


@pytest.mark.parametrize(
    ("name", "trust"),
    [
        ("pickle", pickle.loads),
        ("checkpoint", lambda content: torch.load(io.BytesIO(content), weights_only=False)),
        ("old checkpoint", lambda content: torch.load(io.BytesIO(content), weights_only=False)),
        ("npy", lambda content: np.load(io.BytesIO(content), allow_pickle=True)),
        ("npz", lambda content: np.load(io.BytesIO(content), allow_pickle=True)["x"]),
        ("yaml", lambda content: yaml.unsafe_load(content)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_hostile_files_run_where_they_are_trusted(name: str, trust: Callable[[bytes], object]) -> None:
    trust(PAYLOADS[name])
    assert Path(EXECUTED).is_dir()


GRAPHS = [door for door in DOORS if door.name in ("quantized .pt2", "exported .pt2")]
FORMS = ["example inputs", "weight", "constant", "second entry of another case"]


@pytest.mark.parametrize("form", FORMS[:3])
def test_the_hostile_graphs_run_where_they_are_trusted(form: str, own: Callable[[Door], Path]) -> None:
    content = hostile_graphs(own(GRAPHS[-1]).read_bytes())[form]
    with contextlib.suppress(Exception):  # what it makes of it afterwards is of no interest
        torch.export.load(io.BytesIO(content))
    assert Path(EXECUTED).is_dir()


# ---- and that they are refused


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("door", DOORS, ids=by_name)
def test_a_hostile_file_is_refused_and_not_run(door: Door, payload: str, own: Callable[[Door], Path]) -> None:
    file = own(door)
    file.write_bytes(PAYLOADS[payload])
    if door.name == "metrics.csv of a run" and payload == "yaml":  # a table of one column
        _in_one_line(door, file)
    else:
        refused(door, file)
    assert not Path(EXECUTED).exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", GRAPHS, ids=by_name)
def test_a_hostile_graph_is_refused_and_not_run(door: Door, form: str, own: Callable[[Door], Path]) -> None:
    file = own(door)
    file.write_bytes(hostile_graphs(file.read_bytes())[form])
    refused(door, file)


@pytest.mark.parametrize("door", [door for door in DOORS if door.torn], ids=by_name)
def test_a_file_that_was_cut_short_is_refused(door: Door, own: Callable[[Door], Path]) -> None:
    file = own(door)
    whole = file.read_bytes().rstrip(b"\n")
    for share in (0.001, 0.1, 0.5, 0.9, 1.0):
        file.write_bytes(whole[: min(int(share * len(whole)), len(whole) - 1)])
        refused(door, file)


@pytest.mark.parametrize("door", DOORS, ids=by_name)
def test_a_file_of_another_kind_is_refused(door: Door, own: Callable[[Door], Path]) -> None:
    file = own(door)
    for name, content in FOREIGN.items():
        file.write_bytes(content)
        if door.name in TEXTS:
            _in_one_line(door, file)
        elif not (door.name == "--ckpt_path" and name in ("another checkpoint", "archive")):  # the Trainer looks inside
            refused(door, file)


def _in_one_line(door: Door, file: Path) -> None:
    """Assert that a file is read, or refused in one line, and that nothing in it was run."""
    with contextlib.suppress(ConfigurationError):
        door.read(file)
        return
    refused(door, file)


def test_a_folder_of_hostile_files_is_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-efficient"])
    for name in (".metadata", "meta.pt"):
        Path("sharded").mkdir(exist_ok=True)
        Path("sharded", name).write_bytes(PAYLOADS["pickle"])
    tiny = str(Path(__file__).with_name("tiny.yaml"))
    assert main(["fit", "--config", "quickstart", "--config", tiny, "--ckpt_path", "sharded"]) == 2
    errors = capsys.readouterr().err
    assert [line for line in errors.splitlines() if line.startswith("error:")] == [
        "error: ckpt_path: 'sharded' is a folder; give the file of a checkpoint in it"
    ]
    assert not Path(EXECUTED).exists()
