"""A pruned network in one file, which no code of the file runs to load."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient._files import write_tensors
from lightning_efficient._unwrapped import uncompiled
from lightning_efficient._version import __version__
from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.nn.backbones import create_backbone
from lightning_efficient.nn.checkpoints import read_checkpoint
from lightning_efficient.nn.pruning.shrink import resize_layers
from lightning_efficient.nn.pruning.width_notes import take_notes, write_notes

SCHEMA = 1
"""Version of the format; a file of a newer one is refused."""

_KIND = "lightning_efficient.pruned_network"
_MADE_OF = ("name", "num_classes", "in_chans", "kwargs")
_OTHER_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Options of timm that fetch weights: the file has them."""


def save_pruned(
    file: str | Path, network: nn.Module, *, made_of: Mapping[str, Any] | None, report: Mapping[str, Any]
) -> Path:
    """Write a pruned network whole or not at all.

    Args:
        file: Such as ``pruned.pt``; a file of that name is replaced.
        network: What :func:`remove_channels` returned, trained further or not.
        made_of: What ``timm.create_model`` makes the unpruned network of: ``name``, and where they differ from its
            defaults ``num_classes``, ``in_chans`` and a mapping ``kwargs``. None where timm cannot make it: whoever
            loads the file then brings a network.
        report: What else is to be known: numbers, strings, and lists and mappings of them.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: ``made_of`` or ``report`` has something else, or the file cannot be written.
    """
    network = uncompiled(network)
    if made_of is not None:
        _check_made_of(made_of, "made_of")
        kwargs = {key: value for key, value in (made_of.get("kwargs") or {}).items() if key not in _OTHER_WEIGHTS}
        made_of = {**made_of, "kwargs": _plain(kwargs, "made_of['kwargs']")}
    content = {
        "kind": _KIND,
        "schema": SCHEMA,
        "version": __version__,
        "made_of": made_of,
        "report": _plain(report, "report"),
        "notes": take_notes(network),
        "state_dict": {
            name: value.detach() if isinstance(value, Tensor) else value for name, value in network.state_dict().items()
        },
    }
    path = Path(file).expanduser()
    try:
        write_tensors(content, path)
    except OSError as error:
        raise ConfigurationError(f"file: {str(path)!r} cannot be written ({error.strerror})") from error
    return path


def load_pruned(file: str | Path, network: nn.Module | None = None) -> nn.Module:
    """Return the network of a file, on the CPU unless a network elsewhere is given; no code of the file runs.

    Args:
        file: What :func:`save_pruned` wrote.
        network: Made like the one that was pruned, and changed in place; by default timm makes it.

    Raises:
        ConfigurationError: no such file, a damaged one, one of another kind or a newer version, or one of another
            network than the one given.
    """
    path = Path(file).expanduser()
    content = _read(path)
    state, made_of = content["state_dict"], content["made_of"]
    if network is None:
        network = _made(path, made_of, state)
    network = uncompiled(network)
    if extra := [name for name in state if name not in network.state_dict()]:
        raise ConfigurationError(f"file: {str(path)!r} has {extra[0]!r}, which {type(network).__name__} lacks")
    try:
        resize_layers(network, state)
        network.load_state_dict(state)
    except (ConfigurationError, RuntimeError) as error:
        reason = " ".join(str(error).removeprefix("state: ").split())[:240]
        message = f"file: {str(path)!r} does not fit {type(network).__name__}: {reason}"
        raise ConfigurationError(message) from error
    write_notes(network, content["notes"])
    return network


def is_pruned_file(file: str | Path) -> bool:
    """Tell whether a file is one that :func:`save_pruned` wrote; False where there is none."""
    path = Path(file).expanduser()
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        content = read_checkpoint(path, "file")
    except ConfigurationError:
        return False
    return isinstance(content, Mapping) and content.get("kind") == _KIND


def read_report(file: str | Path) -> dict[str, Any]:
    """Return the report in a file of a pruned network.

    Raises:
        ConfigurationError: as :func:`load_pruned`.
    """
    report: dict[str, Any] = _read(Path(file).expanduser())["report"]
    return report


def _read(path: Path) -> Mapping[str, Any]:
    content = read_checkpoint(path, "file")
    if not isinstance(content, Mapping) or content.get("kind") != _KIND:
        raise ConfigurationError(f"file: {str(path)!r} is no pruned network; save_pruned writes one")
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ConfigurationError(
            f"file: {str(path)!r} is of version {str(content.get('version'))[:20]} of lightning-efficient, "
            f"and this is {__version__}"
        )
    state, made_of = content.get("state_dict"), content.get("made_of")
    fits = {
        "state_dict": isinstance(state, Mapping) and all(isinstance(name, str) for name in state),
        "made_of": made_of is None or isinstance(made_of, Mapping),
        "report": isinstance(content.get("report"), Mapping),
        "notes": isinstance(content.get("notes"), Mapping),
    }
    if wrong := [name for name, good in fits.items() if not good]:
        raise ConfigurationError(f"file: {str(path)!r} is damaged: it has no {wrong[0]!r}")
    return content


def _made(path: Path, made_of: Mapping[str, Any] | None, state: Mapping[str, Any]) -> nn.Module:
    """Return a new network for weights of one dtype, without a change of the global random numbers."""
    if made_of is None:
        raise ConfigurationError(f"file: {str(path)!r} does not say how its network is made; give one as network=")
    try:
        _check_made_of(made_of, "made_of")
        kwargs = dict(made_of.get("kwargs") or {})
        if refused := [key for key in kwargs if key in _OTHER_WEIGHTS]:
            raise ConfigurationError(f"made_of['kwargs'] has {refused[0]!r}, which fetches other weights")
        with torch.random.fork_rng(devices=[]):
            network = create_backbone(
                made_of["name"], False, made_of.get("num_classes"), made_of.get("in_chans") or 3, kwargs
            )
    except (ConfigurationError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:240]
        raise ConfigurationError(f"file: {str(path)!r} is of a network that cannot be made: {reason}") from error
    dtypes = {each.dtype for each in state.values() if isinstance(each, Tensor) and each.is_floating_point()}
    return network.to(dtypes.pop()) if len(dtypes) == 1 else network


def _check_made_of(made_of: Mapping[str, Any], option: str) -> None:
    for key in made_of:
        if key not in _MADE_OF:
            raise ConfigurationError(f"{option}: {key!r} is not one of {list(_MADE_OF)}.{did_you_mean(key, _MADE_OF)}")
    wanted = {"name": (str,), "num_classes": (int, type(None)), "in_chans": (int,), "kwargs": (Mapping, type(None))}
    for key, kinds in wanted.items():
        value = made_of.get(key, "" if key == "name" else None if key != "in_chans" else 3)
        if not isinstance(value, kinds) or value == "":
            raise ConfigurationError(f"{option}: {key!r} is {value!r}; give {' or '.join(k.__name__ for k in kinds)}.")


def _plain(value: Any, option: str) -> Any:
    """Return a copy of plain data, which loads without running code."""
    if isinstance(value, Mapping):
        return {_plain(key, option): _plain(each, f"{option}[{key!r}]") for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each, f"{option}[{index}]") for index, each in enumerate(value)]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    raise ConfigurationError(f"{option} is a {type(value).__name__}; only numbers, strings, lists and mappings fit.")
