from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from lightning_efficient.profiling import Footprint, Latency, footprint_table, profile_module
from lightning_efficient.profiling.render import human, milliseconds


def text_of(footprints: Footprint | list[Footprint]) -> str:
    file = io.StringIO()
    Console(file=file, width=160).print(footprint_table(footprints, title="cost"))
    return file.getvalue()


def small(name: str, uncounted: tuple[str, ...] = (), threads: int = 1) -> Footprint:
    times = Latency(1, 0.532, 0.61, 0.54, 1879.7, 9, 5, threads, "cpu", "32-true")
    times_8 = Latency(8, 2.5, 3.0, 2.6, 3200.0, 9, 5, threads, "cpu", "32-true")
    disk, peak = 6_120_000, 8_000_000
    timed = times, times_8
    return Footprint(
        name, 1_590_000, 0, 0, disk, 12_300_000, 24_600_000, uncounted, peak, "live tensors", (3,), timed
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "unit", "expected"),
    [
        (0, "", "0"),
        (512, "", "512"),
        (999, "", "999"),
        (999.6, "", "1 k"),
        (1_593_224, "", "1.59 M"),
        (12_345_678_901, "", "12.3 G"),
        (6_120_000, "B", "6.12 MB"),
        (12, "B", "12 B"),
        (3.2e15, "", "3200 T"),
    ],
)
def test_numbers_get_three_digits_and_a_prefix(number: float, unit: str, expected: str) -> None:
    assert human(number, unit) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.53211, "0.532 ms"), (0.00002, "0.000020 ms"), (1234.5, "1234 ms")])
def test_milliseconds_never_use_an_exponent(value: float, expected: str) -> None:
    assert milliseconds(value) == expected


def test_the_table_has_a_line_per_batch_size_and_names_the_model_once() -> None:
    text = text_of(small("mobilenet"))
    assert text.count("mobilenet") == 1
    for cell in ("1.59 M", "12.3 M", "6.12 MB", "8 MB", "0.532 ms", "2.5 ms", "1.88 k", "cpu, 32-true, 1 thread"):
        assert cell in text


def test_several_models_share_a_table_and_gaps_are_named_below() -> None:
    text = text_of([small("first"), small("second", uncounted=("gate", "head.mix"), threads=2)])
    assert "12.3 M*" in text
    assert "* second: not counted: gate, head.mix" in text
    assert "2 threads" in text


def test_a_footprint_without_latencies_is_shown_too() -> None:
    assert "Linear" in text_of(profile_module(nn.Linear(4, 2), torch.zeros(1, 4), batch_sizes=()))
