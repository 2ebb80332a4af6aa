"""Experts behind a gate: each input gets one, and only that one runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.load_balance import load_balance_loss
from lightning_efficient.nn.experts import ExpertsNetwork, ExpertsRouter
from lightning_efficient.nn.views import ViewTap
from lightning_efficient.profiling import count_macs


def network_of(seed: int = 0, **options: object) -> ExpertsNetwork:
    torch.manual_seed(seed)
    return ExpertsNetwork(num_classes=4, in_chans=1, width=4, **options)


class Scaled(nn.Module):
    """An expert that says how often it ran and on how many rows."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.rows = factor, []

    def forward(self, stem: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(stem))
        return stem * self.factor


def scaled_network() -> ExpertsNetwork:
    """The input is the stem; an input goes to the expert of its largest entry, which scales it by 1, 10 or 100."""
    network = ExpertsNetwork(
        3,
        stem=nn.Identity(),
        stem_channels=3,
        experts=[Scaled(1.0), Scaled(10.0), Scaled(100.0)],
        feature_dim=3,
        gate_cells=1,
    )
    for layer in (network.gate, network.head):
        layer.weight.data, layer.bias.data = torch.eye(3), torch.zeros(3)
    return network.eval()


INPUTS = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [5.0, 0.0, 1.0]])


def test_each_input_is_answered_by_its_likeliest_expert_in_the_order_of_the_batch() -> None:
    outputs = scaled_network().outputs(INPUTS)
    assert outputs.chosen.tolist() == [2, 0, 1, 0]
    assert outputs.runner_up.tolist() == [1, 1, 2, 2]
    torch.testing.assert_close(outputs.logits, INPUTS * torch.tensor([[100.0], [1.0], [10.0], [1.0]]))
    torch.testing.assert_close(outputs.gate_probabilities, INPUTS.softmax(1))


def test_in_evaluation_an_expert_sees_its_own_rows_and_one_without_rows_never_runs() -> None:
    network = scaled_network()
    network(INPUTS[[0, 1, 3]])
    assert [expert.rows for expert in network.experts] == [[2], [], [1]]


@pytest.mark.parametrize("rows", [torch.tensor([3, 0]), torch.tensor([True, False, False, True])])
def test_a_second_expert_looks_at_the_rows_that_are_asked_about_without_the_stem(rows: torch.Tensor) -> None:
    network = scaled_network()
    stems = []
    network.stem.register_forward_hook(lambda *_: stems.append(1))
    outputs = network.outputs(INPUTS)
    logits, features = network.second(outputs, rows)
    wanted = (INPUTS * torch.tensor([[10.0], [10.0], [100.0], [100.0]]))[rows]
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(features, wanted)
    assert len(stems) == 1


def test_without_rows_a_second_expert_looks_at_the_whole_batch() -> None:
    network = network_of().eval()
    outputs = network.outputs(torch.randn(5, 1, 8, 8))
    torch.testing.assert_close(network.second(outputs)[0], network.second(outputs, torch.arange(5))[0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), experts=st.integers(2, 5))
def test_compacted_rows_say_what_all_experts_on_all_rows_would(seed: int, rows: int, experts: int) -> None:
    network = network_of(seed, num_experts=experts).eval()
    outputs = network.outputs(torch.randn(rows, 1, 8, 8))
    every = torch.stack([expert(outputs.stem) for expert in network.experts], 1)
    for number, found in ((outputs.chosen, outputs.features), (outputs.runner_up, network.second(outputs)[1])):
        torch.testing.assert_close(found, every[torch.arange(rows), number], atol=1e-5, rtol=1e-4)
    assert bool((outputs.chosen != outputs.runner_up).all())


def test_in_training_the_choice_is_hard_and_the_gradient_reaches_the_gate() -> None:
    network = scaled_network().train()
    outputs = network.outputs(INPUTS)
    # as a number nothing of the other experts
    assert torch.equal(outputs.features, INPUTS * torch.tensor([[100.0], [1.0], [10.0], [1.0]]))
    outputs.features[:, 0].sum().backward()
    # of Σ_e p_e f_e: p_e (f_e - Σ p f) for the logit of each expert
    probabilities, scaled = INPUTS.softmax(1), INPUTS[:, :1] * torch.tensor([[1.0, 10.0, 100.0]])
    of_logits = probabilities * (scaled - (probabilities * scaled).sum(1, keepdim=True))
    torch.testing.assert_close(network.gate.bias.grad, of_logits.sum(0))


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_has_empty_outputs(training: bool) -> None:
    network = scaled_network().train(training)
    outputs = network.outputs(torch.zeros(0, 3))
    assert outputs.logits.shape == (0, 3)
    assert network.second(outputs)[0].shape == (0, 3)


def test_an_input_costs_the_stem_the_gate_one_expert_and_the_classifier() -> None:
    network = network_of().eval()
    # stem 4x4 from 8x8, expert 2x2 from 4x4 with 2x2 cells
    stem, gate, expert, head = 16 * 9 * 4, 4 * 4 * 3, 4 * 9 * 4 * 8, 32 * 4
    assert count_macs(network, torch.zeros(1, 1, 8, 8)).macs == stem + gate + expert + head
    assert count_macs(network_of(num_experts=2).eval(), torch.zeros(1, 1, 8, 8)).macs == stem + 32 + expert + head


def test_the_classifier_and_its_input_are_found_as_in_any_other_network() -> None:
    network = network_of().eval()
    inputs = torch.randn(6, 1, 8, 8)
    tap = ViewTap(network, features=True)
    assert (tap.num_classes, tap.feature_dim) == (4, 32)
    views, outputs = tap(inputs), network.outputs(inputs)
    torch.testing.assert_close(views.logits, outputs.logits)
    torch.testing.assert_close(views.features, outputs.features)


def test_an_export_has_every_expert_and_the_same_answers() -> None:
    network = network_of().eval()
    inputs = torch.randn(5, 1, 8, 8)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(network, (inputs[:3],), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(inputs), network(inputs))
    torch.testing.assert_close(exported(inputs[:1]), network(inputs[:1]))


def test_load_balance_is_one_for_an_even_gate_and_the_number_of_experts_for_a_collapsed_one() -> None:
    even = torch.full((6, 3), 1 / 3)
    assert float(load_balance_loss(even, torch.tensor([0, 1, 2, 0, 1, 2]))) == pytest.approx(1.0)
    collapsed = torch.eye(3)[torch.zeros(6, dtype=torch.long)]
    assert float(load_balance_loss(collapsed, torch.zeros(6, dtype=torch.long))) == pytest.approx(3.0)
    assert float(load_balance_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))) == 0


def test_load_balance_pulls_the_gate_away_from_the_expert_that_has_most() -> None:
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.5]], requires_grad=True)
    probabilities = logits.softmax(1)
    load_balance_loss(probabilities, probabilities.argmax(1)).backward()
    assert bool((logits.grad[:, 0] > 0).all())
    assert bool((logits.grad[:, 1] < 0).all())


def test_load_balance_in_half_precision_is_computed_in_single() -> None:
    loss = load_balance_loss(torch.full((2, 2), 0.5, dtype=torch.float16), torch.tensor([0, 1]))
    assert loss.dtype == torch.float32


def test_shapes_that_do_not_belong_together_are_told() -> None:
    with pytest.raises(ConfigurationError, match=r"shape \(2, 3\) and chosen \(3,\); give \(N, E\) and \(N,\)"):
        load_balance_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))


def test_a_query_score_is_what_the_global_model_gains_over_the_chosen_expert() -> None:
    router = ExpertsRouter(4, 3).eval()
    nn.init.normal_(router.head.output.weight)
    logits, features = torch.randn(7, 4), torch.randn(7, 3)
    right = router.probabilities(logits, features)
    assert right.shape == (7, 3)
    torch.testing.assert_close(router(logits, features), right[:, 2] - right[:, 0])
    assert torch.equal(router.query_logit(logits, features) > 0, router(logits, features) > 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_experts": 1}, "num_experts=1 must be an integer of at least 2"),
        ({"experts": [nn.Identity()], "feature_dim": 3}, "the number of experts=1 must be an integer of at least 2"),
        ({"gate_cells": 0}, "gate_cells=0 must be an integer of at least 1"),
        ({"width": 0}, "width=0 must be an integer of at least 1"),
        ({"stem": nn.Identity()}, "stem_channels=None goes with stem; give both or neither"),
        ({"experts": [nn.Identity(), nn.Identity()]}, "feature_dim=None goes with experts; give both or neither"),
    ],
)
def test_options_that_cannot_work_are_told(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ExpertsNetwork(4, **options)


@pytest.mark.parametrize(("cells", "shape"), [(2, (3, 4)), (1, (3, 4, 5))])
def test_a_gate_that_does_not_fit_the_stem_is_told(cells: int, shape: tuple[int, ...]) -> None:
    made = [nn.Identity(), nn.Identity()]
    network = ExpertsNetwork(4, stem=nn.Identity(), stem_channels=4, experts=made, feature_dim=4, gate_cells=cells)
    with pytest.raises(ConfigurationError, match=f"gate_cells={cells} does not go with a stem of output"):
        network(torch.zeros(shape))
