"""Files that would run code when they are read with trust, and the doors of the package through which files come in."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_efficient._lightning_compat import check_checkpoint
from lightning_efficient.cli.search_space import load_space
from lightning_efficient.datamodules import TorchvisionImages
from lightning_efficient.datamodules._files import read_npz
from lightning_efficient.inference.export import export_graphs
from lightning_efficient.inference.exported import load_export, sha256_of
from lightning_efficient.inference.output_store import OutputStore
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.routing_thresholds import calibrate_routing
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.inference.thresholds import calibrate_threshold
from lightning_efficient.nn.checkpoints import load_module, load_weights
from lightning_efficient.nn.pruning import load_pruned, read_report, save_pruned
from lightning_efficient.nn.quantization import load_quantized, quantize_weights, save_quantized
from lightning_efficient.reporting.run_records import read_run

EXECUTED = "executed"
"""The folder that a file makes where its code runs."""


class RunsCode:
    """Makes a folder wherever it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (EXECUTED,)


def saved(content: Any, **options: Any) -> bytes:
    """Return what ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _array_of_objects(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, np.array([RunsCode()], dtype=object))
    return buffer.getvalue()


PAYLOADS: dict[str, bytes] = {
    "pickle": pickle.dumps({"state_dict": RunsCode()}),
    "checkpoint": saved({"state_dict": {"weight": RunsCode()}, "hyper_parameters": {}}),
    "old checkpoint": saved({"state_dict": {"weight": RunsCode()}}, _use_new_zipfile_serialization=False),
    "npy": _array_of_objects(np.save),
    "npz": _array_of_objects(lambda buffer, array: np.savez(buffer, x=array)),
    "npz.xz": lzma.compress(_array_of_objects(lambda buffer, array: np.savez(buffer, x=array))),
    "pickle.gz": gzip.compress(pickle.dumps(RunsCode())),
    "yaml": f"model: !!python/object/apply:os.mkdir [{EXECUTED}]\n".encode(),
}


@dataclass(frozen=True)
class Door:
    """A place where the package reads a file.

    Attributes:
        name: What comes in there.
        make: Writes a good file with what belongs to it into a folder, and returns it.
        read: Reads the file; nothing else is known to this door.
        torn: Whether each beginning of a good file is a bad file, which is not so for lines of text.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    torn: bool = True


def repacked(content: bytes, change: Callable[[str, bytes], bytes], *more: tuple[str, bytes]) -> bytes:
    """Return an archive in which entries were changed, and to which more were added, each named by its ending."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for ending, data in more:  # first, where torch finds them
            new.writestr(f"{root}/{ending}", data)
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def hostile_graphs(content: bytes) -> dict[str, bytes]:
    """Return forms of a ``.pt2`` file that run code in ``torch.export.load``.

    Torch 2.8 keeps all weights in one pickle, and newer ones keep each as its bytes.
    """

    def inputs(name: str, data: bytes) -> bytes:
        return saved((RunsCode(),)) if name.endswith(example) else data

    def weight(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            config = json.loads(data)
            next(each for each in config["config"].values() if each["path_name"] == "weight_0")["use_pickle"] = True
            return json.dumps(config).encode()
        return saved(RunsCode()) if name.endswith(("/weight_0", "weights/model.pt")) else data

    def constant(name: str, data: bytes) -> bytes:
        if name.endswith("constants/model.pt"):
            return saved(RunsCode())
        if not name.endswith("constants_config.json"):
            return data
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        return json.dumps({"config": {"object": entry}}).encode()

    def keep(name: str, data: bytes) -> bytes:
        return data

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    [example] = [name for name in names if name.startswith("data/sample_inputs/")]
    return {
        "example inputs": repacked(content, inputs),
        "weight": repacked(content, weight),
        "constant": repacked(content, constant, ("data/constants/opaque_obj_0", pickle.dumps(RunsCode()))),
        "second entry of another case": repacked(content, keep, (example.upper(), saved((RunsCode(),)))),
    }


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _weights(folder: Path) -> Path:
    content = {"state_dict": nn.Linear(40, 30).state_dict(), "hyper_parameters": {"a": 1}, "epoch": 3}
    return _write(folder / "last.ckpt", saved(content))


def _safetensors(folder: Path) -> Path:
    from safetensors.torch import save

    return _write(folder / "net.safetensors", save(nn.Linear(40, 30).state_dict()))


def _pruned(folder: Path) -> Path:
    return save_pruned(folder / "pruned.pt", nn.Linear(40, 30), made_of=None, report={"kept": 1})


def _quantized(folder: Path) -> Path:
    return save_quantized(quantize_weights(nn.Sequential(nn.Linear(64, 32)), torch.zeros(2, 64)), folder / "net.pt2")


def _exported(folder: Path, kind: str) -> Path:
    export_graphs({"model": nn.Linear(4, 3)}, torch.zeros(2, 4), folder / "export", formats=(kind,), batch_sizes=(2,))
    content = json.loads((folder / "export" / "metadata.json").read_text())
    return folder / "export" / content["parts"]["model"]["formats"][kind][0]["name"]


def _load_export(file: Path, kind: Any) -> None:
    """Load an export whose description says that this very file was written: who changes one can change both."""
    description = file.with_name("metadata.json")
    content = json.loads(description.read_text())
    content["parts"]["model"]["formats"][kind][0]["sha256"] = sha256_of(file)
    description.write_text(json.dumps(content))
    load_export(file.parent, kind)


def _metadata(folder: Path) -> Path:
    return _exported(folder, "torch").with_name("metadata.json")


def _threshold(folder: Path) -> Path:
    found = calibrate_threshold(torch.linspace(0, 1, 200), torch.arange(200) < 20, risk=0.1)
    ThresholdFile(found, "val", "0" * 64, "a" * 64, score="msp").write(folder / "best.threshold.json")
    return folder / "best.threshold.json"


def _routing(folder: Path) -> Path:
    stages, target = torch.zeros(40, 3, dtype=torch.int64), torch.zeros(40, dtype=torch.int64)
    found = calibrate_routing(torch.linspace(0, 1, 80).reshape(40, 2), stages, target, coverage=0.5)
    RoutingFile(found, "val", "0" * 64, "a" * 64).write(folder / "best.routing.json")
    return folder / "best.routing.json"


def _npz(folder: Path, packed: bool = False) -> Path:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(400))
    if packed:
        return _write(folder / "data.npz.xz", lzma.compress(buffer.getvalue()))
    return _write(folder / "data.npz", buffer.getvalue())


def _idx(folder: Path) -> Path:
    raw = folder / "MNIST" / "raw"
    for part, count in (("t10k", 20), ("train", 20)):
        header = b"".join(number.to_bytes(4, "big") for number in (0x803, count, 28, 28))
        _write(raw / f"{part}-images-idx3-ubyte", header + bytes(count * 28 * 28))
        labels = (0x801).to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(index % 10 for index in range(count))
        _write(raw / f"{part}-labels-idx1-ubyte", labels)
    return raw / "train-images-idx3-ubyte"


def _read_idx(file: Path) -> None:
    TorchvisionImages("MNIST", root=str(file.parents[2]), in_chans=1).setup("fit")


def _store(folder: Path) -> OutputStore:
    return OutputStore(folder, {"logits": (10,)}, rows=50)


def _outputs(folder: Path) -> Path:
    _store(folder / "store").put(torch.arange(50), {"logits": torch.ones(50, 10)})
    return next((folder / "store").rglob("logits.npy"))


def _read_outputs(file: Path) -> None:
    folder = next(parent for parent in file.parents if parent.name == "store")
    _store(folder).get(torch.arange(50))


def _space(folder: Path) -> Path:
    return _write(folder / "space.yaml", b"model.lr: {low: 0.1, high: 1.0}\n")


def _run(folder: Path, broken: str) -> Path:
    _write(folder / "run" / "config.yaml", b"model: {class_path: A}\ntrainer: {max_epochs: 1}\n")
    _write(folder / "run" / "metrics.csv", b"epoch,step,val/accuracy\n0,1,0.5\n")
    _write(folder / "run" / "profile.json", b'{"parameters": 3}')
    return folder / "run" / broken


DOORS = (
    Door("--ckpt_path", _weights, lambda file: check_checkpoint(str(file))),
    Door("backbone_checkpoint", _weights, lambda file: load_weights(nn.Linear(40, 30), file, option="model.backbone")),
    Door("safetensors", _safetensors, lambda file: load_weights(nn.Linear(40, 30), file, option="model.backbone")),
    Door("load_module", _weights, lambda file: load_module(nn.Linear(40, 30), file)),
    Door("pruned.pt", _pruned, lambda file: load_pruned(file, nn.Linear(40, 30))),
    Door("report of pruned.pt", _pruned, read_report),
    *([Door("quantized .pt2", _quantized, load_quantized)] if find_spec("torchao") else []),
    Door("exported .pt2", lambda folder: _exported(folder, "torch"), lambda file: _load_export(file, "torch")),
    Door("exported .onnx", lambda folder: _exported(folder, "onnx"), lambda file: _load_export(file, "onnx")),
    Door("metadata.json", _metadata, lambda file: load_export(file.parent)),
    Door("threshold", _threshold, ThresholdFile.read),
    Door("routing", _routing, RoutingFile.read),
    Door(".npz", _npz, lambda file: read_npz(file, ["x"])),
    Door(".npz.xz", lambda folder: _npz(folder, packed=True), lambda file: read_npz(file, ["x"])),
    Door("idx", _idx, _read_idx),
    Door("stored outputs", _outputs, _read_outputs),
    Door("search space", _space, lambda file: load_space(str(file)), torn=False),
    Door("config.yaml of a run", lambda folder: _run(folder, "config.yaml"), lambda f: read_run(f.parent), torn=False),
    Door("metrics.csv of a run", lambda folder: _run(folder, "metrics.csv"), lambda f: read_run(f.parent), torn=False),
    Door("profile.json of a run", lambda folder: _run(folder, "profile.json"), lambda f: read_run(f.parent)),
)
