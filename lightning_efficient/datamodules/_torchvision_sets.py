"""Which torchvision data sets can be named, and what is known of each before it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchvision.datasets import CIFAR10, CIFAR100, EMNIST, KMNIST, MNIST, STL10, SVHN, FashionMNIST, VisionDataset

_OBJECTS: Mapping[str, Any] = {"scale": (0.6, 1.0), "ratio": (0.9, 1.1), "hflip": 0.5, "color_jitter": 0.0}
_GLYPHS: Mapping[str, Any] = {"scale": (0.7, 1.0), "ratio": (0.9, 1.1), "hflip": 0.0, "color_jitter": 0.0}
_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class ImageSet:
    """What is known of a data set before it is read.

    Attributes:
        constructor: torchvision's class.
        train: Arguments that select the training part.
        test: Arguments that select the test part.
        num_classes: Number of classes.
        size: Height and width to train with; 28 is rounded up to 32, which five halvings divide.
        augment: Training augmentation; letters and digits are never flipped.
        path: File or folder below ``root`` whose absence means that the set was never fetched.
        class_names: Where torchvision's class does not bring them.
    """

    constructor: type[VisionDataset]
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    num_classes: int
    size: int
    augment: Mapping[str, Any]
    path: str
    class_names: tuple[str, ...] = ()


_FLAG: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"train": True}, {"train": False})
_WORD: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"split": "train"}, {"split": "test"})
_BALANCED: tuple[Mapping[str, Any], Mapping[str, Any]] = (
    {"split": "balanced", "train": True},
    {"split": "balanced", "train": False},
)
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_EMNIST_NAMES = tuple(EMNIST.classes_split_dict["balanced"])

IMAGE_SETS: Mapping[str, ImageSet] = {
    "MNIST": ImageSet(MNIST, *_FLAG, 10, 32, _GLYPHS, "MNIST/raw", _DIGITS),
    "FashionMNIST": ImageSet(FashionMNIST, *_FLAG, 10, 32, _OBJECTS, "FashionMNIST/raw", tuple(FashionMNIST.classes)),
    "KMNIST": ImageSet(KMNIST, *_FLAG, 10, 32, _GLYPHS, "KMNIST/raw", tuple(KMNIST.classes)),
    "EMNIST": ImageSet(EMNIST, *_BALANCED, 47, 32, _GLYPHS, "EMNIST/raw", _EMNIST_NAMES),
    "CIFAR10": ImageSet(CIFAR10, *_FLAG, 10, 32, _OBJECTS, "cifar-10-batches-py", _CIFAR10_NAMES),
    "CIFAR100": ImageSet(CIFAR100, *_FLAG, 100, 32, _OBJECTS, "cifar-100-python"),
    "SVHN": ImageSet(SVHN, *_WORD, 10, 32, _GLYPHS, "train_32x32.mat", _DIGITS),
    "STL10": ImageSet(STL10, *_WORD, 10, 96, _OBJECTS, "stl10_binary", _STL10_NAMES),
}
