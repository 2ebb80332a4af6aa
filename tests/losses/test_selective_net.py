"""SelectiveNet's objective against reference values, and what it says where it cannot work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.losses.selective_net import SelectiveNetLoss
from lightning_efficient.nn.selective_heads import SelectiveOutputs

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "abstention.npz")
CLOSE = {"rtol": 1e-10, "atol": 1e-14}


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def golden_outputs() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(array(f"sn__{name}").requires_grad_() for name in ("f", "g_logit", "h"))  # type: ignore[return-value]


@pytest.mark.parametrize("coverage", [0.7, 0.2])
@pytest.mark.parametrize(("form", "key"), [("paper", "paper"), ("released", "keras")])
def test_value_and_gradients_are_those_of_the_reference(coverage: float, form: str, key: str) -> None:
    logits, selection, auxiliary = golden_outputs()
    outputs = SelectiveOutputs(logits, selection_logit=selection, auxiliary_logits=auxiliary)
    terms = SelectiveNetLoss(coverage=coverage, form=form)(outputs, array("sn__targets"))
    prefix = f"sn__c{coverage}_{key}"
    torch.testing.assert_close(terms["loss"], array(f"{prefix}_loss"), **CLOSE)
    gradients = torch.autograd.grad(terms["loss"], (logits, selection, auxiliary))
    for gradient, name in zip(gradients, "fgh", strict=True):
        torch.testing.assert_close(gradient, array(f"{prefix}_grad_{name}"), **CLOSE)


def test_the_weight_divides_the_loss_between_its_two_terms() -> None:
    logits, selection, auxiliary = (values.detach() for values in golden_outputs())
    outputs = SelectiveOutputs(logits, selection_logit=selection, auxiliary_logits=auxiliary)
    target = array("sn__targets")
    terms = SelectiveNetLoss(auxiliary_weight=0.25)(outputs, target)
    torch.testing.assert_close(terms["auxiliary"], F.cross_entropy(auxiliary, target))
    torch.testing.assert_close(terms["loss"], 0.75 * terms["selective_risk"] + 0.25 * terms["auxiliary"])
    torch.testing.assert_close(terms["coverage"], selection.sigmoid().mean())


def test_only_the_loss_has_a_graph() -> None:
    logits, selection, auxiliary = golden_outputs()
    outputs = SelectiveOutputs(logits, selection_logit=selection, auxiliary_logits=auxiliary)
    terms = SelectiveNetLoss()(outputs, array("sn__targets"))
    assert [name for name, value in terms.items() if value.requires_grad] == ["loss"]


@pytest.mark.parametrize("form", ["paper", "released"])
def test_a_selector_that_rejects_everything_leaves_the_step_finite(form: str) -> None:
    logits, auxiliary = torch.randn(4, 3, requires_grad=True), torch.zeros(4, 3)
    selection = torch.full((4,), -500.0, requires_grad=True)
    outputs = SelectiveOutputs(logits, selection_logit=selection, auxiliary_logits=auxiliary)
    loss = SelectiveNetLoss(form=form)(outputs, torch.tensor([0, 1, 2, 0]))["loss"]
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, (logits, selection)):
        assert gradient.isfinite().all()


def test_half_precision_gives_the_float32_value_of_the_rounded_outputs() -> None:
    rounded = [values.detach().half() for values in golden_outputs()]

    def loss(values: list[Tensor]) -> Tensor:
        outputs = SelectiveOutputs(values[0], selection_logit=values[1], auxiliary_logits=values[2])
        return SelectiveNetLoss()(outputs, array("sn__targets"))["loss"]

    assert torch.equal(loss(rounded), loss([values.float() for values in rounded]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coverage": 1.2}, r"coverage=1.2 is outside \(0, 1\]"),
        ({"penalty": -1}, r"penalty=-1 must be a finite number, 0 or more"),
        ({"auxiliary_weight": 1.0}, r"auxiliary_weight=1.0 is outside \[0, 1\)"),
        ({"form": "keras"}, r"form='keras' is not one of"),
    ],
)
def test_options_that_cannot_work_are_said(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SelectiveNetLoss(**options)


@pytest.mark.parametrize("missing", ["selection_logit", "auxiliary_logits"])
def test_outputs_without_a_head_are_said(missing: str) -> None:
    heads = {"selection_logit": torch.zeros(2), "auxiliary_logits": torch.zeros(2, 3)}
    del heads[missing]
    with pytest.raises(ConfigurationError, match=rf"needs {missing}.*needs=auxiliary, selection"):
        SelectiveNetLoss()(SelectiveOutputs(torch.zeros(2, 3), **heads), torch.tensor([0, 1]))
