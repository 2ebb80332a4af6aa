from __future__ import annotations

import pytest

from lightning_efficient.datamodules import ImageFolderImages
from lightning_efficient.errors import ConfigurationError, DataNotFoundError


def test_classes_are_known_before_setup_and_sorted(write_folder):
    data = ImageFolderImages(str(write_folder(train={"dog": 2, "cat": 2})))
    assert (data.num_classes, data.class_names) == (2, ["cat", "dog"])


def test_each_folder_is_its_part(write_folder):
    classes = {"cat": 4, "dog": 3}
    data = ImageFolderImages(str(write_folder(train=classes, val={"cat": 2, "dog": 1}, test={"cat": 1, "dog": 1})))
    data.setup()
    labels = {split: dataset.images.chosen_labels.tolist() for split, dataset in data.datasets.items()}
    assert labels == {"train": [0, 0, 0, 0, 1, 1, 1], "val": [0, 0, 1], "test": [0, 1]}


def test_images_arrive_at_the_size_asked_for(write_folder):
    data = ImageFolderImages(str(write_folder(train={"cat": 4, "dog": 4})), image_size=8, in_chans=1, val_fraction=0.25)
    data.setup()
    assert {dataset[0][0].shape for dataset in data.datasets.values()} == {(1, 8, 8)}


def test_without_other_folders_a_stratified_part_validates_and_tests(write_folder):
    data = ImageFolderImages(str(write_folder(train={"cat": 10, "dog": 10})), val_fraction=0.2)
    data.setup()
    val = data.datasets["val"].images
    assert val.chosen_labels.tolist() == [0, 0, 1, 1]
    assert data.datasets["test"].images.positions.tolist() == val.positions.tolist()
    assert not set(val.positions) & set(data.datasets["train"].images.positions)


def test_without_a_test_folder_the_validation_folder_is_tested(write_folder):
    data = ImageFolderImages(str(write_folder(train={"cat": 3, "dog": 3}, val={"cat": 1, "dog": 2})))
    data.setup("test")
    assert data.datasets["test"].images.chosen_labels.tolist() == [0, 1, 1]


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"nowhere/train' holds no class folder: point --data.root"):
        ImageFolderImages(str(tmp_path / "nowhere")).setup("fit")


def test_an_empty_class_is_refused(write_folder):
    data = ImageFolderImages(str(write_folder(train={"cat": 3, "dog": 0})))
    with pytest.raises(ConfigurationError, match="dog"):
        data.setup("fit")


def test_parts_with_different_classes_are_refused(write_folder):
    data = ImageFolderImages(str(write_folder(train={"cat": 3, "dog": 3}, val={"cat": 3, "cow": 3})))
    with pytest.raises(ConfigurationError, match=r"different classes \(cow, dog in one only\)"):
        data.setup("fit")
