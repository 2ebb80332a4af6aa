"""What is put comes back bit for bit, from any process, after any kill; what cannot be trusted does not."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.output_store import OutputStore

COLUMNS = {"logits": (3,), "map": (2, 2, 2), "score": ()}
ROWS = 40
FORK = multiprocessing.get_context("fork")


def outputs_of(keys: Tensor) -> dict[str, Tensor]:
    """Outputs that follow from the key alone, as those of a frozen network do."""
    base = keys.double().remainder(1009)[:, None] + torch.arange(8) / 10
    return {
        "logits": base[:, :3].float().sin(),
        "map": base.float().cos().reshape(-1, 2, 2, 2),
        "score": base[:, 0].float(),
    }


def store_in(folder: Path, **options) -> OutputStore:
    return OutputStore(**{"folder": folder / "outputs", "columns": COLUMNS, "rows": ROWS, **options})


def assert_holds(store: OutputStore, keys: Tensor) -> None:
    found, expected = store.get(keys), outputs_of(keys)
    assert found is not None
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype is torch.float32
        assert torch.equal(found[name], value), name


@settings(max_examples=25, deadline=None)
@given(
    puts=st.lists(st.lists(st.integers(0, 6 * 13 - 1), min_size=1, max_size=8), max_size=5),
    wanted=st.lists(st.integers(0, 6 * 13 - 1), max_size=6),
)
def test_exactly_what_was_put_is_found(puts: list[list[int]], wanted: list[int]) -> None:
    with TemporaryDirectory() as folder:
        store = store_in(Path(folder), rows=13)
        for keys in puts:
            store.put(torch.tensor(keys), outputs_of(torch.tensor(keys)))
        stored = {key for keys in puts for key in keys}
        for each in (store, store_in(Path(folder), rows=13)):
            assert each.filled == len(stored)
            keys = torch.tensor(wanted, dtype=torch.int64)
            if set(wanted) <= stored:
                assert_holds(each, keys)
            else:
                assert each.get(keys) is None


def test_each_stream_is_a_folder_that_is_made_with_its_first_rows(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert list(store.folder.iterdir()) == []
    far = (2**32 - 1) * ROWS + 7
    keys = torch.tensor([3, ROWS + 3, far])
    store.put(keys, outputs_of(keys))
    assert {path.name for path in store.folder.iterdir()} == {"stream-0", "stream-1", f"stream-{2**32 - 1}"}
    assert np.array_equal(np.load(store.folder / "stream-1" / "logits.npy")[3], outputs_of(keys)["logits"][1].numpy())
    assert_holds(store, keys)
    assert store.get(torch.tensor([2 * ROWS + 3])) is None


def test_the_returned_tensors_are_copies_also_of_more_streams_than_stay_open(tmp_path: Path) -> None:
    store, keys = store_in(tmp_path), torch.arange(12) * ROWS + 5
    store.put(keys, outputs_of(keys))
    for value in store.get(keys).values():
        value.zero_()
    assert_holds(store, keys)


def test_outputs_with_a_graph_and_of_other_precisions_are_kept(tmp_path: Path) -> None:
    store = store_in(tmp_path, columns={"logits": (2,)})
    store.put(torch.tensor([1]), {"logits": torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16, requires_grad=True)})
    assert store.get(torch.tensor([1]))["logits"].tolist() == [[0.5, 2.0]]


def test_half_precision_halves_the_values_and_rounds_them(tmp_path: Path) -> None:
    whole, half = store_in(tmp_path / "whole"), store_in(tmp_path / "half", dtype="float16")
    keys = torch.arange(ROWS)
    half.put(keys, outputs_of(keys))
    assert (whole.nbytes, half.nbytes) == (ROWS * (12 * 4 + 4), ROWS * (12 * 2 + 4))
    for name, value in half.get(keys).items():
        assert torch.equal(value, outputs_of(keys)[name].half().float())
    with pytest.raises(ConfigurationError, match="'logits' beyond float16; use dtype='float32'"):
        half.put(keys[:1], outputs_of(keys[:1]) | {"logits": torch.full((1, 3), 1e5)})


def test_a_pickled_store_opens_its_files_anew(tmp_path: Path) -> None:
    store, keys = store_in(tmp_path), torch.arange(6)
    store.put(keys, outputs_of(keys))
    content = pickle.dumps(store)
    assert len(content) < 2000
    copy = pickle.loads(content)
    assert_holds(copy, keys)
    copy.put(keys + 6, outputs_of(keys + 6))
    assert_holds(store, keys + 6)


def fill(store: OutputStore, keys: Tensor, barrier) -> None:
    barrier.wait()
    for part in keys.split(5):
        store.put(part, outputs_of(part))
    assert store.get(keys) is not None


def test_processes_that_make_the_folders_at_the_same_time_fill_one_store(tmp_path: Path) -> None:
    store, barrier = store_in(tmp_path), FORK.Barrier(4)
    keys = torch.randperm(3 * ROWS)
    writers = [FORK.Process(target=fill, args=(store, part, barrier)) for part in keys.chunk(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert_holds(store, keys)
    assert {path.name for path in store.folder.iterdir()} == {"stream-0", "stream-1", "stream-2"}


def write_forever(store: OutputStore) -> None:
    for stream in range(10**6):
        keys = stream * ROWS + torch.arange(ROWS)
        store.put(keys, outputs_of(keys))


def test_a_killed_writer_leaves_a_usable_store(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    writer = FORK.Process(target=write_forever, args=(store,))
    writer.start()
    while store.filled < ROWS and writer.is_alive():
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    again = store_in(tmp_path)
    assert again.filled >= ROWS
    last = len(list(again.folder.glob("stream-*"))) + 1
    for key in range(last * ROWS):
        one = torch.tensor([key])
        if again.get(one) is not None:
            assert_holds(again, one)
    keys = torch.arange(last * ROWS)
    again.put(keys, outputs_of(keys))
    assert_holds(again, keys)


def test_a_row_whose_bytes_were_lost_is_not_returned_and_can_be_put_again(tmp_path: Path) -> None:
    store, keys = store_in(tmp_path), torch.arange(4)
    store.put(keys, outputs_of(keys))
    column = np.load(store.folder / "stream-0" / "map.npy", mmap_mode="r+")
    column[2] = 0
    assert store.get(keys) is None
    assert_holds(store, torch.tensor([0, 1, 3]))
    store.put(keys[2:3], outputs_of(keys[2:3]))
    assert_holds(store, keys)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": ROWS + 1},
        {"columns": {**COLUMNS, "logits": (4,)}},
        {"columns": {"logits": (3,)}},
        {"columns": {**COLUMNS, "more": ()}},
        {"dtype": "float16"},
    ],
)
def test_a_store_of_another_shape_is_refused_with_the_folder_to_delete(tmp_path: Path, change: dict) -> None:
    store, keys = store_in(tmp_path), torch.arange(4)
    store.put(keys, outputs_of(keys))
    with pytest.raises(ConfigurationError, match=f"delete the folder '{store.folder}'") as caught:
        store_in(tmp_path, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["logits", "checks"])
@pytest.mark.parametrize("kept", [0, 5, 60, 129, -1])
def test_a_file_cut_short_is_refused_and_not_made_longer(tmp_path: Path, name: str, kept: int) -> None:
    store, keys = store_in(tmp_path), torch.arange(4)
    store.put(keys, outputs_of(keys))
    path = store.folder / "stream-0" / f"{name}.npy"
    content = path.read_bytes()[:kept]
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"{name}.npy' is damaged; delete the folder '{store.folder}'"):
        store_in(tmp_path)
    assert path.read_bytes() == content


def test_a_header_with_any_byte_changed_is_refused_or_harmless(tmp_path: Path) -> None:
    store, keys = store_in(tmp_path, columns={"logits": (3,)}), torch.arange(ROWS)
    store.put(keys, {"logits": outputs_of(keys)["logits"]})
    path = store.folder / "stream-0" / "logits.npy"
    content = path.read_bytes()
    for place in range(0, 128, 3):
        for byte in (0, 57, 255):
            path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found = store_in(tmp_path, columns={"logits": (3,)}).get(keys)
                except ConfigurationError as error:
                    assert "\n" not in str(error)  # noqa: PT017
                    continue
            assert found is None or torch.equal(found["logits"], outputs_of(keys)["logits"])


def test_a_disk_that_fills_up_costs_one_warning_and_what_comes_after(tmp_path: Path) -> None:
    store, keys = store_in(tmp_path), torch.arange(4)
    store.put(keys, outputs_of(keys))
    column = store.folder / "stream-0" / "map.npy"
    column.rename(tmp_path / "map.npy")
    column.symlink_to("/dev/full")
    with pytest.warns(UserWarning, match=f"no longer stored in '{store.folder}' .No space left"):
        store.put(keys + 4, outputs_of(keys + 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.put(keys + 8, outputs_of(keys + 8))
    assert_holds(store, keys)
    column.unlink()
    (tmp_path / "map.npy").rename(column)
    assert store.filled == 4
    assert store.get(keys + 4) is None


def test_a_stream_that_cannot_be_made_costs_one_warning(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    shutil.rmtree(store.folder)
    store.folder.write_text("in the way")
    with pytest.warns(UserWarning, match="no longer stored"):
        store.put(torch.tensor([ROWS]), outputs_of(torch.tensor([ROWS])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.put(torch.tensor([0]), outputs_of(torch.tensor([0])))
    assert store.get(torch.tensor([0])) is None


def test_room_is_asked_for_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.arange(ROWS)
    store_in(tmp_path).put(keys, outputs_of(keys))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert store_in(tmp_path).filled == ROWS
    expected = f"3 x {ROWS} samples need {2 * ROWS * 52} more bytes, and .* has 1000 bytes free"
    with pytest.raises(ConfigurationError, match=expected):
        store_in(tmp_path, streams=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows=0 must be at least 1"),
        ({"streams": 0}, "streams=0 must be at least 1"),
        ({"dtype": "float61"}, "dtype='float61' is not one of .* Did you mean 'float16'"),
        ({"columns": {}}, "columns is empty"),
        ({"columns": {"a/b": (1,)}}, "columns has 'a/b'"),
        ({"columns": {"checks": (1,)}}, "columns has 'checks'"),
        ({"columns": {"logits": (0,)}}, r"columns has 'logits': \(0,\)"),
    ],
)
def test_a_useless_option_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        store_in(tmp_path, **options)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("in the way")
    with pytest.raises(ConfigurationError, match="cannot hold outputs"):
        store_in(tmp_path)


def test_outputs_of_other_columns_or_shapes_and_negative_keys_are_refused(tmp_path: Path) -> None:
    store, keys = store_in(tmp_path), torch.arange(4)
    whole = outputs_of(keys)
    for wrong in ({"logits": whole["logits"]}, {**whole, "more": keys}, {**whole, "logits": whole["logits"][:, :2]}):
        with pytest.raises(ConfigurationError, match="outputs has the shapes"):
            store.put(keys, wrong)
    with pytest.raises(ConfigurationError, match="keys has -1"):
        store.get(torch.tensor([3, -1]))
    assert store.filled == 0
