from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.part_losses import (
    counted_mean,
    divergence,
    first_wrong_per_class,
    in_last_full_part,
    part_weight,
    valid_steps,
)
from lightning_efficient.functional.parts import sequence_parts
from lightning_efficient.typing import Part


def released_split(steps: int, parts: int) -> list[Part]:
    """``parts`` of ``steps // parts``, and one shorter part more if steps are left, as the released code cuts."""
    length = steps // parts
    starts = range(0, steps, length)
    return [Part(i, len(starts), start, min(start + length, steps), steps) for i, start in enumerate(starts)]


def test_weights_rise_to_one_in_equal_steps() -> None:
    assert [part_weight(index, 4) for index in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert part_weight(0, 1) == 1.0


def test_each_sequence_reaches_weight_one_in_its_own_last_part() -> None:
    counts = torch.tensor([1, 2, 4])
    assert torch.equal(part_weight(0, counts), torch.tensor([1, 1 / 2, 1 / 4]))
    assert torch.equal(part_weight(1, counts), torch.tensor([1, 1, 1 / 2]))
    assert torch.equal(part_weight(3, counts), torch.tensor([1.0, 1, 1]))


def test_what_does_not_count_has_neither_value_nor_gradient() -> None:
    values = torch.tensor([1.0, float("nan"), 5.0], requires_grad=True)
    mean = counted_mean(values, torch.tensor([True, False, True]))
    assert mean.item() == 3
    mean.backward()
    assert torch.equal(values.grad, torch.tensor([0.5, 0, 0.5]))


def test_a_mean_of_nothing_is_zero_and_can_be_differentiated() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = counted_mean(values, torch.zeros(2, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0
    assert torch.equal(values.grad, torch.zeros(2))


def test_valid_steps_are_the_first_ones() -> None:
    mask = valid_steps(torch.tensor([0, 2, 3]), 3)
    assert mask.int().tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("over_classes", ["sum", "mean"])
def test_the_divergence_is_the_sum_or_mean_written_out(over_classes: str) -> None:
    torch.manual_seed(0)
    logits, reference = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64).softmax(1)
    found = divergence(logits.log_softmax(1), reference, over_classes)  # type: ignore[arg-type]
    for row in range(5):
        total = sum(math.exp(float(z)) for z in logits[row])
        pairs = zip(reference[row].tolist(), logits[row].tolist(), strict=True)
        terms = [-q * math.log(math.exp(z) / total) for q, z in pairs]
        assert float(found[row]) == pytest.approx(sum(terms) / (3 if over_classes == "mean" else 1), abs=1e-12)


def test_the_divergence_from_the_own_prediction_has_no_gradient() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(1)
    divergence(log_probs, log_probs.detach().exp()).sum().backward()
    assert torch.allclose(logits.grad, torch.zeros(4, 3, dtype=torch.float64), atol=1e-15)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="over_classes='men' is not one of"):
        divergence(torch.zeros(1, 2), torch.zeros(1, 2), "men")  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "parts"), [(13, 4), (784, 10), (1024, 10), (12, 4), (7, 1), (100, 7)])
def test_the_last_full_part_of_the_released_split(steps: int, parts: int) -> None:
    cut = released_split(steps, parts)
    shorter_by = (cut[0].stop - cut[0].start) - (cut[-1].stop - cut[-1].start)
    full = len(cut) - 1 if shorter_by > 1 else len(cut)
    assert [in_last_full_part(part) for part in cut] == [part.index >= full - 1 for part in cut]


@pytest.mark.parametrize(("steps", "parts"), [(13, 5), (784, 10), (11, 3), (10, 10), (5, 1), (9, 2)])
def test_all_parts_of_a_balanced_split_are_full(steps: int, parts: int) -> None:
    cut = sequence_parts(steps, parts)
    assert [in_last_full_part(part) for part in cut] == [False] * (parts - 1) + [True]


def brute_force(logits: Tensor, labels: Tensor) -> dict[int, int]:
    first: dict[int, int] = {}
    for row, label in enumerate(labels.tolist()):
        if 0 <= label < logits.shape[1] and label not in first and int(logits[row].argmax()) != label:
            first[label] = row
    return first


@pytest.mark.parametrize("seed", range(8))
def test_the_first_wrong_sample_of_each_class_is_that_of_a_loop(seed: int) -> None:
    torch.manual_seed(seed)
    logits, labels = torch.randn(12, 5), torch.randint(0, 5, (12,))
    labels[::4] = -100
    found, sample = first_wrong_per_class(logits, labels)
    assert {c: int(sample[c]) for c in range(5) if found[c]} == brute_force(logits, labels)
