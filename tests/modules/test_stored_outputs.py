"""Outputs are computed for a sample once, whatever batch it comes in, and by whichever run."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from lightning_efficient.modules._stored_outputs import StoredOutputs

CPU = torch.device("cpu")


class Network:
    """Says of each sample its key, in two columns, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, keys: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"logits": torch.stack([keys, 2 * keys], 1).float(), "features": keys.unsqueeze(1).float()}


def ask(stored: StoredOutputs, network: Network, *keys: int) -> dict[str, Tensor]:
    given = torch.tensor(keys)
    outputs = stored(given, CPU, lambda: network(given))
    assert {name: value.tolist() for name, value in outputs.items()} == {
        "logits": [[key, 2 * key] for key in keys],
        "features": [[key] for key in keys],
    }
    return outputs


def test_a_batch_of_known_samples_is_not_computed_again(tmp_path: Path) -> None:
    stored, network = StoredOutputs(tmp_path / "x", 6), Network()
    ask(stored, network, 0, 3)
    ask(stored, network, 5, 1)
    assert network.calls == 2
    ask(stored, network, 1, 0)
    ask(stored, network, 3)
    assert network.calls == 2
    ask(stored, network, 3, 4)  # one of them is new
    assert network.calls == 3


def test_a_second_run_finds_them_after_its_first_batch(tmp_path: Path) -> None:
    first, network = StoredOutputs(tmp_path / "x", 6), Network()
    ask(first, network, 0, 1, 2)
    second, network = StoredOutputs(tmp_path / "x", 6), Network()
    ask(second, network, 2, 1)
    ask(second, network, 1, 0)
    assert network.calls == 1  # to know the shapes


def test_a_copy_is_the_same_object_as_it_is_open_on_the_same_files(tmp_path: Path) -> None:
    stored = StoredOutputs(tmp_path / "x", 6)
    assert deepcopy({"here": stored})["here"] is stored
    assert not (tmp_path / "x").exists()


def test_values_of_half_precision_come_back_as_they_were(tmp_path: Path) -> None:
    stored, keys = StoredOutputs(tmp_path / "x", 2), torch.tensor([0, 1])
    half = {"logits": torch.tensor([[0.1], [3.3]], dtype=torch.bfloat16)}
    assert stored(keys, CPU, lambda: half)["logits"].dtype == torch.bfloat16
    assert torch.equal(stored(keys, CPU, dict)["logits"], half["logits"].float())
