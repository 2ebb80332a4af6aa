"""Confidence scores against golden values, their definitions, and half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import lightning_efficient.functional as LF
from lightning_efficient.errors import ConfigurationError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "selective_metrics.npz")
SCORES = {
    "msp": "msp",
    "margin": "margin",
    "entropy": "neg_entropy",
    "energy": "neg_energy_T1",
    "max_logit": "max_logit",
}
logit_rows = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.floats(-30, 30))


@pytest.mark.parametrize(("score", "golden"), SCORES.items())
def test_scores_equal_the_golden_values(score, golden):
    logits = torch.from_numpy(GOLDEN["m_logits"]).double()
    torch.testing.assert_close(
        LF.confidence(logits, score), torch.from_numpy(GOLDEN[f"m_score_{golden}"]), rtol=0, atol=1e-13
    )


@given(logit_rows, st.floats(0.2, 5))
def test_scores_of_logits_equal_their_definitions_on_the_softmax(rows, temperature):
    logits = torch.from_numpy(rows)
    probs = (logits / temperature).softmax(-1)
    top = probs.sort(-1, descending=True).values
    expected = {
        "msp": top[:, 0],
        "margin": top[:, 0] - top[:, 1],
        "entropy": (probs * (logits / temperature).log_softmax(-1)).sum(-1),
        "energy": temperature * (logits / temperature).exp().sum(-1).log(),
        "max_logit": logits.max(-1).values / temperature,
    }
    for score, values in expected.items():
        torch.testing.assert_close(LF.confidence(logits, score, temperature), values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("score", ["msp", "margin", "entropy"])
def test_scores_of_probabilities_equal_those_of_logits(score):
    logits = torch.from_numpy(GOLDEN["m_logits"]).double()
    from_probs = LF.confidence_from_probs(logits.softmax(-1), score)
    torch.testing.assert_close(from_probs, LF.confidence(logits, score), rtol=0, atol=1e-13)


def test_entropy_of_a_certain_prediction_is_zero_and_not_nan():
    probs = torch.tensor([[1.0, 0.0, 0.0]])
    logits = torch.tensor([[3.0, -torch.inf, -torch.inf]])
    assert LF.confidence_from_probs(probs, "entropy").item() == 0
    assert LF.entropy(logits).item() == 0


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_classes_that_are_ruled_out_leave_a_finite_score(score, dtype):
    logits = torch.tensor([[2.0, 1.0, -torch.inf], [3.0, -torch.inf, -torch.inf], [0.0, -1.0, -2.0]], dtype=dtype)
    values = LF.confidence(logits, score)
    assert values.isfinite().all()
    without = LF.confidence(logits[:1, :2], score)
    torch.testing.assert_close(values[:1], without, rtol=1e-6, atol=1e-7)
    LF.risk_coverage_summary(values, torch.zeros(3))


def test_large_logits_keep_the_precision_of_small_ones():
    logits = torch.tensor([[0.0, -5.0, -6.0]])
    assert LF.msp(logits + 4096) == LF.msp(logits)
    assert LF.margin(logits + 4096) == LF.margin(logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("score", SCORES)
def test_half_precision_equals_float32_on_the_same_rounded_logits(score, dtype):
    logits = torch.from_numpy(GOLDEN["m_logits"]).to(dtype)
    half = LF.confidence(logits, score)
    assert half.dtype == torch.float32
    assert torch.equal(half, LF.confidence(logits.float(), score))


def test_temperature_reorders_samples_of_more_than_two_classes():
    logits = torch.tensor([[3.0, 2.9, -9.0], [1.0, 0.0, 0.0]])
    cold, hot = LF.confidence(logits, temperature=0.1), LF.confidence(logits, temperature=10)
    assert cold[0] < cold[1]
    assert hot[0] > hot[1]


def test_a_function_of_the_logits_is_a_score():
    logits = torch.tensor([[2.0, 0.0], [4.0, 1.0]])
    assert LF.confidence(logits, lambda z: z[:, 0] - z[:, 1], temperature=2).tolist() == [1.0, 1.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: LF.confidence(z, "entropi"), "Did you mean 'entropy'"),
        (lambda z: LF.confidence_from_probs(z, "energy"), "needs logits"),
        (lambda z: LF.confidence_from_probs(z, "mspp"), "Did you mean 'msp'"),
        (lambda z: LF.confidence(z, temperature=0), "temperature=0"),
        (lambda z: LF.confidence(z[0]), r"shape \(N, C\)"),
        (lambda z: LF.margin(z[:, :1]), "C >= 2"),
        (lambda z: LF.confidence(z, lambda values: values), "one value per sample"),
    ],
)
def test_a_wrong_option_is_one_sentence_with_the_remedy(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call(torch.zeros(3, 2))
