"""Statistics of batch normalisation, estimated again."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath, FrozenBatchNormAct2d
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.recalibration import recalibrate_batch_norm


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.01), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()


def batches(number: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(4, 3, 8, 8) + step for step in range(number)]


def test_statistics_become_the_mean_over_batches() -> None:
    model, given = network(), batches()
    assert recalibrate_batch_norm(model, given) == 3
    maps = [model[0](batch) for batch in given]
    torch.testing.assert_close(model[1].running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0).detach())
    variances = torch.stack([m.var((0, 2, 3)) for m in maps])
    torch.testing.assert_close(model[1].running_var, variances.mean(0).detach())


def test_nothing_but_statistics_changes() -> None:
    model = network()
    model[3].train()
    weights = {name: value.clone() for name, value in model.named_parameters()}
    recalibrate_batch_norm(model, batches())
    assert [each.training for each in model] == [False, False, False, True]
    assert not model.training
    assert model[1].momentum == 0.01
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("given", "limit", "expected"), [(5, 200, 5), (5, 2, 2), (1, 1, 1)])
def test_no_more_batches_are_taken_than_allowed(given: int, limit: int, expected: int) -> None:
    stream = iter(batches(given))
    assert recalibrate_batch_norm(network(), stream, max_batches=limit) == expected
    assert len(list(stream)) == given - expected


def test_a_loader_of_inputs_and_labels_is_fine() -> None:
    first, second = network(), network()
    second.load_state_dict(first.state_dict())
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.cat(batches()), torch.zeros(12)), batch_size=4
    )
    assert recalibrate_batch_norm(first, loader) == 3
    recalibrate_batch_norm(second, batches())
    torch.testing.assert_close(first[1].running_mean, second[1].running_mean)


def test_frozen_layers_keep_their_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), FrozenBatchNormAct2d(3)).train()
    model[0].eval()
    model[0].running_mean.fill_(2.0)
    model[2].running_mean.fill_(5.0)
    given = batches()
    recalibrate_batch_norm(model, given)
    assert model[0].running_mean.tolist() == [2.0] * 3
    assert model[2].running_mean.tolist() == [5.0] * 3
    # the second layer saw what the first gives with the statistics it kept
    seen = torch.stack([batch.mean((0, 2, 3)) for batch in given]).mean(0)
    torch.testing.assert_close(model[1].running_mean, (seen - 2) / (1 + 1e-5) ** 0.5)
    assert model.training
    assert not model[0].training


def test_dropout_and_stochastic_depth_are_off() -> None:
    model = nn.Sequential(nn.Dropout(0.9), DropPath(0.9), nn.BatchNorm2d(3)).train()
    given = batches()
    recalibrate_batch_norm(model, given)
    torch.testing.assert_close(model[2].running_mean, torch.stack([b.mean((0, 2, 3)) for b in given]).mean(0))
    assert model[0].training
    assert model[1].training


def test_flags_and_momentum_come_back_after_an_error() -> None:
    model = network()
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm(model, [torch.zeros(2, 5, 8, 8)])
    assert not any(each.training for each in model.modules())
    assert model[1].momentum == 0.01


def test_nothing_to_do_is_said() -> None:
    model = network()
    before = model[1].running_mean.clone()
    with pytest.raises(ConfigurationError, match="batches is empty"):
        recalibrate_batch_norm(model, [])
    assert torch.equal(model[1].running_mean, before)
    with pytest.raises(ConfigurationError, match="Linear has no batch normalisation"):
        recalibrate_batch_norm(nn.Linear(2, 2), [torch.zeros(1, 2)])
    with pytest.raises(ConfigurationError, match="no batch normalisation"):
        recalibrate_batch_norm(nn.BatchNorm2d(3, track_running_stats=False), batches())
    with pytest.raises(ConfigurationError, match="max_batches=0 must be 1 or more"):
        recalibrate_batch_norm(network(), batches(), max_batches=0)
    with pytest.raises(ConfigurationError, match="max_batches=True must be 1 or more"):
        recalibrate_batch_norm(network(), batches(), max_batches=True)


def test_layers_that_are_never_called_keep_their_statistics() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.called, self.idle = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.called(images)

    model = Unused().eval()
    model.idle.running_mean.fill_(2.0)
    model.idle.running_var.fill_(3.0)
    model.idle.num_batches_tracked.fill_(7)
    recalibrate_batch_norm(model, batches())
    assert model.idle.running_mean.tolist() == [2.0] * 3
    assert model.idle.running_var.tolist() == [3.0] * 3
    assert model.idle.num_batches_tracked == 7
    assert model.called.num_batches_tracked == 3


@pytest.mark.parametrize("wrong", [torch.zeros(2, 5, 8, 8), "images", [], {"label": 3}, {}, None])
def test_old_statistics_come_back_where_a_batch_fails(wrong: object) -> None:
    model = network()
    recalibrate_batch_norm(model, batches())
    before = {name: value.clone() for name, value in model.named_buffers()}
    error = RuntimeError if isinstance(wrong, torch.Tensor) else ConfigurationError
    with pytest.raises(error, match=r"channels|batches: a .* holds no input; give tensors, tuples or lists") as raised:
        recalibrate_batch_norm(model, [batches(5)[4], wrong])
    assert error is RuntimeError or "\n" not in str(raised.value)
    assert before.keys() == dict(model.named_buffers()).keys()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_mappings_give_their_first_floating_point_tensor() -> None:
    first, second = network(), network()
    second.load_state_dict(first.state_dict())
    named = [{"path": "a.png", "label": torch.tensor([1, 2, 3, 4]), "image": batch} for batch in batches()]
    assert recalibrate_batch_norm(first, [named[0], (named[1], 1), named[2]]) == 3
    recalibrate_batch_norm(second, batches())
    assert torch.equal(first[1].running_mean, second[1].running_mean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_get_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    recalibrate_batch_norm(model, batches())
    means = [model[0](batch.to(dtype)).mean((0, 2, 3)) for batch in batches()]
    assert model[1].running_mean.dtype == dtype
    torch.testing.assert_close(model[1].running_mean, torch.stack(means).mean(0).detach(), rtol=0.05, atol=0.02)
