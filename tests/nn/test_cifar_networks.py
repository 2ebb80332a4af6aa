"""Networks of three stages for small images: sizes that the literature prints, and timm's ways."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import timm
import torch
from timm_versions import needs
from torch import nn

from lightning_efficient.nn.cifar_networks import CIFAR_NETWORKS, register_cifar_networks
from lightning_efficient.profiling import count_macs

COUNTED = {  # parameters and multiply-adds at 32x32 pixels with 10 classes
    "cifar_resnet32": (466_906, 69_124_736),
    "cifar_resnet56": (855_770, 125_747_840),
    "cifar_wrn40_4": (8_977_994, 1_327_172_096),
    "cifar_densenet100": (769_162, 287_929_692),
}
NARROW = {
    "cifar_resnet32": {"layers": (2, 2, 2)},
    "cifar_wrn40_4": {"layers": (1, 2, 1), "channels": (8, 16, 32)},
    "cifar_densenet100": {"block_config": (2, 3, 2), "growth_rate": 6},
}


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_cifar_networks()


def small(name: str, **options: object) -> nn.Module:
    return timm.create_model(name, **{**NARROW[name], **options})


@pytest.mark.parametrize("name", COUNTED)
def test_operations_and_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=10)
    parameters, macs = COUNTED[name]
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert count_macs(network, torch.zeros(1, 3, 32, 32)).macs == macs


def test_every_name_is_covered() -> None:
    assert set(COUNTED) == set(CIFAR_NETWORKS)
    assert all(timm.is_model(name) for name in CIFAR_NETWORKS)


def test_registering_again_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_cifar_networks()


def test_there_are_no_pretrained_weights_and_timm_says_so() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for cifar_densenet100"):
        timm.create_model("cifar_densenet100", pretrained=True)


@pytest.mark.parametrize("name", NARROW)
def test_declared_maps_are_the_maps_in_three_ways_of_asking(name: str) -> None:
    network = small(name).eval()
    images = torch.rand(1, 3, 32, 32)
    declared = [(info["num_chs"], 32 // info["reduction"]) for info in network.feature_info]
    assert [side for _, side in declared] == [32, 32, 16, 8]
    needs(network, "forward_intermediates")
    final, maps = network.forward_intermediates(images)
    assert [(each.shape[1], each.shape[2]) for each in maps] == declared
    torch.testing.assert_close(final, network.forward_features(images))
    only = small(name, features_only=True)
    assert [(each.shape[1], each.shape[2]) for each in only(images)] == declared
    assert list(zip(only.feature_info.channels(), only.feature_info.reduction(), strict=True)) == [
        (channels, 32 // side) for channels, side in declared
    ]


@pytest.mark.parametrize("name", ["cifar_resnet32", "cifar_wrn40_4"])
@pytest.mark.parametrize(("indices", "taken"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, -1], [0, 3]), ([1], [1])])
def test_maps_are_chosen_among_four(name: str, indices: int | list[int] | None, taken: list[int]) -> None:
    network = small(name).eval()
    images = torch.rand(1, 3, 16, 16)
    every = network.forward_intermediates(images, intermediates_only=True)
    some = network.forward_intermediates(images, indices, intermediates_only=True, stop_early=True)
    assert len(some) == len(taken)
    for index, each in zip(taken, some, strict=True):
        torch.testing.assert_close(each, every[index])


@pytest.mark.parametrize("name", NARROW)
def test_pruning_to_the_last_map_keeps_the_network_and_to_an_early_one_cuts_it(name: str) -> None:
    images = torch.rand(1, 3, 16, 16)
    network = small(name, num_classes=5).eval()
    logits = network(images)
    needs(network, "prune_intermediate_layers")
    assert network.prune_intermediate_layers(1, prune_head=False) == [3]
    torch.testing.assert_close(network(images), logits)
    assert network.prune_intermediate_layers([1]) == [1]
    width = network.feature_info[1]["num_chs"]
    assert network(images).shape == (1, width, 16, 16)
    if not hasattr(timm.models.DenseNet, "prune_intermediate_layers"):
        pytest.skip(f"timm {timm.__version__} leaves num_features of a ResNet that it cuts as they were")
    assert network.num_features == width


@pytest.mark.parametrize("name", NARROW)
def test_grey_images_and_other_class_counts_train_with_checkpointing(name: str) -> None:
    network = small(name, in_chans=1, num_classes=10)
    network.set_grad_checkpointing()
    logits = network(torch.rand(2, 1, 28, 28))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.reset_classifier(4)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 4)


@pytest.mark.parametrize("name", NARROW)
def test_copies_and_pickles_compute_the_same(name: str) -> None:
    network = small(name).eval()
    images = torch.rand(1, 3, 16, 16)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert type(twin) is type(network)
        torch.testing.assert_close(twin(images), network(images))


def test_stems_keep_the_resolution() -> None:
    for convolution in (small("cifar_wrn40_4").conv1, small("cifar_densenet100").features.conv0):
        assert (convolution.kernel_size, convolution.stride, convolution.bias) == ((3, 3), (1, 1), None)


@pytest.mark.parametrize("name", CIFAR_NETWORKS)
def test_names_that_timm_reads_lead_to_the_stem_and_the_head(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    config = network.pretrained_cfg
    assert network.get_submodule(config["first_conv"]).in_channels == 3
    assert network.get_submodule(config["classifier"]) is network.get_classifier()
    assert timm.data.resolve_model_data_config(network)["input_size"] == (3, 32, 32)


def test_no_other_name_is_answered_by_the_module() -> None:
    import lightning_efficient.nn.cifar_networks as module

    with pytest.raises(AttributeError, match="has no attribute 'cifar_resnet33'"):
        _ = module.cifar_resnet33
