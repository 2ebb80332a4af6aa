"""What a tap sees of a network, in which layout, and that it keeps nothing."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.views import ViewTap


class Small(nn.Module):
    """A network that is not timm's, whose views are computed by hand in the tests."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 2)
        self.checkpointed = checkpointed

    def forward(self, images: Tensor) -> Tensor:
        inner = checkpoint(self.body, images, use_reentrant=False) if self.checkpointed else self.body(images)
        return self.fc(inner.mean((2, 3)))


class Tokens(nn.Module):
    """Tokens of the pixels, in rows, behind some others."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.num_prefix_tokens = prefix
        self.feature_info = [{"module": "norm", "num_chs": 3, "reduction": 1}]
        self.norm = nn.Identity()
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).transpose(1, 2)
        prefix = torch.full((len(images), self.num_prefix_tokens, 3), -1.0)
        return self.head(self.norm(torch.cat([prefix, tokens], dim=1)).mean(1))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def small_tap(network: nn.Module | None = None) -> ViewTap:
    return ViewTap(network or Small().eval(), features=True, feature_map=True, map_module="body")


def test_views_are_what_the_layers_compute(images: Tensor) -> None:
    tap = small_tap()
    network = tap.network
    views = tap(images)
    assert (tap.num_classes, tap.feature_dim, tap.map_channels) == (2, 4, 4)
    torch.testing.assert_close(views.feature_map, network.body(images))
    torch.testing.assert_close(views.features, network.body(images).mean((2, 3)))
    torch.testing.assert_close(views.logits, network(images))


NAMES = [
    "test_resnet",
    "test_vit",
    "test_efficientnet",
    "convnext_atto",
    "mixer_s32_224",
    "swin_tiny_patch4_window7_224",
]


@pytest.mark.parametrize("name", NAMES)
def test_maps_of_timm_are_its_own_intermediates(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7).eval()
    tap = ViewTap(network, features=True, feature_map=True)
    images = torch.rand(1, *network.pretrained_cfg["input_size"])
    with torch.no_grad():
        views = tap(images)
        theirs = network.forward_intermediates(images, indices=1, output_fmt="NCHW", intermediates_only=True)[0]
        torch.testing.assert_close(views.feature_map, theirs)
        torch.testing.assert_close(network.get_classifier()(views.features), views.logits)
    assert views.feature_map.shape[1] == tap.map_channels
    assert views.features.shape == (1, tap.feature_dim)
    assert views.logits.shape == (1, tap.num_classes)


@given(height=st.integers(1, 6), width=st.integers(1, 6), prefix=st.integers(0, 2))
def test_tokens_become_the_grid_of_the_input_without_their_prefix(height: int, width: int, prefix: int) -> None:
    images = torch.rand(2, 3, height, width)
    assert torch.equal(ViewTap(Tokens(prefix), feature_map=True)(images).feature_map, images)


def test_channels_last_are_put_first_where_the_network_says_so() -> None:
    network = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(4 * 4 * 4, 2))
    network.feature_info = [{"module": "0", "num_chs": 4}]
    images = torch.rand(2, 4, 4, 4)
    assert torch.equal(ViewTap(network, feature_map=True)(images).feature_map, images)
    network.output_fmt = "NHWC"
    assert torch.equal(ViewTap(network, feature_map=True)(images).feature_map, images.permute(0, 3, 1, 2))


def test_a_network_that_is_its_own_classifier_and_map() -> None:
    network = nn.Linear(3, 2)
    inputs = torch.rand(4, 3)
    views = ViewTap(network, features=True)(inputs)
    assert views.features is inputs
    assert torch.equal(views.logits, network(inputs))


def test_somebody_else_may_run_the_network(images: Tensor) -> None:
    tap = small_tap()
    tap.attach()
    tap.attach()
    logits = tap.network(images)
    views = tap.take(logits)
    assert views.logits is logits
    assert torch.equal(tap.network.fc(views.features), logits)
    tap.detach()
    tap.network(images)
    with pytest.raises(RuntimeError, match="did not run since the last take"):
        tap.take(logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tap.network.modules())


def test_what_was_taken_cannot_be_taken_again(images: Tensor) -> None:
    tap = small_tap()
    tap.attach()
    logits = tap.network(images)
    tap.take(logits)
    with pytest.raises(RuntimeError, match="did not run since the last take"):
        tap.take(logits)


def test_calling_an_attached_tap_leaves_it_attached(images: Tensor) -> None:
    tap = small_tap()
    tap.attach()
    tap(images)
    assert tap.take(tap.network(images)).features is not None


def test_a_failed_forward_leaves_no_hook(images: Tensor) -> None:
    tap = small_tap()
    with pytest.raises(RuntimeError):
        tap(images[:, :, :1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tap.network.modules())
    with pytest.raises(RuntimeError, match="did not run"):
        tap.take(torch.zeros(1, 2))


def test_activations_live_no_longer_than_the_views(images: Tensor) -> None:
    tap = small_tap()
    tap.attach()
    views = tap.take(tap.network(images))
    watched = [weakref.ref(views.features), weakref.ref(views.feature_map)]
    del views
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_a_backward_pass_that_recomputes_leaves_nothing_behind(images: Tensor) -> None:
    tap = small_tap(Small(checkpointed=True))
    tap.attach()
    views = tap.take(tap.network(images))
    views.logits.sum().backward()
    assert tap._seen == {}
    with pytest.raises(RuntimeError, match="did not run"):
        tap.take(views.logits)


def test_gradients_flow_through_the_views(images: Tensor) -> None:
    tap = small_tap(Small())
    views = tap(images)
    (views.features.sum() + views.feature_map.sum()).backward()
    assert tap.network.body[0].weight.grad.abs().sum() > 0
    assert tap.network.fc.weight.grad is None


def test_modes_of_the_caller_hold_for_the_views(images: Tensor) -> None:
    tap = small_tap()
    with torch.no_grad():
        assert not tap(images).features.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        views = tap(images)
    assert views.logits.dtype is torch.bfloat16
    torch.testing.assert_close(views.feature_map.float(), tap.network.body(images), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tap: pickle.loads(pickle.dumps(tap))])
def test_a_copy_sees_the_copied_network(images: Tensor, copied: object) -> None:
    tap = small_tap()
    twin = copied(tap)
    with torch.no_grad():
        twin.network.fc.bias.add_(1)
    torch.testing.assert_close(twin(images).logits, tap(images).logits + 1)
    assert torch.equal(twin(images).feature_map, tap(images).feature_map)


def test_an_attached_network_can_be_copied_between_forward_and_take(images: Tensor) -> None:
    tap = small_tap(Small())
    tap.attach()
    logits = tap.network(images)
    copy.deepcopy(tap.network)
    assert tap.take(logits).features.shape == (3, 4)


def test_a_module_out_of_the_forward_is_named(images: Tensor) -> None:
    network = Small()
    network.unused = nn.Conv2d(1, 4, 1)
    tap = ViewTap(network, feature_map=True, map_module="unused")
    with pytest.raises(RuntimeError, match="'unused' of the map did not run"):
        tap(images)


def conv_head() -> nn.Module:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1), nn.Flatten())
    network.get_classifier = lambda: network[1]
    return network


def test_a_classifier_that_is_a_convolution_has_features_too() -> None:
    images = torch.rand(2, 3, 4, 4)
    tap = ViewTap(conv_head(), features=True)
    torch.testing.assert_close(tap(images).features, images.mean((2, 3)))
    assert (tap.num_classes, tap.feature_dim) == (2, 3)


OPTIONS_THAT_FAIL = [
    (lambda: nn.Conv2d(1, 2, 3), {"features": True}, "features: Conv2d has no linear classifier"),
    (Small, {"feature_map": True}, "map_module: Small declares no feature maps"),
    (Small, {"feature_map": True, "map_module": "boddy"}, "no module 'boddy'. Did you mean 'body'"),
    (Small, {"feature_map": True, "map_module": "body.2"}, "nothing in this ReLU says how many channels"),
    (
        lambda: Tokens(1),
        {"feature_map": True, "map_index": 1},
        r"map_index=1 is out of range: Tokens has 1 maps.*\[3\]",
    ),
    (lambda: Tokens(1), {"feature_map": True, "map_index": -2}, "map_index=-2 is out of range"),
]


@pytest.mark.parametrize(("make", "options", "message"), OPTIONS_THAT_FAIL)
def test_views_that_a_network_does_not_have_are_refused(make: type, options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ViewTap(make(), **options)


def test_two_classifiers_have_no_one_feature_vector() -> None:
    network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7)
    with pytest.raises(ConfigurationError, match=r"2 classifiers, \['head', 'head_dist'\]"):
        ViewTap(network, features=True)
    tap = ViewTap(network, feature_map=True)
    assert (tap.num_classes, tap.feature_dim, tap.map_channels) == (7, None, 192)


@pytest.mark.parametrize(
    ("network", "options", "inputs", "message"),
    [
        (nn.Linear(3, 2), {"features": True}, torch.zeros(2, 5, 3), r"shape \(2, 5, 3\), not \(N, D\)"),
        (nn.GRU(3, 2), {}, torch.zeros(2, 5, 3), "returns tuple, not a tensor of logits"),
        (Small().body, {"feature_map": True, "map_module": "1"}, torch.zeros(2, 1, 4, 4), None),
        (nn.BatchNorm1d(6), {"feature_map": True, "map_module": ""}, torch.zeros(2, 6, 5), "no map of 6 channels"),
        (Tokens(2), {"feature_map": True, "map_module": "head"}, torch.zeros(2, 3, 2, 2), "says how many channels"),
    ],
)
def test_views_of_an_unusable_shape_are_refused(
    network: nn.Module, options: dict, inputs: Tensor, message: str | None
) -> None:
    if message is None:
        assert ViewTap(network, **options)(inputs).feature_map.shape == (2, 4, 2, 2)
        return
    with pytest.raises(ConfigurationError, match=message):
        ViewTap(network, **options)(inputs)
