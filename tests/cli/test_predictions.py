from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_efficient.functional as LF
from lightning_efficient.cli.predictions import (
    abstaining,
    answered,
    count_answers,
    not_used,
    threshold_beside,
    write_predictions,
)
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.inference.thresholds import calibrate_threshold


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


def test_lists_of_words_become_columns_too(tmp_path: Path) -> None:
    batches = [
        {"prediction": torch.tensor([4, 5]), "reason": ["sure", 'a "b", c'], "names": ["a", 1]},
        {"prediction": torch.tensor([6]), "reason": ["not sure"], "names": ["b"]},
    ]
    with write_predictions(batches, tmp_path).open(newline="") as rows:
        assert list(csv.reader(rows)) == [
            ["sample", "prediction", "reason"],
            ["0", "4", "sure"],
            ["1", "5", 'a "b", c'],
            ["2", "6", "not sure"],
        ]


# ---- with a threshold

CONFIDENCE = torch.tensor([0.9, 0.2, 0.5])


def threshold(score: Any = "confidence", at: float = 2 / 3) -> ThresholdFile:
    found = calibrate_threshold(CONFIDENCE, torch.zeros(3), coverage=at)
    return ThresholdFile(found, "val", "0" * 64, "0" * 64, score=score)


def test_decisions_come_after_the_confidence_and_the_rest_stays() -> None:
    batch = {"prediction": torch.tensor([1, 2, 3]), "confidence": CONFIDENCE, "extra": torch.zeros(3)}
    [output] = abstaining([batch], threshold())
    assert list(output) == ["prediction", "confidence", "accepted", "reason", "extra"]
    assert output["accepted"].tolist() == [True, False, True]
    assert output["reason"] == ["confident", "confidence below threshold", "confident"]
    assert list(batch) == ["prediction", "confidence", "extra"]


def test_a_threshold_of_msp_is_not_compared_with_another_confidence() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 9.0], [0.0, 1.0]])
    batch = {"logits": logits, "prediction": logits.argmax(1), "confidence": CONFIDENCE}
    [from_logits], [own] = abstaining([batch], threshold("msp")), abstaining([batch], threshold("confidence"))
    assert torch.equal(from_logits["confidence"], LF.msp(logits))
    assert from_logits["accepted"].tolist() == [True, True, True]
    assert torch.equal(own["confidence"], CONFIDENCE)


@pytest.mark.parametrize("logits", [{}, {"logits": torch.zeros(3)}, {"logits": torch.zeros(3, 2, 2)}])
def test_a_threshold_of_msp_is_not_used_without_logits_per_class(logits: dict[str, Any]) -> None:
    whole = {"logits": torch.zeros(3, 2), "prediction": torch.zeros(3), "confidence": CONFIDENCE}
    outputs = [whole, {"prediction": torch.zeros(3), "confidence": CONFIDENCE} | logits]
    assert abstaining(outputs, threshold("msp")) is None
    assert "maximum softmax probability, and predict_step returns no logits" in str(not_used(outputs, threshold("msp")))
    assert not_used(outputs, threshold("confidence")) is None


@pytest.mark.parametrize(
    "output",
    [
        torch.zeros(3),
        {"prediction": torch.zeros(3)},
        {"confidence": CONFIDENCE},
        {"prediction": torch.zeros(3), "confidence": torch.zeros(3, 2)},
        {"prediction": torch.zeros(3), "confidence": 0.5},
    ],
)
def test_outputs_without_a_confidence_per_sample_cannot_abstain(output: Any) -> None:
    whole = {"prediction": torch.zeros(3), "confidence": CONFIDENCE}
    assert abstaining([whole, output], threshold()) is None
    assert "predict_step returns no prediction and confidence" in str(not_used([whole, output], threshold()))


def test_the_last_line_counts_the_answers_of_all_batches_and_processes() -> None:
    batch, file = {"prediction": torch.zeros(3), "confidence": CONFIDENCE}, threshold()
    counts = [count_answers(abstaining(batches, file) or []) for batches in ([batch, batch], [batch], [])]
    assert counts == [(4, 6), (2, 3), (0, 0)]
    assert answered(counts, file) == f"answered 6 of 9: {file.calibrated.promise}"


@pytest.mark.parametrize("ckpt_path", [None, "best", "lost.ckpt", "x.ckpt"])
def test_without_a_file_beside_a_checkpoint_there_is_no_threshold(ckpt_path: str | None) -> None:
    torch.save({"state_dict": {}}, "x.ckpt")
    threshold().write("lost.threshold.json")
    assert threshold_beside(ckpt_path, object()) is None
