"""``export`` loads a checkpoint, writes its graphs with the threshold that is for it, and tells what it wrote."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from rich.console import Console
from torch import Tensor, nn

from lightning_efficient.cli.exporting import export_model, export_page
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference._export_graph import weights_hash
from lightning_efficient.inference.calibration_file import hash_checkpoint
from lightning_efficient.inference.exported import load_export, read_metadata
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.routing_thresholds import calibrate_routing
from lightning_efficient.nn.checkpoints import load_module
from lightning_efficient.nn.hybrid_graphs import EdgeGraph, GlobalGraph
from lightning_efficient.nn.routers import ScoreRouter

SHAPE = (1, 4, 4)
FAST: Any = {"formats": ("torch",), "batch_sizes": (2,)}


class Plain(LightningModule):
    """A module that is no hybrid."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class Pair(LightningModule):
    """A hybrid as the command line sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.global_model = (nn.Sequential(nn.Flatten(), nn.Linear(16, 3)) for _ in range(2))
        self.router = ScoreRouter("msp")

    def forward(self, images: Tensor) -> Tensor:
        return self.base(images)

    def edge_graph(self) -> nn.Module:
        return EdgeGraph(self.base, self.router)

    def global_graph(self) -> nn.Module:
        return GlobalGraph(self.global_model)


def saved(module: LightningModule, path: Path, **rest: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": module.state_dict(), **rest}, path)
    return str(path)


def calibrated(ckpt_path: str, path: Path | None = None, precision: str = "32-true") -> RoutingFile:
    score, predictions = torch.linspace(-1, 0, 50), torch.zeros(50, 2, dtype=torch.int64)
    found = calibrate_routing(score, predictions, predictions[:, 0], coverage=0.5)
    file = RoutingFile(found, "val", "0" * 64, hash_checkpoint(ckpt_path), "msp", precision)
    file.write(path or RoutingFile.beside(ckpt_path))
    return file


def shown(report: Any) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(export_page(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- what is exported


def test_a_hybrid_becomes_edge_and_global_with_the_weights_and_threshold_of_its_checkpoint(tmp_path: Path) -> None:
    trained, fresh = Pair(), Pair()
    ckpt = saved(trained, tmp_path / "run" / "best.ckpt")
    file = calibrated(ckpt)
    report = export_model(fresh, SHAPE, ckpt_path=ckpt, **FAST)
    assert report.folder == tmp_path / "run" / "best.export"
    loaded = load_export(report.folder)
    assert sorted(loaded.parts) == ["edge", "global"]
    assert loaded.routing == file.calibrated
    images = torch.randn(6, *SHAPE)
    logits = loaded.parts["global"](images)
    assert isinstance(logits, Tensor)
    assert torch.equal(logits, trained.global_model(images).detach())
    assert loaded.metadata["weights"] == {
        "checkpoint": hash_checkpoint(ckpt),
        "base": weights_hash(trained.base),
        "router": weights_hash(trained.router),
        "global": weights_hash(trained.global_model),
    }
    assert report.notes == ()


def test_the_threshold_may_lie_elsewhere(tmp_path: Path) -> None:
    ckpt = saved(Pair(), tmp_path / "best.ckpt")
    file = calibrated(ckpt, tmp_path / "elsewhere.json")
    report = export_model(Pair(), SHAPE, ckpt_path=ckpt, routing_file=str(tmp_path / "elsewhere.json"), **FAST)
    assert load_export(report.folder).routing == file.calibrated


def test_any_other_module_is_exported_by_its_forward(tmp_path: Path) -> None:
    module = Plain()
    report = export_model(module, SHAPE, out=str(tmp_path / "x"), **FAST)
    assert list(report.metadata["parts"]) == ["model"]
    assert report.metadata["routing"] is None
    assert report.metadata["extra"]["module"] == "Plain"
    assert "no --ckpt_path" in report.notes[0]
    assert module.training


def test_normalisation_is_that_of_the_data_module(tmp_path: Path) -> None:
    data = Digits(mean=[0.25], std=[0.5], crop_pct=0.9)
    report = export_model(Plain(), SHAPE, datamodule=data, out=str(tmp_path / "x"), **FAST)
    assert read_metadata(tmp_path / "x")["normalization"] == {
        "mean": [0.25],
        "std": [0.5],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "image_size": [4, 4],
    }
    assert export_model(Plain(), SHAPE, out=str(tmp_path / "y"), **FAST).metadata["normalization"] is None
    assert report.metadata["input"]["shape"] == [1, 4, 4]


def test_without_a_data_module_it_is_what_the_weights_expect(tmp_path: Path) -> None:
    module = Plain()
    module.data_config = {"mean": (0.1,), "std": (0.2,), "interpolation": "bicubic", "crop_pct": 0.95}  # type: ignore[assignment]
    found = export_model(module, SHAPE, out=str(tmp_path / "x"), **FAST).metadata["normalization"]
    assert (found["mean"], found["std"], found["crop_pct"]) == ([0.1], [0.2], 0.95)


def test_an_input_of_token_numbers_is_drawn_from_the_vocabulary(tmp_path: Path) -> None:
    class Tokens(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 3))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.network(tokens)

    report = export_model(Tokens(), (3,), out=str(tmp_path / "x"), **FAST)
    assert report.metadata["input"] == {"shape": [3], "dtype": "int64"}


# ---- checkpoints


def test_a_checkpoint_passes_the_hook_of_its_module(tmp_path: Path) -> None:
    class Copies(Plain):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            del checkpoint["state_dict"]["extra"]

    trained, fresh = Plain(), Copies()
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {**trained.state_dict(), "extra": torch.zeros(1)}}, path)
    load_module(fresh, str(path))
    assert torch.equal(fresh.network[1].weight, trained.network[1].weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}])
def test_a_checkpoint_without_weights_is_told(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ConfigurationError, match=r"ckpt_path: '.*x\.ckpt' has no weights"):
        load_module(Plain(), str(tmp_path / "x.ckpt"))


def test_weights_of_another_model_are_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    ckpt = saved(Plain(classes=5), tmp_path / "x.ckpt")
    message = r"ckpt_path: '.*x\.ckpt' has other weights than Plain: size mismatch for network\.1\.weight"
    with pytest.raises(ConfigurationError, match=message) as caught:
        export_model(Plain(), SHAPE, ckpt_path=ckpt, **FAST)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_missing_checkpoint_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"ckpt_path: there is no checkpoint 'no\.ckpt'"):
        export_model(Plain(), SHAPE, ckpt_path="no.ckpt", **FAST)


def test_a_threshold_of_other_weights_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    ckpt = saved(Pair(), tmp_path / "best.ckpt")
    calibrated(ckpt)
    saved(Pair(), tmp_path / "best.ckpt")
    with pytest.raises(ConfigurationError, match="belongs to other weights than"):
        export_model(Pair(), SHAPE, ckpt_path=ckpt, **FAST)
    assert not (tmp_path / "best.export").exists()


def test_a_threshold_of_another_router_is_refused_though_the_weights_are_the_same(tmp_path: Path) -> None:
    ckpt = saved(Pair(), tmp_path / "best.ckpt")
    calibrated(ckpt)
    pair = Pair()
    pair.router_name = "margin"  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="is of the router 'msp', and Pair has 'margin'"):
        export_model(pair, SHAPE, ckpt_path=ckpt, **FAST)


@pytest.mark.parametrize(
    ("module", "ckpt", "message"),
    [
        (Pair, False, r"--routing_file r\.json needs the --ckpt_path that it belongs to"),
        (Plain, True, r"--routing_file r\.json is of a hybrid, and Plain has no edge_graph"),
    ],
)
def test_a_routing_file_that_cannot_be_used_is_told(tmp_path: Path, module: Any, ckpt: bool, message: str) -> None:
    path = saved(module(), tmp_path / "best.ckpt") if ckpt else None
    with pytest.raises(ConfigurationError, match=message):
        export_model(module(), SHAPE, ckpt_path=path, out=str(tmp_path / "x"), routing_file="r.json", **FAST)


def test_without_folder_and_checkpoint_there_is_no_place() -> None:
    with pytest.raises(ConfigurationError, match="missing --out; give the folder for the export, or a --ckpt_path"):
        export_model(Plain(), SHAPE, **FAST)


# ---- notes and page


def test_what_is_not_as_it_was_calibrated_is_noted(tmp_path: Path) -> None:
    ckpt = saved(Pair(), tmp_path / "best.ckpt")
    report = export_model(Pair(), SHAPE, ckpt_path=ckpt, **FAST)
    assert report.notes[0].startswith("no threshold was calibrated for these weights")
    calibrated(ckpt, precision="bf16-mixed")
    report = export_model(Pair(), SHAPE, ckpt_path=ckpt, **FAST)
    assert report.notes[0].startswith(
        "the threshold was calibrated with precision bf16-mixed and the graphs are float32"
    )
    assert report.metadata["precision"]["calibrated"] == "bf16-mixed"


def test_the_page_shows_each_file_with_its_differences_and_the_promise(tmp_path: Path) -> None:
    ckpt = saved(Pair(), tmp_path / "best.ckpt")
    file = calibrated(ckpt)
    report = export_model(Pair(), SHAPE, ckpt_path=ckpt, formats=("torch", "onnx"), batch_sizes=(1, 3))
    page = shown(report)
    assert all(len(line) <= 80 for line in page.splitlines())
    for word in ("best.export · input 1x4x4 float32", "edge.pt2", "global.onnx", "diff n=1", "diff n=3"):
        assert word in page
    assert f"ask if query score > {file.calibrated.thresholds[0]:.6g}" in page
    assert " ".join(page.split()).count(file.calibrated.promise) == 1


def test_the_page_says_never_and_always_in_words(tmp_path: Path) -> None:
    ckpt = saved(Pair(), tmp_path / "best.ckpt")
    score, predictions = torch.zeros(9), torch.zeros(9, 2, dtype=torch.int64)
    found = calibrate_routing(score, predictions, predictions[:, 0], coverage=1.0)
    assert found.thresholds == (float("inf"),)
    RoutingFile(found, "val", "0" * 64, hash_checkpoint(ckpt)).write(RoutingFile.beside(ckpt))
    assert "ask if query score > inf (never)" in shown(export_model(Pair(), SHAPE, ckpt_path=ckpt, **FAST))
