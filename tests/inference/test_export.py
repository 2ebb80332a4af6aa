"""What is exported answers as the network does, or is not exported."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from export_networks import CLASSES, SHAPE, Branching, Doubled, Small, a_batch, hybrid
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError, MissingExtraError
from lightning_efficient.inference import _onnx, export
from lightning_efficient.inference.export import ExportReport, export_graphs
from lightning_efficient.inference.exported import load_export
from lightning_efficient.nn.checkpoints import hash_weights

TORCH: Any = ("torch",)


@pytest.fixture(scope="module")
def parts() -> dict[str, nn.Module]:
    return hybrid()


@pytest.fixture(scope="module")
def report(parts: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export_graphs(parts, a_batch(), tmp_path_factory.mktemp("export") / "new" / "hybrid")


# ---- parity and report


def test_each_part_is_compared_in_each_format_at_each_batch_size(report: ExportReport) -> None:
    assert [(file.part, file.format, file.file) for file in report.files] == [
        ("edge", "torch", "edge.pt2"),
        ("edge", "onnx", "edge.onnx"),
        ("global", "torch", "global.pt2"),
        ("global", "onnx", "global.onnx"),
    ]
    for file in report.files:
        assert list(file.differences) == [1, 3, 64]
        assert all(0 <= value < 1e-5 for value in file.differences.values())
        assert file.bytes == (report.folder / file.file).stat().st_size


def test_only_the_files_of_the_export_are_in_its_folder(report: ExportReport) -> None:
    names = {"edge.pt2", "edge.onnx", "global.pt2", "global.onnx", "metadata.json"}
    assert {path.name for path in report.folder.iterdir()} == names
    assert [path.name for path in report.folder.parent.iterdir()] == [report.folder.name]


def test_the_metadata_say_what_is_needed_to_use_the_graphs(report: ExportReport, parts: dict[str, nn.Module]) -> None:
    content = json.loads((report.folder / "metadata.json").read_text())
    assert content == report.metadata
    assert content["input"] == {"shape": list(SHAPE), "dtype": "float32"}
    assert content["parts"]["edge"]["outputs"] == ["logits", "query_score"]
    assert content["parts"]["global"]["outputs"] == ["logits"]
    assert {part["classes"] for part in content["parts"].values()} == {CLASSES}
    assert content["routing"] is None
    assert content["precision"] == {"weights": ["float32"], "exported": "float32"}
    import hashlib

    digest = hashlib.sha256()
    hash_weights(digest, parts["edge"].state_dict())
    assert content["parts"]["edge"]["weights_sha256"] == digest.hexdigest()


def test_the_report_names_the_operators_that_a_device_must_have(report: ExportReport) -> None:
    edge = next(file for file in report.files if file.file == "edge.onnx")
    assert edge.operators["Conv"] == 1
    assert "TopK" in edge.uncommon or "ArgMax" in edge.uncommon
    assert "Conv" not in edge.uncommon
    assert any("edge.onnx uses" in note and edge.uncommon[0] in note for note in report.notes)
    traced = next(file for file in report.files if file.file == "edge.pt2")
    assert traced.operators["aten::conv2d"] == 1
    assert traced.uncommon == ()


def test_the_report_is_strict_json(report: ExportReport) -> None:
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["files"][0]["differences"]["64"] == 0.0
    assert content["metadata"] == report.metadata


def test_networks_stay_as_they_are(tmp_path: Path) -> None:
    network = Small().train()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_graphs({"model": network}, a_batch(), tmp_path / "x", formats=TORCH)
    assert network.training
    assert network.conv.training
    assert not network.norm.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_half_precision_is_exported_as_float32_and_said(tmp_path: Path) -> None:
    network = Small().bfloat16()
    found = export_graphs({"model": network}, a_batch().bfloat16(), tmp_path / "x", formats=TORCH)
    assert network.head.weight.dtype == torch.bfloat16
    assert found.metadata["input"]["dtype"] == "float32"
    assert found.metadata["precision"] == {"weights": ["bfloat16"], "exported": "float32"}
    assert found.notes == ("weights of bfloat16 were exported as float32",)
    logits = load_export(tmp_path / "x").parts["model"](a_batch())
    assert isinstance(logits, Tensor)
    assert torch.equal(logits, network.float().eval()(a_batch()))


def test_weights_that_the_graph_does_not_read_stay_at_home(tmp_path: Path) -> None:
    network = Small()
    network.teacher = nn.Linear(500, 500)
    network.other_norm = nn.BatchNorm1d(500)
    found = export_graphs({"model": network}, a_batch(), tmp_path / "x", formats=TORCH)
    assert found.files[0].bytes < 4 * 500 * 500 / 10


def test_a_file_holds_nothing_of_the_example(tmp_path: Path) -> None:
    secret = torch.full((4, *SHAPE), 1234.5)
    export_graphs({"model": Small()}, secret, tmp_path / "x", formats=TORCH)
    assert secret[0].numpy().tobytes()[:64] not in (tmp_path / "x" / "model.pt2").read_bytes()


def test_token_numbers_stay_integers(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3))
    found = export_graphs({"model": network}, torch.tensor([[0, 6, 3]]), tmp_path / "x")
    assert found.metadata["input"] == {"shape": [3], "dtype": "int64"}
    assert max(max(file.differences.values()) for file in found.files) < 1e-6


def test_large_weights_lie_beside_the_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_onnx, "_LARGEST_IN_ONE", 100)
    found = export_graphs({"model": nn.Linear(64, 64)}, torch.zeros(1, 64), tmp_path / "x", formats=("onnx",))
    files = found.metadata["parts"]["model"]["formats"]["onnx"]
    assert [file["name"] for file in files] == ["model.onnx", "model.onnx.data"]
    assert found.files[0].bytes == sum(file["bytes"] for file in files) > 64 * 64 * 4
    (tmp_path / "x" / "model.onnx.data").write_bytes(b"0" * files[1]["bytes"])
    with pytest.raises(ConfigurationError, match=r"model\.onnx\.data is not the file that was exported"):
        load_export(tmp_path / "x", "onnx")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenetv3_small_050", {}),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 16, "depth": 2}),
    ],
)
def test_networks_of_timm_agree_in_both_formats(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    import timm

    network = timm.create_model(name, num_classes=5, **options)
    found = export_graphs({"model": network}, torch.randn(2, 3, 32, 32), tmp_path / "x", batch_sizes=(1, 3))
    assert max(max(file.differences.values()) for file in found.files) < 1e-4


# ---- what is refused


class FixedBatch(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(2, -1) if len(inputs) == 2 else inputs.flatten(1)


class NoSuchOperator(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(inputs @ inputs.mT)


class OneWord(nn.Module):
    def forward(self, inputs: Tensor) -> Any:
        return "no"


class Summed(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.sum(0)


class Lost(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.nan


@pytest.mark.parametrize(
    ("network", "formats", "message"),
    [
        (
            Branching(),
            TORCH,
            r"part 'edge' cannot .*torch\.export: .*by the values of tensors.*export_networks\.py:\d+: if ",
        ),
        (FixedBatch(), TORCH, r"part 'edge' cannot be exported to torch\.export: its forward fixes the batch size"),
        (NoSuchOperator(), ("onnx",), r"part 'edge' cannot be exported to ONNX: aten\._linalg_eigh: No ONNX function"),
        (OneWord(), TORCH, r"part 'edge' returns str for 1 inputs"),
        (Summed(), TORCH, r"part 'edge' returns \(4, 4\) for 1 inputs"),
        (Lost(), TORCH, r"part 'edge' returns no finite value"),
        (nn.Linear(3, 2), TORCH, r"part 'edge' does not run on an input of shape \(1, 4, 4\) \(RuntimeError: "),
    ],
)
def test_a_network_that_cannot_be_exported_is_told_in_one_line_and_leaves_nothing(
    tmp_path: Path, network: nn.Module, formats: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        export_graphs({"edge": network}, torch.randn(2, 4, 4), tmp_path / "x", formats=formats)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_answers_differently_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = export.written

    def spoilt(program: Any, *rest: Any) -> Any:
        program.state_dict["head.bias"].data += 0.01
        try:
            return written(program, *rest)
        finally:
            program.state_dict["head.bias"].data -= 0.01

    monkeypatch.setattr(export, "written", spoilt)
    message = r"part 'model' answers differently as torch: by 0\.01 on a batch of 1, and tolerance=0\.0001; nothing was"
    with pytest.raises(ConfigurationError, match=message):
        export_graphs({"model": Small()}, a_batch(), tmp_path / "x", formats=TORCH)
    assert list(tmp_path.iterdir()) == []
    export_graphs({"model": Small()}, a_batch(), tmp_path / "x", formats=TORCH, tolerance=0.1)


def test_one_part_that_fails_takes_the_others_with_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="part 'global' cannot"):
        export_graphs({"edge": Doubled(), "global": Branching()}, torch.randn(2, 4), tmp_path / "x", formats=TORCH)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": {}}, r"parts=\[\].* each needs one at least"),
        ({"formats": ()}, r"formats=\[\].* each needs one at least"),
        ({"parts": {"a/b": Doubled()}}, r"parts has the name 'a/b'; give words"),
        ({"parts": {"edge": "text"}}, r"parts\['edge'\] is a str; it must be an nn\.Module"),
        ({"formats": ("onx",)}, r"formats='onx' is not one of .* Did you mean 'onnx'\?"),
        ({"batch_sizes": (0,)}, r"batch_sizes=0 must be an integer of at least 1"),
        ({"tolerance": 0.0}, r"tolerance=0\.0 must be a finite number above 0"),
        ({"overwrite": "no"}, r"overwrite='no' must be True or False"),
        ({"example": torch.zeros(0, 4)}, r"example has shape \(0, 4\)"),
        ({"example": torch.zeros(2, 4, dtype=torch.complex64)}, r"dtype torch\.complex64; it must be a batch"),
        ({"metadata": {"routin": None}}, r"metadata='routin' is not one of .* Did you mean 'routing'\?"),
        ({"metadata": {"routing": {"version": 9}}}, r"version is 9"),
        ({"metadata": {"extra": {"x": float("nan")}}}, r"metadata\['extra'\]: .*strict JSON"),
        ({"metadata": {"extra": [1]}}, r"metadata\['extra'\] is a list; it must be a mapping"),
    ],
)
def test_an_option_that_cannot_work_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"parts": {"edge": Doubled()}, "example": torch.zeros(2, 4), "formats": TORCH}
    options |= {"folder": tmp_path / "x", **changes}
    with pytest.raises(ConfigurationError, match=message):
        export_graphs(**options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_its_extra_only_where_onnx_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr("importlib.import_module", lambda name: missing(name))
    with pytest.raises(MissingExtraError, match=rf"'{package}' is not installed.*lightning-efficient\[onnx\]"):
        export_graphs({"model": Doubled()}, torch.zeros(2, 4), tmp_path / "x")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
