"""The closed form against the released code's own trajectories, against autograd, and against its identities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_efficient.functional import fptt_gradient_, fptt_penalty, fptt_restart_, fptt_update_

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "fptt.npz")
CLOSE = {"rtol": 0, "atol": 1e-10}


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


class Recurrent(nn.Module):
    """The network of problems B and C, with the names that the golden file uses."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, 4)
        self.lin = nn.Linear(4, 1)

    def losses(self, problem: str, sequences: int) -> list[Callable[[], Tensor]]:
        """Return one function for each part of each presentation of the sequence; they share the state."""
        inputs, target = array(f"{problem}/x"), array(f"{problem}/y")
        carried: dict[str, tuple[Tensor, Tensor] | None] = {}

        def loss(part: int) -> Tensor:
            output, state = self.rnn(inputs[4 * part : 4 * part + 4], carried["state"] if part else None)
            carried["state"] = tuple(one.detach() for one in state)
            return nn.functional.mse_loss(self.lin(output[-1]).squeeze(1), target)

        return [lambda part=part: loss(part) for _ in range(sequences) for part in range(3)]


class Affine(nn.Linear):
    def losses(self, problem: str, sequences: int) -> list[Callable[[], Tensor]]:
        return [
            lambda i=i: nn.functional.mse_loss(self(array(f"{problem}/x/{i}")), array(f"{problem}/y/{i}"))
            for i in range(3)
        ]


PROBLEMS = {
    "A": (lambda: Affine(3, 2), torch.optim.SGD, {"lr": 0.1}, {"alpha": 0.5}, 0.5, lambda part: 1.0, None, 1),
    "B": (Recurrent, torch.optim.SGD, {"lr": 0.5}, {"alpha": 0.5}, 0.5, lambda part: (part + 1) / 3, None, 1),
    "C": (
        Recurrent,
        torch.optim.Adam,
        {"lr": 0.01},
        {"alpha": 0.1, "proximal_weight": 2.0},
        0.7,
        lambda part: 1.0,
        0.05,
        3,
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_trajectories_are_those_of_the_released_code(problem: str) -> None:
    make, optimizer_class, rates, options, beta, weight, clip, sequences = PROBLEMS[problem]
    module = make().double()
    names = [name for name, _ in module.named_parameters()]
    module.load_state_dict({name: array(f"{problem}/0/W/{name}") for name in names})
    optimizer = optimizer_class(module.parameters(), **rates)
    params = list(module.parameters())
    means = [param.detach().clone() for param in params]
    duals = [torch.zeros_like(mean) for mean in means]

    def compare(moment: str) -> None:
        for kind, tensors in (("W", params), ("Wbar", means), ("lam", duals)):
            for name, tensor in zip(names, tensors, strict=True):
                torch.testing.assert_close(tensor.detach(), array(f"{problem}/{moment}/{kind}/{name}"), **CLOSE)

    for update, loss_of_part in enumerate(module.losses(problem, sequences), start=1):
        loss = loss_of_part()
        assert float(loss) == pytest.approx(float(array(f"{problem}/{update}/loss")), abs=1e-10)
        optimizer.zero_grad()
        (weight((update - 1) % 3) * loss).backward()
        penalty = fptt_penalty(params, means, duals, **options)
        assert float(penalty) == pytest.approx(float(array(f"{problem}/{update}/reg")), abs=1e-10)
        data = [param.grad.clone() for param in params]
        added = fptt_gradient_([param.grad for param in params], params, means, duals, **options)
        for name, own, extra, param in zip(names, data, added, params, strict=True):
            torch.testing.assert_close(own, array(f"{problem}/{update}/grad_data/{name}"), **CLOSE)
            torch.testing.assert_close(extra, array(f"{problem}/{update}/grad_reg/{name}"), **CLOSE)
            torch.testing.assert_close(param.grad, own + extra, **CLOSE)
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(params, clip)
            assert float(norm) == pytest.approx(float(array(f"{problem}/{update}/total_norm")), abs=1e-10)
        optimizer.step()
        fptt_update_(params, means, duals, alpha=options["alpha"], beta=beta)
        compare(str(update))
        if problem == "C" and update == 6:
            fptt_restart_(params, means, duals)
            compare("reset_after_6")


def problem_of(seed: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3), (4,), ()]
    return tuple([torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(3))


@given(
    seed=st.integers(0, 2**16),
    alpha=st.floats(1e-3, 10),
    proximal_weight=st.floats(0, 3),
    dual_weight=st.floats(0, 2),
)
def test_the_gradient_is_that_of_the_penalty(
    seed: int, alpha: float, proximal_weight: float, dual_weight: float
) -> None:
    params, means, duals = problem_of(seed)
    options = {"alpha": alpha, "proximal_weight": proximal_weight, "dual_weight": dual_weight}
    for param in params:
        param.requires_grad_()
    fptt_penalty(params, means, duals, **options).backward()
    grads = [torch.ones_like(param) for param in params]
    added = fptt_gradient_(grads, params, means, duals, **options)
    for param, own, total in zip(params, added, grads, strict=True):
        torch.testing.assert_close(own, param.grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(total, 1 + param.grad, rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 2**16), alpha=st.floats(1e-2, 10))
def test_with_beta_one_half_the_mean_is_the_parameter_shifted_by_the_old_dual(seed: int, alpha: float) -> None:
    params, means, duals = problem_of(seed)
    old = [dual.clone() for dual in duals]
    fptt_update_(params, means, duals, alpha=alpha, beta=0.5)
    for param, mean, dual in zip(params, means, old, strict=True):
        torch.testing.assert_close(mean, param - dual / (2 * alpha), rtol=1e-10, atol=1e-10)


def test_the_printed_formula_is_half_of_the_released_language_models() -> None:
    params, means, duals = problem_of(0)
    printed, released = ([torch.zeros_like(param) for param in params] for _ in range(2))
    fptt_gradient_(printed, params, means, duals, alpha=0.3, dual_weight=0.5)
    fptt_gradient_(released, params, means, duals, alpha=0.3, proximal_weight=2.0)
    for one, other, param, mean, dual in zip(printed, released, params, means, duals, strict=True):
        torch.testing.assert_close(2 * one, other)
        # the gradient of (alpha / 2) |W - mean - dual / (2 alpha)|^2
        torch.testing.assert_close(one, 0.3 * (param - mean - dual / 0.6))


def test_the_first_step_is_a_plain_one() -> None:
    params, _, _ = problem_of(0)
    grads = [torch.ones_like(param) for param in params]
    fptt_gradient_(grads, params, [p.clone() for p in params], [torch.zeros_like(p) for p in params], alpha=0.5)
    assert all(torch.equal(grad, torch.ones_like(grad)) for grad in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_difference_below_the_precision_of_the_parameters_is_kept(dtype: torch.dtype) -> None:
    param = [torch.ones(3, dtype=dtype)]
    mean = [torch.full((3,), 1 - 1e-5)]  # rounds to 1 in either dtype
    dual, grad = [torch.zeros(3)], [torch.zeros(3, dtype=dtype)]
    added = fptt_gradient_(grad, param, mean, dual, alpha=100.0)
    torch.testing.assert_close(added[0], torch.full((3,), 1e-3), rtol=1e-2, atol=0)
    assert grad[0].dtype is dtype
    torch.testing.assert_close(grad[0].float(), added[0], rtol=1e-2, atol=0)
    fptt_update_(param, mean, dual, alpha=100.0)
    torch.testing.assert_close(dual[0], torch.full((3,), -1e-3), rtol=1e-2, atol=0)
    assert mean[0].dtype is dual[0].dtype is torch.float32


def test_after_a_restart_parameters_and_means_agree_in_every_bit() -> None:
    param, mean, dual = [torch.ones(3, dtype=torch.bfloat16)], [torch.full((3,), 0.123456)], [torch.ones(3)]
    fptt_restart_(param, mean, dual, keep_duals=True)
    assert torch.equal(param[0].float(), mean[0])
    assert torch.equal(dual[0], torch.ones(3))
    fptt_restart_(param, mean, dual)
    assert torch.equal(dual[0], torch.zeros(3))


def test_updates_need_no_autograd_and_leave_none_behind() -> None:
    layer = nn.Linear(2, 2)
    params = list(layer.parameters())
    means, duals = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    layer(torch.ones(1, 2)).sum().backward()
    fptt_gradient_([p.grad for p in params], params, means, duals, alpha=0.5)
    fptt_update_(params, means, duals, alpha=0.5)
    fptt_restart_(params, means, duals)
    assert not any(tensor.requires_grad for tensor in (*means, *duals, *(p.grad for p in params)))
    assert all(param.is_leaf for param in params)
