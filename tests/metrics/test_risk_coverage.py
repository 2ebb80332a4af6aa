"""The metric classes: golden parity, one shared state and sort, bins, two processes, pickling, plots."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torchmetrics import MetricCollection

import lightning_efficient.functional as LF
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.risk_coverage_area import eaugrc
from lightning_efficient.metrics import (
    AUGRC,
    AURC,
    EAURC,
    AbstentionRate,
    CoverageAtRisk,
    RiskAtCoverage,
    RiskCoverageCurve,
    SelectiveAccuracy,
    _risk_coverage_base,
)
from lightning_efficient.metrics.risk_coverage_area import EAUGRC

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "selective_metrics.npz")
LOGITS = torch.from_numpy(GOLDEN["m_logits"])
LABELS = torch.from_numpy(GOLDEN["m_labels"]).long()
MSP = torch.from_numpy(GOLDEN["m_score_msp"])
ERRORS = torch.from_numpy(GOLDEN["m_err"])


def every_metric(**options):
    return {
        "curve": RiskCoverageCurve(**options),
        "aurc": AURC(**options),
        "eaurc": EAURC(**options),
        "augrc": AUGRC(**options),
        "eaugrc": EAUGRC(**options),
        "coverage": CoverageAtRisk(risk=0.1, **options),
        "risk": RiskAtCoverage(coverage=0.8, **options),
        "accuracy": SelectiveAccuracy(threshold=0.4, **options),
        "abstention": AbstentionRate(threshold=0.4, **options),
    }


def expected(summary):
    return {
        "aurc": LF.aurc(summary),
        "eaurc": LF.eaurc(summary),
        "augrc": LF.augrc(summary),
        "eaugrc": eaugrc(summary),
        "coverage": LF.coverage_at_risk(summary, risk=0.1)[0],
        "risk": LF.risk_at_coverage(summary, coverage=0.8)[0],
        "accuracy": LF.selective_accuracy(summary, threshold=0.4),
        "abstention": LF.abstention_rate(summary, threshold=0.4),
    }


def feed(metric, logits=LOGITS, labels=LABELS, size=256):
    for batch, target in zip(logits.split(size), labels.split(size), strict=True):
        metric.update(batch, target)
    return metric


def test_batches_of_float64_logits_reach_the_golden_values():
    values = feed(MetricCollection(every_metric()), LOGITS.double()).compute()
    golden = {"aurc": "aurc_mean_tieexp", "eaurc": "eaurc_finite", "augrc": "augrc_trapz_origin", "eaugrc": "eaugrc"}
    for name, key in golden.items():
        assert values[name].item() == pytest.approx(GOLDEN[f"m_ref_msp__{key}"].item(), rel=1e-12)
    assert values["coverage"].item() == GOLDEN["m_ref_msp__cov_at_selrisk"][5]
    assert values["risk"].item() == GOLDEN["m_ref_msp__risk_at_cov_interp"][7]


def test_scores_of_the_user_keep_their_dtype_and_reach_the_golden_values():
    metric = AURC(form="fd_shifts")
    for score, error in zip(MSP.split(700), ERRORS.split(700), strict=True):
        metric.update_scores(score, error)
    golden = GOLDEN["m_ref_msp__aurc_trapz_thresholds_flatstart"].item()
    assert metric.compute().item() == pytest.approx(golden, rel=1e-12)


@pytest.mark.parametrize("score", ["msp", "margin", "entropy"])
def test_probabilities_and_logits_give_the_same_values(score):
    from_logits = feed(MetricCollection(every_metric(score=score)), LOGITS.double()).compute()
    from_probs = feed(MetricCollection(every_metric(score=score, input="probs")), LOGITS.double().softmax(-1)).compute()
    for name in ("aurc", "eaurc", "augrc", "eaugrc", "coverage", "risk"):
        assert from_probs[name].item() == pytest.approx(from_logits[name].item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"score": "energy"}, {"input": "probs"}])
def test_half_precision_equals_float32_on_the_same_rounded_inputs(dtype, options):
    inputs = (LOGITS.softmax(-1) if "input" in options else LOGITS).to(dtype)
    half, single = AURC(**options), AURC(**options)
    assert feed(half, inputs).compute() == feed(single, inputs.float()).compute()


def test_own_confidence_goes_with_the_errors_of_the_predictions():
    metric = MetricCollection(every_metric())
    confidence = LF.margin(LOGITS)
    metric.update(LOGITS, LABELS, confidence=confidence)
    wanted = expected(LF.risk_coverage_summary(confidence, LOGITS.argmax(-1) != LABELS))
    values = metric.compute()
    assert {name: values[name] for name in wanted} == wanted


@pytest.mark.parametrize("bins", [None, 500])
def test_a_collection_forms_one_compute_group_and_sorts_once(bins, monkeypatch):
    calls = []
    summarise = _risk_coverage_base.risk_coverage_summary
    monkeypatch.setattr(_risk_coverage_base, "risk_coverage_summary", lambda *a: calls.append(a) or summarise(*a))
    metrics = feed(MetricCollection(every_metric(bins=bins)))
    first = metrics.compute()
    assert len(metrics.compute_groups) == 1
    assert len(calls) == (1 if bins is None else 0)
    metrics.update(LOGITS[:50], LABELS[:50])
    assert metrics.compute()["aurc"] != first["aurc"]
    assert len(calls) == (2 if bins is None else 0)
    metrics.reset()
    assert feed(metrics).compute()["aurc"] == first["aurc"]


def test_scores_that_agree_on_the_first_batch_do_not_share_a_state():
    metrics = MetricCollection({"msp": AURC(), "margin": AURC(score="margin")})
    metrics.update(torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([0]))
    metrics.update(LOGITS[:, :3], LABELS)
    alone = AURC(score="margin")
    alone.update(torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([0]))
    alone.update(LOGITS[:, :3], LABELS)
    assert metrics.compute()["margin"] == alone.compute()
    assert metrics.compute()["msp"] != alone.compute()


def test_the_cached_summary_dies_with_the_state():
    cache = _risk_coverage_base.RiskCoverageMetric._summaries
    before = len(cache)
    metric = feed(AURC())
    metric.compute()
    assert len(cache) == before + 1
    metric.reset()
    assert len(cache) == before


def test_forward_returns_the_batch_and_accumulates_all():
    metric, whole = AURC(), feed(AURC())
    for batch, target in zip(LOGITS.split(1000), LABELS.split(1000), strict=True):
        alone = AURC()
        alone.update(batch, target)
        assert metric(batch, target) == alone.compute()
    assert metric.compute() == whole.compute()


@pytest.mark.parametrize("score", ["msp", "margin"])
def test_a_thousand_bins_are_within_one_ten_thousandth_of_exact(score):
    exact = feed(MetricCollection(every_metric(score=score))).compute()
    binned = feed(MetricCollection(every_metric(score=score, bins=1000))).compute()
    for name in ("aurc", "eaurc", "augrc", "eaugrc"):
        assert binned[name].item() == pytest.approx(exact[name].item(), abs=1e-4)
    for name in ("accuracy", "abstention"):
        assert binned[name].item() == pytest.approx(exact[name].item(), abs=2e-3)


def test_binned_state_does_not_grow_and_merges_to_the_whole():
    first, second, whole = (AURC(bins=1000) for _ in range(3))
    feed(first, LOGITS[:1234], LABELS[:1234])
    feed(second, LOGITS[1234:], LABELS[1234:])
    size = sum(state.nbytes for state in first.metric_state.values())
    first.merge_state(second)
    assert first.compute() == feed(whole).compute()
    assert sum(state.nbytes for state in first.metric_state.values()) == size < 20_000


def test_scores_outside_the_bin_range_count_in_the_end_bins():
    metric = AbstentionRate(threshold=0.0, score="energy", bins=4, bin_range=(-1.0, 1.0))
    metric.update_scores(torch.tensor([-9.0, -0.6, 0.1, 1.0, 9.0]), torch.zeros(5))
    assert metric.bin_count.tolist() == [2, 0, 1, 2]
    assert metric.compute().item() == pytest.approx(2 / 5)


def test_exact_state_takes_five_bytes_per_sample():
    metric = feed(AURC())
    metric.compute()
    assert sum(state[0].nbytes for state in (metric.confidence, metric.loss)) == 5 * len(LABELS)
    assert metric.weight == []


@pytest.mark.parametrize("bins", [None, 10])
def test_integer_weights_equal_repeated_samples(bins):
    weight = torch.arange(3000) % 4
    weighted, repeated = AURC(bins=bins), AURC(bins=bins)
    for part in torch.arange(3000).split(800):
        weighted.update_scores(MSP[part], ERRORS[part], weight[part])
    repeated.update_scores(MSP.repeat_interleave(weight), ERRORS.repeat_interleave(weight))
    assert weighted.compute().item() == pytest.approx(repeated.compute().item(), rel=1e-12)


def test_weights_for_some_batches_only_are_refused():
    metric = AURC()
    metric.update_scores(MSP[:5], ERRORS[:5])
    metric.update_scores(MSP[:5], ERRORS[:5], torch.ones(5))
    with pytest.raises(ConfigurationError, match="to all or to none"):
        metric.compute()


@pytest.mark.slow
def test_two_processes_with_uneven_and_empty_shards_equal_one(tmp_path):
    weight = torch.rand(3000, generator=torch.Generator().manual_seed(0))
    cases = {
        "uneven": (MSP.float(), ERRORS, None, 1000),
        "uneven64": (MSP, ERRORS, None, 2500),
        "empty_rank": (MSP, ERRORS, None, 3000),
        "empty_first": (MSP.float(), ERRORS, None, 0),
        "weighted": (MSP, ERRORS.double(), weight, 700),
        "weighted_empty": (MSP, ERRORS, weight, 3000),
    }
    torch.save(cases, tmp_path / "data.pt")
    worker, paths = Path(__file__).with_name("ddp_worker.py"), ("store", "data.pt", "values.json")
    command = [sys.executable, str(worker)]
    arguments = [str(tmp_path / name) for name in paths]
    ranks = [subprocess.Popen([*command, str(rank), *arguments]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    values = json.loads((tmp_path / "values.json").read_text())
    assert len(values) == len(cases) * 2 * 3 * 4
    for name, (scores, loss, weights, _) in cases.items():
        for bins in (None, 1000):
            for metric in (AURC(bins=bins), AUGRC(bins=bins), CoverageAtRisk(0.2, bins=bins)):
                metric.update_scores(scores, loss, weights)
                key = f"{name}/{bins}/{type(metric).__name__}"
                assert values[key] == pytest.approx(metric.compute().item(), abs=1e-6), key
                assert values[f"{key}/summary"] == pytest.approx(metric.summary().total.item()), key
                assert values[f"{key}/dtype"] == str(scores.dtype), key
                assert values[f"{key}/refused"] == (bins is not None and weights is not None), key


def test_pickle_clone_and_deepcopy_carry_the_state():
    metrics = feed(MetricCollection(every_metric(), prefix="val/"))
    values = {name: value for name, value in metrics.compute().items() if name != "val/curve"}
    restored = pickle.loads(pickle.dumps(metrics)).compute()
    cloned = metrics.clone(prefix="test/").compute()
    for name, value in values.items():
        assert restored[name] == value
        assert cloned[name.replace("val/", "test/")] == value


def test_a_state_reset_in_inference_mode_takes_updates_outside():
    for options in ({}, {"bins": 100}):
        metric = AURC(**options)
        with torch.inference_mode():
            metric.reset()
            metric.update(LOGITS[:100], LABELS[:100])
            metric.compute()
        metric.update(LOGITS[100:], LABELS[100:])
        assert metric.compute().item() == pytest.approx(feed(AURC(**options)).compute().item(), rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"bins": 1000}])
def test_casting_the_module_that_holds_a_metric_leaves_its_state_exact(options):
    module = torch.nn.Module()
    module.metric = feed(AURC(**options), LOGITS[:1500], LABELS[:1500])
    module.to(torch.bfloat16)
    feed(module.metric, LOGITS[1500:], LABELS[1500:])
    assert module.metric.compute() == feed(AURC(**options)).compute()


def test_moving_a_metric_moves_its_state_and_its_reset():
    for metric in (AURC(), AURC(bins=10)):
        feed(metric).to("meta")
        assert metric.device.type == "meta"
        for state in metric.metric_state.values():
            assert all(tensor.is_meta for tensor in state)
        metric.reset()
        assert all(state.is_meta for state in metric.metric_state.values() if isinstance(state, torch.Tensor))


def test_states_hold_no_graph():
    logits = LOGITS.clone().requires_grad_()
    metric = AURC()
    metric(logits, LABELS)
    assert not metric.confidence[0].requires_grad


def test_thresholds_come_with_the_values_on_request():
    metric = CoverageAtRisk(risk=0.1, return_threshold=True)
    coverage, threshold = feed(metric).compute()
    assert coverage == (LF.msp(LOGITS) >= threshold).double().mean()
    risk, threshold = feed(RiskAtCoverage(coverage=0.8, kind="generalized", return_threshold=True)).compute()
    accepted = LF.msp(LOGITS) >= threshold
    assert risk == (accepted & (LOGITS.argmax(-1) != LABELS)).double().mean()


def test_every_plot_writes_what_compute_returns_and_leaves_pyplot_alone():
    for name, metric in every_metric().items():
        value = feed(metric).compute()
        figure, axes = metric.plot()
        assert isinstance(figure, matplotlib.figure.Figure)
        words = " ".join([*(t.get_text() for t in axes.get_legend().get_texts()), *(t.get_text() for t in axes.texts)])
        if name in ("aurc", "eaurc", "augrc", "eaugrc"):
            assert f"{value.item():.4g}" in words
        elif name != "curve":
            assert f"{value.item():.2%}" in words
    assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()


@pytest.mark.parametrize(("metric", "area"), [(AURC, LF.aurc), (AUGRC, LF.augrc)])
def test_the_area_under_the_drawn_curve_is_the_metric(metric, area):
    drawn = feed(metric())
    _, axes = drawn.plot()
    model, perfect, _ = (line.get_xydata() for line in axes.lines)
    below = trapezoid(model[:, 1], model[:, 0])
    assert below == pytest.approx(drawn.compute().item(), abs=2e-4)
    oracle = LF.risk_coverage_summary(-ERRORS.double(), ERRORS)
    assert trapezoid(perfect[:, 1], perfect[:, 0]) == pytest.approx(area(oracle).item(), abs=2e-4)


def test_a_plot_goes_on_given_axes_and_marks_the_operating_point():
    axes = matplotlib.figure.Figure().add_subplot()
    metric = feed(CoverageAtRisk(risk=0.1))
    figure, same = metric.plot(ax=axes)
    assert same is axes
    assert figure is axes.figure
    (point,) = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert point[0] == metric.compute()
    assert 0.09 < point[1] <= 0.1


def test_a_form_without_a_value_plots_the_curve_alone():
    metric = RiskAtCoverage(coverage=0.8, form="selectivenet")
    metric.update_scores(torch.full((5,), 0.5), torch.tensor([0, 1, 0, 0, 1]))
    assert metric.compute().isnan()
    _, axes = metric.plot()
    assert not axes.texts


@pytest.mark.filterwarnings("ignore:.*before the ``update``")
def test_an_empty_metric_plots_a_note():
    with pytest.warns(UserWarning, match="No samples"):
        _, axes = AURC().plot()
    assert [text.get_text() for text in axes.texts] == ["no samples"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "entropi"}, "Did you mean 'entropy'"),
        ({"input": "logit"}, "Did you mean 'logits'"),
        ({"input": "probs", "score": "energy"}, "needs logits"),
        ({"input": "probs", "temperature": 2.0}, "needs logits"),
        ({"bins": 0}, "bins=0"),
        ({"bins": 10, "score": "energy"}, "bin_range"),
        ({"bins": 10, "bin_range": (1.0, 0.0)}, "low < high"),
        ({"form": "trapezoid"}, "form='trapezoid'"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_wrong_options_are_refused_at_construction(options, message):
    with pytest.raises(ConfigurationError, match=message):
        AURC(**options)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"preds": LOGITS}, "target"),
        ({}, {"confidence": MSP}, "preds and target"),
        ({}, {"preds": LOGITS, "target": LABELS[:5]}, "one class index"),
        ({}, {"preds": LOGITS, "target": LABELS.float()}, "one class index"),
        ({}, {"preds": LOGITS[:, 0], "target": LABELS}, r"\(N, C\)"),
        ({"input": "probs"}, {"preds": LOGITS, "target": LABELS}, 'use input="logits"'),
        ({}, {"preds": LOGITS * torch.nan, "target": LABELS}, "3000 values that are not finite, the first at index 0"),
        (
            {},
            {"confidence": MSP / (MSP[17] != MSP), "loss": ERRORS},
            "1 value that is .* first at index 17 of the batch",
        ),
        ({"bins": 9}, {"confidence": MSP / (MSP[17] != MSP), "loss": ERRORS}, "index 17 of the batch"),
        ({"bins": 10}, {"confidence": MSP, "loss": ERRORS * 2}, r"\[0, 1\]"),
    ],
)
def test_unusable_batches_are_refused_at_update(options, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        AURC(**options).update(**arguments)


def test_nan_is_found_at_compute_when_updates_are_not_checked():
    metric = AURC(validate_args=False)
    metric.update(LOGITS * torch.nan, LABELS)
    with pytest.raises(ConfigurationError, match="3000 values that are not finite, the first at index 0;"):
        metric.compute()
