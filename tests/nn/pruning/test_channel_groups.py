"""Which channels belong together, and which cannot go."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_efficient.errors import ConfigurationError, MissingExtraError
from lightning_efficient.nn.pruning.channel_groups import find_channel_groups
from lightning_efficient.nn.pruning.members import (
    ChannelGroup,
    ChannelGroups,
    channel_scores,
    group_masks,
    parameters_per_channel,
)


def conv(read: int, written: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(read, written, 3, padding=1, **options)


class Wired(nn.Module):
    """Layers by name, and how a forward uses them."""

    def __init__(self, wiring: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


def found(network: nn.Module, *shape: int, **options: Any) -> ChannelGroups:
    return find_channel_groups(network, torch.zeros(shape or (2, 3, 8, 8)), **options)


def sides(group: ChannelGroup) -> set[tuple[str, str]]:
    return {(member.layer, member.side) for member in group.members}


def test_a_residual_connection_couples_what_it_adds() -> None:
    network = Wired(
        lambda net, x: net.head(net.norm(net.b(y := net.a(x).relu()) + y).relu().mean((2, 3))),
        a=conv(3, 6),
        b=conv(6, 6),
        norm=nn.BatchNorm2d(6),
        head=nn.Linear(6, 2),
    )
    (group,) = found(network).groups
    assert (group.name, group.size) == ("a", 6)
    assert sides(group) == {("a", "out"), ("b", "in"), ("b", "out"), ("norm", "out"), ("head", "in")}


def test_a_concatenation_shifts_the_channels_of_its_second_part() -> None:
    network = Wired(
        lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 1)).mean((2, 3)), a=conv(3, 4), b=conv(3, 5), c=conv(9, 2)
    )
    groups = {group.name: group for group in found(network).groups}
    assert [group.size for group in groups.values()] == [4, 5]
    (read,) = (member for member in groups["b"].members if member.layer == "c")
    assert (read.side, read.indices) == ("in", ((4,), (5,), (6,), (7,), (8,)))


def test_a_flattened_channel_is_all_of_its_pixels() -> None:
    network = nn.Sequential(conv(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 2))
    (group,) = found(network).groups
    read = next(member for member in group.members if member.layer == "3")
    assert read.indices == tuple(tuple(range(64 * channel, 64 * channel + 64)) for channel in range(4))


def test_both_halves_of_a_gated_unit_go_together() -> None:
    network = Wired(
        lambda net, x: net.b((parts := net.a(x).chunk(2, 1))[0] * parts[1].sigmoid()).mean((2, 3)),
        a=conv(3, 8),
        b=conv(4, 2),
    )
    (group,) = found(network).groups
    written = next(member for member in group.members if member.layer == "a")
    assert (group.size, written.indices) == (4, ((0, 4), (1, 5), (2, 6), (3, 7)))


def test_a_layer_that_meets_two_others_has_two_groups() -> None:
    network = Wired(
        lambda net, x: net.d((net.a(x) + torch.cat([net.b(x), net.c(x)], 1)).relu()),
        a=conv(3, 9),
        b=conv(3, 4),
        c=conv(3, 5),
        d=conv(9, 2),
    )
    groups = found(network).groups
    assert [(group.name, group.size) for group in groups] == [("a", 4), ("a/1", 5)]
    assert [sides(group) for group in groups] == [{("a", "out"), (each, "out"), ("d", "in")} for each in "bc"]


def test_halves_that_a_forward_cuts_by_their_number_cannot_shrink_apart() -> None:
    network = Wired(
        lambda net, x: net.b((parts := net.a(x).chunk(2, 1))[0]) + net.c(parts[1]),
        a=conv(3, 8),
        b=conv(4, 2),
        c=conv(4, 2),
    )
    assert "a" in found(network).skipped


def shared() -> nn.Module:
    network = nn.Sequential(conv(3, 4), conv(4, 4), conv(4, 4), conv(4, 2))
    network[2].weight = network[1].weight
    return network


SKIPPED: dict[str, tuple[nn.Module, str, str]] = {
    "output": (nn.Sequential(conv(3, 4)), "0", "an output of the network"),
    "layer norm": (
        nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(256, 6), nn.LayerNorm(6), nn.Linear(6, 2)),
        "2",
        "LayerNorm '3' normalises over them",
    ),
    "group norm": (nn.Sequential(conv(3, 4), nn.GroupNorm(2, 4), conv(4, 2)), "0", "GroupNorm '1' normalises"),
    "grouped": (nn.Sequential(conv(3, 4), conv(4, 4, groups=2), conv(4, 2)), "0", "'1' is a grouped convolution"),
    "shared": (shared(), "1", "shares its weights"),
    "computed": (
        nn.Sequential(parametrizations.weight_norm(conv(3, 4)), conv(4, 2)),
        "0",
        "computes its weights",
    ),
    "twice": (
        Wired(lambda net, x: net.b(net.a(net.a(x))), a=conv(3, 3), b=conv(3, 2)),
        "a",
        "'a' is used more than once",
    ),
    "not zero at zero": (nn.Sequential(conv(3, 4), nn.Sigmoid(), conv(4, 2)), "0", "the output changes"),
    "norm of zeros": (
        nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, affine=False), conv(4, 2)),
        "0",
        "the output changes",
    ),
    "softmax": (nn.Sequential(conv(3, 4), nn.Softmax(1), conv(4, 2)), "0", "the output changes"),
    "fixed size": (
        Wired(lambda net, x: net.b(net.a(x).reshape(2, 4, 8, 8)), a=conv(3, 4), b=conv(4, 2)),
        "a",
        "does not run without some of them",
    ),
    "returned too": (
        Wired(lambda net, x: (y := net.a(x), net.b(y)), a=conv(3, 4), b=conv(4, 2)),
        "a",
        "an output of the network",
    ),
}


@pytest.mark.parametrize("case", list(SKIPPED))
def test_what_would_not_be_exact_is_skipped_and_said(case: str) -> None:
    network, layer, reason = SKIPPED[case]
    groups = found(network)
    assert reason in groups.skipped[layer]
    assert all((layer, "out") not in sides(group) for group in groups.groups)


def test_a_gate_of_zero_channels_and_the_hidden_channels_of_the_gate_can_go() -> None:
    network = Wired(
        lambda net, x: net.b((y := net.a(x)) * net.up(net.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()),
        a=conv(3, 4),
        down=nn.Conv2d(4, 3, 1),
        up=nn.Conv2d(3, 4, 1),
        b=conv(4, 2),
    )
    assert [(group.name, group.size) for group in found(network).groups] == [("a", 4), ("down", 3)]


def test_a_layer_that_is_to_be_kept_has_no_group() -> None:
    network = nn.Sequential(conv(3, 4), nn.Sequential(conv(4, 5), conv(5, 6)), conv(6, 2))
    assert [group.name for group in found(network).groups] == ["0", "1.0", "1.1"]
    groups = found(network, keep=["1"])
    assert [group.name for group in groups.groups] == ["0"]
    assert groups.skipped["1.0"] == groups.skipped["1.1"] == "'1' is to keep all its channels"


def test_the_network_and_the_random_numbers_are_as_before() -> None:
    network = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2)).half()
    network[0].weight.requires_grad_(False)
    network[0].register_forward_hook(lambda *given: pytest.fail("the network itself ran"))
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert len(found(network).groups) == 1
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert [each.requires_grad for each in network.parameters()] == [False, *[True] * 5]
    assert all(each.grad is None and each.dtype == torch.half for each in network.parameters())
    assert len(network[0]._forward_hooks) == 1


def test_groups_can_be_found_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert len(found(nn.Sequential(conv(3, 4), conv(4, 2))).groups) == 1


def test_an_unknown_layer_to_keep_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"keep: Sequential has no module 'con'"):
        found(nn.Sequential(conv(3, 4)), keep=["con"])


def test_an_example_that_does_not_fit_is_refused_in_one_line() -> None:
    expected = r"example: Sequential does not run on a batch of shape \(2, 4, 8, 8\)"
    with pytest.raises(ConfigurationError, match=expected) as caught:
        found(nn.Sequential(conv(3, 4)), 2, 4, 8, 8)
    assert "\n" not in str(caught.value)


def test_without_torch_pruning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtraError, match=r"lightning-efficient\[prune\]"):
        found(nn.Sequential(conv(3, 4)))


class TestOneGroup:
    """Two layers around three channels."""

    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))

    @pytest.fixture(scope="class")
    def group(self) -> ChannelGroup:
        (group,) = found(self.network, 1, 2).groups
        return group

    def test_scores_are_sums_over_all_its_weights(self, group: ChannelGroup) -> None:
        scores = {
            "0.weight": torch.tensor([[1.0, 2.0], [0.0, 0.0], [5.0, 0.0]]),
            "0.bias": torch.tensor([0.5, 0.0, 0.0]),
            "2.weight": torch.ones(4, 3),
            "2.bias": torch.full((4,), 100.0),
        }
        assert channel_scores(group, scores).tolist() == [7.5, 4.0, 9.0]
        assert channel_scores(group, {"0.bias": scores["0.bias"].half()}).dtype == torch.float32

    def test_scores_of_other_weights_only_are_refused(self, group: ChannelGroup) -> None:
        with pytest.raises(ConfigurationError, match="scores has none for the weights of the channels of '0'"):
            channel_scores(group, {"2.bias": torch.ones(4)})

    def test_masks_are_of_the_shapes_of_the_weights(self, group: ChannelGroup) -> None:
        masks = group_masks(group, torch.tensor([True, False, True]))
        shapes = {name: value.shape for name, value in self.network.named_parameters() if name != "2.bias"}
        assert {name: mask.shape for name, mask in masks.items()} == shapes
        assert masks["0.weight"].all(1).tolist() == masks["0.bias"].tolist() == [True, False, True]
        assert masks["2.weight"].all(0).tolist() == [True, False, True]

    @pytest.mark.parametrize("keep", [torch.ones(2, dtype=torch.bool), torch.ones(3)], ids=["size", "dtype"])
    def test_what_is_no_mask_of_the_channels_is_refused(self, group: ChannelGroup, keep: Tensor) -> None:
        with pytest.raises(ConfigurationError, match=r"keep of '0' has shape .* give a boolean vector of 3 entries"):
            group_masks(group, keep)

    def test_a_channel_costs_what_writes_and_reads_it(self, group: ChannelGroup) -> None:
        assert parameters_per_channel(group, self.network) == 2 + 1 + 4
