"""What timm does with its models, after surgery on them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureGraphNet, FeatureHookNet, FeatureListNet
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3, freeze, reparameterize_model, unfreeze
from torch import nn

from lightning_efficient.nn.surgery import carry_out, condense, global_layers, interpolate, perform
from lightning_efficient.nn.surgery.interpolation import interpolation_steps

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
NAME = "mobilenetv3_small_050"
Cut = Callable[[nn.Module], Any]


def network(name: str = NAME, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **options)


@pytest.fixture(params=[interpolate, global_layers], ids=["interpolated", "condensed"])
def cut(request: pytest.FixtureRequest) -> Cut:
    return request.param


@pytest.fixture
def model(cut: Cut) -> Any:
    changed = network(num_classes=4)
    assert cut(changed).names
    return changed


def test_it_classifies_and_gets_another_head(model: Any) -> None:
    assert model(IMAGES).shape == (2, 4)
    model.reset_classifier(7)
    assert model(IMAGES).shape == (2, 7)
    assert model.forward_head(model.forward_features(IMAGES), pre_logits=True).shape == (2, 1024)


def test_its_intermediates_have_the_shapes_of_the_original(model: Any) -> None:
    expected = [each.shape for each in network().forward_intermediates(IMAGES, intermediates_only=True)]
    assert [each.shape for each in model.forward_intermediates(IMAGES, intermediates_only=True)] == expected


def test_checkpointed_gradients_reach_every_parameter(model: Any) -> None:
    model.set_grad_checkpointing()
    model.train()(IMAGES).square().sum().backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_copies_and_its_state_are_the_same_network(model: Any, cut: Cut) -> None:
    expected = model.eval()(IMAGES)
    assert torch.equal(deepcopy(model)(IMAGES), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(IMAGES), expected)
    other = network(num_classes=4).eval()
    with torch.no_grad():
        cut(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IMAGES), expected)


def test_a_moving_average_follows(model: Any) -> None:
    average = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.update(model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(dict(average.module.named_parameters())[name], parameter - 0.5)


def test_freezing_and_thawing_reaches_new_norms(model: Any) -> None:
    freeze(model)
    assert not any(each.requires_grad for each in model.parameters())
    assert not any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules())
    model.train()(IMAGES)
    unfreeze(model)
    assert all(each.requires_grad for each in model.parameters())


def test_it_is_reparameterised_and_gets_synchronised_norms(model: Any) -> None:
    expected = model.eval()(IMAGES)
    torch.testing.assert_close(reparameterize_model(model)(IMAGES), expected)
    converted = timm.layers.convert_sync_batchnorm(model)
    norms = [each for each in converted.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(each, nn.SyncBatchNorm) for each in norms)


def test_layer_decay_groups_hold_every_parameter(model: Any) -> None:
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    held = [id(each) for group in groups for each in group["params"]]
    assert sorted(held) == sorted(id(each) for each in model.parameters())
    assert len({group["lr_scale"] for group in groups}) > 3


def test_it_exports_and_traces(model: Any) -> None:
    expected = model.eval()(IMAGES)
    exported = torch.export.export(model, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), expected)
    torch.testing.assert_close(torch.jit.trace(model, IMAGES)(IMAGES), expected)


def test_its_graph_can_be_traced_by_timm(model: Any) -> None:
    expected = [each.shape for each in network(features_only=True)(IMAGES)]
    features = FeatureGraphNet(model, out_indices=(0, 1, 2, 3, 4))
    assert [each.shape for each in features(IMAGES)] == expected


@pytest.mark.parametrize("name", [NAME, "resnet18"])
def test_feature_maps_have_the_same_shapes_before_and_after(cut: Cut, name: str) -> None:
    model = network(name, features_only=True)
    expected = [each.shape for each in model(IMAGES)]
    cut(model)
    assert [each.shape for each in model(IMAGES)] == expected


def test_a_list_of_features_can_be_made_of_it(model: Any) -> None:
    expected = [each.shape for each in network(features_only=True)(IMAGES)]
    features = FeatureListNet(model, out_indices=(0, 1, 2, 3, 4), flatten_sequential=True)
    assert [each.shape for each in features(IMAGES)] == expected


def test_features_can_be_hooked_out_of_it(model: Any) -> None:
    expected = [each.shape for each in network(features_only=True)(IMAGES)]
    features = FeatureHookNet(model, out_indices=(0, 1, 2, 3, 4))
    assert [each.shape for each in features(IMAGES)] == expected


def test_channels_last_and_half_precision_are_kept(cut: Cut) -> None:
    model = network().to(memory_format=torch.channels_last).eval()
    cut(model)
    maps = model.forward_features(IMAGES.contiguous(memory_format=torch.channels_last))
    assert maps.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(IMAGES)).all()


def test_a_network_compiled_before_surgery_gives_the_new_output(cut: Cut) -> None:
    model = network().eval()
    compiled = torch.compile(model, backend="eager")
    old = compiled(IMAGES)
    cut(model)
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES))
    assert not torch.allclose(compiled(IMAGES), old)


def test_weights_of_the_original_load_without_their_renaming() -> None:
    model = network()
    interpolate(model)
    missing, unexpected = model.load_state_dict(network().state_dict(), strict=False)
    assert unexpected == []
    assert missing
    assert all(".cheap_" in key for key in missing)


def test_later_layers_are_pruned(model: Any) -> None:
    model.prune_intermediate_layers([2], prune_norm=False, prune_head=True)
    assert len(model.blocks) < 6
    assert model.forward_features(IMAGES).ndim == 4


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18"])
def test_the_rates_of_stochastic_depth_are_spread_anew_where_blocks_went(name: str) -> None:
    model = network(name, drop_path_rate=0.2)

    def rates() -> list[float]:
        owners = (each for each in model.modules() if hasattr(each, "drop_path"))
        return [float(getattr(each.drop_path, "drop_prob", None) or 0) for each in owners]

    before = rates()
    result = condense(model, 2 if name == "efficientnet_b0" else [2, 3])
    after = rates()
    assert len(after) < len(before)
    assert after[0] == before[0]
    assert after[-1] == pytest.approx(before[-1])
    steps = torch.tensor(after).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps))
    model.train()(IMAGES)
    result.undo()
    assert rates() == before


def test_rates_that_were_not_linear_stay() -> None:
    model = network("resnet18", drop_path_rate=0.2)
    model.layer3[0].drop_path.drop_prob = 0.19
    condense(model, 2)
    assert model.layer3[0].drop_path.drop_prob == 0.19


def test_the_rate_of_a_block_goes_over_to_its_replacement() -> None:
    model = network(drop_path_rate=0.2)
    rate = model.blocks[2][1].drop_path.drop_prob
    carry_out(model, [step for step in interpolation_steps(model) if step["name"] == "blocks.2.1"])
    assert model.blocks[2][1].drop_path.drop_prob == rate > 0


def test_a_policy_takes_the_options_of_its_layer() -> None:
    model = network()
    policy = {"class_path": "GlobalLayer", "init_args": {"stages": [2], "steps": 3, "kernel_size": 5, "keep": 2}}
    (name,) = perform(model, [policy]).names
    assert model.get_submodule(name).steps == 3
