from __future__ import annotations

import csv
from pathlib import Path

import torch

from lightning_efficient.cli.predictions import write_predictions


def test_tensors_of_one_number_per_sample_become_columns(tmp_path: Path) -> None:
    batches = [
        {"logits": torch.zeros(2, 3), "prediction": torch.tensor([4, 5]), "confidence": torch.tensor([0.5, 0.25])},
        {"logits": torch.zeros(1, 3), "prediction": torch.tensor([6]), "confidence": torch.tensor([1.0])},
    ]
    file = write_predictions(batches, tmp_path / "run")
    with file.open(newline="") as rows:
        assert list(csv.reader(rows)) == [
            ["sample", "prediction", "confidence"],
            ["0", "4", "0.5"],
            ["1", "5", "0.25"],
            ["2", "6", "1.0"],
        ]


def test_other_outputs_are_saved_as_they_are(tmp_path: Path) -> None:
    file = write_predictions([torch.tensor([1.0, 2.0])], tmp_path)
    assert file.name == "predictions.pt"
    assert torch.equal(torch.load(file, weights_only=True)[0], torch.tensor([1.0, 2.0]))


def test_each_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    batches = [{"prediction": torch.tensor([1])}]
    assert write_predictions(batches, tmp_path, 1, 2).name == "predictions_rank1.csv"
