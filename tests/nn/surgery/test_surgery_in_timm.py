"""More of what timm and torch do with changed networks; every test takes all three kinds of surgery."""

from __future__ import annotations

import pickle
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureHookNet
from timm.models._features import FeatureGetterNet
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3, freeze
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery import global_layers, interpolate

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
NAME = "mobilenetv3_small_050"
CUTS = {"interpolated": interpolate, "chained": partial(interpolate, design="chain"), "condensed": global_layers}


def network(name: str = NAME, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def shapes(maps: list[Tensor]) -> list[torch.Size]:
    return [each.shape for each in maps]


@pytest.fixture(params=CUTS.values(), ids=CUTS)
def cut(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def model(cut: Any) -> Any:
    changed = network()
    cut(changed)
    return changed.eval()


@pytest.mark.parametrize("index", [0, 2, 3, 6])
def test_pruning_at_any_block_leaves_what_it_leaves_of_the_original(model: Any, index: int) -> None:
    original = network()
    for each in (model, original):
        assert each.prune_intermediate_layers([index], extra_blocks=True) == [index]
    assert len(model.blocks) == len(original.blocks)
    assert model.num_features == original.num_features
    assert model.forward_features(IMAGES).shape == original.forward_features(IMAGES).shape


def test_intermediates_of_every_block_have_the_shapes_of_the_original(model: Any) -> None:
    every = {"intermediates_only": True, "extra_blocks": True}
    maps = model.forward_intermediates(IMAGES, **every)
    assert len(maps) == 7
    assert shapes(maps) == shapes(network().forward_intermediates(IMAGES, **every))


@pytest.mark.parametrize("name", [NAME, "resnet18"])
@pytest.mark.parametrize("kind", [FeatureGetterNet, FeatureHookNet])
def test_a_feature_extractor_of_a_changed_network_gives_the_shapes_it_declares(cut: Any, name: str, kind: Any) -> None:
    model = network(name)
    cut(model)
    features = kind(model, out_indices=(0, 1, 2, 3, 4))
    maps = features(IMAGES)
    assert shapes(maps) == shapes(network(name, features_only=True)(IMAGES))
    assert [each.shape[1] for each in maps] == features.feature_info.channels()
    assert [64 // each.shape[2] for each in maps] == features.feature_info.reduction()


def test_taps_inside_blocks_are_in_the_way_of_every_kind(cut: Any) -> None:
    model = network("mobilenetv2_050", features_only=True, feature_location="expansion")
    before = shapes(model(IMAGES))
    with pytest.raises(ConfigurationError, match=r"conv_pwl carries a hook.*feature_location='expansion'"):
        cut(model)
    assert shapes(model(IMAGES)) == before


def test_torchvision_finds_the_maps_of_a_replaced_block(model: Any) -> None:
    seen = []
    model.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    expected = model(IMAGES)
    maps = create_feature_extractor(model, {"blocks.1": "low", "classifier": "top"})(IMAGES)
    torch.testing.assert_close(maps["low"], seen[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(maps["top"], expected, rtol=1e-3, atol=1e-4)


def test_a_symbolic_trace_computes_the_same(model: Any) -> None:
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-4)


def test_an_exported_stage_takes_batches_of_other_sizes(model: Any) -> None:
    stage = model.blocks[1]
    maps = torch.randn(2, stage[0].conv_pw.in_channels, 16, 16)
    exported = torch.export.export(stage, (maps,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    more = torch.cat([maps, maps, maps])
    torch.testing.assert_close(exported.module()(more), stage(more), rtol=1e-3, atol=1e-4)


def test_five_sizes_of_maps_need_two_graphs_without_breaks(model: Any) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    stage = model.blocks[1]
    compiled = torch.compile(stage, backend=backend, fullgraph=True)
    with torch.no_grad():
        for size in (16, 24, 32, 40, 48):
            maps = torch.randn(1, stage[0].conv_pw.in_channels, size, size)
            torch.testing.assert_close(compiled(maps), stage(maps), rtol=1e-3, atol=1e-4)
    assert len(graphs) == 2


def test_checkpointing_changes_no_gradient(model: Any) -> None:
    other, gradients = deepcopy(model), []
    other.set_grad_checkpointing()
    for each in (model, other):
        each(IMAGES).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in each.named_parameters()})
    assert all(gradient is not None for gradient in gradients[1].values())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def test_copies_share_no_weight(model: Any) -> None:
    expected = model(IMAGES)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copy(IMAGES), expected)
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.zero_()
    assert torch.equal(model(IMAGES), expected)


def test_a_moving_average_has_the_keys_of_the_network_and_takes_its_statistics(model: Any) -> None:
    average = ModelEmaV3(model, decay=0.0)
    model.train()(IMAGES)
    average.update(model)
    ours, theirs = model.state_dict(), average.module.state_dict()
    assert list(theirs) == list(ours)
    torch.testing.assert_close(theirs, ours)


def test_freezing_one_stage_freezes_what_is_new_in_it_and_nothing_else(model: Any) -> None:
    freeze(model, ["blocks.1"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("blocks.1.")}
    before = {name: value.clone() for name, value in model.blocks[1].state_dict().items()}
    model.train()(IMAGES)
    torch.testing.assert_close(model.blocks[1].state_dict(), before, rtol=0, atol=0)


def test_synchronised_norms_predict_the_same(model: Any) -> None:
    expected = model(IMAGES)
    converted = timm.layers.convert_sync_batchnorm(model)
    torch.testing.assert_close(converted(IMAGES), expected, rtol=1e-3, atol=1e-4)


def test_new_parameters_learn_at_the_rate_of_their_block(cut: Any) -> None:
    model = network()
    result = cut(model)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(each): group["lr_scale"] for group in groups for each in group["params"]}
    rates = []
    for name in result.names:
        (rate,) = {scales[id(each)] for each in model.get_submodule(name).parameters()}
        rates.append(rate)
    assert rates == sorted(set(rates))


def test_a_loader_that_knows_the_original_only_refuses_the_weights(model: Any) -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        network().load_state_dict(model.state_dict())


def test_weights_of_the_original_load_and_only_new_keys_are_missing(cut: Any) -> None:
    original, model = network(), network()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(1)
    result = cut(model)
    assert result.load(original.state_dict()) == result.new_keys
    new, old = model.state_dict(), original.state_dict()
    assert set(new) == set(result.new_keys) | set(result.key_map.values())
    assert all(torch.equal(new[there], old[here]) for here, there in result.key_map.items())


@pytest.mark.parametrize("name", [NAME, "resnet18"])
def test_channels_last_computes_the_same(cut: Any, name: str) -> None:
    model = network(name)
    cut(model)
    expected = model.eval().forward_features(IMAGES)
    model.to(memory_format=torch.channels_last)
    maps = model.forward_features(IMAGES.contiguous(memory_format=torch.channels_last))
    assert maps.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4)


def test_autocast_stays_near_single_precision_and_trains(model: Any) -> None:
    expected = model(IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(IMAGES)
        loss = model.train()(IMAGES).square().mean()
    assert nn.functional.cosine_similarity(outputs.float(), expected).min() > 0.99
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
