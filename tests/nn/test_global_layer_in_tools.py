"""The Global layer inside other people's tools: autocast, compilers, exporters, tracers, converted norms, copies."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
from global_layer_settings import drawn, features, state_of
from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn

from lightning_efficient.nn.global_layer import GlobalLayer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_equation_is_solved_in_float32_under_autocast(dtype: torch.dtype) -> None:
    layer = drawn(GlobalLayer(4, nn.Conv2d(4, 4, 1), steps=4)).eval()
    inputs = features(2, 4, 8, 8)
    with torch.autocast("cpu", dtype=dtype):
        assert layer.init(inputs).dtype == dtype
        state, outputs = state_of(layer, inputs), layer(inputs)
    assert state.dtype == outputs.dtype == torch.float32
    assert torch.allclose(outputs, layer(inputs), atol=0.1, rtol=0.05)
    outputs.sum().backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_layer_of_another_dtype_returns_that_dtype(dtype: torch.dtype) -> None:
    layer = drawn(GlobalLayer(4, steps=2, residual=True)).eval()
    expected = layer(features(2, 4, 6, 6))
    outputs = copy.deepcopy(layer).to(dtype)(features(2, 4, 6, 6).to(dtype))
    assert outputs.dtype == dtype
    assert torch.allclose(outputs.float(), expected, atol=0.1, rtol=0.05)


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "several": {"steps": 3, "tied": True, "residual": True, "velocity_bound": True, "spacing": (2, 1)},
    "constant": {"diffusion": (0.5, 2.0), "layer_scale": 0.5, "act": "hard_swish", "init": True},
}


def made(name: str) -> GlobalLayer:
    options = dict(SETTINGS[name])
    if options.pop("init", False):
        options["init"] = InvertedResidual(4, 4)
    return drawn(GlobalLayer(4, **options))


@pytest.mark.parametrize("name", SETTINGS)
def test_channels_last_changes_nothing(name: str) -> None:
    layer, inputs = made(name), features(2, 4, 6, 5)
    expected = copy.deepcopy(layer)(inputs)
    layer = layer.to(memory_format=torch.channels_last)
    assert torch.allclose(layer(inputs.to(memory_format=torch.channels_last)), expected, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("training", [False, True])
def test_it_compiles_as_one_graph(name: str, training: bool) -> None:
    torch._dynamo.reset()
    layer, inputs = made(name).train(training), features(2, 4, 6, 5)
    expected = copy.deepcopy(layer)(inputs)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(inputs), expected, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_exports_for_any_number_of_samples_and_traces(name: str) -> None:
    layer, inputs, more = made(name).eval(), features(2, 4, 6, 5), features(5, 4, 6, 5, seed=1)
    exported = torch.export.export(layer, (inputs,), dynamic_shapes=({0: torch.export.Dim("samples", min=2)},))
    traced = torch.fx.symbolic_trace(layer)
    for each in (inputs, more):
        assert torch.allclose(exported.module()(each), layer(each), atol=1e-6)
        assert torch.allclose(traced(each), layer(each), atol=1e-6)


@pytest.mark.parametrize("convert", [timm.layers.convert_sync_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_norms_of_several_processes_take_its_epsilons_over(convert: Any) -> None:
    layer = made("default").eval()
    expected = layer(features(2, 4, 6, 5))
    converted = convert(copy.deepcopy(layer))
    norms = [each for each in converted.modules() if isinstance(each, nn.SyncBatchNorm)]
    assert [each.eps for each in norms] == [4.0, 4.0, 4.0, 4.0, 1e-5]
    assert torch.allclose(converted(features(2, 4, 6, 5)), expected, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_copies_pickles_and_state_dicts_give_the_same_layer(name: str) -> None:
    layer, inputs = made(name).eval(), features(2, 4, 6, 5)
    again = made(name).eval()
    nn.init.zeros_(again.norm.weight)
    again.load_state_dict(layer.state_dict())
    for each in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), again):
        assert torch.equal(each(inputs), layer(inputs))


def test_features_inside_a_network_are_found_by_torchvision() -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    network = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), layer=made("several"), head=nn.Flatten())).eval()
    inputs = features(2, 3, 8, 7)
    found = extraction.create_feature_extractor(network, {"layer": "map"})(inputs)["map"]
    assert torch.allclose(found, network.layer(network.stem(inputs)), atol=1e-6)
