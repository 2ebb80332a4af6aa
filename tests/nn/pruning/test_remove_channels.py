"""A smaller network that computes the same, and is an ordinary one of its class."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks_for_pruning import count, images, random_keep, timm_network, write_zeros
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.pruning.channel_groups import find_channel_groups
from lightning_efficient.nn.pruning.members import ChannelGroups
from lightning_efficient.nn.pruning.shrink import remove_channels

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "mobilenetv3_small_050": {},
    "densenet121": {"block_config": (2, 2), "growth_rate": 8},
    "convnext_atto": {"depths": (1, 0, 0, 1), "dims": (8, 8, 12, 12)},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 48},
    "ghostnet_050": {},
    "regnetx_002": {},
}


class Case:
    """A network with channels of zeros, and the smaller one without them."""

    def __init__(self, name: str) -> None:
        self.network = timm_network(name, **NETWORKS[name])
        self.groups: ChannelGroups = find_channel_groups(self.network, images())
        self.keep = random_keep(self.groups)
        write_zeros(self.network, self.groups, self.keep)
        self.smaller: Any = remove_channels(self.network, self.groups, self.keep)


CASES: dict[str, Case] = {}


@pytest.fixture(params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> Case:
    if request.param not in CASES:
        CASES[request.param] = Case(request.param)
    return CASES[request.param]


def test_the_output_is_the_same_with_fewer_parameters(case: Case) -> None:
    with torch.no_grad():
        expected, output = case.network(images()), case.smaller(images())
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 1e-2
    assert count(case.smaller) < 0.85 * count(case.network)


def test_it_is_a_network_of_the_same_class_with_the_same_names(case: Case) -> None:
    assert type(case.smaller) is type(case.network)
    assert case.smaller.state_dict().keys() == case.network.state_dict().keys()
    assert all(each.is_leaf and each.requires_grad for each in case.smaller.parameters())


def test_features_head_and_a_new_classifier_work(case: Case) -> None:
    smaller = copy.deepcopy(case.smaller)
    with torch.no_grad():
        features = smaller.forward_features(images())
        torch.testing.assert_close(smaller.forward_head(features), smaller(images()))
        assert smaller.num_features in features.shape
        assert smaller.forward_head(features, pre_logits=True).shape == (2, smaller.head_hidden_size)
        smaller.reset_classifier(7)
        assert smaller(images()).shape == (2, 7)


def test_timms_notes_of_its_stages_follow(case: Case) -> None:
    seen: dict[str, int] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: output.shape[1 if output.ndim == 4 else -1]})

    smaller = copy.deepcopy(case.smaller)
    for name, module in smaller.named_modules():
        module.register_forward_hook(note(name))
    with torch.no_grad():
        smaller(images())
    known = [entry for entry in smaller.feature_info if entry["module"] in seen]
    assert known
    assert [entry["num_chs"] for entry in known] == [seen[entry["module"]] for entry in known]


def test_it_can_be_trained_further(case: Case) -> None:
    smaller = copy.deepcopy(case.smaller).train()
    smaller(images()).square().mean().backward()
    gradients = [each.grad for each in smaller.parameters()]
    assert any(each is not None and bool(each.abs().sum() > 0) for each in gradients)
    assert all(each is None or each.isfinite().all() for each in gradients)


def test_hidden_channels_of_transformers_and_convnext_can_go() -> None:
    for name in ("vit_tiny_patch16_224", "convnext_atto"):
        case = CASES.get(name) or Case(name)
        assert {group.name.rpartition(".mlp.")[2] for group in case.groups.groups} == {"fc1"}
        assert len(case.groups.groups) == 2


def test_the_heads_of_attention_stay() -> None:
    skipped = (CASES.get("vit_tiny_patch16_224") or Case("vit_tiny_patch16_224")).groups.skipped
    assert skipped["blocks.0.attn.qkv"] == "'blocks.0.attn' splits them into heads"
    assert "LayerNorm" in skipped["blocks.0.attn.proj"]


def test_it_can_be_exported() -> None:
    case = CASES.get("resnet10t") or Case("resnet10t")
    program = torch.export.export(case.smaller, (images(),))
    torch.testing.assert_close(program.module()(images()), case.smaller(images()), rtol=1e-5, atol=1e-5)


def small(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3, **options), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())


def test_dtype_memory_format_mode_and_frozen_weights_stay() -> None:
    network = small().double().to(memory_format=torch.channels_last)
    network[0].weight.requires_grad_(False)
    network[1].eval()
    groups = find_channel_groups(network, torch.zeros(1, 3, 8, 8))
    smaller = remove_channels(network, groups, {"0": torch.tensor([True, False] * 3)})
    assert [each.training for each in smaller.modules()] == [each.training for each in network.modules()]
    assert [each.requires_grad for each in smaller.parameters()] == [
        each.requires_grad for each in network.parameters()
    ]
    assert {each.dtype for each in smaller.parameters()} == {torch.float64}
    assert smaller[3].weight.shape == (4, 3, 3, 3)
    assert smaller[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(smaller[1].running_var, network[1].running_var[::2])
    assert (smaller[0].out_channels, smaller[1].num_features, smaller[3].in_channels) == (3, 3, 3)
    assert network[0].weight.shape == (6, 3, 3, 3)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(
            nn.Conv1d(3, 6, 3), nn.PReLU(6), nn.ConvTranspose1d(6, 5, 3), nn.InstanceNorm1d(5), nn.Conv1d(5, 2, 3)
        ),
        nn.Sequential(nn.Conv1d(3, 6, 3), nn.Conv1d(6, 6, 3, groups=6), nn.PReLU(), nn.Conv1d(6, 2, 1)),
    ],
    ids=["transposed", "depthwise"],
)
def test_other_layers_shrink_too(network: nn.Module) -> None:
    signal = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    groups = find_channel_groups(network, signal)
    keep = random_keep(groups)
    assert keep
    write_zeros(network, groups, keep)
    smaller = remove_channels(network, groups, keep)
    torch.testing.assert_close(smaller(signal), network(signal))
    assert count(smaller) < count(network)


def test_a_smaller_network_can_shrink_again() -> None:
    case = CASES.get("mobilenetv3_small_050") or Case("mobilenetv3_small_050")
    groups = find_channel_groups(case.smaller, images())
    again = remove_channels(case.smaller, groups, random_keep(groups, seed=5))
    assert again(images()).shape == (2, 5)
    assert count(again) < count(case.smaller)


def test_no_layer_is_left_without_channels() -> None:
    network = small()
    groups = find_channel_groups(network, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigurationError, match="keep: '0' would be left without channels; keep at least one of 6"):
        remove_channels(network, groups, {"0": torch.zeros(6, dtype=torch.bool)})


def test_groups_of_another_network_are_refused() -> None:
    network = small()
    groups = find_channel_groups(network, torch.zeros(1, 3, 8, 8))
    keep = {"0": torch.tensor([False] * 4 + [True] * 2)}
    with pytest.raises(ConfigurationError, match="does not have the channels that it had"):
        remove_channels(remove_channels(network, groups, keep), groups, {"0": ~keep["0"]})
    with pytest.raises(ConfigurationError, match="keep: '1' is no group of channels"):
        remove_channels(network, groups, {"1": keep["0"]})
