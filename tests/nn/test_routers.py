"""Routers: where they start, what they learn, what they refuse, and that they can be exported."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.routing import QUERY_SCORES, hybrid_area, hybrid_curve
from lightning_efficient.nn.router_features import log_odds_of_error, logit_feature_size, logit_features
from lightning_efficient.nn.routers import GainRouter, ProxyRouter, Router, ScoreRouter, build_router

CLASSES, FEATURES = 7, 5
NAMES = ("gain", "proxy", "paper", *QUERY_SCORES)


def batch(samples: int = 64, seed: int = 0, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, classes, generator=generator)
    return logits, torch.randn(samples, FEATURES, generator=generator)


def outcomes(samples: int = 64, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, generator=generator) < 0.6, torch.rand(samples, generator=generator) < 0.8


def moved(router: Router, seed: int = 2) -> Router:
    """The router with weights as after some training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return router.eval()


# ---------------------------------------------------------------------- what they see


def test_log_odds_are_those_of_the_largest_probability() -> None:
    logits, _ = batch()
    largest = logits.double().softmax(1).amax(1)
    wanted = ((1 - largest) / largest).log()
    torch.testing.assert_close(log_odds_of_error(logits.double()), wanted, rtol=0, atol=1e-9)


def test_log_odds_keep_apart_what_probabilities_round_to_one() -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0], [200.0, 0.0, 0.0], [3e4, -3e4, 0.0], [1e30, 0.0, -1e30]])
    odds = log_odds_of_error(logits)
    assert odds.isfinite().all()
    assert (odds.diff() < 0)[:2].all()
    assert logits.softmax(1).amax(1).tolist() == [1.0] * 4


def test_log_odds_of_two_equal_largest_classes_count_the_second_as_an_error() -> None:
    assert log_odds_of_error(torch.tensor([[2.0, 2.0]])).item() == 0
    assert log_odds_of_error(torch.zeros(1, 5)).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize(("classes", "top_k"), [(2, 10), (7, 3), (12, 10), (3, 1)])
def test_logit_features_are_entropy_differences_and_logsumexp(classes: int, top_k: int) -> None:
    logits, _ = batch(classes=classes)
    probs = logits.softmax(1).sort(descending=True).values
    count = min(top_k, classes)
    pairs = [probs[:, i] - probs[:, j] for i in range(count) for j in range(i + 1, count)]
    wanted = torch.stack([-(probs * probs.log()).sum(1), *pairs, logits.exp().sum(1).log()], 1)
    seen = logit_features(logits, top_k)
    assert seen.shape[1] == logit_feature_size(classes, top_k)
    torch.testing.assert_close(seen, wanted, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- where they start


@pytest.mark.parametrize("features", [0, FEATURES])
@pytest.mark.parametrize("kind", [GainRouter, ProxyRouter])
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 15))
@settings(max_examples=25, deadline=None)
def test_a_router_starts_as_the_rule_of_the_largest_probability(
    kind: type[Router], features: int, seed: int, classes: int
) -> None:
    torch.manual_seed(seed)
    logits, seen = torch.randn(40, classes, dtype=torch.float64), torch.randn(40, FEATURES, dtype=torch.float64)
    router = kind(classes, features).double().eval()
    assert router(logits, seen).argsort().tolist() == (-logits.softmax(1).amax(1)).argsort().tolist()


def test_the_gain_starts_with_the_bases_own_probability_and_an_even_guess_for_the_others() -> None:
    logits, features = batch()
    right = GainRouter(CLASSES, FEATURES, actions=3).eval().probabilities(logits, features)
    torch.testing.assert_close(right[:, 0], logits.softmax(1).amax(1))
    assert (right[:, 1:] == 0.5).all()


def test_without_the_skip_a_router_starts_by_telling_no_inputs_apart() -> None:
    for router in (GainRouter(CLASSES, skip=False), ProxyRouter(CLASSES, skip=False)):
        assert router.eval()(batch()[0]).tolist() == [0.0] * 64
        assert not any("skip" in name for name, _ in router.named_parameters())


# ---------------------------------------------------------------------- what they say


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_one_finite_number_per_sample_for_all_finite_logits(name: str) -> None:
    router = moved(build_router(name, CLASSES, FEATURES))
    logits, features = batch()
    logits = torch.cat([logits, 1e4 * logits, torch.zeros_like(logits)])
    scores = router(logits, features.repeat(3, 1))
    assert scores.shape == (192,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_logits_that_are_not_numbers_give_scores_that_are_not_finite_and_no_others(name: str) -> None:
    router = moved(build_router(name, CLASSES, FEATURES))
    logits, features = batch(samples=4)
    logits[1, 3] = math.nan
    assert router(logits, features).isfinite().tolist() == [True, False, True, True]


def test_the_score_of_the_gain_is_the_difference_of_the_probabilities() -> None:
    router, given_ = moved(GainRouter(CLASSES, FEATURES)), batch()
    right = router.probabilities(*given_)
    assert torch.equal(router(*given_), right[:, 1] - right[:, 0])
    assert torch.equal(router.query_logit(*given_) > 0, router(*given_) > 0)


@pytest.mark.parametrize("name", ["gain", "proxy", "paper"])
def test_scores_are_the_same_alone_and_in_a_batch(name: str) -> None:
    router = moved(build_router(name, CLASSES, FEATURES))
    logits, features = batch()
    alone = torch.cat([router(logits[i : i + 1], features[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(alone, router(logits, features)[:8], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gain", "proxy", "paper"])
def test_autocast_changes_no_score(name: str) -> None:
    router = moved(build_router(name, CLASSES, FEATURES))
    plain = router(*batch())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(*batch()), plain)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_inputs_and_weights_give_float32_scores(name: str) -> None:
    router = build_router(name, CLASSES, FEATURES).bfloat16().eval()
    scores = router(*(each.bfloat16() for each in batch()))
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


def test_features_are_looked_at_only_where_there_is_room_for_them() -> None:
    logits, features = batch()
    with_features, without = moved(GainRouter(CLASSES, FEATURES)), moved(GainRouter(CLASSES))
    assert (with_features.needs_features, without.needs_features) == (True, False)
    assert not torch.equal(with_features(logits, features), with_features(logits, features + 1))
    assert torch.equal(without(logits, features), without(logits))


# ---------------------------------------------------------------------- several models


def test_a_choice_is_the_best_probability_less_its_price() -> None:
    router = moved(GainRouter(CLASSES, FEATURES, actions=3))
    logits, features = batch()
    right, prices = router.probabilities(logits, features), torch.tensor([0.0, 0.3, 1.0])
    chosen = router.choose(logits, features, prices.tolist(), price=0.2)
    assert torch.equal(chosen, (right - 0.2 * prices).argmax(1))
    assert set(chosen.tolist()) == {0, 1, 2}
    assert (router.choose(logits, features, prices.tolist(), price=1e3) == 0).all()
    assert torch.equal(router.choose(logits, features, prices.tolist(), price=0.0), right.argmax(1))


@given(st.floats(0, 2), st.floats(0, 2))
@settings(max_examples=20, deadline=None)
def test_a_higher_price_never_costs_more(one: float, other: float) -> None:
    router = moved(GainRouter(CLASSES, actions=3))
    prices = torch.tensor([0.0, 0.3, 1.0])
    low, high = (
        prices[router.choose(batch()[0], None, prices.tolist(), price)].sum() for price in sorted((one, other))
    )
    assert high <= low + 1e-6


def test_with_two_models_a_choice_is_a_threshold_on_the_gain() -> None:
    router, (logits, features) = moved(GainRouter(CLASSES, FEATURES)), batch()
    chosen = router.choose(logits, features, [0.0, 1.0], price=0.15)
    assert torch.equal(chosen == 1, router(logits, features) > 0.15)


def test_a_router_of_three_models_learns_from_a_column_for_each() -> None:
    router = GainRouter(CLASSES, actions=3)
    base, large = outcomes()
    router.loss(batch()[0], None, base, torch.stack([large, base], 1)).backward()
    assert (router.head.output.bias.grad != 0).all()
    with pytest.raises(ConfigurationError, match=r"its labels \(64,\)"):
        router.loss(batch()[0], None, base, large)


# ---------------------------------------------------------------------- what they learn


def specialist(samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of which half are a kind that the global model spoils, which only the features tell."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, CLASSES, generator=generator)
    features = torch.randn(samples, FEATURES, generator=generator)
    base = torch.rand(samples, generator=generator) < logits.softmax(1).amax(1)
    large = torch.rand(samples, generator=generator) < torch.where(features[:, 0] > 0, 0.95, 0.2)
    return logits, features, base, large


def learned_area(name: str) -> float:
    torch.manual_seed(0)
    router = build_router(name, CLASSES, FEATURES)
    logits, features, base, large = specialist(2000, seed=0)
    if router.learns:
        optimizer = torch.optim.AdamW(router.parameters(), lr=4e-3, weight_decay=1e-2)
        for _ in range(8):
            for rows in torch.randperm(2000).split(250):
                optimizer.zero_grad()
                router.loss(logits[rows], features[rows], base[rows], large[rows]).backward()
                optimizer.step()
    logits, features, base, large = specialist(3000, seed=1)
    with torch.no_grad():
        return hybrid_area(hybrid_curve(router.eval()(logits, features), base, large))


def test_the_gain_learns_what_the_global_model_spoils_and_the_proxy_only_where_it_helps() -> None:
    gain, proxy, plain = (learned_area(name) for name in ("gain", "proxy", "msp"))
    assert gain > plain + 0.05
    assert proxy > plain + 0.01
    assert gain > proxy


@pytest.mark.parametrize("name", ["gain", "proxy"])
def test_every_weight_of_a_router_gets_a_gradient_once_its_output_has_moved(name: str) -> None:
    torch.manual_seed(0)
    router = build_router(name, CLASSES, FEATURES)
    nn.init.normal_(router.head.output.weight)
    router.loss(*batch(), *outcomes()).backward()
    assert [n for n, p in router.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", QUERY_SCORES)
def test_a_score_has_nothing_to_learn_and_says_so(name: str) -> None:
    router = build_router(name, CLASSES)
    assert (router.learns, router.needs_features, list(router.parameters())) == (False, False, [])
    for call in (lambda: router.loss(batch()[0], None, *outcomes()), lambda: router.query_logit(batch()[0])):
        with pytest.raises(ConfigurationError, match=r"ScoreRouter has nothing to learn; take .* such as 'gain'"):
            call()


def test_copies_and_saved_weights_say_the_same() -> None:
    router = moved(GainRouter(CLASSES, FEATURES))
    other = GainRouter(CLASSES, FEATURES).eval()
    other.load_state_dict(router.state_dict())
    for twin in (copy.deepcopy(router), other):
        assert torch.equal(twin(*batch()), router(*batch()))


# ---------------------------------------------------------------------- export


class Both(nn.Module):
    """A base and a router on its logits and features, as one graph."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router, self.features, self.head = router, nn.Linear(4, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(inputs).relu()
        logits = self.head(features)
        return logits, self.router(logits, features)


@pytest.mark.parametrize("name", ["gain", "proxy", "paper", "margin", "entropy"])
def test_base_and_router_are_exported_as_one_graph_for_any_batch_size(name: str) -> None:
    torch.manual_seed(0)
    graph = Both(moved(build_router(name, CLASSES, FEATURES))).eval()
    exported = torch.export.export(
        graph, (torch.randn(4, 4),), dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}}
    ).module()
    for samples in (1, 3, 64):
        inputs = torch.randn(samples, 4)
        for ours, theirs in zip(graph(inputs), exported(inputs), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- building and refusing


@pytest.mark.parametrize("name", NAMES)
def test_every_name_builds_a_router(name: str) -> None:
    router = build_router(name, CLASSES, FEATURES)
    assert isinstance(router, Router)
    assert router.learns is (name in ("gain", "proxy", "paper"))


def test_a_router_that_is_there_is_taken_as_it_is() -> None:
    router = ScoreRouter("margin")
    assert build_router(router, CLASSES) is router


def test_options_reach_the_router() -> None:
    router = build_router("gain", CLASSES, options={"hidden": 9, "dropout": 0.0, "top_k": 2, "skip": False})
    assert router.head.hidden.out_features == 9
    assert build_router("msp", CLASSES, options={"temperature": 3.0}).temperature == 3.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: build_router("gian", 3), r"router='gian' is not one of .*Did you mean .*'gain'"),
        (lambda: build_router(nn.Linear(2, 2), 3), r"router is a Linear; give a name or a .*Router"),
        (lambda: build_router(ScoreRouter(), 3, options={"hidden": 2}), r"\['hidden'\] do not go with a router"),
        (lambda: build_router("gain", 3, options={"hiden": 2}), r"no option 'hiden'; .*Did you mean 'hidden'"),
        (lambda: build_router("msp", 3, options={"hidden": 2}), r"router='msp' has no option 'hidden'"),
        (lambda: build_router("gain", 1), r"num_classes=1 must be an integer of at least 2"),
        (lambda: build_router("gain", 3, -1), r"feature_dim=-1 must be an integer of at least 0"),
        (lambda: build_router("gain", 3, options={"actions": 1}), r"actions=1 must be an integer of at least 2"),
        (lambda: build_router("gain", 3, options={"dropout": 1.0}), r"dropout=1.0 must be a number from 0 to below 1"),
        (lambda: build_router("gain", 3, options={"dropout": "low"}), r"dropout='low' must be a number"),
        (lambda: build_router("gain", 3, options={"hidden": 0}), r"hidden=0 must be an integer of at least 1"),
        (lambda: build_router("proxy", 3, options={"top_k": 0}), r"top_k=0 must be an integer of at least 1"),
        (lambda: build_router("proxy", 3, options={"skip": "no"}), r"skip='no' must be True or False"),
        (lambda: build_router("msp", 3, options={"temperature": 0}), r"temperature=0 must be a finite number above 0"),
        (lambda: build_router("msp", 3, options={"temperature": "hot"}), r"temperature='hot' must be a number"),
        (lambda: ScoreRouter("mps"), r"score='mps' is not one of .*Did you mean 'msp'"),
        (lambda: GainRouter(3).eval()(torch.zeros(2, 4)), r"needs logits of shape \(N, 3\), got \(2, 4\)"),
        (lambda: GainRouter(3, 5).eval()(torch.zeros(2, 3)), r"needs features of shape \(N, 5\), got none"),
        (lambda: GainRouter(3, 5).eval()(torch.zeros(2, 3), torch.zeros(1, 5)), r"got \(1, 5\) for 2 rows of logits"),
        (lambda: GainRouter(3)(torch.zeros(1, 3)), r"batches of 2 or more samples in training, got 1"),
        (lambda: GainRouter(3).eval().choose(torch.zeros(2, 3), None, [1.0], 0.1), r"prices=\[1.0\] must have 2"),
        (lambda: GainRouter(3).eval().choose(torch.zeros(2, 3), None, [0, 1], -1), r"price=-1 must be a finite"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(call, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
