from __future__ import annotations

import io
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_efficient.datamodules._uci_har import CHANNELS, find_source, read_windows
from lightning_efficient.datamodules.human_activity import HumanActivity
from lightning_efficient.errors import ConfigurationError, DataNotFoundError

SCALE = np.float32(0.0002)
SIZES = {"train": 18, "test": 6}


def streams() -> dict[str, np.ndarray]:
    """Windows of 128 steps that overlap by half, six training subjects with three each, two test subjects."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"scale": SCALE}
    for part, count in SIZES.items():
        steps = 64 * (count + 1)
        arrays[f"diff_{part}"] = rng.integers(-200, 200, (9, steps)).astype(np.int16)
        arrays[f"start_{part}"] = (64 * np.arange(count)).astype(np.int32)
        arrays[f"y_{part}"] = (np.arange(count) % 6).astype(np.uint8)
        arrays[f"subject_{part}"] = (np.arange(count) // 3 + (1 if part == "train" else 20)).astype(np.uint8)
    return arrays


def windows(arrays: dict[str, np.ndarray], part: str) -> np.ndarray:
    values = np.cumsum(arrays[f"diff_{part}"].astype(np.int64), axis=1) * float(SCALE)
    return np.stack([values[:, start : start + 128].T for start in arrays[f"start_{part}"]])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    buffer = io.BytesIO()
    np.savez(buffer, **streams())
    (tmp_path / "streams").mkdir()
    path = tmp_path / "streams" / "har.npz.xz"
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=0))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arrays = streams()
    root = tmp_path / "unpacked"
    for part in SIZES:
        signals = root / "UCI HAR Dataset" / part / "Inertial Signals"
        signals.mkdir(parents=True)
        values = windows(arrays, part)
        for number, channel in enumerate(CHANNELS):
            np.savetxt(signals / f"{channel}_{part}.txt", values[..., number], fmt=" %.7e")
        np.savetxt(signals.parent / f"y_{part}.txt", arrays[f"y_{part}"] + 1, fmt="%d")
        np.savetxt(signals.parent / f"subject_{part}.txt", arrays[f"subject_{part}"], fmt="%d")
    return root


def raw(data: HumanActivity, split: str) -> np.ndarray:
    part = data.datasets[split]
    inputs = part.__getitems__(range(len(part))).inputs.numpy()
    return inputs * part.prepare.std + part.prepare.mean


def test_streams_and_folders_hold_the_same_windows(archive, folder):
    expected = streams()
    for source in (archive, archive.parent, folder, folder / "UCI HAR Dataset"):
        parts = read_windows(find_source(source))
        for part, size in SIZES.items():
            assert parts[part].values.shape == (size, 128, 9)
            assert parts[part].values.dtype == np.float32
            np.testing.assert_allclose(parts[part].values, windows(expected, part), atol=1e-6)
            assert parts[part].activity.tolist() == expected[f"y_{part}"].tolist()
            assert parts[part].subject.tolist() == expected[f"subject_{part}"].tolist()


def test_validation_holds_whole_training_subjects_and_no_test_window(archive):
    data = HumanActivity(str(archive), val_subjects=[2, 5])
    data.setup()
    train, test = (windows(streams(), part) for part in ("train", "test"))
    held_out = np.isin(streams()["subject_train"], [2, 5])
    np.testing.assert_allclose(raw(data, "val"), train[held_out], atol=1e-5)
    np.testing.assert_allclose(raw(data, "train"), train[~held_out], atol=1e-5)
    np.testing.assert_allclose(raw(data, "test"), test, atol=1e-5)


def test_a_number_of_subjects_is_chosen_by_the_split_seed(archive):
    def chosen(**options) -> list[float]:
        data = HumanActivity(str(archive), val_subjects=2, **options)
        data.setup()
        assert [len(part) for part in data.datasets.values()] == [12, 6, 6]
        return data.datasets["val"].samples[:, 0, 0].tolist()

    torch.manual_seed(5)
    first = chosen()
    torch.manual_seed(6)
    assert chosen() == first
    assert any(chosen(split_seed=seed) != first for seed in (1, 2, 3))


def test_training_windows_have_mean_zero_and_deviation_one_over_all_channels(archive):
    data = HumanActivity(str(archive))
    data.setup()
    part = data.datasets["train"]
    inputs = part.__getitems__(range(len(part))).inputs
    torch.testing.assert_close(inputs.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    per_channel = inputs.mean((0, 1))
    assert per_channel.abs().max() > 0.05


def test_two_classes_group_the_activities(archive):
    six, two = HumanActivity(str(archive)), HumanActivity(str(archive), classes=2)
    for data in (six, two):
        data.setup()
    assert (six.num_classes, two.num_classes) == (6, 2)
    assert two.class_names == ["walking_upstairs+sitting+laying", "walking+walking_downstairs+standing"]
    for split, part in six.datasets.items():
        names = [two.class_names[group] for group in two.datasets[split].target]
        activities = [six.class_names[activity] for activity in part.target]
        assert all(activity in name.split("+") for activity, name in zip(activities, names, strict=True))


def test_noise_is_added_after_standardising_and_belongs_to_the_window(archive):
    clean, noisy = HumanActivity(str(archive)), HumanActivity(str(archive), noise_std=2.0)
    for data in (clean, noisy):
        data.setup()
    for split, part in noisy.datasets.items():
        index = range(len(part))
        noise = part.__getitems__(index).inputs - clean.datasets[split].__getitems__(index).inputs
        assert noise.std().item() == pytest.approx(2.0, rel=0.05)
        assert torch.equal(part[3].inputs, part.__getitems__([1, 3]).inputs[1])
    before = clean.datasets["test"].samples.clone()
    noisy.datasets["test"].__getitems__([0])
    assert torch.equal(noisy.datasets["test"].samples, before)


def test_batches_have_128_steps_of_nine_signals(archive):
    data = HumanActivity(str(archive), batch_size=4)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape == (4, 128, 9) == (4, *data.input_shape)
    assert (batch.target.shape, batch.target.dtype, data.input_size) == ((4,), torch.int64, 9)


def test_missing_recordings_name_the_option_and_the_layout(tmp_path):
    data = HumanActivity(str(tmp_path / "nowhere"))
    for step in (data.prepare_data, data.setup):
        message = r"no recordings in '.*nowhere': point --data.root .*UCI HAR Dataset/train/Inertial Signals/body_acc_x"
        with pytest.raises(DataNotFoundError, match=message):
            step()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def write(path: Path, **changes: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in (streams() | changes).items() if value is not None})
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=0))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "incomplete or damaged"),
        (lambda path: path.write_bytes(lzma.compress(b"something else")), "incomplete or damaged"),
        (lambda path: path.write_bytes(b""), "incomplete or damaged"),
        (lambda path: write(path, y_test=None), "y_test"),
        (lambda path: write(path, y_train=np.full(18, 6, np.uint8)), "labels go from 6 to 6"),
        (lambda path: write(path, y_train=np.zeros(17, np.uint8)), "17 labels"),
        (lambda path: write(path, start_train=np.full(18, 64 * 18, np.int32)), "start_train points beyond"),
        (lambda path: write(path, diff_train=np.zeros((8, 64 * 19), np.int16)), r"\(18, 128, 8\) values"),
        (lambda path: write(path, scale=np.array([{}], dtype=object)), "allow_pickle"),
    ],
)
def test_a_damaged_archive_is_reported_in_one_line(archive, damage, message):
    damage(archive)
    with pytest.raises(ConfigurationError, match=message) as caught:
        HumanActivity(str(archive)).setup()
    assert "\n" not in str(caught.value)
    assert "har.npz.xz" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("y_train.txt", "1\n2\n", "2 labels"),
        ("y_train.txt", "1\ntwo\n", "incomplete or damaged"),
        ("subject_train.txt", None, "subject_train.txt' is missing; unpack the whole archive"),
        ("Inertial Signals/body_gyro_y_train.txt", "1 2\n", "the nine signals have different sizes"),
        ("Inertial Signals/total_acc_z_train.txt", "1 2\n3\n", "incomplete or damaged"),
    ],
)
def test_a_damaged_folder_is_reported_in_one_line(folder, file, content, message):
    path = folder / "UCI HAR Dataset" / "train" / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        HumanActivity(str(folder)).setup()
    assert "\n" not in str(caught.value)


def test_several_archives_in_a_folder_are_not_guessed_at(archive):
    write(archive.with_name("other.npz.xz"))
    with pytest.raises(ConfigurationError, match=r"several archives \(har.npz.xz, other.npz.xz\); point --data.root"):
        HumanActivity(str(archive.parent)).prepare_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 3}, "classes is 3; choose 6 activities or 2 groups"),
        ({"val_subjects": 0}, "val_subjects is 0; it must be at least 1"),
        ({"noise_std": -1.0}, "noise_std is -1.0; it must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        HumanActivity("anywhere", **options)
