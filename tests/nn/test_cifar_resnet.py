"""The residual networks for small images: sizes of the released experiments, and timm's ways."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch

from lightning_efficient.nn.cifar_resnet import CIFAR_RESNETS, register_cifar_resnets
from lightning_efficient.nn.views import ViewTap
from lightning_efficient.profiling import count_macs

PUBLISHED = {  # millions of multiply-adds at 32x32 pixels with 100 classes, and of parameters where they are known
    "cifar_resnet10_xxxs": (0.77, None),
    "cifar_resnet10_xxs": (2.02, None),
    "cifar_resnet10_xs": (2.86, None),
    "cifar_resnet10_s": (4.16, 0.084),
    "cifar_resnet10_m": (16.2, 0.320),
    "cifar_resnet10_l": (64, None),
    "cifar_resnet10": (253, None),
    "cifar_resnet18": (555, None),
    "cifar_resnet34": (1159, None),
}


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_cifar_resnets()


def rounded_like(value: float, printed: float) -> float:
    return round(value, len(str(printed).partition(".")[2]) if isinstance(printed, float) else 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_operations_and_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=100)
    macs, parameters = PUBLISHED[name]
    assert rounded_like(count_macs(network, torch.zeros(1, 3, 32, 32)).macs / 1e6, macs) == macs
    if parameters is not None:
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 3) == parameters


@pytest.mark.parametrize(("name", "macs", "parameters"), [("s", 16.6, 0.090), ("m", 64.7, 0.333), ("l", 255, 1.28)])
def test_sizes_at_64_pixels_and_200_classes_are_the_published_ones(name: str, macs: float, parameters: float) -> None:
    network = timm.create_model(f"cifar_resnet10_{name}", num_classes=200)
    assert rounded_like(count_macs(network, torch.zeros(1, 3, 64, 64)).macs / 1e6, macs) == macs
    assert rounded_like(sum(p.numel() for p in network.parameters()) / 1e6, parameters) == pytest.approx(
        parameters, abs=1e-3
    )


def test_every_name_is_covered() -> None:
    assert set(PUBLISHED) == set(CIFAR_RESNETS) <= set(timm.list_models("cifar_resnet*"))


def test_registering_again_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_cifar_resnets()


def test_there_are_no_pretrained_weights_and_timm_says_so() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for cifar_resnet10_s"):
        timm.create_model("cifar_resnet10_s", pretrained=True)


def test_declared_maps_are_the_maps() -> None:
    network = timm.create_model("cifar_resnet10_s").eval()
    assert network.num_classes == 100
    images = torch.rand(1, 3, 32, 32)
    for index, info in enumerate(network.feature_info):
        side = 32 // info["reduction"]
        shown = ViewTap(network, feature_map=True, map_index=index)(images).feature_map
        assert tuple(shown.shape) == (1, info["num_chs"], side, side)
    assert [info["num_chs"] for info in network.feature_info] == [8, 8, 16, 32, 64]


def test_grey_images_and_other_class_counts_train() -> None:
    network = timm.create_model("cifar_resnet10_xxxs", in_chans=1, num_classes=10)
    logits = network(torch.rand(2, 1, 28, 28))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_stem_keeps_the_resolution_and_starts_as_timms_other_convolutions_do() -> None:
    torch.manual_seed(0)
    stem = timm.create_model("cifar_resnet18").conv1
    assert (stem.kernel_size, stem.stride, stem.bias) == ((3, 3), (1, 1), None)
    assert stem.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


def test_inputs_are_normalised_as_in_the_released_code() -> None:
    config = timm.data.resolve_model_data_config(timm.create_model("cifar_resnet10_xxxs"))
    assert config["input_size"] == (3, 32, 32)
    assert [round(255 * value, 1) for value in (*config["mean"], *config["std"])] == [
        *(129.3, 124.1, 112.4),
        *(68.2, 65.4, 70.4),
    ]
