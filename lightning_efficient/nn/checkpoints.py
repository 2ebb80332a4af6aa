"""Load the weights of one network from whatever file holds them."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_efficient._unwrapped import uncompiled
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.views import find_classifiers

_CONTAINERS = ("state_dict", "model")
_WRAPPERS = frozenset({"backbone", "student", "model", "net", "module", "_orig_mod"})


def load_weights(network: nn.Module, path: str | Path, *, option: str) -> None:
    """Load all weights of a network, strictly, and run no code of the file.

    Takes checkpoints of Lightning, plain state dicts, those below ``"state_dict"`` or ``"model"``, and safetensors. The
    weights may lie below a prefix, such as ``backbone.`` or ``model._orig_mod.``, beside those of other networks.

    Args:
        network: Receives the weights, in its own dtypes and on its own devices.
        path: File.
        option: Name of the option that gave the path; begins every error.

    Raises:
        ConfigurationError: no such file, a damaged one, one that could run code, or weights of another architecture.
    """
    network = uncompiled(network)
    path = Path(path).expanduser()
    stored = unpacked(read_checkpoint(path, option))
    own = network.state_dict()
    prefix = _prefix(stored, own, path, option)
    found = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    _check_shapes(network, own, found, f"{option}: {str(path)!r}")
    network.load_state_dict(found)


def load_module(module: nn.Module, ckpt_path: str | Path) -> None:
    """Load a checkpoint into the whole module that wrote it, as a Trainer does for a test, without a Trainer.

    Args:
        module: Loaded in place; its ``on_load_checkpoint``, if it has one, sees the checkpoint first.
        ckpt_path: Checkpoint of Lightning.

    Raises:
        ConfigurationError: no such file, a damaged one, one that could run code, or one of another module.
    """
    stored = read_checkpoint(Path(ckpt_path), "ckpt_path")
    weights = unpacked(stored)
    if not weights:
        raise ConfigurationError(f"ckpt_path: {str(ckpt_path)!r} has no weights")
    checkpoint = {**stored, "state_dict": weights}
    if callable(prepare := getattr(module, "on_load_checkpoint", None)):
        prepare(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n", 2)[1].split()) if "\n" in str(error) else str(error)
        reason = reason if len(reason) <= 160 else f"{reason[:159]}…"
        message = f"ckpt_path: {str(ckpt_path)!r} has other weights than {type(module).__name__}: {reason}"
        raise ConfigurationError(message) from error


def hash_weights(digest: Any, state: Mapping[str, Any]) -> None:
    """Feed a ``hashlib`` digest with a state dict: names, shapes, dtypes and bytes; alike on any device.

    Tensors inside other values, such as what a module saves beside its weights, count by their bytes too.
    """
    for name, value in state.items():
        leaves, structure = tree_flatten(value)
        if not isinstance(value, Tensor):
            digest.update(repr((name, str(structure))).encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                digest.update(repr((name, tuple(leaf.shape), str(leaf.dtype))).encode())
                add_bytes(digest, leaf)
            else:
                digest.update(repr((name, leaf)).encode())


def add_bytes(digest: Any, value: Tensor) -> None:
    """Feed a ``hashlib`` digest with the bytes of a tensor; alike on any device."""
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def read_checkpoint(path: Path, option: str) -> Any:
    """Return what a file holds, on the CPU and mapped where it can be, without running code of it.

    Raises:
        ConfigurationError: no such file, a damaged one, or one that could run code; begins with ``option``.
    """
    if not path.is_file():
        raise ConfigurationError(f"{option}: there is no checkpoint {str(path)!r}")
    damaged = "is no checkpoint, or it is damaged"
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigurationError(f"{option}: {str(path)!r} {damaged}") from error
    try:
        # files of before PyTorch 1.6 are no archives, and cannot be mapped
        return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except Exception as error:  # bytes that are no pickle fail in any way, an IndexError among them
        unsafe = "unsupported global" in str(error).lower()  # text files are an "unsupported operand"
        reason = "could run code when it is loaded, so it is refused" if unsafe else damaged
        raise ConfigurationError(f"{option}: {str(path)!r} {reason}") from error


def unpacked(stored: Any) -> dict[str, Any]:
    """Return the weights in what a file holds, which may lie below ``"state_dict"`` or ``"model"``; else nothing."""
    while isinstance(stored, Mapping):
        inner = next((stored[key] for key in _CONTAINERS if isinstance(stored.get(key), Mapping)), None)
        if inner is None:
            return {name: value for name, value in stored.items() if isinstance(name, str)}
        stored = inner
    return {}


def _prefix(stored: Mapping[str, Any], own: Mapping[str, Any], path: Path, option: str) -> str:
    """Return the prefix below which most of the network's names are, preferably all."""
    below: Counter[str] = Counter()
    for name in stored:
        starts = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
        below.update(name[:start] for start in starts if name[start:] in own)
    if not below:
        raise ConfigurationError(f"{option}: {str(path)!r} has no weight with a name that the network knows")
    most = max(below.values())
    best = [prefix for prefix, count in below.items() if count == most]
    wanted = _shapes(own)
    fitting = [prefix for prefix in best if _shapes({name: stored.get(prefix + name) for name in own}) == wanted]
    usual = [prefix for prefix in fitting if _WRAPPERS.issuperset(prefix.split(".")[:-1])]
    candidates = usual or fitting or best
    candidates = [prefix for prefix in candidates if prefix.count(".") == min(p.count(".") for p in candidates)]
    if fitting and len(candidates) > 1:
        raise ConfigurationError(
            f"{option}: {str(path)!r} has weights that fit below each of {sorted(candidates)[:4]}; give a file with one"
        )
    return candidates[0]


def _check_shapes(network: nn.Module, own: Mapping[str, Any], found: Mapping[str, Any], file: str) -> None:
    heads = find_classifiers(network)
    outputs = {f"{name}.{part}".lstrip(".") for name in heads for part in ("weight", "bias")}
    other = f"{file} has the weights of another architecture than {type(network).__name__}: "
    ours, theirs = _shapes(own), _shapes(found)
    differing = [name for name, shape in ours.items() if theirs.get(name) != shape]
    if differing and outputs.issuperset(differing) and all(name in found for name in differing):
        name = differing[0]
        if theirs[name][1:] == ours[name][1:]:
            raise ConfigurationError(
                f"{file} has a classifier of {theirs[name][0]} classes, and the network one of {ours[name][0]}"
            )
    if differing:
        name = differing[0]
        there = f"has shape {theirs[name]} there and" if name in found else "is missing there and has"
        raise ConfigurationError(f"{other}{name!r} {there} {ours[name]} in the network")
    if extra := [name for name in found if name not in own]:
        raise ConfigurationError(f"{other}it has {extra[0]!r} of shape {theirs[extra[0]]}, which the network lacks")


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return shapes by name; what a module saves beside its weights may have any, which it looks at itself."""
    return {
        name: tuple(value.shape) if isinstance(value, Tensor) and not name.endswith("_extra_state") else ()
        for name, value in state.items()
    }
