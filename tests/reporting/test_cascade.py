"""The picture of a cascade."""

from __future__ import annotations

import pytest

from lightning_efficient.reporting.cascade import CostCurve, CostMark, cascade_figure


@pytest.mark.parametrize(
    ("largest", "name", "label", "shown"),
    [
        (3e9, "MACs", "mean G MACs per image", 3.0),
        (2e6, "MACs", "mean M MACs per image", 2.0),
        (5.0, "MACs", "mean MACs per image", 5.0),
        (4000.0, "ms", "mean ms per image", 4000.0),
    ],
)
def test_costs_are_drawn_in_a_unit_that_can_be_read(largest: float, name: str, label: str, shown: float) -> None:
    curve = CostCurve("system", [largest, largest / 2], [0.9, 0.8])
    figure = cascade_figure([curve], [CostMark("first", largest / 2, 0.7)], cost_name=name, per="image")
    [ax] = figure.axes
    assert ax.get_xlabel() == label
    line = ax.get_lines()[0]
    assert list(line.get_xdata()) == pytest.approx([shown / 2, shown])
    assert list(line.get_ydata()) == pytest.approx([80, 90])
    assert [text.get_text() for text in ax.texts] == ["first"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["system"]


def test_marks_alone_need_no_legend() -> None:
    [ax] = cascade_figure([], [CostMark("only", 1.0, 0.5)], title="a title").axes
    assert ax.get_legend() is None
    assert ax.get_title(loc="left") == "a title"
