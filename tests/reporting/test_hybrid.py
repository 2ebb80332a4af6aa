"""The picture of a hybrid shows the router between what is best and what is plain, and what it costs."""

from __future__ import annotations

import io

import pytest
import torch

from lightning_efficient.functional.routing import hybrid_curve, oracle_curve
from lightning_efficient.reporting.hybrid import CostPoint, hybrid_figure

SCORE = torch.tensor([0.1, 0.2, 0.3, 0.4])
BASE, BEST = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, True])
CURVES = (hybrid_curve(SCORE, BASE, BEST), oracle_curve(BASE, BEST), hybrid_curve(-SCORE, BASE, BEST))


def test_accuracy_over_coverage_goes_from_the_base_to_the_global_model() -> None:
    figure = hybrid_figure(*CURVES, target_coverage=0.5)
    [axes] = figure.axes
    assert axes.xaxis_inverted()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["oracle", "max-prob", "router"]
    line = next(line for line in axes.get_lines() if line.get_label() == "router")
    drawn = {float(x): float(y) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
    assert drawn == {0.0: 75.0, 25.0: 75.0, 50.0: 100.0, 75.0: 75.0, 100.0: 50.0}
    assert [text.get_text() for text in axes.texts] == ["100.0 %"]


def test_with_costs_there_is_a_second_panel_in_the_order_of_coverage() -> None:
    costs = [CostPoint(0.5, 1.0, 2.0), CostPoint(1.0, 0.5, 1.0), CostPoint(0.0, 0.75, 4.0), CostPoint(0.7, 0.9, 1.5)]
    figure = hybrid_figure(*CURVES, target_coverage=0.5, costs=costs)
    axes = figure.axes[1]
    [line] = axes.get_lines()
    assert list(line.get_xdata()) == [4.0, 2.0, 1.5, 1.0]
    named = {text.get_text() for text in axes.texts}
    assert named == {"global model alone", "50 % kept", "base alone"}


@pytest.mark.parametrize("costs", [(), (CostPoint(0.0, 0.75, 4.0),)])
def test_it_can_be_saved(costs: tuple[CostPoint, ...]) -> None:
    file = io.BytesIO()
    hybrid_figure(*CURVES, 0.7, costs).savefig(file, format="png")
    assert file.getvalue()[:4] == b"\x89PNG"
