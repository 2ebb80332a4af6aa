"""Weights are found in every usual file, and what does not fit is refused in one line."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.checkpoints import load_weights
from lightning_efficient.nn.cifar_resnet import register_cifar_resnets


def network(seed: int, classes: int = 2, width: int = 4, layers: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    body = [nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width)) for _ in range(layers)]
    return nn.Sequential(nn.Sequential(nn.Linear(3, width), *body), nn.Linear(width, classes))


def prefixed(prefix: str, module: nn.Module) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in module.state_dict().items()}


def equal(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


LAYOUTS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda module: module.state_dict(),
    "below state_dict": lambda module: {"epoch": 3, "state_dict": module.state_dict()},
    "below model": lambda module: {"epoch": 3, "model": module.state_dict(), "optimizer": {"state": {}}},
    "nested": lambda module: {"model": {"state_dict": module.state_dict()}},
    "of Lightning": lambda module: {
        "hyper_parameters": {"lr": 0.1},
        "state_dict": {**prefixed("backbone.", module), "loss.weight": torch.ones(3)},
    },
    "compiled": lambda module: prefixed("_orig_mod.", module),
    "wrapped twice": lambda module: {"state_dict": prefixed("model._orig_mod.", module)},
    "parallel": lambda module: prefixed("module.", module),
    "any prefix": lambda module: prefixed("classifier.trunk.", module),
    "student beside teacher": lambda module: {**prefixed("teacher.", network(9)), **prefixed("student.", module)},
    "beside another of other shape": lambda module: {**prefixed("a.", network(9, width=8)), **prefixed("b.", module)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found(layout: str, tmp_path: Path) -> None:
    source, target = network(0), network(1)
    torch.save(LAYOUTS[layout](source), tmp_path / "weights.ckpt")
    assert not equal(target, source)
    load_weights(target, tmp_path / "weights.ckpt", option="teacher.checkpoint")
    assert equal(target, source)


def test_files_of_before_archives_and_safetensors_are_read(tmp_path: Path) -> None:
    source = network(0)
    torch.save(source.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(prefixed("net.", source), tmp_path / "weights.safetensors")
    for name in ("old.pth", "weights.safetensors"):
        target = network(1)
        load_weights(target, str(tmp_path / name), option="checkpoint")
        assert equal(target, source)


def test_one_layer_is_found_by_its_shape(tmp_path: Path) -> None:
    source, target = network(0), nn.Linear(4, 2)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    load_weights(target, tmp_path / "weights.pt", option="checkpoint")
    assert equal(target, source[1])


def test_the_network_keeps_its_precision_mode_and_gradients(tmp_path: Path) -> None:
    source, target = network(0), network(1).double().eval()
    target[1].requires_grad_(False)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    load_weights(target, tmp_path / "weights.pt", option="checkpoint")
    assert target[1].weight.dtype is torch.float64
    assert torch.equal(target[1].weight, source[1].weight.double())
    assert not target.training
    assert [parameter.requires_grad for parameter in target[1].parameters()] == [False, False]


class Compiled(nn.Module):
    """The shape of what torch.compile returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def test_a_compiled_network_is_filled(tmp_path: Path) -> None:
    source, target = network(0), network(1)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    load_weights(Compiled(target), tmp_path / "weights.pt", option="checkpoint")
    assert equal(target, source)


def refused(path: Path, message: str, target: nn.Module | None = None) -> None:
    target = target or network(1)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_weights(target, path, option="teacher.checkpoint")
    assert str(caught.value).startswith("teacher.checkpoint: ")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_missing_and_damaged_files_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    refused(path, "there is no checkpoint")
    refused(tmp_path, "there is no checkpoint")
    for content in (b"", b"no checkpoint at all", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        refused(path, "is no checkpoint, or it is damaged")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network(0).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    refused(path, "is no checkpoint, or it is damaged")


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_that_could_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    torch.save({"state_dict": network(0).state_dict(), "extra": Runs(trace)}, path)
    refused(path, "could run code when it is loaded, so it is refused")
    path.write_bytes(pickle.dumps(Runs(trace), protocol=2))
    refused(path, "could run code when it is loaded, so it is refused")
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"other": torch.ones(1)}}])
def test_a_file_without_such_weights_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    refused(tmp_path / "weights.pt", "has no weight with a name that the network knows")


MISFITS = [
    (network(0, classes=7), "has a classifier of 7 classes, and the network one of 2"),
    (network(0, width=5), r"another architecture than Sequential: '0.0.weight' has shape \(5, 3\) there and \(4, 3\)"),
    (network(0, layers=2), r"it has '0.2.0.weight' of shape \(4, 4\), which the network lacks"),
    (network(0, layers=0), r"'0.1.0.weight' is missing there and has \(4, 4\) in the network"),
]


@pytest.mark.parametrize("prefix", ["", "backbone.", "odd.one."])
@pytest.mark.parametrize(("other", "message"), MISFITS)
def test_another_architecture_is_refused(other: nn.Module, message: str, prefix: str, tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed(prefix, other)}, tmp_path / "weights.pt")
    refused(tmp_path / "weights.pt", message)


def test_two_that_fit_are_refused(tmp_path: Path) -> None:
    torch.save({**prefixed("a.", network(0)), **prefixed("b.", network(2))}, tmp_path / "weights.pt")
    refused(tmp_path / "weights.pt", r"weights that fit below each of \['a.', 'b.'\]")


def test_a_deeper_network_of_timm_is_no_shallower_one(tmp_path: Path) -> None:
    register_cifar_resnets()
    small, deep = (timm.create_model(f"cifar_resnet{depth}", num_classes=10) for depth in (10, 18))
    torch.save(prefixed("backbone.", deep), tmp_path / "deep.pt")
    refused(tmp_path / "deep.pt", "it has 'layer1.1.conv1.weight' of shape", small)
    torch.save(prefixed("backbone.", small), tmp_path / "small.pt")
    refused(tmp_path / "small.pt", "'layer1.1.conv1.weight' is missing there", deep)
