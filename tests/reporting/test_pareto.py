"""The picture of a trade-off."""

from __future__ import annotations

import itertools
import math

import pytest

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.reporting.pareto import ParetoPoint, pareto_figure, pareto_summary

CLOUD = [
    ParetoPoint("a", 1.0, 0.5),
    ParetoPoint("b", 2.0, 0.9),
    ParetoPoint("c", 9.0, 0.95),
    ParetoPoint("d", 5.0, 0.7),
]


def test_a_summary_has_the_front_the_knee_and_a_stated_reference() -> None:
    summary = pareto_summary(CLOUD)
    assert summary.front == (True, True, True, False)
    assert summary.knee == 1
    assert summary.reference == pytest.approx((9.8, 0.455))
    area = 7.8 * (0.9 - 0.455) + 1.0 * (0.5 - 0.455) + 0.8 * 0.05
    assert summary.hypervolume == pytest.approx(area)
    assert summary.share == pytest.approx(area / (8.8 * 0.495))
    assert pareto_summary(CLOUD, reference=(3.0, 0.0)).hypervolume == pytest.approx(1.0 * 0.9 + 1.0 * 0.5)


@pytest.mark.parametrize(
    ("values", "maximize", "logarithmic"),
    [
        ([1.0, 9.9], (False, True), False),
        ([1.0, 11.0], (False, True), True),
        ([0.0, 11.0], (False, True), False),
        ([1.0, 11.0], (True, True), False),
    ],
)
def test_only_a_cost_over_more_than_a_decade_is_drawn_as_logarithms(
    values: list[float], maximize: tuple[bool, bool], logarithmic: bool
) -> None:
    points = [ParetoPoint(str(x), x, 0.1 * number) for number, x in enumerate(values)]
    assert pareto_summary(points, maximize).logarithmic == (logarithmic, False)
    [ax] = pareto_figure(points, "x", "y", maximize=maximize).axes
    assert ax.get_xscale() == ("log" if logarithmic else "linear")


def test_the_knee_is_that_of_the_axes_as_drawn() -> None:
    points = [ParetoPoint(str(x), x, y) for x, y in ((1.0, 0.0), (10.0, 0.6), (100.0, 0.9), (1000.0, 1.0))]
    summary = pareto_summary(points)
    assert summary.logarithmic == (True, False)
    assert summary.knee in (1, 2)
    straight = [ParetoPoint(str(x), x, y) for x, y in ((1.0, 0.0), (10.0, 1 / 3), (1000.0, 1.0))]
    assert pareto_summary(straight).knee is None  # straight on logarithms


def test_one_model_and_equal_models_have_an_area_and_no_knee() -> None:
    for points in (CLOUD[:1], [CLOUD[0], CLOUD[0]]):
        summary = pareto_summary(points)
        assert summary.knee is None
        assert all(summary.front)
        assert summary.share == pytest.approx(1.0)
        assert pareto_figure(points, "x", "y").axes


@pytest.mark.parametrize(
    ("maximize", "corners"),
    [
        ((False, True), [(1, 0.5), (2, 0.5), (2, 0.9), (9, 0.9), (9, 0.95)]),
        ((True, True), [(9, 0.95)]),
        ((True, False), [(1, 0.5), (1, 0.7), (5, 0.7), (5, 0.95), (9, 0.95)]),
    ],
)
def test_the_front_is_drawn_as_the_best_within_a_budget(
    maximize: tuple[bool, bool], corners: list[tuple[float, float]]
) -> None:
    [ax] = pareto_figure(CLOUD, "cost", "quality", maximize=maximize).axes
    line = next(line for line in ax.get_lines() if line.get_linestyle() == "-" and line.get_linewidth() == 1.2)
    assert list(zip(*line.get_data(), strict=True)) == corners


def test_the_picture_says_what_is_dominated_where_the_knee_is_and_which_way_is_better() -> None:
    figure = pareto_figure(CLOUD, "cost", "quality", title="a title")
    [ax] = figure.axes
    assert ax.get_xlabel() == "cost  (better ←)"
    assert ax.get_ylabel() == "quality  (better ↑)"
    assert ax.get_title(loc="left") == "a title"
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == ["dominated", "front", "knee"]
    assert sorted(text.get_text() for text in ax.texts) == list("abcd")
    [ring] = [each for each in ax.collections if each.get_label() == "knee"]
    assert ring.get_offsets().tolist() == [[2.0, 0.9]]


def test_spread_is_drawn_as_bars() -> None:
    points = [ParetoPoint("a", 1.0, 0.5, y_std=0.1), ParetoPoint("b", 2.0, 0.9)]
    [ax] = pareto_figure(points, "x", "y").axes
    [bars] = [container for container in ax.containers if container.has_yerr]
    assert not bars.has_xerr
    assert bars[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([0.4, 0.6])


def test_labels_do_not_overlap_where_there_is_room() -> None:
    points = [ParetoPoint(f"mobilenetv3_{number}", 10.0 + number, 0.5 + 0.02 * number) for number in range(10)]
    points += [ParetoPoint("close", 13.02, 0.561), ParetoPoint("closer", 13.04, 0.562)]
    figure = pareto_figure(points, "x", "y")
    figure.canvas.draw()
    [ax] = figure.axes
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 12
    for one, other in itertools.combinations(boxes, 2):
        # the line above the letters may touch
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 0 or height <= 0.25 * one.height


def test_of_many_points_only_the_front_is_labelled() -> None:
    points = [ParetoPoint(f"p{number}", 1.0 + number, 0.5 - 0.01 * number) for number in range(30)]
    [ax] = pareto_figure(points, "x", "y").axes
    assert [text.get_text() for text in ax.texts] == ["p0"]


@pytest.mark.parametrize("points", [[], [ParetoPoint("a", math.nan, 0.5)], [ParetoPoint("a", 1.0, math.inf)]])
def test_points_that_cannot_be_drawn_are_refused(points: list[ParetoPoint]) -> None:
    with pytest.raises(ConfigurationError, match="at least one, with finite x and y"):
        pareto_figure(points, "x", "y")
