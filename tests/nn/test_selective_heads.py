"""The heads beside a classifier: what each computes, costs and refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.abstention import abstention_log_probabilities
from lightning_efficient.nn.selective_heads import SelectionHead, SelectiveHeads

NAMES = ("abstain", "selection", "auxiliary")
FIELD = {"abstain": "abstain_logit", "selection": "selection_logit", "auxiliary": "auxiliary_logits"}
SHAPE = {"abstain": (6,), "selection": (6,), "auxiliary": (6, 3)}
SUBSETS = [subset for size in range(4) for subset in itertools.combinations(NAMES, size)]


@pytest.mark.parametrize("needs", SUBSETS)
def test_there_is_what_is_needed_and_nothing_else(needs: tuple[str, ...]) -> None:
    heads, logits = SelectiveHeads(8, 3, needs), torch.randn(6, 3)
    outputs = heads(logits, torch.randn(6, 8))
    assert outputs.logits is logits
    found = {name: getattr(outputs, FIELD[name]) for name in NAMES}
    assert {name: tuple(value.shape) for name, value in found.items() if value is not None} == {
        name: SHAPE[name] for name in needs
    }
    assert {name.split(".")[0] for name, _ in heads.named_parameters()} == set(needs)


def test_with_nothing_needed_nothing_is_looked_at() -> None:
    heads = SelectiveHeads(0, 3, ())
    assert list(heads.parameters()) == []
    assert heads.state_dict() == {}
    assert heads(torch.zeros(2, 3), None)[1:] == (None, None, None)  # type: ignore[arg-type]


def test_the_abstention_logit_is_the_last_row_of_one_wider_layer() -> None:
    torch.manual_seed(0)
    classifier, heads, features = nn.Linear(8, 3), SelectiveHeads(8, 3, {"abstain"}), torch.randn(6, 8)
    outputs, abstain = heads(classifier(features), features), heads.abstain
    assert outputs.abstain_logit is not None
    assert abstain is not None
    wide = F.linear(
        features, torch.cat((classifier.weight, abstain.weight)), torch.cat((classifier.bias, abstain.bias))
    )
    torch.testing.assert_close(abstention_log_probabilities(outputs.logits, outputs.abstain_logit), wide.log_softmax(1))


@pytest.mark.parametrize("training", [True, False])
def test_the_selector_is_linear_relu_norm_a_tenth_linear(training: bool) -> None:
    torch.manual_seed(0)
    head, features = SelectionHead(8).train(training), torch.randn(6, 8)
    hidden = head.hidden(features).relu()
    if training:
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + head.norm.eps).sqrt()
    else:
        hidden = hidden / (1 + head.norm.eps) ** 0.5
    torch.testing.assert_close(head(features), head.output(hidden / 10).squeeze(1), rtol=1e-4, atol=1e-5)
    assert (head.hidden.out_features, head.output.in_features) == (512, 512)


def test_a_seed_gives_the_same_weights_whatever_the_order_of_the_names() -> None:
    states = []
    for needs in (("auxiliary", "selection", "abstain"), {"abstain", "selection", "auxiliary"}):
        torch.manual_seed(7)
        states.append(SelectiveHeads(8, 3, needs).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_selector_refuses_to_train_on_one_sample_and_answers_for_one() -> None:
    heads = SelectiveHeads(8, 3, {"selection"})
    one = torch.zeros(1, 3), torch.zeros(1, 8)
    with pytest.raises(ConfigurationError, match=r"batches of 2 or more samples in training, got 1; set drop_last"):
        heads(*one)
    assert heads.eval()(*one).selection_logit.shape == (1,)


def test_other_heads_train_on_one_sample() -> None:
    outputs = SelectiveHeads(8, 3, {"abstain", "auxiliary"})(torch.zeros(1, 3), torch.zeros(1, 8))
    assert outputs.abstain_logit is not None
    assert outputs.abstain_logit.shape == (1,)


@pytest.mark.parametrize("shape", [(6, 7), (6, 8, 2), (8,)])
def test_features_of_another_shape_are_said(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"features of shape \(N, 8\), got .*input of the network's classifier"
    ):
        SelectiveHeads(8, 3, {"abstain"})(torch.zeros(6, 3), torch.zeros(shape))


def test_an_unknown_head_gets_a_suggestion() -> None:
    with pytest.raises(ConfigurationError, match=r"needs='selector' is not one of .*Did you mean 'selection'"):
        SelectiveHeads(8, 3, {"selector"})


def test_the_heads_can_be_exported_for_inference() -> None:
    heads = SelectiveHeads(8, 3, NAMES).eval()
    inputs = torch.randn(4, 3), torch.randn(4, 8)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(heads, inputs, dynamic_shapes=({0: batch}, {0: batch}))
    for found, expected in zip(program.module()(*inputs), heads(*inputs), strict=True):
        torch.testing.assert_close(found, expected)
