from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from lightning_efficient.cli.surgery_page import surgery_page
from lightning_efficient.profiling.surgery_costs import BlockCost, SurgeryCosts

OLD, NEW = "InvertedResidual", "SpatialInterpolation"
ROWS = (
    BlockCost("blocks.1.1", OLD, NEW, 12_345_678, 3_456_789, 10.53, 4.21, 2.5, 2, 3, 10),
    BlockCost("blocks.2.1", OLD, NEW, 9_000, 4_000, 0.5321, 0.4, 1.3, 1.2, 1.4, 10),
    BlockCost("blocks.2.2", OLD, "-", 7_000, 0, 1234.5, 0.0, None, None, None, 10),
    BlockCost("layer1.2", "-", "GlobalLayer", 0, 600, 0.0, 0.7, None, None, None, 10),
)
TOTAL = BlockCost("", "MobileNetV3", "MobileNetV3", 216_600_000, 133_200_000, 180.2, 128.7, 1.40, 1.35, 1.46, 12)
COSTS = SurgeryCosts(ROWS, TOTAL, 5_480_000, 5_490_000, 32, (3, 224, 224), 1, "cpu", "float32", True)


def text_of(costs: SurgeryCosts, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(surgery_page(costs))
    return file.getvalue()


def line_with(text: str, word: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if word in line)


def test_every_block_has_its_macs_times_and_speed_up_in_a_line() -> None:
    text = text_of(COSTS)
    assert " ".join(line_with(text, "blocks.1.1")) == "blocks.1.1 InvertedResidual 12.3 M → 3.46 M 10.5 → 4.21 2.50x"
    assert " ".join(line_with(text, "blocks.2.1")) == "blocks.2.1 9 k → 4 k 0.532 → 0.4 1.30x"
    assert " ".join(line_with(text, "network  ")) == "network MACs -39 % 217 M → 133 M 180 → 129 1.40x"


def test_deleted_and_added_blocks_have_no_speed_up() -> None:
    text = text_of(COSTS)
    assert " ".join(line_with(text, "blocks.2.2")) == "blocks.2.2 InvertedResidual 7 k → 0 1234 → 0"
    assert " ".join(line_with(text, "layer1.2")) == "layer1.2 - 0 → 600 0 → 0.7"


def test_a_pair_of_types_is_named_where_it_changes() -> None:
    text = text_of(COSTS)
    assert text.count("→ SpatialInterpolation") == 1
    assert text.count("→ GlobalLayer") == 1


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["blocks.1.1", "features.denseblock1.denselayer10.a_long_name"])
def test_the_page_is_at_most_80_columns_and_nothing_is_cut_off(width: int, name: str) -> None:
    text = text_of(replace(COSTS, rows=(replace(ROWS[0], name=name, ms_before=8888.8, ms_after=7777.7),)), width)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "8889 → 7778" in text
    assert name in "".join(line[:12].strip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("time", "told"), [(0.01234, "0.012 → "), (0.1234, "0.123 → "), (45.67, "45.7 → "), (1e4, "10000 → ")]
)
def test_times_have_three_digits_and_no_exponent(time: float, told: str) -> None:
    assert f" {told}" in text_of(replace(COSTS, rows=(replace(ROWS[0], ms_before=time),)))


def test_the_page_says_how_it_was_measured() -> None:
    text = text_of(COSTS)
    assert text.splitlines()[0] == "  surgery · input 3x224x224 · parameters 5.48 M → 5.49 M"
    assert "cpu, float32, threads: 1, batch 32, channels last" in text
    assert "medians; each block on its input in the network, before and after in turns" in text
    assert "network: 1.35x to 1.46x in 80 % of 12 pairs" in text
    assert "batch 32, channels first" in text_of(replace(COSTS, channels_last=False))


@pytest.mark.parametrize(("speed_up", "low"), [(1.02, 1.01), (0.93, 0.9), (1.3, 0.95)])
def test_fewer_macs_that_gave_no_speed_are_told(speed_up: float, low: float) -> None:
    costs = replace(COSTS, total=replace(TOTAL, speed_up=speed_up, low=low), batch_size=1)
    line = text_of(costs).splitlines()[-1].strip()
    assert line == f"MACs -39 %, latency {speed_up:.2f}x at batch 1: fewer MACs gave no speed here"


def test_no_such_line_where_there_is_speed_or_no_saving() -> None:
    assert "no speed" not in text_of(COSTS)
    more = replace(TOTAL, macs_after=300_000_000, speed_up=0.8, low=0.7)
    assert "no speed" not in text_of(replace(COSTS, total=more))
