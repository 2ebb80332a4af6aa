from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import LightningModule

from lightning_efficient.profiling import count_macs
from lightning_efficient.profiling.render import human

Command = Callable[..., Any]
QUICK = ("--min_run_time_s", "0.01", "--threads", "1", "--trainer.accelerator", "cpu")


class Doubling(LightningModule):
    """A module that tells the shape of its input by an example, and has no parameter."""

    def __init__(self, tells: bool = True) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 5) if tells else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_json_of_a_timm_model_has_its_macs_and_leaves_no_file(command: Command, tmp_path: Path) -> None:
    result = command("profile", "--timm", "test_byobnet", "--json_file", "-", "--batch_sizes", "[1,2]", *QUICK)
    assert (result.status, result.err) == (0, "")
    footprint = json.loads(result.out)
    model = timm.create_model("test_byobnet")
    assert footprint["name"] == "test_byobnet"
    assert footprint["input_shape"] == [3, 160, 160]
    assert footprint["macs"] == count_macs(model, torch.zeros(1, 3, 160, 160)).macs
    assert footprint["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert [latency["batch_size"] for latency in footprint["latencies"]] == [1, 2]
    assert {latency["threads"] for latency in footprint["latencies"]} == {1}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("columns", [80, 120])
def test_the_page_shows_every_figure_whole(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = command("profile", "--model", "test_byobnet", "--json_file", "figures.json", *QUICK)
    lines = result.out.splitlines()
    assert result.err == ""
    assert lines[0] == "  test_byobnet · input 3x160x160"
    assert lines[-1] == "figures.json"
    assert max(map(len, lines)) <= 80
    assert "…" not in result.out
    for name in ("parameters", "MACs", "FLOPs", "on disk", "peak memory", "median", "p95", "samples/s"):
        assert name in result.out
    figures = json.loads((tmp_path / "figures.json").read_text())
    for figure in ("parameters", "macs", "flops"):
        assert human(figures[figure]) in result.out


def test_a_config_gives_model_and_input(command: Command, tiny: Path) -> None:
    result = command("profile", "--config", tiny, "--json_file", "-", *QUICK)
    footprint = json.loads(result.out)
    assert (footprint["name"], footprint["input_shape"]) == ("test_byobnet", [3, 32, 32])


@pytest.mark.parametrize(
    ("words", "shape"),
    [([], [5]), (["--input_shape", "[7]"], [7]), (["--data", "Digits", "--data.image_size", "16"], [3, 16, 16])],
)
def test_the_shape_comes_from_the_option_the_data_or_the_model(
    command: Command, words: list[str], shape: list[int]
) -> None:
    result = command("profile", "--model", f"{__name__}.Doubling", *words, "--json_file", "-", *QUICK)
    footprint = json.loads(result.out)
    assert (footprint["name"], footprint["input_shape"]) == ("Doubling", shape)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--timm", "test_resnets"], "unknown timm model 'test_resnets'. Did you mean 'test_resnet'"),
        (["--timm", "test_byobnet", "--model", "ImageClassifier"], "--timm and --model both name the model"),
        (["--timm", "test_byobnet", "--input_shape", "[1,32,32]"], "does not run on an input of shape [1, 32, 32]"),
        (["--timm", "test_byobnet", "--batch_sizes", "[0]"], "batch sizes must be 1 or more, got [0]"),
        (["--timm", "test_byobnet", "--json_file", "/proc/none/x.json"], "/proc/none/x.json cannot be written"),
        (["--model", f"{__name__}.Doubling", "--model.tells", "false"], "does not tell the shape of its input"),
    ],
)
def test_what_cannot_be_profiled_is_one_line(command: Command, words: list[str], message: str) -> None:
    result = command("profile", *words, *QUICK)
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
