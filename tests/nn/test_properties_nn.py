"""Cells, guides and routers: rows do not meet, the order of samples is kept, and outputs stay within their bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_efficient.nn import (
    BothMapsGuide,
    ConstantGuide,
    FeaturesGuide,
    GainRouter,
    GlobalLayer,
    Guide,
    IncrementalRNN,
    LogitsGuide,
    MapGuide,
    ModelViews,
    ProxyRouter,
    Router,
    ScoreRouter,
    StudentMapGuide,
    TimeAdaptiveRNN,
)

seeds = st.integers(0, 2**32 - 1)
CELLS: dict[str, Callable[[], nn.Module]] = {
    "IncrementalRNN": lambda: IncrementalRNN(2, 3, num_layers=2),
    "TimeAdaptiveRNN": lambda: TimeAdaptiveRNN(2, 3),
    "TimeAdaptiveRNN, several steps": lambda: TimeAdaptiveRNN(2, 3, inner_steps=2),
}
GUIDES: dict[str, Callable[[], Guide]] = {
    "LogitsGuide": lambda: LogitsGuide(3),
    "FeaturesGuide": lambda: FeaturesGuide(2),
    "MapGuide": lambda: MapGuide(2, 2, 3, width=4),
    "StudentMapGuide": lambda: StudentMapGuide(2, 2, 3, width=4),
    "BothMapsGuide": lambda: BothMapsGuide((2, 2), (2, 2), 3, width=4),
    "ConstantGuide": lambda: ConstantGuide(0.25),
}
ROUTERS: dict[str, Callable[[], Router]] = {
    "ScoreRouter": lambda: ScoreRouter("gini"),
    "GainRouter": lambda: GainRouter(3, 2),
    "ProxyRouter": lambda: ProxyRouter(3, 2),
}


def made(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = build().double().eval()
    with torch.no_grad():
        for each in module.parameters():
            each.add_(torch.randn_like(each) * 0.3)
    return module


def rows(seed: int, size: int, *shape: int) -> Tensor:
    return torch.randn(size, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", CELLS)
@given(seed=seeds, size=st.integers(1, 4), length=st.integers(1, 6), cut=st.integers(0, 6))
def test_a_sequence_in_two_pieces_is_the_whole_and_sequences_do_not_meet(
    name: str, seed: int, size: int, length: int, cut: int
) -> None:
    cell, inputs = made(CELLS[name], seed), rows(seed, length, size, 2)
    output, state = cell(inputs)
    if 0 < cut < length and "TimeAdaptive" not in name:  # which also looks at the input before
        first, between = cell(inputs[:cut])
        second, end = cell(inputs[cut:], between)
        torch.testing.assert_close(torch.cat([first, second]), output)
        torch.testing.assert_close(end, state)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(cell(inputs[:, order])[0], output[:, order])
    # what comes later changes nothing before
    torch.testing.assert_close(cell(inputs[: max(cut, 1)])[0], output[: max(cut, 1)])


@pytest.mark.parametrize("name", GUIDES)
@given(seed=seeds, size=st.integers(1, 4), scale=st.sampled_from([0.0, 1.0, 1e3]))
def test_help_is_a_share_for_each_sample_alone(name: str, seed: int, size: int, scale: float) -> None:
    guide = made(GUIDES[name], seed)
    teacher, student = (
        [scale * rows(seed + k, size, 3), scale * rows(seed + k, size, 2), scale * rows(seed + k, size, 2, 3, 3)]
        for k in (0, 1)
    )
    found = guide(ModelViews(*teacher), ModelViews(*student))
    assert found.shape == (size,)
    assert ((found >= 0) & (found <= 1)).all()
    alone = guide(*(ModelViews(*(each[:1] for each in views)) for views in (teacher, student)))
    torch.testing.assert_close(alone, found[:1])


@pytest.mark.parametrize("name", ROUTERS)
@given(seed=seeds, size=st.integers(0, 5), scale=st.sampled_from([0.0, 1.0, 100.0]))
def test_a_router_scores_each_sample_alone_and_finitely(name: str, seed: int, size: int, scale: float) -> None:
    router, logits, features = made(ROUTERS[name], seed), scale * rows(seed, size, 3), scale * rows(seed, size, 2)
    found = router(logits, features)
    assert found.shape == (size,)
    assert found.isfinite().all()
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(router(logits[order], features[order]), found[order])
    if isinstance(router, GainRouter):
        right = router.probabilities(logits, features)
        assert ((right >= 0) & (right <= 1)).all()
        assert (found.abs() <= 1).all()


@given(seed=seeds, size=st.integers(1, 3), steps=st.integers(1, 3))
def test_a_global_layer_treats_each_sample_alone(seed: int, size: int, steps: int) -> None:
    layer, inputs = made(lambda: GlobalLayer(2, steps=steps), seed), rows(seed, size, 2, 4, 5)
    output = layer(inputs)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(layer(inputs[order]), output[order])
    torch.testing.assert_close(layer(inputs[:1]), output[:1])
