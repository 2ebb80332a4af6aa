"""The recurrences against the authors' cells (golden arrays), against the formulas step by step, and by gradcheck."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import _recurrence
from lightning_efficient.functional.recurrent import incremental_rnn, time_adaptive_rnn

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "recurrent_cells.npz")
VARIANTS = sorted({name.split("/")[0] for name in GOLDEN.files if name.startswith("tarnn")})
IMPLEMENTATIONS = ["fused", "reference"]
CASES = list(itertools.product([1, 2, 3], ["after", "inside", None], ["relu", "tanh", "sigmoid"]))


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def arguments(count, gate, steps=5, batch=3, features=2, hidden=4, seed=0, grad=True):
    """Random arguments of either function in float64, with step sizes per time step."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul_(0.5).requires_grad_(grad)

    weights = (
        [draw(3 * hidden, features), draw(hidden, features), draw(4 * hidden, hidden), draw(2 * hidden)]
        if gate
        else [draw(hidden, features), draw(hidden, hidden), draw(hidden)]
    )
    last = draw(batch, features) if gate else draw(hidden, hidden)
    return [draw(steps, batch, features), draw(batch, hidden), *weights, draw(count, steps), last]


def run(values, gate, **options):
    *values, last = values
    if gate:
        return time_adaptive_rnn(*values, gate=gate, previous_input=last, **options)
    return incremental_rnn(*values, projection=last, **options)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_time_adaptive_outputs_and_gradients_equal_the_authors(variant, implementation):
    names = ["b1", "B1", "B2", "W1", "W2", "U1", "U2", "Wg", "Ug", "bg", "A1"]
    p = {name: golden(f"{variant}/param/{name}").requires_grad_() for name in names}
    x, h0 = golden("x").requires_grad_(), golden("h0").requires_grad_()
    _, _, activation, _, gate = variant.split("_")
    output, last = time_adaptive_rnn(
        x,
        h0[0],
        torch.cat([p["Wg"].t(), p["W1"].t(), p["B1"].t()]),
        p["W2"].t(),
        torch.cat([p[name].t() for name in ("Ug", "U1", "U2", "B2")]),
        torch.cat([p["bg"], p["b1"]]),
        p["A1"],
        gate=gate,
        activation=activation,
        implementation=implementation,
    )
    output.square().sum().backward()
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(output, golden(f"{variant}/out"), **close)
    torch.testing.assert_close(last, output[-1])
    for name, parameter in p.items():
        torch.testing.assert_close(parameter.grad, golden(f"{variant}/grad/{name}"), **close)
    torch.testing.assert_close(x.grad, golden(f"{variant}/grad_x"), **close)
    torch.testing.assert_close(h0.grad, golden(f"{variant}/grad_h0"), **close)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_incremental_with_low_rank_equals_the_released_cell(implementation):
    p = {name: golden(f"irnn_lowrank_K1/param/{name}") for name in ("W", "b", "V", "V2", "alpha")}
    recurrent = (p["V2"] @ p["V"] + torch.eye(4)).t()
    _, last = incremental_rnn(
        golden("x"), golden("h0")[0], p["W"].t(), recurrent, p["b"], p["alpha"], projection=recurrent,
        implementation=implementation,
    )  # fmt: skip
    torch.testing.assert_close(last, golden("irnn_lowrank_K1/h_T"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch_sizes", [None, [3, 3, 2, 2, 1]])
@pytest.mark.parametrize("block", [1 << 17, 16])
@pytest.mark.parametrize(("count", "gate", "activation"), CASES)
def test_fused_equals_step_by_step(count, gate, activation, block, batch_sizes, monkeypatch):
    monkeypatch.setattr(_recurrence, "BLOCK", block)
    values, found = arguments(count, gate), []
    weights = torch.randn(5, 3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    for implementation in IMPLEMENTATIONS:
        options = {"activation": activation, "batch_sizes": batch_sizes, "implementation": implementation}
        results = run(values, gate, **options)
        found.append([*results, *torch.autograd.grad(results, values, weights)])
    for fused, reference in zip(*found, strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("gate", ["after", "inside", None])
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_equal_finite_differences(count, gate):
    values = arguments(count, gate, steps=3, batch=2, hidden=3)
    assert torch.autograd.gradcheck(lambda *values: run(values, gate, activation="tanh"), values)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 3), st.sampled_from(["after", "inside", None]), st.integers(1, 7), st.integers(0, 4),
    st.integers(1, 3), st.integers(1, 5),
)  # fmt: skip
def test_any_shape_equals_step_by_step(count, gate, steps, batch, features, hidden):
    values = arguments(count, gate, steps, batch, features, hidden, grad=False)
    fused = run(values, gate, activation="tanh")
    for one, other in zip(fused, run(values, gate, activation="tanh", implementation="reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gate", ["after", None])
@pytest.mark.parametrize("count", [1, 2])
def test_gradients_of_some_arguments_equal_those_of_all(count, gate):
    values = arguments(count, gate)
    output, last = run(values, gate)
    everything = torch.autograd.grad(output.square().sum() + last.sum(), values)
    for position, gradient in enumerate(everything):
        alone = [value.detach().requires_grad_(index == position) for index, value in enumerate(values)]
        output, last = run(alone, gate)
        (output.square().sum() + last.sum()).backward()
        torch.testing.assert_close(alone[position].grad, gradient)


@pytest.mark.parametrize("used", ["output", "last"])
def test_gradients_are_right_when_one_result_is_not_used(used):
    values, found = arguments(2, "after"), []
    for implementation in IMPLEMENTATIONS:
        output, last = run(values, "after", implementation=implementation)
        found.append(torch.autograd.grad({"output": output, "last": last}[used].square().sum(), values))
    for fused, reference in zip(*found, strict=True):
        torch.testing.assert_close(fused, reference)


def test_a_second_backward_pass_through_a_kept_graph_gives_the_same():
    values = arguments(2, "inside")
    loss = run(values, "inside")[0].square().sum()
    first, second = (torch.autograd.grad(loss, values, retain_graph=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_second_derivatives_need_the_reference():
    values = arguments(1, "after")
    (gradient,) = torch.autograd.grad(run(values, "after")[0].square().sum(), values[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    plain = run(values, "after", implementation="reference")[0].square().sum()
    (gradient,) = torch.autograd.grad(plain, values[:1], create_graph=True)
    gradient.sum().backward()
    assert values[0].grad is not None


def test_the_arguments_are_left_as_they_were():
    values = arguments(3, "after", grad=False)
    before = [value.clone() for value in values]
    run(values, "after")
    assert all(torch.equal(value, kept) for value, kept in zip(values, before, strict=True))


def test_steps_after_the_end_of_a_sequence_are_neither_read_nor_written():
    values = arguments(2, "after", grad=False)
    values[0][2:, 1] = float("nan")
    weights = [value.requires_grad_() for value in values]
    output, last = run(weights, "after", batch_sizes=[3, 3, 1, 1, 1])
    (output.square().sum() + last.sum()).backward()
    assert output.isfinite().all()
    assert not output[2:, 1:].any()
    assert all(value.grad.isfinite().all() for value in weights)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation": "tan"}, "Did you mean 'tanh'"),
        ({"gate": "before"}, "gate='before' is not one of"),
        ({"implementation": "slow"}, "implementation='slow'"),
        ({"batch_sizes": [1, 2, 3, 3, 3]}, r"5 numbers from 3 down to 1.*\[1, 2, 3, 3, 3\]"),
        ({"batch_sizes": [3, 0, 0, 0, 0]}, "from 3 down to 1"),
        ({"inputs": torch.zeros(5, 2)}, r"\(5, 2\); give \(T, N, F\)"),
        ({"inputs": torch.zeros(5, 3, 2, dtype=torch.long)}, "int64.*embed"),
        ({"step_size": torch.zeros(1, 4)}, r"\(1, 4\); for 5 steps give \(K,\) or \(K, 5\)"),
    ],
)
def test_what_cannot_work_is_one_clear_error(change, says):
    names = ["inputs", "initial", "weight_ih", "weight_ph", "weight_hh", "bias", "step_size", "previous_input"]
    options = dict(zip(names, arguments(1, "after", grad=False), strict=True))
    with pytest.raises(ConfigurationError, match=says):
        time_adaptive_rnn(**{**options, **change})
