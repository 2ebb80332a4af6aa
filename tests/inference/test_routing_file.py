"""Thresholds of a cascade come back as they were written, whole or not at all, and only for the weights they fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.calibration_file import SCHEMA, hash_checkpoint
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.routing_thresholds import calibrate_routing

SCORES, TARGET = torch.rand(40, 2), torch.zeros(40, dtype=torch.int64)
STAGES = torch.zeros(40, 3, dtype=torch.int64)


def a_file(coverage: float = 0.5, **changes: Any) -> RoutingFile:
    found = calibrate_routing(SCORES, STAGES, TARGET, coverage=coverage)
    return replace(RoutingFile(found, "val", "0" * 64, "a" * 64), **changes)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        RoutingFile.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("coverage", [0.5, 1.0])
def test_what_is_written_comes_back_also_with_infinite_thresholds(tmp_path: Path, coverage: float) -> None:
    file = a_file(coverage, split="test", module_score="gain", precision="bf16-mixed")
    file.write(tmp_path / "new" / "x.routing.json")
    assert RoutingFile.read(tmp_path / "new" / "x.routing.json") == file


def test_the_file_is_strict_json(tmp_path: Path) -> None:
    a_file(1.0).write(tmp_path / "x.json")

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    content = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert content["schema"] == SCHEMA
    assert content["calibrated"]["thresholds"] == ["inf", "inf"]


def test_the_file_lies_beside_its_checkpoint_under_its_name_and_not_under_that_of_a_threshold_file() -> None:
    assert RoutingFile.beside("a/epoch=1-val.acc=0.9.ckpt") == Path("a/epoch=1-val.acc=0.9.routing.json")


def test_the_file_of_a_link_is_found_beside_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.ckpt").touch()
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "run" / "best.ckpt")
    assert RoutingFile.find(tmp_path / "link.ckpt") == tmp_path / "link.routing.json"
    a_file().write(tmp_path / "run" / "best.routing.json")
    assert RoutingFile.find(tmp_path / "link.ckpt") == tmp_path / "run" / "best.routing.json"
    a_file().write(tmp_path / "link.routing.json")
    assert RoutingFile.find(tmp_path / "link.ckpt") == tmp_path / "link.routing.json"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    a_file().write(path)
    before = path.read_text()

    def full(self: Path, text: str, **kwargs: Any) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigurationError, match=r"routing file .*x\.json cannot be written \(No space left"):
        a_file(split="test").write(path)
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "lost.json", r"routing file .*lost\.json cannot be read \(No such file")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe"])
def test_a_file_that_holds_no_mapping_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    refused(tmp_path / "x.json", "damaged: it")


ENTRIES = [
    *("schema", "version", "calibrated", "split", "data_sha256", "weights_sha256", "module_score", "precision"),
]


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_needed(tmp_path: Path, name: str) -> None:
    content = a_file().to_dict()
    assert sorted(content) == sorted(ENTRIES)
    del content[name]
    (tmp_path / "x.json").write_text(json.dumps(content))
    refused(tmp_path / "x.json", f"it has no '{name}'")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema", 0),
        ("schema", True),
        ("version", 1),
        ("calibrated", []),
        ("split", "train"),
        ("data_sha256", "0F"),
        ("weights_sha256", None),
        ("module_score", ""),
        ("precision", 32),
    ],
)
def test_an_entry_that_cannot_be_is_named(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "x.json").write_text(json.dumps(a_file().to_dict() | {name: value}))
    refused(tmp_path / "x.json", f"damaged: '{name}' is {value!r}".replace("[]", r"\[\]"))


def test_damage_inside_the_thresholds_is_named(tmp_path: Path) -> None:
    content = a_file().to_dict()
    content["calibrated"]["coverage"] = 2
    (tmp_path / "x.json").write_text(json.dumps(content))
    refused(tmp_path / "x.json", "is damaged: This is not a calibrated routing: coverage is 2")


def test_a_file_of_a_newer_version_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(a_file().to_dict() | {"schema": SCHEMA + 1, "version": "9.9"}))
    refused(tmp_path / "x.json", r"is of version 9\.9 of lightning-efficient")


def test_a_change_of_any_model_voids_the_file(tmp_path: Path) -> None:
    models = nn.ModuleDict({"base": nn.Linear(2, 2), "global_model": nn.Linear(2, 2)})
    torch.save({"state_dict": models.state_dict()}, tmp_path / "a.ckpt")
    file = a_file(weights_sha256=hash_checkpoint(tmp_path / "a.ckpt"))
    file.check_weights(tmp_path / "a.ckpt", "a.routing.json")
    nn.init.zeros_(models["global_model"].bias)
    torch.save({"state_dict": models.state_dict()}, tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match=r"a\.routing\.json belongs to other weights than .*a\.ckpt holds"):
        file.check_weights(tmp_path / "a.ckpt", "a.routing.json")
