from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import _advection_diffusion_steps
from lightning_efficient.functional.advection_diffusion import advection_diffusion, is_transformed

SHAPE = (3, 2, 5, 4)


def drawn(shape: tuple[int, ...] = SHAPE, count: int = 7, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Initial state, u, v, Dx, Dy, source and previous state; coefficients are positive."""
    torch.manual_seed(0)
    return [torch.rand(shape, dtype=dtype, requires_grad=True) for _ in range(count)]


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(output, inputs, torch.randn_like(output), allow_unused=True)


def assert_same(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def by_hand(
    h: Tensor, u: Tensor, v: Tensor, a: Tensor, b: Tensor, f: Tensor, p: Tensor, steps: int, dt: float
) -> Tensor:
    """The formula with loops over pixels, spacing 1."""
    rows, columns = h.shape[2:]
    for _ in range(steps):
        new = torch.empty_like(h)
        for i in range(rows):
            for j in range(columns):
                up, down, left, right = (i - 1) % rows, (i + 1) % rows, (j - 1) % columns, (j + 1) % columns
                here = (..., i, j)
                ax, ay, bx, by = u[here] * dt, v[here] * dt, a[here] * dt, b[here] * dt
                spread = (u[..., up, j] - u[..., down, j]) / 2 + (v[..., i, left] - v[..., i, right]) / 2
                new[here] = (
                    (1 - 2 * bx - 2 * by) * p[here]
                    - 2 * dt * spread * h[here]
                    + (2 * bx - ax) * h[..., up, j]
                    + (2 * bx + ax) * h[..., down, j]
                    + (2 * by - ay) * h[..., i, left]
                    + (2 * by + ay) * h[..., i, right]
                    + 2 * dt * f[here]
                ) / (1 + 2 * bx + 2 * by)
        p, h = h, new
    return h


@pytest.mark.parametrize("solver", ["fused", "reference"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 2, 1, 1), (2, 1, 1, 3)])
def test_steps_follow_the_formula_pixel_by_pixel(solver: str, shape: tuple[int, ...]) -> None:
    h, u, v, a, b, f, p = drawn(shape)
    found = advection_diffusion(h, (u, v), (a, b), source=f, previous=p, steps=3, dt=0.3, solver=solver)
    assert_same(found.detach(), by_hand(*(each.detach() for each in (h, u, v, a, b, f, p)), steps=3, dt=0.3))


@pytest.mark.parametrize("previous", ["own", "source", "initial"])
@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("numbers", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize(("steps", "spacing"), [(1, (1, 1)), (4, (2, 1)), (2, (7, 3))])
def test_fused_and_reference_agree_in_values_and_all_gradients(
    steps: int, spacing: tuple[int, int], numbers: tuple[int, ...], source: bool, previous: str
) -> None:
    h, u, v, a, b, f, p = inputs = drawn()
    diffusion = tuple(0.5 + index if index in numbers else each for index, each in enumerate((a, b)))
    before = {"own": p, "source": f, "initial": None}[previous]
    outputs = [
        advection_diffusion(
            h, (u, v), diffusion, source=f if source else None, previous=before, steps=steps, spacing=spacing, solver=by
        )
        for by in ("fused", "reference")
    ]
    assert_same(outputs[0], outputs[1])
    for found, expected in zip(*(gradients(each, inputs) for each in outputs), strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            assert_same(found, expected)


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = drawn((2, 1, 3, 2))

    def run(h: Tensor, u: Tensor, v: Tensor, a: Tensor, b: Tensor, f: Tensor, p: Tensor) -> Tensor:
        return advection_diffusion(h, (u, v), (a, b), source=f, previous=p, steps=2, solver="fused")

    assert torch.autograd.gradcheck(run, inputs)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    h, u, v, a, b, f, _ = inputs = drawn()
    whole = advection_diffusion(h, (u, v), (a, b), source=f, steps=2)
    monkeypatch.setattr(_advection_diffusion_steps, "BLOCK", 1)
    cut = advection_diffusion(h, (u, v), (a, b), source=f, steps=2)
    assert_same(cut, whole)
    assert_same(gradients(cut, inputs[:6]), gradients(whole, inputs[:6]))


@pytest.mark.parametrize("which", range(7))
def test_one_input_alone_may_need_a_gradient(which: int) -> None:
    inputs = [each.requires_grad_(index == which) for index, each in enumerate(each.detach() for each in drawn())]
    h, u, v, a, b, f, p = inputs
    outputs = [
        advection_diffusion(h, (u, v), (a, b), source=f, previous=p, steps=2, solver=by)
        for by in ("fused", "reference")
    ]
    assert_same(*(gradients(each, [inputs[which]]) for each in outputs))


def test_channels_last_stays_and_gives_the_same() -> None:
    h, u, v, a, b, f, _ = (each.detach() for each in drawn())
    expected = advection_diffusion(h, (u, v), (a, b), source=f, steps=2)
    h, u, v, a, b, f = (each.contiguous(memory_format=torch.channels_last) for each in (h, u, v, a, b, f))
    found = advection_diffusion(h, (u, v), (a, b), source=f, steps=2)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_same(found, expected)


def test_a_second_derivative_is_refused_by_fused_and_given_by_reference() -> None:
    h, u, v, a, b, *_ = drawn()

    def twice(solver: str) -> Tensor:
        output = advection_diffusion(h, (u, v), (a, b), steps=2, solver=solver)
        (grad,) = torch.autograd.grad(output.pow(2).sum(), u, create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), u)[0]

    with pytest.raises(ConfigurationError, match="needs solver='reference'"):
        twice("fused")
    assert twice("reference").abs().sum() > 0


def test_auto_takes_the_reference_where_something_looks_into_the_computation() -> None:
    h, u, v, a, b, *_ = (each.detach() for each in drawn())
    expected = advection_diffusion(h, (u, v), (a, b))

    def run(state: Tensor) -> Tensor:
        return advection_diffusion(state, (u, v), (a, b))

    assert not is_transformed()
    assert_same(torch.func.jvp(run, (h,), (h,))[1], expected)  # linear in the state, its previous one included
    assert_same(torch.func.vmap(run, in_dims=0)(h[None])[0], expected)
    assert_same(torch.compile(run, backend="eager", fullgraph=True)(h), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", ["fused", "reference"])
def test_half_precision_is_computed_in_float32_under_autocast_too(dtype: torch.dtype, solver: str) -> None:
    h, u, v, a, b, f, _ = inputs = [each.detach().to(dtype).requires_grad_() for each in drawn()]
    wide = [each.detach().float() for each in inputs]
    with torch.autocast("cpu", dtype):
        found = advection_diffusion(h, (u, v), (a, b), source=f, steps=3, solver=solver)
    expected = advection_diffusion(wide[0], tuple(wide[1:3]), tuple(wide[3:5]), source=wide[5], steps=3)
    assert found.dtype == torch.float32
    assert_same(found, expected, 1e-5)
    assert [each.dtype for each in gradients(found, inputs[:6])] == [dtype] * 6


def test_fused_keeps_its_inputs_and_nothing_else() -> None:
    h, u, v, a, b, f, _ = inputs = drawn()
    kept: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        advection_diffusion(h, (u, v), (a, b), source=f, steps=9)
    assert kept == {each.data_ptr() for each in inputs[:6]}


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    steps=st.integers(1, 4),
    diffusion=st.floats(0, 5),
    dt=st.floats(0.01, 1),
)
def test_diffusion_alone_keeps_a_constant_state_and_bounds_any_other(
    rows: int, columns: int, steps: int, diffusion: float, dt: float
) -> None:
    state = torch.rand(1, 1, rows, columns, dtype=torch.float64)
    still = torch.zeros_like(state)
    flat = advection_diffusion(torch.ones_like(state), (still, still), (diffusion, diffusion), steps=steps, dt=dt)
    assert_same(flat, torch.ones_like(state))
    found = advection_diffusion(state, (still, still), (diffusion, diffusion), steps=steps, dt=dt)
    assert found.abs().max() <= 3 * state.max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0 must be a whole number, at least 1"),
        ({"dt": 0.0}, "dt=0.0 must be a finite number above 0"),
        ({"spacing": (1, 0.5)}, r"spacing=\(1, 0.5\) must be two whole numbers"),
        ({"solver": "fusde"}, "Did you mean 'fused'"),
        ({"source": torch.zeros(1, 2, 5, 4)}, r"source has the shape \(1, 2, 5, 4\), not initial's \(3, 2, 5, 4\)"),
        ({"diffusion": (torch.zeros(()), 1.0)}, "Dx has the shape"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    h, u, v, a, b, *_ = drawn()
    arguments = {"diffusion": (a, b), **change}
    with pytest.raises(ConfigurationError, match=message):
        advection_diffusion(h, (u, v), **arguments)
