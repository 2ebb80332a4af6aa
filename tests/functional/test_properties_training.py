"""What holds for any training in parts, schedule, pruning and multiplier."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lightning_efficient.functional as LF
from lightning_efficient.functional.part_losses import (
    counted_mean,
    divergence,
    first_wrong_per_class,
    in_last_full_part,
    log_probabilities,
    part_weight,
    valid_steps,
)
from lightning_efficient.functional.recurrent import near_identity
from lightning_efficient.functional.released_hybrid import (
    GATE_LABELS,
    keep_label,
    released_base_loss,
    released_entropy_sweep,
    released_gate_loss,
    released_gate_sweep,
    released_global_loss,
)

seeds = st.integers(0, 2**32 - 1)
finite = st.floats(-1e6, 1e6)
shares = st.floats(0, 1)


@given(seed=seeds, rows=st.integers(0, 5), length=st.integers(1, 9), parts=st.integers(1, 9), first=st.booleans())
def test_parts_of_a_batch_put_together_are_the_batch(
    seed: int, rows: int, length: int, parts: int, first: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = min(parts, length)
    steps = torch.randn(rows, length, 2, generator=generator)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    time_dim = 1 if first else 0
    batch = {"x": steps if first else steps.transpose(0, 1), "lengths": lengths, "label": torch.arange(rows)}
    split = LF.SplitBatch.of(batch, parts=parts, time_dim=time_dim, sequences=["x"])
    seen = list(split)
    assert len(seen) == len(split) == parts
    assert torch.equal(torch.cat([each["x"] for each in seen], time_dim), batch["x"])
    assert torch.equal(sum(each["lengths"] for each in seen), lengths)
    assert all(torch.equal(each["label"], batch["label"]) for each in seen)
    real = torch.cat([valid_steps(each["lengths"], each["x"].shape[time_dim]) for each in seen], 1)
    assert torch.equal(real, valid_steps(lengths, length))
    for part in split.parts:
        assert torch.equal(part.counts, sum((each["lengths"] > 0).long() for each in seen))


@given(length=st.integers(1, 60), parts=st.integers(1, 60), by_length=st.booleans())
def test_weights_of_parts_rise_to_one_and_a_full_part_comes_last(length: int, parts: int, by_length: bool) -> None:
    parts = min(parts, length)
    cut = (
        LF.sequence_parts(length, part_length=max(length // parts, 1))
        if by_length
        else LF.sequence_parts(length, parts)
    )
    weights = [part_weight(part.index, part.count) for part in cut]
    assert weights == sorted(weights)
    assert weights[-1] == 1
    counts = torch.arange(1, len(cut) + 1)
    for index in range(len(cut)):
        assert part_weight(index, counts).tolist() == pytest.approx([min((index + 1) / n, 1) for n in counts.tolist()])
    last = [in_last_full_part(part) for part in cut]
    assert last[-1]
    assert sum(last) <= 2
    assert last == sorted(last)


@given(seed=seeds, rows=st.integers(1, 6), classes=st.integers(2, 5))
def test_a_divergence_is_least_where_the_model_is_the_reference(seed: int, rows: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    reference = other.softmax(1)
    found = divergence(log_probabilities(one), reference)
    least = divergence(log_probabilities(other), reference)
    assert (found >= least - 1e-12).all()
    torch.testing.assert_close(least, -LF.entropy(other))
    torch.testing.assert_close(divergence(log_probabilities(one), reference, "mean") * classes, found)
    assert not divergence(log_probabilities(one), torch.zeros_like(one)).any()
    counted = torch.rand(rows, generator=generator) < 0.5
    spoilt = torch.where(counted, found, torch.nan)
    expected = found[counted].mean() if counted.any() else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(counted_mean(spoilt, counted), expected)


@given(seed=seeds, rows=st.integers(1, 8), classes=st.integers(1, 4))
def test_the_first_mistake_of_a_class_is_that_of_a_loop(seed: int, rows: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    labels = torch.randint(-1, classes + 1, (rows,), generator=generator)
    found, sample = first_wrong_per_class(logits, labels)
    for label in range(classes):
        wrong = [row for row in range(rows) if labels[row] == label and logits[row].argmax() != label]
        assert found[label] == bool(wrong)
        assert sample[label] == (wrong[0] if wrong else 0)


@given(seed=seeds, sizes=st.lists(st.integers(0, 4), min_size=1, max_size=3), keep=st.booleans(), low=st.booleans())
def test_a_restart_makes_parameters_and_means_agree_and_is_idempotent(
    seed: int, sizes: list[int], keep: bool, low: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if low else torch.float32
    params = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    means, duals = ([torch.randn(size, generator=generator) for size in sizes] for _ in range(2))
    before = [each.clone() for each in means], [each.clone() for each in duals]
    for _ in range(2):
        LF.fptt_restart_(params, means, duals, keep_duals=keep)
        for param, mean, dual, old_mean, old_dual in zip(params, means, duals, *before, strict=True):
            assert torch.equal(param, old_mean.to(dtype))
            assert torch.equal(param.float(), mean)
            assert torch.equal(dual, old_dual if keep else torch.zeros_like(dual))


@given(seed=seeds, alpha=st.floats(0.01, 2), weights=st.tuples(st.floats(0, 3), st.floats(0, 3)))
def test_the_gradient_that_is_added_is_that_of_the_penalty(
    seed: int, alpha: float, weights: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    params, means, duals = ([torch.randn(3, generator=generator, dtype=torch.float64)] for _ in range(3))
    params[0].requires_grad_()
    options = {"alpha": alpha, "proximal_weight": weights[0], "dual_weight": weights[1]}
    (expected,) = torch.autograd.grad(LF.fptt_penalty(params, means, duals, **options), params)
    added = LF.fptt_gradient_([torch.zeros(3, dtype=torch.float64)], params, means, duals, **options)
    torch.testing.assert_close(added[0], expected)


@given(ascend=st.booleans(), rate=st.floats(0.01, 1), slope=st.floats(-5, 5))
def test_a_dual_climbs_where_other_parameters_descend_and_neither_decays(
    ascend: bool, rate: float, slope: float
) -> None:
    value = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    group = LF.dual_group([value], ascend=ascend, lr=rate)
    optimizer = torch.optim.SGD([group], lr=1.0, weight_decay=0.5)
    (slope * value).sum().backward()
    optimizer.step()
    assert value.item() == pytest.approx(2 + (rate if ascend else -rate) * slope)


@given(start=finite, rate=st.floats(-1, 1e3), power=st.floats(0, 3), first=shares, second=shares)
def test_a_power_schedule_is_monotone_from_its_start(
    start: float, rate: float, power: float, first: float, second: float
) -> None:
    schedule = LF.PowerSchedule(start, rate, power)
    low, high = sorted((first, second))
    assert schedule(0) == start
    early, late = schedule(low), schedule(high)
    if (rate >= 0) == (start >= 0):
        assert early <= late
    else:
        assert early >= late
    assert schedule(1) == pytest.approx(start * (1 + rate) ** power)


@given(kind=st.sampled_from(["magnitude", "first_order", "random"]), seed=seeds, size=st.integers(0, 8))
def test_a_saliency_is_not_negative_and_ignores_signs(kind: str, seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = torch.randn(2, size, generator=generator)
    found, turned = (LF.saliency(sign * weight, gradient, kind, torch.Generator().manual_seed(0)) for sign in (1, -1))
    assert (found >= 0).all()
    assert torch.equal(found, turned)
    if kind == "first_order":
        torch.testing.assert_close(LF.saliency(weight, 2 * gradient, kind), 2 * found)
        assert torch.equal(LF.saliency(gradient, weight, kind), found)


@given(seed=seeds, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3), share=shares)
def test_masks_of_layers_have_the_sparsity_they_were_made_for(seed: int, sizes: list[int], share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {str(number): torch.rand(size, generator=generator) for number, size in enumerate(sizes)}
    total = sum(sizes)
    share *= 1 - len(sizes) / total  # each layer keeps a weight
    masks = LF.keep_masks(scores, share, max_layer_sparsity=1.0)
    assert all(mask.any() for mask in masks.values())
    assert abs(LF.sparsity_of(masks) - share) <= 0.5 / total + 1e-9
    inverse = LF.sparsity_of({name: ~mask for name, mask in masks.items()})
    assert LF.sparsity_of(masks) + inverse == pytest.approx(1)
    assert LF.sparsity_of({}) == 0


@given(seed=seeds, size=st.integers(1, 5), rank=st.integers(0, 3))
def test_a_matrix_near_the_identity_leaves_what_its_factors_do_not_touch(seed: int, size: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(shape, generator=generator).double() for shape in ((size, rank), (rank, size)))
    vector = torch.randn(size, generator=generator).double()
    torch.testing.assert_close(near_identity(up, down) @ vector, vector + up @ (down @ vector))
    assert torch.equal(near_identity(0 * up, down), torch.eye(size, dtype=torch.float64))


@given(seed=seeds, rows=st.integers(1, 6), label=st.sampled_from(GATE_LABELS))
def test_released_gates_and_models_weigh_samples_as_their_labels_say(seed: int, rows: int, label: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, best = torch.rand(2, rows, generator=generator) < 0.5
    keep = keep_label(base, best, label)
    assert not (base & ~keep).any()
    assert torch.equal(keep, base | ~best if label == "proxy" else base)
    gate = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    for generation in ("first", "second"):
        loss = released_gate_loss(gate, base, best, generation=generation, label=label)
        assert loss >= 0
        asking = released_gate_loss(gate, base, best, generation=generation, label=label, max_query_rate=1.0)
        assert asking <= loss + 1e-12
    logits = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (rows,), generator=generator)
    plain = nn.functional.cross_entropy(logits, target)
    # each sample counts more for one model and once for the other
    both = released_base_loss(logits, target, gate) + released_global_loss(logits, target, gate)
    torch.testing.assert_close(both, 2.5 * plain)
    assert released_base_loss(logits, target, gate, "second") >= released_base_loss(logits, target, gate)


@given(seed=seeds)
def test_released_sweeps_meet_each_target_with_the_accuracy_of_their_threshold(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = 40
    base, best = torch.rand(2, size, generator=generator) < 0.6
    score = (torch.randperm(size, generator=generator).double() + 0.5) / size
    for sweep, keeps in ((released_gate_sweep, torch.ge), (released_entropy_sweep, torch.le)):
        for point in sweep(score, base, best):
            kept = keeps(score, point.threshold)
            assert point.target <= point.coverage == float(kept.double().mean())
            assert point.accuracy == float(torch.where(kept, base, best).double().mean())
            assert point.base_accuracy == float(base[kept].double().mean())
            mixed = point.coverage * point.base_accuracy + (1 - point.coverage) * point.global_accuracy
            assert math.isclose(mixed, point.accuracy, abs_tol=1e-12)
