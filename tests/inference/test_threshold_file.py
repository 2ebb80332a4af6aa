"""A threshold comes back as it was written, whole or not at all, and only for the weights it is for."""

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
from lightning_efficient.inference.threshold_file import ThresholdFile, score_name
from lightning_efficient.inference.thresholds import calibrate_threshold
from lightning_efficient.nn.checkpoints import add_bytes

CONFIDENCE, WRONG = torch.linspace(0, 1, 200), torch.arange(200) < 20


def a_file(**changes: Any) -> ThresholdFile:
    found = calibrate_threshold(CONFIDENCE, WRONG, risk=0.1, confidence_level=0.9, kind="generalized")
    return replace(ThresholdFile(found, "val", "0" * 64, "a" * 64, score="msp"), **changes)


def saved(path: Path, network: nn.Module, **rest: Any) -> Path:
    torch.save({"state_dict": network.state_dict(), **rest}, path)
    return path


# ---- write and read


@pytest.mark.parametrize("risk", [0.1, 0.0])
@pytest.mark.parametrize("score", ["msp", "confidence"])
def test_what_is_written_comes_back_also_where_no_threshold_was_found(tmp_path: Path, risk: float, score: Any) -> None:
    found = calibrate_threshold(CONFIDENCE, torch.ones(200), risk=risk) if risk == 0 else a_file().calibrated
    file = a_file(calibrated=found, score=score, split="test", module_score="energy", precision="bf16-mixed")
    file.write(tmp_path / "new" / "x.threshold.json")
    assert ThresholdFile.read(tmp_path / "new" / "x.threshold.json") == file


def test_the_file_is_strict_json(tmp_path: Path) -> None:
    nothing = calibrate_threshold(CONFIDENCE, torch.ones(200), risk=0.0)
    assert nothing.threshold == float("inf")
    a_file(calibrated=nothing).write(tmp_path / "x.json")

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    content = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert content["schema"] == SCHEMA


def test_the_file_lies_beside_its_checkpoint_under_its_name() -> None:
    assert ThresholdFile.beside("a/epoch=1-val.acc=0.9.ckpt") == Path("a/epoch=1-val.acc=0.9.threshold.json")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    a_file().write(path)
    before = path.read_text()

    def full(self: Path, text: str, **kwargs: Any) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigurationError, match=r"x\.json cannot be written \(No space left on device\)"):
        a_file(split="test").write(path)
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"threshold file .*file/x\.json cannot be written"):
        a_file().write(tmp_path / "file" / "x.json")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"lost\.json cannot be read \(No such file"):
        ThresholdFile.read(tmp_path / "lost.json")


# ---- damage


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "null", "\x00", "[" * 100_000])
def test_a_file_that_holds_no_mapping_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    assert_damaged(tmp_path / "x.json", "damaged: it")


def test_bytes_that_are_no_text_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    assert_damaged(tmp_path / "x.json", "damaged: it is no JSON")


@pytest.mark.parametrize(
    "name",
    [
        *("schema", "version", "calibrated", "score", "split", "data_sha256", "weights_sha256"),
        *("module_score", "precision"),
    ],
)
def test_every_entry_is_needed(tmp_path: Path, name: str) -> None:
    content = a_file().to_dict()
    del content[name]
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert_damaged(tmp_path / "x.json", f"it has no '{name}'")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema", 0),
        ("schema", True),
        ("version", 1),
        ("calibrated", [1]),
        ("calibrated", {"threshold": 0.5}),
        ("score", "margin"),
        ("split", "train"),
        ("data_sha256", "0" * 63),
        ("weights_sha256", None),
        ("module_score", ""),
        ("module_score", ["msp"]),
        ("precision", 32),
    ],
)
def test_every_entry_is_checked(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "x.json").write_text(json.dumps(a_file().to_dict() | {name: value}))
    assert_damaged(tmp_path / "x.json", "is damaged: ")


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", "nan"), ("threshold", None), ("coverage", 2), ("samples", 0.5), ("rule", "x")]
)
def test_every_entry_of_the_threshold_is_checked(tmp_path: Path, name: str, value: Any) -> None:
    content = a_file().to_dict()
    content["calibrated"][name] = value
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert_damaged(tmp_path / "x.json", f"is damaged: .*{name} is {value!r}")


def test_a_file_of_a_newer_version_says_what_to_install(tmp_path: Path) -> None:
    content = {"schema": SCHEMA + 1, "version": "9.1", "else": "unknown"}
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=r"is of version 9\.1 of lightning-efficient.*install that version"):
        ThresholdFile.read(tmp_path / "x.json")


def assert_damaged(path: Path, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        ThresholdFile.read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


# ---- weights


def test_the_hash_is_that_of_the_weights_and_of_nothing_else(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    first = hash_checkpoint(saved(tmp_path / "a.ckpt", network, epoch=1))
    assert hash_checkpoint(saved(tmp_path / "b.ckpt", network, epoch=2, callbacks={})) == first
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    assert hash_checkpoint(tmp_path / "plain.pt") == first


def test_every_weight_its_name_and_its_dtype_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    hashes = {hash_checkpoint(saved(tmp_path / "a.ckpt", network))}
    hashes.add(hash_checkpoint(saved(tmp_path / "b.ckpt", nn.Sequential(network))))
    hashes.add(hash_checkpoint(saved(tmp_path / "c.ckpt", nn.Linear(3, 2).bfloat16())))
    with torch.no_grad():
        network.bias[1] = torch.nextafter(network.bias[1], torch.tensor(9.0))
    hashes.add(hash_checkpoint(saved(tmp_path / "d.ckpt", network)))
    assert len(hashes) == 4


@pytest.mark.parametrize("wrap", [dict, lambda state: {"model": state}, lambda state: {"state_dict": {"model": state}}])
def test_weights_count_in_every_container_that_they_can_be_loaded_from(tmp_path: Path, wrap: Any) -> None:
    network = nn.Linear(60, 60)  # torch writes no more than the edges of such a matrix
    torch.save(wrap(network.state_dict()) | {"epoch": 1}, tmp_path / "one.ckpt")
    with torch.no_grad():
        network.weight[30, 30] += 1
    torch.save(wrap(network.state_dict()) | {"epoch": 1}, tmp_path / "other.ckpt")
    assert hash_checkpoint(tmp_path / "one.ckpt") != hash_checkpoint(tmp_path / "other.ckpt")


def test_a_container_does_not_count_itself(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    first = hash_checkpoint(saved(tmp_path / "a.ckpt", network))
    torch.save({"model": network.state_dict(), "optimizer": {}}, tmp_path / "b.ckpt")
    assert hash_checkpoint(tmp_path / "b.ckpt") == first


def test_tensors_inside_other_values_count_whole(tmp_path: Path) -> None:
    hashes = set()
    for changed in (None, 0, 1):
        rows = [torch.zeros(2000), torch.zeros(2000)]
        if changed is not None:
            rows[changed][1000] = 1
        state = {"weight": torch.zeros(1), "_extra_state": {"memory": rows, "step": 3}}
        torch.save({"state_dict": state}, tmp_path / "x.ckpt")
        hashes.add(hash_checkpoint(tmp_path / "x.ckpt"))
    state["_extra_state"]["step"] = 4
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    hashes.add(hash_checkpoint(tmp_path / "x.ckpt"))
    assert len(hashes) == 4


# ---- scores


@pytest.mark.parametrize(
    ("score", "name"),
    [
        ("energy", "energy"),
        (None, None),
        (3, None),
        (hash_checkpoint, "function hash_checkpoint"),
        (nn.ReLU(), "function ReLU"),
    ],
)
def test_a_score_has_a_name(score: Any, name: str | None) -> None:
    module = nn.Linear(1, 1)
    module.score = score
    assert score_name(module) == name


def test_only_a_score_that_is_known_and_counts_is_compared() -> None:
    module = nn.Linear(1, 1)
    module.score = "msp"
    for fitting in ({"module_score": "msp"}, {"module_score": None}, {"score": "msp", "module_score": "energy"}):
        a_file(**({"score": "confidence"} | fitting)).check_score(module, "x.json")
    with pytest.raises(ConfigurationError, match=r"x\.json is of the score 'energy', and Linear has 'msp'; set its"):
        a_file(score="confidence", module_score="energy").check_score(module, "x.json")


# ---- links


def test_the_file_of_a_link_is_its_own_or_that_of_what_it_leads_to(tmp_path: Path) -> None:
    checkpoint, link = tmp_path / "epoch=3.ckpt", tmp_path / "last.ckpt"
    checkpoint.touch()
    link.symlink_to(checkpoint)
    own, other = ThresholdFile.beside(link), ThresholdFile.beside(checkpoint)
    assert ThresholdFile.find(link) == own
    other.touch()
    assert ThresholdFile.find(link) == other
    own.touch()
    assert ThresholdFile.find(link) == own


def test_another_checkpoint_is_refused_and_its_own_is_not(tmp_path: Path) -> None:
    mine, other = saved(tmp_path / "mine.ckpt", nn.Linear(3, 2)), saved(tmp_path / "other.ckpt", nn.Linear(3, 2))
    file = a_file(weights_sha256=hash_checkpoint(mine))
    file.check_weights(mine, tmp_path / "x.json")
    with pytest.raises(ConfigurationError, match=r"x\.json belongs to other weights than .*other\.ckpt holds"):
        file.check_weights(other, tmp_path / "x.json")


@pytest.mark.parametrize("content", [torch.zeros(2), {"state_dict": 3}])
def test_a_file_without_weights_is_no_checkpoint(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ConfigurationError, match=r"'.*x\.ckpt' is no checkpoint"):
        hash_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.int64, torch.float64])
def test_bytes_are_those_of_the_values_in_order(dtype: torch.dtype) -> None:
    fed: list[bytes] = []
    values = torch.tensor([[0, 1], [1, 1], [0, 0]]).to(dtype)

    class Digest:
        def update(self, data: Any) -> None:
            fed.append(bytes(data))

    add_bytes(Digest(), values.T)
    add_bytes(Digest(), values.T.contiguous())
    assert fed[0] == fed[1] == bytes(values.T.contiguous().flatten().view(torch.uint8).tolist())
