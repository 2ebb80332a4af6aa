from __future__ import annotations

import io
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_efficient.datamodules.spoken_commands import SpokenCommands
from lightning_efficient.errors import ConfigurationError, DataNotFoundError

CLIPS = 60


def features(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """Sixty clips of 7 frames and 4 bands; every sixth is silence, the others are of ten speakers."""
    rng = np.random.default_rng(0)
    number = np.arange(CLIPS)
    silent = number % 6 == 0
    speaker = np.where(silent, "", np.char.add("s", (number % 10).astype(str)))
    arrays = {
        "x": rng.integers(0, 256, (CLIPS, 7, 4), dtype=np.uint8),
        "scale": np.float32(0.07),
        "offset": np.float32(-13.8),
        "y": np.where(silent, 2, number % 2).astype(np.uint8),
        "speaker": speaker,
        "is_test": np.isin(speaker, ["s8", "s9"]) | (number == 6),
        "classes": np.array(["yes", "no", "_silence_"]),
    }
    arrays["x"][18] = arrays["x"][12]  # two silences that are the same
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def write(path: Path, **changes: np.ndarray | None) -> Path:
    buffer = io.BytesIO()
    np.savez(buffer, **features(**changes))
    content = buffer.getvalue()
    path.write_bytes(lzma.compress(content, preset=0) if path.suffix == ".xz" else content)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "speech").mkdir()
    return write(tmp_path / "speech" / "features.npz.xz")


def positions(data: SpokenCommands, split: str) -> list[int]:
    """Find the clips of a part in the file by their content."""
    stored = [clip.tobytes() for clip in features()["x"]]
    return [stored.index(clip.numpy().tobytes()) for clip in data.datasets[split].samples]


def test_the_marked_clips_are_tested_and_whole_speakers_validate(archive):
    data = SpokenCommands(str(archive), val_fraction=0.3)
    data.setup()
    arrays = features()
    parts = {split: positions(data, split) for split in ("train", "val", "test")}
    assert parts["test"] == np.flatnonzero(arrays["is_test"]).tolist()
    assert sum(len(part) for part in parts.values()) == CLIPS
    speakers = {split: set(arrays["speaker"][part]) - {""} for split, part in parts.items()}
    assert speakers["val"]
    assert speakers["train"]
    assert not speakers["train"] & speakers["val"]
    for split, part in parts.items():
        assert data.datasets[split].target.tolist() == arrays["y"][part].tolist()


def test_silence_is_held_out_by_content():
    arrays = features()
    arrays["x"][arrays["speaker"] == ""] = np.arange(10)[:, None, None] // 5
    path = write(Path("silence.npz"), x=arrays["x"])
    for seed in range(6):
        data = SpokenCommands(str(path), val_fraction=0.5, split_seed=seed)
        data.setup()
        silent = [part.samples[part.target == 2] for part in (data.datasets["train"], data.datasets["val"])]
        contents = [set(part[:, 0, 0].tolist()) for part in silent]
        assert not contents[0] & contents[1]


def test_the_split_follows_its_seed_in_every_process(archive):
    def held_out(**options) -> list[int]:
        data = SpokenCommands(str(archive), val_fraction=0.3, **options)
        data.setup()
        return positions(data, "val")

    assert held_out() == held_out() == [0, 2, 3, 13, 22, 23, 24, 30, 32, 33, 43, 52, 53]
    assert held_out(split_seed=1) != held_out()


def test_each_band_is_standardised_by_the_training_part(archive):
    data = SpokenCommands(str(archive))
    data.setup()
    part = data.datasets["train"]
    inputs = part.__getitems__(range(len(part))).inputs
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs.mean((0, 1)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std((0, 1), correction=0), torch.ones(4), atol=1e-5, rtol=0)


def test_the_unit_of_the_file_does_not_matter(archive):
    arrays = features()
    decoded = write(Path("decoded.npz"), x=arrays["x"] * arrays["scale"] + arrays["offset"])
    one, other = SpokenCommands(str(archive)), SpokenCommands(str(decoded))
    for data in (one, other):
        data.setup()
    torch.testing.assert_close(other.datasets["test"][5].inputs, one.datasets["test"][5].inputs, atol=1e-4, rtol=0)


def test_a_silent_band_stays_finite():
    clips = features()["x"]
    clips[..., 1] = 0
    data = SpokenCommands(str(write(Path("quiet.npz"), x=clips)))
    data.setup()
    assert data.datasets["train"][0].inputs[:, 1].eq(0).all()


def test_shapes_and_names_are_known_before_setup(archive):
    data = SpokenCommands(str(archive.parent), batch_size=5)
    assert (data.num_classes, data.class_names) == (3, ["yes", "no", "_silence_"])
    assert (data.input_shape, data.input_size) == ((7, 4), 4)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch.inputs.shape, batch.target.dtype) == ((5, 7, 4), torch.int64)


def test_a_missing_file_names_the_option_and_the_arrays(tmp_path):
    message = r"no spoken commands in '.*': point --data.root at an .npz or .npz.xz file that holds the arrays x, y,"
    with pytest.raises(DataNotFoundError, match=message):
        SpokenCommands(str(tmp_path)).prepare_data()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speaker": None}, "speaker"),
        ({"y": np.zeros(59, np.uint8)}, r"x must be \(N, T, F\)"),
        ({"x": np.zeros((60, 4), np.uint8)}, r"x must be \(N, T, F\)"),
        ({"y": np.full(60, 3, np.uint8)}, "y must count the 3 classes from 0"),
    ],
)
def test_a_file_that_does_not_fit_is_reported_in_one_line(changes, message):
    path = write(Path("odd.npz"), **changes)
    with pytest.raises(ConfigurationError, match=f"odd.npz' is incomplete or damaged .*{message}") as caught:
        SpokenCommands(str(path)).setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 100, -20])
def test_a_file_cut_short_is_reported_in_one_line(archive, size):
    archive.write_bytes(archive.read_bytes()[:size])
    with pytest.raises(ConfigurationError, match="is incomplete or damaged") as caught:
        SpokenCommands(str(archive)).setup()
    assert "\n" not in str(caught.value)


def test_a_fraction_that_holds_out_nobody_or_everybody_is_refused(archive):
    with pytest.raises(ConfigurationError, match=r"val_fraction is 0; it must lie in \(0, 1\)"):
        SpokenCommands("anywhere", val_fraction=0)
    with pytest.raises(ConfigurationError, match="val_fraction holds out 0 of 16 groups"):
        SpokenCommands(str(archive), val_fraction=0.01).setup()
