"""What a hybrid costs where it is deployed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.deployment_cost import DeploymentCost

COST = DeploymentCost(
    base_s=0.2,
    router_s=0.01,
    encode_s=0.02,
    round_trip_s=0.1,
    bytes_up=1000,
    bytes_down=100,
    up_bytes_per_s=10_000,
    down_bytes_per_s=1000,
    queue_s=0.03,
    global_s=0.05,
    base_macs=10,
    router_macs=1,
    global_macs=100,
    active_w=2.0,
    wait_w=0.5,
    j_per_byte=0.001,
    price=3.0,
)


def test_the_latency_adds_the_terms_of_a_query_at_its_rate():
    cloud = 0.02 + 0.1 + 0.1 + 0.03 + 0.05 + 0.1
    assert COST.cloud_s == pytest.approx(cloud)
    assert COST.latency_s(0.0) == pytest.approx(0.21)
    assert COST.latency_s(0.25) == pytest.approx(0.21 + 0.25 * cloud)
    assert COST.latency_s(1.0) == pytest.approx(COST.slow_latency_s)


def test_operations_energy_and_money_follow_the_rate():
    assert (COST.macs(0.0), COST.macs(0.5), COST.money(0.5)) == (11, 61, 1.5)
    per_query = 2.0 * 0.02 + 0.001 * 1100 + 0.5 * (0.1 + 0.1 + 0.03 + 0.05 + 0.1)
    assert COST.energy_j(0.0) == pytest.approx(0.42)
    assert COST.energy_j(0.5) == pytest.approx(0.42 + 0.5 * per_query)


def test_at_the_break_even_coverage_the_hybrid_is_as_fast_as_the_cloud_alone():
    assert COST.latency_s(1 - COST.break_even_coverage) == pytest.approx(COST.cloud_s)
    assert DeploymentCost(base_s=2.0, global_s=1.0).break_even_coverage == 2.0
    assert DeploymentCost(base_s=1.0).break_even_coverage == math.inf


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_a_batch_makes_a_call_unless_none_of_its_inputs_asks(rate, size):
    assert DeploymentCost.any_query(rate, size) == pytest.approx(1 - (1 - rate) ** size, abs=1e-9)


def test_small_rates_keep_their_precision():
    assert DeploymentCost.any_query(1e-20, 1000) == pytest.approx(1e-17, rel=1e-12)


def test_while_the_cloud_cannot_be_reached_the_base_answers():
    assert DeploymentCost.accuracy(0.8, 0.6, 0.0) == 0.8
    assert DeploymentCost.accuracy(0.8, 0.6, 1.0) == 0.6
    assert DeploymentCost.accuracy(0.8, 0.6, 0.25) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"base_s": -1.0}, "base_s=-1.0 must be finite and at least 0"),
        ({"base_s": math.nan}, "base_s=nan must be finite"),
        ({"base_s": math.inf}, "base_s=inf must be finite"),
        ({"base_s": "1"}, "base_s='1' must be a number"),
        ({"base_s": 1.0, "up_bytes_per_s": 0.0}, "up_bytes_per_s=0.0 must be above 0"),
    ],
)
def test_impossible_terms_are_refused(options, match):
    with pytest.raises(ConfigurationError, match=match):
        DeploymentCost(**options)


@pytest.mark.parametrize("call", [COST.latency_s, COST.macs, COST.energy_j, COST.money])
def test_a_rate_that_is_no_fraction_is_refused(call):
    with pytest.raises(ConfigurationError, match="query_rate=30 is outside"):
        call(30)
