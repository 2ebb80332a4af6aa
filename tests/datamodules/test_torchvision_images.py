from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_efficient.datamodules import TorchvisionImages
from lightning_efficient.datamodules._torchvision_sets import IMAGE_SETS
from lightning_efficient.errors import ConfigurationError, DataNotFoundError


def fashion(root: Path, **options) -> TorchvisionImages:
    return TorchvisionImages("FashionMNIST", root=str(root), cache_dir=str(root.parent / "cache"), **options)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_gz_files_are_read_through_the_cache_and_the_root_is_untouched(fashion_root):
    before = files_below(fashion_root)
    data = fashion(fashion_root, in_chans=1)
    data.prepare_data()
    data.setup()
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 54, "val": 6, "test": 20}
    assert files_below(fashion_root) == before
    assert files_below(fashion_root.parent / "cache") == {name.removesuffix(".gz") for name in before}
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (20, 1, 32, 32)
    assert labels.tolist() == [index % 10 for index in range(20)]


def test_pixels_are_those_of_the_file(fashion_root):
    data = fashion(fashion_root, image_size=28, in_chans=1, mean=[0.0], std=[1.0])
    data.setup("test")
    with gzip.open(fashion_root / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz") as file:
        expected = np.frombuffer(file.read(), np.uint8, offset=16).reshape(20, 28, 28)
    pixels = torch.stack([image[0] for image, _ in data.datasets["test"]])
    np.testing.assert_array_equal((pixels * 255).round().numpy(), expected)


def test_validation_is_stratified_and_never_holds_test_images(fashion_root):
    data = fashion(fashion_root, val_fraction=1 / 3)
    data.setup()
    train, val, test = (data.datasets[split].images for split in ("train", "val", "test"))
    assert np.bincount(val.chosen_labels).tolist() == [2] * 10
    assert sorted([*train.positions, *val.positions]) == list(range(60))
    assert val.pairs is train.pairs
    assert val.pairs is not test.pairs


def test_cifar_images_keep_size_colours_and_flips(cifar_root):
    data = TorchvisionImages("CIFAR10", root=str(cifar_root))
    data.prepare_data()
    data.setup()
    assert data.datasets["train"][0][0].shape == (3, 32, 32)
    steps = [type(step).__name__ for step in data.datasets["train"].transform.transforms]
    assert "RandomHorizontalFlip" in steps
    assert data.class_names[3] == "cat"


def test_house_numbers_count_from_zero_and_are_not_flipped(svhn_root):
    data = TorchvisionImages("SVHN", root=str(svhn_root))
    data.setup()
    assert data.datasets["test"].images.chosen_labels.tolist()[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    steps = [type(step).__name__ for step in data.datasets["train"].transform.transforms]
    assert not any("Flip" in name for name in steps)


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_a_set_that_is_not_there_is_reported_with_the_command_that_fetches_it(name, tmp_path):
    data = TorchvisionImages(name, root=str(tmp_path))
    data.prepare_data()
    with pytest.raises(DataNotFoundError, match=f"{name} is not in .*--data.download true, or point --data.root at"):
        data.setup("fit")


@pytest.mark.parametrize("name", sorted(set(IMAGE_SETS) - {"CIFAR100"}))
def test_classes_are_known_before_the_data_are_there(name):
    data = TorchvisionImages(name)
    assert len(data.class_names) == len(set(data.class_names)) == data.num_classes


def test_a_truncated_cifar_file_is_reported_in_one_line(cifar_root):
    batch = cifar_root / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match=r"CIFAR10 in .* is incomplete or damaged") as caught:
        TorchvisionImages("CIFAR10", root=str(cifar_root)).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_truncated_unpacked_file_is_reported_in_one_line(fashion_root):
    fashion(fashion_root).prepare_data()
    images = fashion_root.parent / "cache" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:2000])
    with pytest.raises(ConfigurationError, match=r"FashionMNIST in .* is incomplete or damaged"):
        fashion(fashion_root).setup("fit")


def test_a_failed_download_is_reported_in_one_line(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("Error downloading\nall mirrors")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    data = TorchvisionImages("CIFAR10", root=str(tmp_path), download=True)
    with pytest.raises(ConfigurationError, match=r"could not be downloaded into .*: Error downloading all mirrors"):
        data.prepare_data()


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ConfigurationError, match=r"no image set 'CIFAR-10'.*Did you mean 'CIFAR10'"):
        TorchvisionImages("CIFAR-10")
