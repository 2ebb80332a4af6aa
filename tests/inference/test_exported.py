"""An export loads without the code that trained it, answers as it did, and never where it was damaged."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export_networks import CLASSES, SHAPE, a_batch, hybrid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.events import GlobalUnavailable
from lightning_efficient.inference.export import export_graphs
from lightning_efficient.inference.exported import load_export, read_metadata
from lightning_efficient.inference.routed import RoutedPredictor
from lightning_efficient.inference.routing_thresholds import CalibratedRouting, calibrate_routing

RUNTIMES: Any = ("torch", "onnx")


@pytest.fixture(scope="module")
def parts() -> dict[str, nn.Module]:
    return {name: part.eval() for name, part in hybrid(seed=1).items()}


@pytest.fixture(scope="module")
def routing(parts: dict[str, nn.Module]) -> CalibratedRouting:
    images = a_batch(200, seed=2)
    with torch.no_grad():
        logits, score = parts["edge"](images)
        predictions = torch.stack([logits.argmax(1), parts["global"](images).argmax(1)], 1)
    return calibrate_routing(score, predictions, predictions[:, 1], coverage=0.6)


@pytest.fixture(scope="module")
def folder(parts: dict[str, nn.Module], routing: CalibratedRouting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("exported") / "hybrid"
    metadata = {"routing": routing, "normalization": {"mean": [0.5], "image_size": [8, 8]}}
    return export_graphs(parts, a_batch(), where, metadata=metadata, batch_sizes=(2,)).folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("plain") / "model"
    options: Any = {"formats": ("torch",), "batch_sizes": (2,)}
    return export_graphs({"model": nn.Linear(4, 3)}, torch.zeros(2, 4), where, **options).folder


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "metadata.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---- answers


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("size", [1, 7])
def test_a_part_answers_as_its_network(folder: Path, parts: dict[str, nn.Module], runtime: Any, size: int) -> None:
    images = a_batch(size, seed=3)
    loaded = load_export(folder, runtime)
    with torch.no_grad():
        expected = parts["edge"](images)
    found = loaded.parts["edge"](images)
    assert isinstance(found, tuple)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    logits = loaded.parts["global"](images)
    assert isinstance(logits, Tensor)
    torch.testing.assert_close(logits, parts["global"](images).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_may_be_strided_and_need_gradients(folder: Path, parts: dict[str, nn.Module], runtime: Any) -> None:
    images = a_batch(6).to(memory_format=torch.channels_last).requires_grad_()[::2]
    found = load_export(folder, runtime).parts["global"](images)
    assert isinstance(found, Tensor)
    assert not found.requires_grad
    torch.testing.assert_close(found, parts["global"](images).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "given_"),
    [
        (torch.zeros(2, 3, 8, 9), r"\(2, 3, 8, 9\), float32"),
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\), float32"),
        (torch.zeros(2, *SHAPE).double(), r"\(2, 3, 8, 8\), float64"),
        (torch.zeros(0, *SHAPE), r"\(0, 3, 8, 8\), float32"),
    ],
)
def test_another_shape_or_dtype_is_told_in_one_line(folder: Path, inputs: Tensor, given_: str) -> None:
    message = rf"part 'global': inputs are {given_}; it was exported for \(N, 3, 8, 8\), float32, N >= 1"
    with pytest.raises(ConfigurationError, match=message):
        load_export(folder, parts=["global"]).parts["global"](inputs)


def test_the_threshold_and_its_promise_come_back(folder: Path, routing: CalibratedRouting) -> None:
    loaded = load_export(folder)
    assert loaded.routing == routing
    assert loaded.threshold == routing.thresholds[0]
    assert loaded.metadata["routing"]["promise"] == routing.promise
    assert loaded.metadata["normalization"] == {"mean": [0.5], "image_size": [8, 8]}


# ---- routing


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("threshold", [None, math.inf, -math.inf])
def test_a_routed_export_answers_as_the_hybrid_before_the_export(
    folder: Path, parts: dict[str, Any], routing: CalibratedRouting, runtime: Any, threshold: float | None
) -> None:
    images = a_batch(40, seed=4)
    edge = parts["edge"]
    wanted = RoutedPredictor(edge.base, edge.router, parts["global"], routing)
    predictor = load_export(folder, runtime).routed(threshold)
    assert predictor.calibrated == (routing if threshold is None else None)
    if threshold is not None:
        wanted.set_threshold(threshold)
    expected, found = wanted(images), predictor(images)
    assert torch.equal(found.source, expected.source)
    assert torch.equal(found.prediction, expected.prediction)
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-5, rtol=1e-4)
    assert {None: {0, 1}, math.inf: {0}, -math.inf: {1}}[threshold] == set(found.source.tolist())


def test_an_edge_device_needs_its_own_files_only(copy: Path, routing: CalibratedRouting) -> None:
    for name in ("global.pt2", "global.onnx", "edge.pt2"):
        (copy / name).unlink()

    def away(rows: Tensor) -> Tensor:
        raise GlobalUnavailable("offline")

    loaded = load_export(copy, "onnx", parts=["edge"], threads=1)
    answer = loaded.routed(global_model=away)(a_batch(20))
    asked = answer.query_score > routing.thresholds[0]
    assert asked.any()
    assert torch.equal(answer.source, 2 * asked.long())
    with pytest.raises(ConfigurationError, match=r"has parts \['edge'\], and no 'global'; give a global_model"):
        loaded.routed()
    with pytest.raises(
        ConfigurationError, match=r"part 'global': .*global\.onnx is missing; copy it, or name the parts"
    ):
        load_export(copy, "onnx")


def test_options_of_the_predictor_pass_through(folder: Path) -> None:
    answer = load_export(folder).routed(-math.inf, budget=3)(a_batch(10))
    assert int((answer.source == 1).sum()) == 3


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_an_empty_batch_has_an_empty_answer_and_its_shape_still_counts(folder: Path, runtime: Any) -> None:
    predictor = load_export(folder, runtime).routed()
    answer = predictor(torch.zeros(0, *SHAPE))
    assert tuple(answer.probabilities.shape) == (0, CLASSES)
    assert answer.source.tolist() == []
    with pytest.raises(ConfigurationError, match="it was exported for"):
        predictor(torch.zeros(0, 7))


@pytest.mark.parametrize(
    "change",
    [lambda content: content["routing"].update(thresholds=[9.0]), lambda content: content.pop("routing_sha256")],
)
def test_a_threshold_that_was_edited_does_not_carry_the_promise(copy: Path, change: Any) -> None:
    changed(copy, change)
    with pytest.raises(ConfigurationError, match="'routing' is not what was exported, by 'routing_sha256'"):
        load_export(copy)


def test_without_a_threshold_one_must_be_given(copy: Path) -> None:
    changed(copy, lambda content: content.update(routing=None))
    loaded = load_export(copy)
    assert loaded.threshold is None
    with pytest.raises(ConfigurationError, match="threshold: none was exported; give one"):
        loaded.routed()
    assert loaded.routed(0.0).threshold == 0.0


def test_a_model_without_query_scores_cannot_route(plain: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"parts \['model'\]: none has the output 'query_score'"):
        load_export(plain).routed(0.0)


# ---- damage


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_changed_byte_of_a_graph_refuses_to_load(copy: Path, runtime: Any) -> None:
    path = copy / {"torch": "global.pt2", "onnx": "global.onnx"}[runtime]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"part 'global': .* is not the file that was exported, by its hash"):
        load_export(copy, runtime)
    assert list(load_export(copy, runtime, parts=["edge"]).parts) == ["edge"]


def test_graphs_of_another_export_refuse_to_load(copy: Path, plain: Path) -> None:
    shutil.copy(plain / "model.pt2", copy / "edge.pt2")
    with pytest.raises(ConfigurationError, match=r"edge\.pt2 is not the file that was exported"):
        load_export(copy)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_no_runtime_can_read_is_one_line_though_its_hash_fits(copy: Path, runtime: Any) -> None:
    import hashlib

    name = {"torch": "edge.pt2", "onnx": "edge.onnx"}[runtime]
    (copy / name).write_bytes(b"garbage")
    entry = {"name": name, "sha256": hashlib.sha256(b"garbage").hexdigest(), "bytes": 7}
    changed(copy, lambda content: content["parts"]["edge"]["formats"].update({runtime: [entry]}))
    with pytest.raises(ConfigurationError, match=rf"cannot load .*{name}: ") as caught:
        load_export(copy, runtime)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format": "other"}', "\udcff"])
def test_metadata_that_are_none_are_one_line(copy: Path, text: str) -> None:
    (copy / "metadata.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError, match=r"metadata\.json is damaged: .*; export again") as caught:
        read_metadata(copy)
    assert "\n" not in str(caught.value)


def set_part(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["parts"]["edge"].update({name: value})


def set_file(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["parts"]["edge"]["formats"]["torch"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("parts"), "it has no 'parts'"),
        (lambda content: content.update(parts={}), "'parts' is {}"),
        (lambda content: content.update(schema=True), "'schema' is True"),
        (lambda content: content.update(input={"shape": [3, -1], "dtype": "float32"}), "'input' is"),
        (lambda content: content.update(input={"shape": [3], "dtype": "__class__"}), "'input' is"),
        (lambda content: content["routing"].update(thresholds=["x"]), "thresholds is"),
        (lambda content: content["routing"].pop("promise"), "'promise' is missing"),
        (lambda content: content["parts"].update(edge=3), "part 'edge': it is 3"),
        (set_part("outputs", []), r"part 'edge': 'outputs' is \[\]"),
        (set_part("classes", "many"), "part 'edge': 'classes' is 'many'"),
        (set_part("weights_sha256", "0"), "part 'edge': 'weights_sha256' is '0'"),
        (set_part("formats", {"jax": []}), "part 'edge': 'formats' is"),
        (set_part("formats", {"torch": []}), "part 'edge': 'formats' is"),
        (set_file(name="../edge.pt2"), "part 'edge': 'formats' is"),
        (set_file(name="/etc/passwd"), "part 'edge': 'formats' is"),
        (set_file(name=".."), "part 'edge': 'formats' is"),
        (set_file(sha256="Z" * 64), "part 'edge': 'formats' is"),
        (set_file(bytes=True), "part 'edge': 'formats' is"),
    ],
)
def test_an_entry_that_cannot_be_is_named(copy: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    changed(copy, change)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_export(copy)
    assert "export again" in str(caught.value)


def test_an_export_of_a_newer_version_is_refused(copy: Path) -> None:
    changed(copy, lambda content: content.update(schema=99, version="9.9"))
    with pytest.raises(ConfigurationError, match=r"is of version '9\.9' of lightning-efficient, and this is"):
        load_export(copy)


def test_a_folder_without_an_export_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is no export: it has no metadata\.json"):
        load_export(tmp_path)
    with pytest.raises(ConfigurationError, match=r"x is no export"):
        load_export(tmp_path / "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_value_in_the_place_of_an_entry_is_read_or_refused_in_one_line(
    folder: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = json.loads((folder / "metadata.json").read_text())
    inner = data.draw(st.sampled_from([content, content["parts"], content["parts"]["edge"], content["input"]]))
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(JSON)
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    problem = ""
    try:
        read = read_metadata(tmp_path)
    except ConfigurationError as error:
        problem = str(error)
    else:
        assert set(read) == set(content)
    assert "\n" not in problem


# ---- options and what is imported


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "onxx"}, r"runtime='onxx' is not one of .* Did you mean 'onnx'\?"),
        ({"runtime": "onnx"}, r"runtime='onnx': part 'model' was exported for \['torch'\] only"),
        ({"parts": ["modl"]}, r"parts: 'modl' is not one of \['model'\]\. Did you mean 'model'\?"),
        ({"threads": 2}, r"threads=2 is of runtime='onnx'; use torch\.set_num_threads"),
        ({"runtime": "onnx", "threads": 0}, r"threads=0 must be an integer of at least 1"),
        ({"runtime": "onnx", "device": "cuda"}, r"device='cuda': runtime='onnx' runs on the CPU"),
    ],
)
def test_an_option_that_does_not_fit_is_told(plain: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_export(plain, **options)


def test_loading_and_routing_need_neither_lightning_nor_timm(folder: Path) -> None:
    program = f"""
import sys
for name in ("lightning", "pytorch_lightning", "timm", "onnx", "onnxscript"):
    sys.modules[name] = None
import torch
from lightning_efficient.inference.exported import load_export
assert "onnxruntime" not in sys.modules
for runtime in ("torch", "onnx"):
    answer = load_export({str(folder)!r}, runtime).routed()(torch.zeros(2, *{SHAPE!r}))
    print(tuple(answer.probabilities.shape))
print([name for name in sys.modules if name.startswith(("lightning_efficient.modules", "lightning_efficient.cli"))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"(2, {CLASSES})", f"(2, {CLASSES})", "[]"]
