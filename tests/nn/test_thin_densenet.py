"""Shorter dense blocks: what stays, what is cut, and that the network still computes what its weights say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm_versions import needs
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.cifar_networks import register_cifar_networks
from lightning_efficient.nn.surgery.densenet import cut, dense_layers, is_densenet, thin, transition_widths

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def dense(layers: tuple[int, ...] = (3, 2, 4), **options: Any) -> Any:
    register_cifar_networks()
    torch.manual_seed(0)
    name = options.pop("name", "cifar_densenet100")
    network = timm.create_model(name, block_config=layers, growth_rate=4, num_classes=5, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and factors that tell channels apart
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


def deaf(network: Any, slices: dict[str, tuple[torch.Tensor, ...]]) -> Any:
    """Return a copy whose convolutions and classifier do not listen to the channels that are cut."""
    twin = copy.deepcopy(network)
    for key, indices in slices.items():
        weight = twin.get_parameter(key) if key.endswith("weight") else None
        if weight is not None and weight.dim() > 1:
            silent = torch.ones(weight.shape[1], dtype=torch.bool)
            silent[indices[1]] = False
            with torch.no_grad():
                weight[:, silent] = 0
    return twin


@pytest.mark.parametrize("keep", [(1, 1, 1), (2, 2, 3), (3, 1, 4), (3, 2, 2)])
@pytest.mark.parametrize("options", [{}, {"global_pool": "catavgmax"}, {"name": "densenet121"}], ids=str)
def test_thinned_network_equals_the_old_one_deaf_to_the_channels_that_went(
    keep: tuple[int, ...], options: dict[str, Any]
) -> None:
    network = dense(**options)
    old = copy.deepcopy(network)
    slices = thin(network, keep)
    assert dense_layers(network) == list(keep)
    torch.testing.assert_close(network(IMAGES), deaf(old, slices)(IMAGES))


@settings(max_examples=15, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 4)))
def test_every_kept_entry_is_the_old_one_or_a_cut_of_it(keep: tuple[int, int, int]) -> None:
    network = dense()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    slices = thin(network, keep)
    after = network.state_dict()
    assert set(slices) <= set(after) <= set(before)
    for key, value in after.items():
        assert torch.equal(value, cut(before[key], slices[key]) if key in slices else before[key])
        assert (key in slices) == (value.shape != before[key].shape)


def test_keeping_every_layer_changes_nothing() -> None:
    network = dense()
    modules = dict(network.named_modules())
    assert thin(network, [3, 2, 4]) == {}
    assert dict(network.named_modules()) == modules


def test_parameters_that_are_not_cut_stay_the_same_objects() -> None:
    network = dense()
    before = dict(network.named_parameters())
    slices = thin(network, [2, 1, 3])
    assert {key for key, each in network.named_parameters() if each is not before[key]} == {
        key for key in slices if key in before
    }


def test_transitions_keep_their_ratio_and_their_first_outputs() -> None:
    network = dense()
    assert transition_widths(network) == [10, 9]
    assert transition_widths(network, [1, 2, 1]) == [6, 7]
    slices = thin(network, [1, 2, 1])
    assert transition_widths(network) == [6, 7]
    outputs, inputs = slices["features.transition1.conv.weight"]
    assert outputs.tolist() == list(range(6))
    assert inputs.tolist() == list(range(12))
    assert slices["features.denseblock2.denselayer1.conv1.weight"][1].tolist() == list(range(6))
    assert slices["features.transition2.norm.weight"][0].tolist() == [*range(6), *range(10, 18)]


def test_declared_widths_follow_for_maps_heads_and_new_classifiers() -> None:
    network = dense()
    thin(network, [1, 2, 1])
    needs(network, "forward_intermediates")
    maps = network.forward_intermediates(IMAGES, intermediates_only=True)
    assert [each.shape[1] for each in maps] == [info["num_chs"] for info in network.feature_info] == [8, 12, 14, 11]
    assert (network.num_features, network.head_hidden_size, network.classifier.in_features) == (11, 11, 11)
    network.reset_classifier(7, "catavgmax")
    assert network(IMAGES).shape == (2, 7)
    norm = network.features.norm5
    assert (norm.num_features, *norm.running_mean.shape) == (11, 11)


def test_a_network_without_classifier_is_thinned_too() -> None:
    network = dense()
    network.reset_classifier(0)
    thin(network, [1, 1, 1])
    assert network(IMAGES).shape == (2, network.num_features)


def test_thinned_networks_train_and_frozen_weights_stay_frozen() -> None:
    network = dense().train()
    network.features.norm5.requires_grad_(False)
    thin(network, [2, 1, 2])
    network(IMAGES).square().sum().backward()
    frozen = {name for name, each in network.named_parameters() if each.grad is None}
    assert frozen == {"features.norm5.weight", "features.norm5.bias"}


def test_modules_that_are_cut_leave_the_old_ones_as_they_were() -> None:
    network = dense()
    old = network.features.norm5
    kept = old.weight.clone()
    thin(network, [1, 1, 1])
    assert network.features.norm5 is not old
    assert torch.equal(old.weight, kept)
    with torch.no_grad():
        network.features.norm5.weight.zero_()
    assert torch.equal(old.weight, kept)


def test_weights_on_the_meta_device_are_cut_without_values() -> None:
    with torch.device("meta"):
        network = timm.create_model("densenet121")
    slices = thin(network, [3, 6, 12, 8])
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert network.num_features == 516
    assert slices["classifier.weight"][1].shape == (516,)


def test_torchvisions_network_has_the_same_names() -> None:
    models = pytest.importorskip("torchvision.models")
    network = models.DenseNet(4, (2, 2), 8, num_classes=3).eval()
    old = copy.deepcopy(network)
    slices = thin(network, [1, 2])
    torch.testing.assert_close(network(IMAGES), deaf(old, slices)(IMAGES))


@pytest.mark.parametrize("keep", [(0, 1, 1), (4, 2, 4), (1, 1), (1, 1, 1, 1)])
def test_numbers_that_do_not_fit_are_refused_before_anything_changes(keep: tuple[int, ...]) -> None:
    network = dense()
    with pytest.raises(ConfigurationError, match=r"keep=\[.*\] does not fit dense blocks of \[3, 2, 4\] layers"):
        thin(network, keep)
    assert dense_layers(network) == [3, 2, 4]


def test_other_networks_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"takes timm's DenseNet, not Sequential$"):
        thin(nn.Sequential(nn.Linear(2, 2)), [1])
    assert not is_densenet(nn.Sequential())
    only = dense(features_only=True)
    with pytest.raises(ConfigurationError, match="thin it before features_only takes it apart"):
        thin(only, [1, 1, 1])


def test_a_transition_with_a_layer_added_is_refused() -> None:
    network = dense()
    network.features.transition1.add_module("3", nn.Conv2d(10, 10, 1))
    with pytest.raises(ConfigurationError, match=r"features\.transition1 has a layer added to it"):
        thin(network, [1, 1, 1])
