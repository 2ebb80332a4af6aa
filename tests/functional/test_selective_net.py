"""The risk of a soft selection against reference values, its invariances, and the edges of number formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.selective_net import selective_risk_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "abstention.npz")
CLOSE = {"rtol": 1e-10, "atol": 1e-14}


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


@pytest.mark.parametrize("coverage", [0.7, 0.2])
@pytest.mark.parametrize(("form", "key"), [("paper", "paper"), ("released", "keras")])
def test_value_and_gradients_are_those_of_the_reference(coverage: float, form: str, key: str) -> None:
    logits, selection_logit = array("sn__f").requires_grad_(), array("sn__g_logit").requires_grad_()
    target, prefix = array("sn__targets"), f"sn__c{coverage}_{key}"
    losses = F.cross_entropy(logits, target, reduction="none")
    risk = selective_risk_loss(losses, selection_logit.sigmoid(), coverage, form=form)
    auxiliary = F.cross_entropy(array("sn__h"), target)
    torch.testing.assert_close(0.5 * (risk + auxiliary), array(f"{prefix}_loss"), **CLOSE)
    of_logits, of_selection = torch.autograd.grad(0.5 * risk, (logits, selection_logit))
    torch.testing.assert_close(of_logits, array(f"{prefix}_grad_f"), **CLOSE)
    torch.testing.assert_close(of_selection, array(f"{prefix}_grad_g"), **CLOSE)


batches = st.integers(0, 2**31 - 1)


def batch_of(seed: int, samples: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(samples, dtype=torch.float64, generator=generator) for _ in range(2))  # type: ignore[return-value]


@settings(max_examples=40, deadline=None)
@given(batches, st.floats(0.01, 1.0))
def test_the_paper_form_does_not_change_with_the_scale_of_the_selection_above_the_coverage(
    seed: int, scale: float
) -> None:
    losses, selection = batch_of(seed)
    coverage = 0.99 * scale * selection.mean().item()
    whole = selective_risk_loss(losses, selection, coverage)
    torch.testing.assert_close(selective_risk_loss(losses, scale * selection, coverage), whole, rtol=1e-12, atol=0)
    released = selective_risk_loss(losses, scale * selection, coverage, form="released")
    torch.testing.assert_close(released, scale * (losses * selection).mean(), rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(batches)
def test_the_risk_lies_between_the_least_and_the_largest_loss(seed: int) -> None:
    losses, selection = batch_of(seed)
    risk = selective_risk_loss(losses, selection, coverage=1e-9)
    assert losses.min() - 1e-12 <= risk <= losses.max() + 1e-12


@pytest.mark.parametrize("form", ["paper", "released"])
def test_accepting_everything_gives_the_mean_loss(form: str) -> None:
    losses, _ = batch_of(0)
    torch.testing.assert_close(selective_risk_loss(losses, torch.ones_like(losses), 1.0, form=form), losses.mean())


def test_only_a_coverage_that_is_too_small_costs() -> None:
    losses, selection = torch.zeros(4), torch.full((4,), 0.5)
    assert selective_risk_loss(losses, selection, coverage=0.5).item() == 0
    assert selective_risk_loss(losses, selection, coverage=0.4).item() == 0
    assert selective_risk_loss(losses, selection, coverage=0.75, penalty=32).item() == pytest.approx(2.0)


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("logit", [-40.0, -60.0, -95.0, -200.0])
def test_a_selection_that_underflows_leaves_value_and_gradient_finite(form: str, logit: float) -> None:
    losses = torch.tensor([1.0, 5.0, 1000.0], requires_grad=True)
    selection_logit = torch.full((3,), logit, requires_grad=True)
    loss = selective_risk_loss(losses, selection_logit.sigmoid(), 0.8, form=form)
    loss.backward()
    assert loss.isfinite()
    assert losses.grad is not None
    assert losses.grad.isfinite().all()
    assert selection_logit.grad is not None
    assert selection_logit.grad.isfinite().all()
    if logit == -200.0:
        assert loss.item() == pytest.approx(32 * 0.8**2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_float32_value_of_the_rounded_inputs(dtype: torch.dtype) -> None:
    losses, selection = (values.to(dtype) for values in batch_of(3))
    low, full = (selective_risk_loss(cast(losses), cast(selection), 0.7) for cast in (lambda x: x, Tensor.float))
    assert low.dtype == torch.float32
    assert torch.equal(low, full)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coverage": 0.0}, r"coverage=0.0 is outside \(0, 1\]"),
        ({"coverage": 80}, r"coverage=80 .*not a percent"),
        ({"penalty": -1.0}, r"penalty=-1.0 must be"),
        ({"form": "keras"}, r"form='keras' is not one of \['paper', 'released'\]"),
        ({"selection": torch.ones(3)}, r"selection \(3,\); give one value per sample"),
        ({"losses": torch.ones(4, 1), "selection": torch.ones(4, 1)}, r"losses has shape \(4, 1\)"),
    ],
)
def test_what_cannot_work_is_said(options: dict, message: str) -> None:
    given_ = {"losses": torch.ones(4), "selection": torch.ones(4), "coverage": 0.5} | options
    with pytest.raises(ConfigurationError, match=message) as error:
        selective_risk_loss(**given_)
    assert "\n" not in str(error.value)
