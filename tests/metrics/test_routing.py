"""RoutingCurve: the curve of all batches, of both processes, and its picture."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.routing import hybrid_curve, oracle_curve
from lightning_efficient.metrics.routing import RoutingCurve

WORKER = """
import sys, torch
from lightning_efficient.metrics.routing import RoutingCurve
torch.set_num_threads(1)
rank, store, source, output = int(sys.argv[1]), *sys.argv[2:]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
columns, metric = torch.load(source), RoutingCurve()
metric.update(*(each[:5] if rank == 0 else each[5:] for each in columns))
said = [metric.compute(), metric.oracle(), metric.samples, metric.compute()]
torch.save([list(each) for each in said] + [len(metric.query_score)], f"{output}{rank}")
torch.distributed.destroy_process_group()
"""


def columns(size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    right = torch.rand(2, size, generator=draw) < torch.tensor([[0.5], [0.9]])
    return torch.randn(size, generator=draw), right[0], right[1]


def equal(one: object, other: object) -> bool:
    pairs = zip(one, other, strict=True)  # type: ignore[call-overload]
    return all(torch.equal(torch.as_tensor(left), torch.as_tensor(right)) for left, right in pairs)


@given(cut=st.integers(0, 12))
def test_the_curve_does_not_depend_on_the_batches(cut: int) -> None:
    metric, given_columns = RoutingCurve(), columns()
    for part in (slice(0, cut), slice(cut, None)):
        metric.update(*(each[part] for each in given_columns))
    assert equal(metric.compute(), hybrid_curve(*given_columns))
    assert equal(metric.oracle(), oracle_curve(*given_columns[1:]))


def test_what_is_no_number_is_asked_before_all_others() -> None:
    metric = RoutingCurve()
    right = torch.tensor([False, True, False, True])
    metric.update(torch.tensor([torch.nan, 5.0, -torch.inf, 4.0]), right, torch.ones(4, dtype=torch.bool))
    assert metric.samples[0].tolist() == [torch.inf, 5.0, torch.inf, 4.0]
    curve = metric.compute()
    assert dict(zip(curve.coverage.tolist(), curve.accuracy.tolist(), strict=True))[0.5] == 1.0


@pytest.mark.parametrize("shapes", [((3,), (3,), (2,)), ((3, 1), (3, 1), (3, 1)), ((2,), (3,), (3,))])
def test_columns_of_other_shapes_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    score, base, best = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ConfigurationError, match=r"query_score, base_correct and global_correct have .*each must be"):
        RoutingCurve().update(score, base.bool(), best.bool())


def test_a_reset_metric_forgets_and_a_pickled_one_does_not() -> None:
    metric = RoutingCurve()
    metric.update(*columns())
    copy = pickle.loads(pickle.dumps(metric))
    metric.reset()
    metric.update(*columns(5))
    assert len(metric.samples[0]) == 5
    assert equal(copy.compute(), hybrid_curve(*columns()))


def test_the_picture_has_the_hybrid_and_the_oracle() -> None:
    metric = RoutingCurve()
    metric.update(*columns())
    figure, axes = metric.plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    assert [line.get_label() for line in axes.get_lines()] == ["hybrid", "oracle"]
    _, other = metric.plot(metric.compute(), axes)
    assert other is axes
    assert len(axes.get_lines()) == 3


@pytest.mark.slow
def test_two_processes_see_the_curve_the_oracle_and_the_samples_of_both(tmp_path: Path) -> None:
    torch.save(columns(), tmp_path / "in.pt")
    paths = [str(tmp_path / name) for name in ("store", "in.pt", "out")]
    started = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), *paths]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    score, base, best = columns()
    for rank in (0, 1):
        curve, oracle, samples, again, batches = torch.load(tmp_path / f"out{rank}")
        assert equal(curve, hybrid_curve(score, base, best))
        assert equal(oracle, oracle_curve(base, best))
        assert equal(samples, columns())
        assert equal(again, curve)
        assert batches == 1  # its own again
