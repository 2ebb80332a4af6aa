from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.losses import PreviousPredictions
from lightning_efficient.typing import Part

LABELS = torch.zeros(3, dtype=torch.long)


def part(index: int, count: int = 2) -> Part:
    return Part(index, count, 5 * index, 5 * index + 5, 5 * count)


def cross_entropy(reference: Tensor, logits: Tensor) -> Tensor:
    return -(reference * logits.log_softmax(1)).sum(1)


def test_each_sample_and_part_is_compared_with_its_own_last_prediction() -> None:
    torch.manual_seed(0)
    term = PreviousPredictions(num_classes=4)
    last: dict[tuple[int, int], Tensor] = {}
    for _ in range(3):
        for rows in ([4, 0, 2], [1, 3, 5]):
            for at in range(2):
                logits = torch.randn(3, 4)
                found = term(logits, LABELS, part(at), index=torch.tensor(rows))
                uniform = torch.full((4,), 0.25)
                reference = torch.stack([last.get((row, at), uniform) for row in rows])
                assert torch.allclose(found, cross_entropy(reference, logits), atol=1e-6)
                last |= {(row, at): logits[i].softmax(0) for i, row in enumerate(rows)}


def test_the_reference_has_no_gradient_and_the_prediction_has() -> None:
    term = PreviousPredictions(num_classes=2)
    index = torch.tensor([0])
    first = torch.tensor([[0.0, 1.0]], requires_grad=True)
    term(first, LABELS, part(0), index=index)
    second = torch.tensor([[1.0, 0.0]], requires_grad=True)
    term(second, LABELS, part(0), index=index).sum().backward()
    assert first.grad is None
    assert torch.allclose(second.grad, second.detach().softmax(1) - first.detach().softmax(1), atol=1e-6)


def test_what_does_not_count_is_not_kept() -> None:
    term = PreviousPredictions(num_classes=2)
    index, logits = torch.tensor([0, 1]), torch.tensor([[0.0, 3.0], [0.0, 3.0]])
    term(logits, LABELS[:2], part(0), index=index, counted=torch.tensor([True, False]))
    found = term(logits, LABELS[:2], part(0), index=index)
    assert float(found[0]) == pytest.approx(float(cross_entropy(logits[:1].softmax(1), logits[:1])))
    assert float(found[1]) == pytest.approx(float(cross_entropy(torch.full((1, 2), 0.5), logits[1:])))


def test_a_saved_table_is_loaded_into_a_new_module_of_another_size() -> None:
    term, other = PreviousPredictions(num_classes=2), PreviousPredictions(num_classes=2)
    index, logits = torch.tensor([0, 9]), torch.randn(2, 2)
    term(logits, LABELS[:2], part(1), index=index)
    other.load_state_dict(copy.deepcopy(term.state_dict()))
    assert other.table.values.shape == (10, 2, 2)
    expected = term(logits, LABELS[:2], part(1), index=index)
    assert torch.equal(other(logits, LABELS[:2], part(1), index=index), expected)


def test_growing_keeps_what_was_there() -> None:
    term = PreviousPredictions(num_classes=2)
    logits = torch.randn(1, 2)
    term(logits, LABELS[:1], part(0), index=torch.tensor([3]))
    term(logits, LABELS[:1], part(0, count=5), index=torch.tensor([40]))
    assert term.table.values.shape == (41, 5, 2)
    assert torch.allclose(term.table.values[3, 0], logits[0].softmax(0))
    assert float(term.table.values.sum()) == pytest.approx(2, abs=1e-6)


def test_half_precision_scores_are_compared_in_float32() -> None:
    term = PreviousPredictions(num_classes=2)
    found = term(torch.zeros(1, 2, dtype=torch.bfloat16), LABELS[:1], part(0), index=torch.tensor([0]))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(math.log(2), abs=1e-6)


def test_a_batch_without_index_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"which samples a batch has; give batches \(inputs, target, index\)"):
        PreviousPredictions(2)(torch.zeros(1, 2), LABELS[:1], part(0))
