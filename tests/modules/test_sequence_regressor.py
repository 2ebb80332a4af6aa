from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from module_settings import steps, trainer
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules.sequence_regressor import SequenceRegressor

N, T, F = 5, 10, 2


def tiny(**options: Any) -> SequenceRegressor:
    torch.manual_seed(0)
    return SequenceRegressor(**{"input_size": F, "rnn": "lstm", "hidden_size": 8} | options)


def batch(samples: int = N) -> tuple[Tensor, Tensor]:
    inputs = torch.rand(samples, T, F, generator=torch.Generator().manual_seed(0))
    return inputs, inputs[:, -1].sum(1)


def loader(samples: int = 64, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*batch(samples)), batch_size=batch_size)


@pytest.fixture(autouse=True)
def _no_trainer() -> None:
    warnings.filterwarnings("ignore", message=".*self.log.*")


@pytest.mark.parametrize("rnn", ["lstm", "gru", "irnn", "tarnn"])
def test_it_learns_by_back_propagation_through_time(rnn: str) -> None:
    seed_everything(0, verbose=False)
    module = tiny(rnn=rnn, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-2))
    run = trainer(max_epochs=15)
    (before,) = run.validate(module, loader(), verbose=False)
    run.fit(module, loader(), loader())
    assert set(run.callback_metrics) == {"train/loss", "val/mse"}
    assert run.callback_metrics["val/mse"] < 0.3 * before["val/mse"]


@pytest.mark.parametrize("out_features", [1, 3])
def test_the_loss_of_part_p_weighs_p_of_k_and_reads_the_last_step(out_features: int) -> None:
    module, (inputs, _) = tiny(out_features=out_features), batch()
    target = torch.randn(N, out_features) if out_features > 1 else torch.randn(N)
    outputs = steps(module, (inputs, target), 3)
    for index, (output, stop) in enumerate(zip(outputs, (4, 7, 10), strict=True)):
        prediction = module(inputs[:, :stop]).view(target.shape)
        assert torch.allclose(output["prediction"], prediction, atol=1e-6)
        assert output["loss"].item() == pytest.approx((index + 1) / 3 * mse_loss(prediction, target).item(), rel=1e-5)


def test_one_part_is_back_propagation_through_time() -> None:
    module, (inputs, target) = tiny(), batch()
    (one,) = steps(module, (inputs, target), 1)
    whole = module.training_step((inputs, target), 0)
    assert torch.equal(one["loss"], whole["loss"])
    assert whole["loss"].item() == pytest.approx(mse_loss(module(inputs)[:, 0], target).item(), rel=1e-6)


def test_ended_sequences_do_not_count() -> None:
    module, (inputs, target) = tiny(), batch(3)
    lengths = torch.tensor([10, 4, 5])
    outputs = steps(module, {"inputs": inputs, "target": target, "lengths": lengths}, 2)
    errors = [
        (module(inputs[row : row + 1, :stop])[0, 0] - target[row]).square().item()
        for row, stop in ((0, 5), (1, 4), (2, 5), (0, 10))
    ]
    assert outputs[0]["loss"].item() == pytest.approx((0.5 * errors[0] + errors[1] + errors[2]) / 3, rel=1e-5)
    assert outputs[1]["loss"].item() == pytest.approx(errors[3], rel=1e-5)


def test_targets_of_every_step_are_averaged_over_valid_steps_without_weights() -> None:
    module, (inputs, _) = tiny(target="every", out_features=2), batch(2)
    target, lengths = torch.randn(2, T, 2), torch.tensor([10, 7])
    outputs = steps(module, {"inputs": inputs, "target": target, "lengths": lengths}, 2)
    errors = (module(inputs) - target).square().mean(-1)
    assert outputs[0]["loss"].item() == pytest.approx(errors[:, :5].mean().item(), rel=1e-5)
    second = torch.cat([errors[0, 5:], errors[1, 5:7]])
    assert outputs[1]["loss"].item() == pytest.approx(second.mean().item(), rel=1e-5)


def test_its_error_is_that_of_all_samples_whatever_the_last_batch() -> None:
    module = tiny()
    (logged,) = trainer().test(module, loader(50, batch_size=16), verbose=False)
    inputs, target = batch(50)
    with torch.no_grad():
        assert logged["test/mse"] == pytest.approx(mse_loss(module.eval()(inputs)[:, 0], target).item(), rel=1e-5)


def test_predictions_of_one_number_are_one_column() -> None:
    module = tiny().eval()
    inputs, target = batch()
    assert torch.equal(module.predict_step(inputs, 0)["prediction"], module(inputs)[:, 0])
    assert torch.equal(module.predict_step((inputs, target), 0)["prediction"], module(inputs)[:, 0])


def test_a_checkpoint_loads_without_its_callables(tmp_path: Path) -> None:
    module = tiny(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), head_size=4)
    run = trainer()
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = SequenceRegressor.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(loaded.eval()(batch()[0]), module.eval()(batch()[0]))


@pytest.mark.parametrize(
    ("options", "target", "message"),
    [
        ({"out_features": 3}, torch.randn(N), r"out_features is 3, so targets must have the shape \(5, 3\).*\(5,\)"),
        ({}, torch.randn(N, T), r"model.target is 'last'.*shape \(5, 1\), but a batch has \(5, 10\)"),
        ({"target": "every"}, torch.randn(N), r"model.target is 'every'.*shape \(5, 10, 1\)"),
    ],
)
def test_targets_that_do_not_fit_are_told(options: dict[str, Any], target: Tensor, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny(**options).training_step((batch()[0], target), 0)


def test_inputs_that_do_not_fit_are_told() -> None:
    with pytest.raises(ConfigurationError, match=r"input_size is 2, .* but a batch has \(5, 10, 4\)"):
        tiny().training_step((torch.randn(N, T, 4), torch.randn(N)), 0)
