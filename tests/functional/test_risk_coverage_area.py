"""AURC, E-AURC and AUGRC against golden values, identities and the definition by permutations."""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, trapezoid
from scipy.spatial import ConvexHull

import lightning_efficient.functional as LF
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.risk_coverage_area import FORMS, eaugrc

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "selective_metrics.npz")
SCORES = ["msp", "msp_r2", "const", "neg_entropy", "max_logit"]
EDGES = ["all_correct", "all_wrong", "single_ok", "single_bad", "two_tied"]
CASES = {
    **{f"m_ref_{score}__": (GOLDEN[f"m_score_{score}"], GOLDEN["m_err"]) for score in SCORES},
    "tiny_ref__": (GOLDEN["tiny_score"], GOLDEN["tiny_err"]),
    **{f"edge_{name}__": (GOLDEN[f"edge_{name}__score"], GOLDEN[f"edge_{name}__err"]) for name in EDGES},
}
READINGS = {
    "aurc_mean_tieexp": LF.aurc,
    "aurc_trapz_thresholds_flatstart": lambda s: LF.aurc(s, form="fd_shifts"),
    "eaurc_finite": LF.eaurc,
    "eaurc_asym": lambda s: LF.eaurc(s, oracle="asymptotic"),
    "augrc_trapz_origin": LF.augrc,
    "eaugrc": eaugrc,
}
TIED = ["msp", "msp_r2", "msp_r1", "const"]
ALL_SCORES = [*TIED, "neg_entropy", "margin", "neg_energy_T1", "max_logit"]
small = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=6)


def case(name):
    scores, errors = CASES[name]
    return torch.from_numpy(scores), torch.from_numpy(errors)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", CASES)
def test_areas_equal_the_brute_force_of_the_golden_file(name, reading):
    value = READINGS[reading](LF.risk_coverage_summary(*case(name))).item()
    assert value == pytest.approx(GOLDEN[name + reading].item(), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("dtype", "theirs", "tolerance"), [("float64", "msp_f64", 1e-9), ("float32", "msp_f32", 1e-5)])
def test_torch_uncertainty_form_equals_its_figures_where_nothing_is_tied(dtype, theirs, tolerance):
    scores, errors = case("m_ref_msp__")
    summary = LF.risk_coverage_summary(scores.to(getattr(torch, dtype)), errors)
    figures = dict(zip(GOLDEN["tu_fields"].tolist(), GOLDEN[f"tu_{theirs}"].tolist(), strict=True))
    assert LF.aurc(summary, form="torch_uncertainty").item() == pytest.approx(figures["AURC"], abs=tolerance)
    assert LF.augrc(summary, form="torch_uncertainty").item() == pytest.approx(figures["AUGRC"], abs=tolerance)


@pytest.mark.parametrize("score", ["msp_r2", "const"])
def test_torch_uncertainty_form_lies_within_what_orders_of_the_input_give_there(score):
    summary = LF.risk_coverage_summary(*case(f"m_ref_{score}__"))
    orders = dict(zip(GOLDEN["tu_fields"].tolist(), GOLDEN[f"tu_{score}_shuffled_f64"].T, strict=True))
    for name, read in {"AURC": LF.aurc, "AUGRC": LF.augrc}.items():
        assert orders[name].min() < read(summary, form="torch_uncertainty").item() < orders[name].max()


@pytest.mark.parametrize("score", ALL_SCORES)
def test_areas_of_every_score_equal_a_mask_per_threshold(score):
    scores, errors = GOLDEN[f"m_score_{score}"], GOLDEN["m_err"]
    thresholds = np.unique(scores)[::-1]
    masks = [scores >= threshold for threshold in thresholds]
    counts, losses = (np.array([values[mask].sum() for mask in masks]) for values in (np.ones(3000), errors))
    ranks = np.arange(1, 3001)
    expected = np.interp(ranks, np.append(0, counts), np.append(0, losses))
    summary = LF.risk_coverage_summary(torch.from_numpy(scores), torch.from_numpy(errors))
    area = trapezoid(np.append(0, losses), np.append(0, counts)) / 3000**2
    assert LF.aurc(summary).item() == pytest.approx((expected / ranks).mean(), rel=1e-12)
    assert LF.augrc(summary).item() == pytest.approx(area, rel=1e-12)
    assert eaugrc(summary).item() == pytest.approx(area - errors.mean() ** 2 / 2, rel=1e-11)
    flat = trapezoid(np.append(losses[0] / counts[0], losses / counts), np.append(0, counts / 3000))
    assert LF.aurc(summary, form="fd_shifts").item() == pytest.approx(flat, rel=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_fd_shifts_subtracts_the_asymptotic_oracle_from_its_own_area(score):
    value = LF.eaurc(*case(f"m_ref_{score}__"), oracle="asymptotic", form="fd_shifts").item()
    flat, oracle = (GOLDEN[f"m_ref_{score}__{key}"] for key in ("aurc_trapz_thresholds_flatstart", "aurc_oracle_asym"))
    assert value == pytest.approx(flat - oracle, rel=1e-12)


@pytest.mark.parametrize("score", ALL_SCORES)
def test_the_achievable_area_of_fd_shifts_is_that_below_the_convex_hull(score):
    scores, errors = torch.from_numpy(GOLDEN[f"m_score_{score}"]), torch.from_numpy(GOLDEN["m_err"])
    summary = LF.risk_coverage_summary(scores, errors)
    total = summary.total_loss.item()
    points = np.array([(0, 0), *zip(summary.counts.tolist(), summary.losses.tolist(), strict=True), (0, 2 * total)])
    corners = points[np.sort(ConvexHull(points).vertices)][:-1]

    def loss(count):
        return np.interp(count, *corners.T)

    pieces = [quad(lambda count: loss(count) / count, *ends)[0] for ends in pairwise(corners[:, 0])]
    assert LF.aurc(summary, form="fd_shifts_achievable").item() == pytest.approx(sum(pieces) / 3000, rel=1e-9)
    area = trapezoid(corners[:, 1], corners[:, 0]) / 3000**2
    assert LF.augrc(summary, form="fd_shifts_achievable").item() == pytest.approx(area, rel=1e-12)
    assert LF.aurc(summary, form="fd_shifts_achievable") <= LF.aurc(summary)


@given(small)
def test_areas_equal_the_mean_over_all_orders_of_the_ties(rows):
    scores, errors = zip(*rows, strict=True)
    n = len(rows)
    orders = [order for order in permutations(range(n)) if all(scores[a] >= scores[b] for a, b in pairwise(order))]
    cumulative = np.array([np.cumsum([errors[i] for i in order]) for order in orders]).mean(0)
    risks, ranks = cumulative / np.arange(1, n + 1), np.arange(1, n + 1)
    summary = LF.risk_coverage_summary(torch.tensor(scores, dtype=torch.float64), torch.tensor(errors))
    assert LF.aurc(summary).item() == pytest.approx(risks.mean(), abs=1e-12)
    if n > 1:
        expected = trapezoid(risks, ranks / n) / (1 - 1 / n)
        assert LF.aurc(summary, form="torch_uncertainty").item() == pytest.approx(expected, abs=1e-12)
        expected = trapezoid(cumulative / n, ranks / n) / (1 - 1 / n)
        assert LF.augrc(summary, form="torch_uncertainty").item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", [f"m_ref_{score}__" for score in SCORES])
def test_areas_do_not_depend_on_the_order_of_the_samples(name):
    scores, errors = case(name)
    generator = torch.Generator().manual_seed(0)
    reads = [*READINGS.values(), *(lambda s, form=form: LF.aurc(s, form=form) for form in FORMS)]
    expected = [read(LF.risk_coverage_summary(scores, errors)) for read in reads]
    for _ in range(20):
        order = torch.randperm(len(scores), generator=generator)
        summary = LF.risk_coverage_summary(scores[order], errors[order])
        assert [read(summary) for read in reads] == expected


@pytest.mark.parametrize("increasing", [torch.exp, lambda s: 5 * s - 2, lambda s: s**3, lambda s: -1 / (s + 1)])
def test_areas_do_not_depend_on_the_scale_of_the_scores(increasing):
    scores, errors = case("m_ref_msp_r2__")
    original, mapped = LF.risk_coverage_summary(scores, errors), LF.risk_coverage_summary(increasing(scores), errors)
    for read in READINGS.values():
        assert read(mapped) == read(original)


@pytest.mark.parametrize("score", SCORES)
def test_augrc_is_a_function_of_accuracy_and_the_auroc_of_failures(score):
    auroc, accuracy = GOLDEN[f"m_ref_{score}__auroc_f"], 1 - GOLDEN["m_err"].mean()
    expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert LF.augrc(*case(f"m_ref_{score}__")).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("wrong", [0, 1, 700, 2999, 3000])
def test_a_perfect_ranking_has_no_excess_at_all(wrong, distinct):
    errors = torch.arange(3000) >= 3000 - wrong
    scores = -torch.arange(3000.0) if distinct else (~errors).float()
    assert LF.eaurc(scores, errors).item() == 0
    assert eaugrc(scores, errors).item() == 0


def test_a_constant_score_is_worth_the_error_rate():
    errors = torch.from_numpy(GOLDEN["m_err"])
    summary = LF.risk_coverage_summary(torch.full((3000,), 0.8), errors)
    rate = errors.double().mean().item()
    assert LF.aurc(summary).item() == pytest.approx(rate, rel=1e-12)
    assert LF.augrc(summary).item() == pytest.approx(rate / 2, rel=1e-12)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(1, 3)), min_size=1, max_size=12))
def test_integer_weights_give_the_areas_of_repeated_samples(rows):
    scores, errors, weights = (torch.tensor(column) for column in zip(*rows, strict=True))
    weighted = LF.risk_coverage_summary(scores.double(), errors, weights)
    repeated = LF.risk_coverage_summary(scores.double().repeat_interleave(weights), errors.repeat_interleave(weights))
    for read in READINGS.values():
        assert read(weighted).item() == pytest.approx(read(repeated).item(), abs=1e-12)


def test_a_thousand_bins_are_within_one_ten_thousandth():
    scores, errors = case("m_ref_msp__")
    bins = (scores * 1000).long().clamp(max=999)
    counts = torch.bincount(bins, minlength=1000)
    binned = LF.RiskCoverage.from_histogram(counts, torch.bincount(bins, errors.double(), minlength=1000))
    exact = LF.risk_coverage_summary(scores, errors)
    for read in READINGS.values():
        assert read(binned).item() == pytest.approx(read(exact).item(), abs=1e-4)


def test_unknown_conventions_name_the_nearest_one():
    summary = LF.risk_coverage_summary(*case("tiny_ref__"))
    with pytest.raises(ConfigurationError, match="Did you mean 'fd_shifts'"):
        LF.aurc(summary, form="fd-shifts")
    with pytest.raises(ConfigurationError, match="form='fd_shifts' has no finite oracle; use oracle='asymptotic'"):
        LF.eaurc(summary, form="fd_shifts")
    with pytest.raises(ConfigurationError, match="Did you mean 'asymptotic'"):
        LF.eaurc(summary, oracle="asymptotics")
