from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lightning_efficient.losses import WrongPredictions
from lightning_efficient.typing import Part

CLASSES, PARTS = 3, 4
STEPS = 3 * PARTS + 1  # the released code then runs one part more, of one step


def parts() -> list[Part]:
    return [Part(i, PARTS + 1, 3 * i, min(3 * i + 3, STEPS), STEPS) for i in range(PARTS + 1)]


class Loop:
    """The same written as loops over samples and classes."""

    def __init__(self) -> None:
        self.table = [[[0.0] * CLASSES for _ in range(PARTS)] for _ in range(CLASSES)]

    def __call__(self, logits: Tensor, labels: Tensor, at: int, epoch: int) -> list[float]:
        probs, log_probs = logits.softmax(1).tolist(), logits.log_softmax(1).tolist()
        wanted = []
        for label in labels.tolist():
            if at >= PARTS - 1:
                wanted.append([float(c == label) for c in range(CLASSES)])
            elif epoch < 20:
                wanted.append([1 / CLASSES] * CLASSES)
            else:
                wanted.append(list(self.table[label][at]))
        if at < PARTS - 1:
            filled = set()
            for row, label in enumerate(labels.tolist()):
                if label not in filled and probs[row].index(max(probs[row])) != label:
                    filled.add(label)
                    self.table[label][at] = probs[row]
        return [
            sum(-q * p for q, p in zip(asked, own, strict=True)) / CLASSES
            for asked, own in zip(wanted, log_probs, strict=True)
        ]


def test_it_is_what_loops_over_samples_and_classes_give() -> None:
    torch.manual_seed(0)
    term, loop = WrongPredictions(CLASSES), Loop()
    for epoch in (1, 2, 19, 20, 21, 25):
        for _ in range(3):
            labels = torch.randint(0, CLASSES, (6,))
            for part in parts():
                logits = torch.randn(6, CLASSES, dtype=torch.float64)
                found = term(logits, labels, part, epoch=epoch)
                assert found.tolist() == pytest.approx(loop(logits, labels, part.index, epoch), abs=1e-12)
    filled = torch.tensor(loop.table, dtype=torch.float64)
    assert torch.allclose(term.table.values[:, : PARTS - 1], filled[:, : PARTS - 1], atol=1e-12)


def test_right_predictions_are_never_kept() -> None:
    term = WrongPredictions(CLASSES)
    term(torch.eye(CLASSES), torch.arange(CLASSES), parts()[0], epoch=25)
    assert not term.table.values.any()


def test_an_entry_is_used_before_it_is_overwritten() -> None:
    term = WrongPredictions(CLASSES, table_from=1)
    logits, labels = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([0])
    assert float(term(logits, labels, parts()[0])) == 0  # an entry of zeros asks for nothing
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum()
    assert float(term(logits, labels, parts()[0])) == pytest.approx(float(entropy) / CLASSES)


def test_the_entry_has_no_gradient() -> None:
    term = WrongPredictions(CLASSES, table_from=1)
    labels = torch.tensor([0])
    for _ in range(2):
        logits = torch.tensor([[0.0, 2.0, 0.0]], requires_grad=True)
        term(logits, labels, parts()[0]).sum().backward()
    assert torch.allclose(logits.grad, torch.zeros(1, CLASSES), atol=1e-6)


def test_samples_that_do_not_count_fill_nothing() -> None:
    term = WrongPredictions(CLASSES)
    logits, labels = torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.0, 0.0]]), torch.tensor([0, -100])
    term(logits, labels, parts()[0], counted=torch.tensor([False, False]))
    assert not term.table.values.any()


def test_the_table_is_part_of_the_state() -> None:
    term, other = WrongPredictions(CLASSES), WrongPredictions(CLASSES)
    term(torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([0]), parts()[1])
    other.load_state_dict(copy.deepcopy(term.state_dict()))
    assert torch.equal(other.table.values, term.table.values)
