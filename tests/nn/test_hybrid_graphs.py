"""The two halves of a hybrid run apart, export with a free batch size, and share the networks' weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_efficient.nn.hybrid_graphs import EdgeGraph, GlobalGraph
from lightning_efficient.nn.input_fit import InputFit
from lightning_efficient.nn.routers import Router, build_router


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def fit() -> InputFit:
    made = InputFit(1, 6)
    made.renormalize((0.5,), (0.5,), (0.0,), (1.0,))
    return made


def router(name: str) -> Router:
    torch.manual_seed(0)
    made = build_router(name, 3, 4)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.mark.parametrize("name", ["gain", "proxy", "paper", "msp", "entropy"])
def test_the_edge_says_what_base_and_router_say_of_the_fitted_input(name: str) -> None:
    base, ask, shown = network().eval(), router(name), fit()
    images = torch.randn(5, 1, 9, 9)
    logits, score = EdgeGraph(base, ask, shown).eval()(images)
    features = base[:5](shown(images))
    assert torch.equal(logits, base(shown(images)))
    torch.testing.assert_close(score, ask(logits, features))


def test_the_global_graph_says_what_its_network_says() -> None:
    best, shown, images = network().eval(), fit(), torch.randn(5, 1, 9, 9)
    assert torch.equal(GlobalGraph(best, shown)(images), best(shown(images)))
    assert torch.equal(GlobalGraph(best)(images), best(images))


def test_graphs_hold_the_weights_of_the_networks_themselves() -> None:
    base = network()
    graph = EdgeGraph(base, router("gain"))
    assert {id(each) for each in base.parameters()} <= {id(each) for each in graph.parameters()}
    names = list(graph.state_dict())
    assert len(names) == len(set(names))
    assert {name.split(".")[0] for name in names} == {"base", "router"}


@pytest.mark.parametrize("name", ["gain", "msp"])
def test_the_edge_exports_with_a_free_batch_size(name: str) -> None:
    graph, images = EdgeGraph(network(), router(name), fit()).eval(), torch.randn(4, 1, 9, 9)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(graph, (images,), dynamic_shapes=({0: batch},)).module()
    for rows in (1, 4, 7):
        images = torch.randn(rows, 1, 9, 9)
        for one, other in zip(exported(images), graph(images), strict=True):
            torch.testing.assert_close(one, other)
