"""The picture of a footprint: a bar for each layer, setting and form."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_efficient.profiling import Footprint, Latency
from lightning_efficient.profiling.layers import LayerCost
from lightning_efficient.profiling.variant_costs import VariantComparison, VariantCost, VariantTime
from lightning_efficient.reporting.footprint import footprint_figure, shortened


@pytest.fixture
def footprint() -> Footprint:
    layers = tuple(LayerCost(f"block.{place}", "Conv2d", 10 * (place + 1), 0, (), 0, 0) for place in range(5))
    latencies = tuple(
        Latency(size, 2.0 * size, 3.0, 2.0, 500.0, 9, 5, threads, "cpu", "32-true")
        for threads in (1, 2) for size in (1, 4)
    )  # fmt: skip
    return Footprint("net", 1, 1, 4, 9, 150, 300, (), 64, "live tensors", (3, 8), latencies, (*layers, layers[0]))


def words(axes: object) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_the_layers_with_most_macs_have_bars_and_the_others_share_one(footprint: Footprint) -> None:
    layers, _ = footprint_figure(footprint, layers=2).axes
    assert words(layers) == ["block.4", "block.3", "4 more"]
    assert [round(1e6 * bar.get_width()) for bar in layers.patches] == [50, 40, 70]
    assert layers.get_title() == "150 MACs"


def test_every_setting_has_a_bar_of_its_time_per_sample(footprint: Footprint) -> None:
    _, latencies = footprint_figure(footprint).axes
    assert words(latencies) == [f"batch {size}, threads {threads}" for threads in (1, 2) for size in (1, 4)]
    assert [bar.get_width() for bar in latencies.patches] == [2.0] * 4


def test_forms_that_ran_have_bars_of_their_ratio(footprint: Footprint) -> None:
    rows = (
        VariantCost("float", (VariantTime(1, 2.0, 1.0, 1.0, 1.0, 9),)),
        VariantCost("bf16", (VariantTime(1, 1.0, 0.5, 0.4, 0.7, 9),)),
        VariantCost("onnx", reason="needs the extra onnx"),
    )
    compared = replace(footprint, variants=VariantComparison(rows, 1, "cpu"))
    variants = footprint_figure(compared).axes[-1]
    assert words(variants) == ["float", "bf16"]
    assert [text.get_text() for text in variants.texts if text.get_text()] == ["1.00x", "0.50x"]


def test_without_latencies_the_layers_stand_alone_and_gaps_are_told(footprint: Footprint) -> None:
    figure = footprint_figure(replace(footprint, latencies=(), uncounted=("gate",)))
    assert [axes.get_title() for axes in figure.axes] == ["150 MACs (some layers are not counted)"]
    assert not footprint_figure(replace(footprint, latencies=(), layers=())).axes[0].patches


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("conv", "conv"),
        ("a.bb.ccc", "a.bb.ccc"),
        ("aa.bb.ccc", "…bb.ccc"),
        ("a.bb.c.ddd", "…c.ddd"),
        ("a" * 12, "…aaaaaaa"),
    ],
)
def test_a_long_name_is_cut_at_a_dot(name: str, short: str) -> None:
    assert shortened(name, 8) == short
    assert len(shortened(name, 8)) <= 8
