"""``lightning-efficient profile`` with all that may be asked for, and its page."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightning_efficient.cli.footprint_page import footprint_page, progress_line
from lightning_efficient.profiling import Footprint, Latency
from lightning_efficient.profiling.layers import LayerCost
from lightning_efficient.profiling.training_memory import TrainingMemory
from lightning_efficient.profiling.variant_costs import VariantComparison, VariantCost, VariantTime

Command = Callable[..., Any]
QUICK = ("--min_run_time_s", "0.01", "--trainer.accelerator", "cpu")


@pytest.fixture
def footprint() -> Footprint:
    """One of a model with everything that may be asked for, and long names."""
    names = [f"features.denseblock{place}.denselayer{place}.conv" for place in range(12)]
    layers = tuple(LayerCost(name, "Conv2d", 1_000_000 * (12 - place), 9, (64, 112, 112), 1, 1)
                   for place, name in enumerate(names))  # fmt: skip
    latencies = tuple(
        Latency(size, 12.3 * size, 45.6, 12.0, 81.3, 9, 5, threads, "cpu", "32-true")
        for threads in (1, 2) for size in (1, 128)
    )  # fmt: skip
    timing = VariantTime(128, 1234.5, 11.25, 10.11, 12.22, 10)
    rows = (
        VariantCost("float", (timing,), 102_000_000, 0.0),
        VariantCost("channels_last", (timing, timing), 102_000_000, 4e-7),
        VariantCost("int8_static", (timing,), 25_700_000, 0.1234, None, "compiled; calibrated on the example alone"),
        VariantCost("bf16", (), 51_000_000, 0.01),
        VariantCost("onnx", reason="needs the extra onnx"),
    )
    return Footprint(
        "net", 1_590_000, 0, 0, 6_120_000, 78_000_000, 156_000_000, ("gate",), 8_000_000, "live tensors", (3, 224, 224),
        latencies, layers, 19_400_000, 11_600_000,
        TrainingMemory(128, 10**9, "live tensors", 5 * 10**8, 10**7, 2 * 10**7),
        VariantComparison(rows, 1, "cpu"), 12.5, ("variant compile: does not fit into 20 s",),
    )  # fmt: skip


def text_of(footprint: Footprint, layers: int = 0, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(footprint_page(footprint, layers))
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_fits_80_columns_and_cuts_no_figure(footprint: Footprint, width: int) -> None:
    text = text_of(footprint, layers=3, width=width)
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "…denseblock0.denselayer0.conv", "64x112x112", "12 M   15.4 %", "9 more", "45 M   57.7 %",
        "channels_last     128   1234 ms   11.25x (10.11-12.22)    102 MB   <0.01 %", "25.7 MB   12.34 %", "51 MB",
        "memory traffic of a sample: 19.4 MB read, 11.6 MB written", "5.03 FLOPs per byte",
        "training, batch 128: peak 1 GB (live tensors), with Adam's state 1.02 GB",
        "kept for the backward pass 500 MB, gradients 10 MB", "energy of a sample: 12.5 mJ",
        "int8_static: compiled; calibrated", "onnx: needs the extra onnx", "* not counted: gate",
        "left out: variant compile: does not fit into 20 s", "threads: 1, 2, timed calls: 9",
    ):  # fmt: skip
        assert words in text


def test_layers_are_listed_only_where_they_are_asked_for(footprint: Footprint) -> None:
    assert "share" not in text_of(footprint)
    text = text_of(footprint, layers=99)
    assert text.count("denselayer") == 12
    assert "more" not in text
    assert text.count("█") > 12 * 7


def test_one_number_of_threads_needs_no_column(footprint: Footprint) -> None:
    assert "threads   batch" in text_of(footprint)
    assert "threads   batch" not in text_of(replace(footprint, latencies=footprint.latencies[:2]))


def test_a_budget_without_any_latency_still_has_a_page(footprint: Footprint) -> None:
    assert "samples/s" not in text_of(replace(footprint, latencies=(), variants=None))


def test_the_command_measures_draws_and_writes_all_that_is_asked_for(command: Command, tmp_path: Path) -> None:
    result = command(
        "profile", "--timm", "test_byobnet", "--input_shape", "[3,32,32]", "--threads", "1", "--batch_sizes", "1", "2",
        "--layers", "4", "--training_memory", "true", "--variants", "[bf16]", "--energy", "true",
        "--figure", "cost.png", "--json_file", "cost.json", *QUICK,
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[-2:] == ["cost.json", "cost.png"]
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    footprint = Footprint.from_dict(json.loads((tmp_path / "cost.json").read_text()))
    assert [(each.threads, each.batch_size) for each in footprint.latencies] == [(1, 1), (1, 2)]
    assert sum(layer.macs for layer in footprint.layers) == footprint.macs
    assert footprint.training.batch_size == 2
    assert [row.name for row in footprint.variants.rows] == ["float", "bf16"]
    assert footprint.energy_mj is not None or footprint.left_out[0].startswith("energy: no meter (")


def test_what_does_not_fit_the_budget_is_on_the_page(command: Command) -> None:
    result = command("profile", "--timm", "test_byobnet", "--threads", "1", "--time_budget_s", "0.000001", *QUICK)
    assert result.status == 0
    assert "left out: latency at batch 1, threads 1: does not fit into 1e-06 s" in result.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--figure", "cost.jpeg"], "figure must end in one of ['.png', '.pdf', '.svg'], got 'cost.jpeg'"),
        (["--figure", "/proc/none/cost.png"], "figure: /proc/none/cost.png cannot be written"),
        (["--variants", "[bf61]"], "Did you mean 'bf16'"),
        (["--time_budget_s", "0"], "time_budget_s must be above 0, or None for no limit, got 0.0"),
        (["--threads", "[1,0]"], "threads must be 1 or more"),
        (["--threads", "[]"], "threads must be 1 or more, or None for the current number, got []"),
        (["--layers", "-3"], "layers must be 0 or more, got -3"),
    ],
)
def test_a_mistake_is_one_line(command: Command, words: list[str], message: str) -> None:
    result = command("profile", "--timm", "test_byobnet", "--input_shape", "[3,32,32]", *words, *QUICK)
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err


class Terminal(io.StringIO):
    """A stream that says it is a terminal, or not."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize(("tty", "written"), [(True, "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"), (False, "")])
def test_progress_is_one_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch, tty: bool, written: str) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal(tty))
    tell, wipe = progress_line()
    for text in ("one", "two"):
        tell(text)
    wipe()
    assert sys.stderr.getvalue() == written
