from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, FashionMNIST

from lightning_efficient.datamodules import Digits, TorchvisionImages
from lightning_efficient.datamodules._image_arrays import FORMATS
from lightning_efficient.datamodules._torchvision_sets import IMAGE_SETS
from lightning_efficient.datamodules.sequential_images import STATISTICS, SequentialImages
from lightning_efficient.errors import ConfigurationError, DataNotFoundError


def inputs_of(data: SequentialImages, split: str) -> torch.Tensor:
    data.setup()
    return data.datasets[split].__getitems__(range(len(data.datasets[split]))).inputs


@pytest.fixture(scope="module")
def digits() -> SequentialImages:
    data = SequentialImages("Digits")
    data.setup()
    return data


def test_digits_are_those_of_the_image_module_pixel_by_pixel(digits):
    images = Digits(image_size=8, in_chans=1, mean=[0.0], std=[1.0], augment=False)
    images.setup()
    prepare = digits.datasets["train"].prepare
    for split, part in digits.datasets.items():
        pixels = torch.stack([image for image, _ in images.datasets[split]])
        raw = inputs_of(digits, split) * prepare.std + prepare.mean
        assert raw.shape == (len(part), 64, 1)
        torch.testing.assert_close(raw.view(-1, 1, 8, 8) / 16, pixels, atol=1 / 255, rtol=0)
        assert part.target.tolist() == images.datasets[split].images.chosen_labels.tolist()


def test_digits_are_normalised_by_their_own_training_part(digits):
    train = inputs_of(digits, "train")
    torch.testing.assert_close(train.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_rows_are_the_same_values_in_wider_steps(digits):
    rows = SequentialImages("Digits", steps="rows")
    assert (rows.input_shape, rows.input_size, digits.input_shape) == ((8, 8), 8, (64, 1))
    assert torch.equal(inputs_of(rows, "val").flatten(1), inputs_of(digits, "val").flatten(1))


def test_one_permutation_holds_for_all_parts_and_follows_its_seed(digits):
    permuted = SequentialImages("Digits", permute=True)
    order = np.random.default_rng(0).permutation(64)
    for split in ("train", "val", "test"):
        assert torch.equal(inputs_of(permuted, split), inputs_of(digits, split)[:, order])
    other = SequentialImages("Digits", permute=True, permutation_seed=1)
    assert not torch.equal(inputs_of(other, "val"), inputs_of(permuted, "val"))


def test_noise_follows_the_image_and_belongs_to_it(digits):
    padded = SequentialImages("Digits", pad_to=100, permute=True)
    whole = inputs_of(padded, "val")
    assert whole.shape == (300, *padded.input_shape) == (300, 100, 1)
    assert torch.equal(whole[:, :64], inputs_of(SequentialImages("Digits", permute=True), "val"))
    noise = whole[:, 64:]
    torch.testing.assert_close(noise.mean(), torch.tensor(0.0), atol=0.03, rtol=0)
    torch.testing.assert_close(noise.std(), torch.tensor(1.0), atol=0.03, rtol=0)
    some = padded.datasets["val"].__getitems__([17, 3]).inputs
    assert torch.equal(some, whole[[17, 3]])
    again = SequentialImages("Digits", pad_to=100, permute=True)
    assert torch.equal(inputs_of(again, "val"), whole)
    assert not torch.equal(inputs_of(padded, "test")[:, 64:], noise)
    other = SequentialImages("Digits", pad_to=100, permute=True, noise_seed=1)
    assert not torch.equal(inputs_of(other, "val")[:, 64:], noise)


def test_noise_is_the_same_in_every_epoch():
    data = SequentialImages("Digits", pad_to=70, train_samples=20, batch_size=20)
    data.setup("fit")
    loader = data.train_dataloader()
    (first,), (second,) = loader, loader
    assert not torch.equal(first.index, second.index)
    assert torch.equal(first.inputs[first.index.argsort()], second.inputs[second.index.argsort()])


def test_grey_images_of_torchvision_keep_their_split(fashion_root):
    options = {"root": str(fashion_root), "cache_dir": str(fashion_root.parent / "cache"), "val_fraction": 1 / 3}
    data = SequentialImages("FashionMNIST", **options)
    images = TorchvisionImages(
        "FashionMNIST", image_size=28, in_chans=1, mean=[0.0], std=[1.0], augment=False, **options
    )
    data.prepare_data()
    images.setup()
    assert (data.input_shape, data.num_classes, data.class_names[0]) == ((784, 1), 10, "T-shirt/top")
    train = inputs_of(data, "train")
    prepare = data.datasets["train"].prepare
    for split, size in (("train", 40), ("val", 20), ("test", 20)):
        pixels = torch.stack([image for image, _ in images.datasets[split]])
        assert len(pixels) == size
        raw = (inputs_of(data, split) * prepare.std + prepare.mean) / 255
        torch.testing.assert_close(raw.view(-1, 1, 28, 28), pixels, atol=1e-5, rtol=0)
        assert data.datasets[split].target.tolist() == images.datasets[split].images.chosen_labels.tolist()
    torch.testing.assert_close(train.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(train.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("steps", "shape"), [("pixels", (1024, 3)), ("rows", (32, 96))])
def test_colour_images_keep_the_channels_of_a_pixel_together(cifar_root, steps, shape):
    data = SequentialImages("CIFAR10", root=str(cifar_root), steps=steps)
    assert data.input_shape == shape
    pixels = CIFAR10(str(cifar_root), train=False).data
    mean, std = (np.array(each) for each in STATISTICS["CIFAR10", steps])
    expected = (pixels / 255 - mean) / std
    np.testing.assert_allclose(inputs_of(data, "test").numpy(), expected.reshape(20, *shape), atol=1e-5)


def test_sets_with_channels_first_are_turned(svhn_root):
    data = SequentialImages("SVHN", root=str(svhn_root))
    images = TorchvisionImages("SVHN", root=str(svhn_root), mean=[0.0], std=[1.0])
    images.setup("test")
    raw = inputs_of(data, "test") * data.datasets["test"].prepare.std + data.datasets["test"].prepare.mean
    expected = images.datasets["test"][4][0].permute(1, 2, 0).reshape(1024, 3)
    torch.testing.assert_close(raw[4] / 255, expected, atol=1e-5, rtol=0)


def test_benchmark_statistics_win_over_those_of_the_images():
    assert STATISTICS["MNIST", "pixels"] == STATISTICS["MNIST", "rows"] == ((0.1307,), (0.3081,))
    assert STATISTICS["CIFAR10", "pixels"] == ((0.5,), (0.5,))


def test_every_set_of_the_image_module_has_its_format():
    assert set(FORMATS) == {"Digits", *IMAGE_SETS}
    for name in IMAGE_SETS:
        data = SequentialImages(name)
        side = FORMATS[name].side
        assert data.input_shape == (side * side, FORMATS[name].channels)
        assert data.num_classes == IMAGE_SETS[name].num_classes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "MINST"}, "there is no image set 'MINST'; choose from Digits, MNIST.* Did you mean 'MNIST'"),
        ({"steps": "columns"}, "steps is 'columns'; choose 'pixels' or 'rows'"),
        ({"pad_to": 63}, "pad_to is 63, but an image of Digits has 64 pixels; give at least as many steps"),
        ({"val_fraction": 1.0}, r"val_fraction is 1.0; it must lie in \(0, 1\)"),
        ({"train_samples": 0}, "train_samples is 0"),
        ({"permutation_seed": -1}, "permutation_seed is -1"),
        ({"split_seed": -1}, "split_seed is -1"),
    ],
)
def test_a_useless_option_is_refused_in_one_line(options, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        SequentialImages(**options)
    assert "\n" not in str(caught.value)


def test_a_set_that_is_not_there_is_reported_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"MNIST is not in .*--data.download true, or point --data.root at"):
        SequentialImages("MNIST", root=str(tmp_path)).setup("fit")


def test_damaged_files_are_reported_in_one_line(fashion_root):
    archive = fashion_root / "FashionMNIST" / "raw" / FashionMNIST.resources[0][0]
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match="is damaged") as caught:
        SequentialImages("FashionMNIST", root=str(fashion_root), cache_dir="cache").prepare_data()
    assert "\n" not in str(caught.value)
