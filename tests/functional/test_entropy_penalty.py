"""The entropy term in both forms against the released code's values and closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.entropy_penalty import entropy_penalty

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "abstention.npz")
LOGITS = torch.from_numpy(GOLDEN["bl__logits_k1"][:, :-1])


@pytest.mark.parametrize(("form", "key"), [("true", "bl__em_true_entropy"), ("released", "bl__em_released_value")])
def test_both_forms_have_the_reference_values(form: str, key: str) -> None:
    assert entropy_penalty(LOGITS, form).item() == pytest.approx(float(GOLDEN[key]), rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-50, 50))
def test_only_the_true_entropy_ignores_a_shift_of_the_logits(seed: int, shift: float) -> None:
    logits = 5 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    value = entropy_penalty(logits)
    assert -1e-12 <= value.item() <= math.log(4) + 1e-12
    torch.testing.assert_close(entropy_penalty(logits + shift), value, rtol=1e-9, atol=1e-9)
    moved = entropy_penalty(logits + shift, "released") - entropy_penalty(logits, "released")
    assert moved.item() == pytest.approx(-shift, abs=1e-9)


def test_the_gradient_asks_for_surer_answers() -> None:
    logits = torch.tensor([[1.0, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(entropy_penalty(logits), logits)
    assert slope[0, 0] < 0 < slope[0, 1]


@pytest.mark.parametrize("form", ["true", "released"])
def test_a_class_that_is_ruled_out_adds_nothing(form: str) -> None:
    logits = torch.tensor([[1.0, 0.0, -torch.inf]], requires_grad=True)
    value = entropy_penalty(logits, form)
    torch.testing.assert_close(value, entropy_penalty(torch.tensor([[1.0, 0.0]]), form))
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["true", "released"])
def test_half_precision_gives_the_float32_value_of_the_rounded_logits(dtype: torch.dtype, form: str) -> None:
    rounded = LOGITS.to(dtype)
    assert torch.equal(entropy_penalty(rounded, form), entropy_penalty(rounded.float(), form))


def test_what_cannot_work_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"form='releasd' .*Did you mean 'released'"):
        entropy_penalty(LOGITS, "releasd")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"logits has shape \(5,\); give class scores of shape \(N, K\)"):
        entropy_penalty(torch.zeros(5))
