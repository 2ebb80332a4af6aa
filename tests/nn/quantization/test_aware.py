import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization import (
    convert_aware,
    prepare_aware,
    set_fake_quantization,
    set_observers,
)


@pytest.fixture
def aware(prepared):
    return copy.deepcopy(prepared)


@pytest.fixture(scope="module")
def prepared(network, images):
    return prepare_aware(network, images)


@pytest.fixture(scope="module")
def trained(prepared, images):
    aware = copy.deepcopy(prepared)
    optimizer = torch.optim.SGD(aware.parameters(), lr=0.1)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(aware(images), torch.arange(16) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < sum(losses[:3])
    return aware


def _ranges(aware):
    return {name: value.clone() for name, value in aware.state_dict().items() if name.endswith(("min_val", "max_val"))}


def test_parameters_have_the_names_order_and_values_of_the_network(aware, network):
    ours, theirs = dict(aware.named_parameters()), dict(network.named_parameters())
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) and ours[name] is not theirs[name] for name in theirs)
    assert set(network.state_dict()) <= set(aware.state_dict())


def test_without_rounding_the_answer_is_that_of_the_network(aware, images, answer):
    set_fake_quantization(aware, False)
    with torch.no_grad():
        assert torch.allclose(aware.eval()(images), answer, atol=1e-5)


def test_rounding_changes_the_answer_a_little(aware, images, answer, relative_error):
    with torch.no_grad():
        aware(images)
    set_fake_quantization(aware, False)
    with torch.no_grad():
        exact = aware.eval()(images)
        set_fake_quantization(aware, True)
        assert 0 < relative_error(aware(images), exact) < 0.05


def test_what_no_range_was_learned_for_is_not_rounded(aware, images, answer):
    with torch.no_grad():
        assert torch.allclose(aware.eval()(images), answer, atol=1e-5)


def test_conversion_gives_the_integers_that_were_trained(trained, images):
    quantized = convert_aware(trained)
    assert quantized.scheme == "aware"
    assert quantized.quantized == ("0", "3", "8")
    twin = copy.deepcopy(trained).eval()
    with torch.no_grad():
        assert torch.allclose(quantized.module(images), twin(images), atol=1e-6)
        assert torch.allclose(quantized.module(images[:1]), twin(images[:1]), atol=1e-6)
    assert trained.training


def test_batch_statistics_and_ranges_learn_in_training_only(aware, images):
    aware(images)
    before = copy.deepcopy(aware.state_dict())
    aware.eval()
    aware(100 * images)
    after = aware.state_dict()
    assert torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert torch.equal(before["1.num_batches_tracked"], after["1.num_batches_tracked"])
    ranges = _ranges(aware)
    assert all(torch.equal(before[name], value) for name, value in ranges.items())
    aware.train()
    aware(100 * images)
    assert not torch.equal(before["1.running_mean"], aware.state_dict()["1.running_mean"])
    assert any(not torch.equal(before[name], value) for name, value in _ranges(aware).items())


def test_the_running_mean_follows_the_momentum_of_the_layer(aware, network, images):
    twin = copy.deepcopy(network)
    set_fake_quantization(aware, False)
    aware(images)
    twin(images)
    assert torch.allclose(aware.state_dict()["4.running_mean"], twin[4].running_mean, atol=1e-5)
    assert aware.state_dict()["4.num_batches_tracked"] == twin[4].num_batches_tracked


def test_held_ranges_do_not_follow_training_data(aware, images):
    aware(images)
    set_observers(aware, False)
    before = _ranges(aware)
    aware.eval().train()
    aware(100 * images)
    assert all(torch.equal(before[name], value) for name, value in _ranges(aware).items())


def test_dropout_works_in_training_and_not_in_evaluation(aware, images):
    aware(images)
    assert not torch.equal(aware(images), aware(images))
    aware.eval()
    assert torch.equal(aware(images), aware(images))


def test_a_copy_switches_modes_by_itself(trained, images):
    twin = copy.deepcopy(trained).eval()
    assert trained.training
    before = twin(images)
    trained_mean = trained.state_dict()["1.running_mean"].clone()
    twin.train()(images)
    assert torch.equal(trained.state_dict()["1.running_mean"], trained_mean)
    assert not torch.equal(twin.eval()(images), before)


def test_a_state_dict_restores_ranges_before_the_first_batch(aware, trained, images):
    aware.load_state_dict(trained.state_dict())
    twin = copy.deepcopy(trained).eval()
    assert torch.equal(aware.eval()(images), twin(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_leaves_it_in_float32(aware, images, dtype):
    aware(images)
    aware.eval()
    expected = aware(images)
    with torch.autocast("cpu", dtype):
        found = aware(images)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_norm_whose_weight_is_zero_gives_finite_gradients_and_learns(network, images):
    zeroed = copy.deepcopy(network)
    nn.init.zeros_(zeroed[4].weight)
    aware = prepare_aware(zeroed, images)
    assert (aware.get_parameter("4.weight") == 0).all()
    aware(images).square().sum().backward()
    assert all(each.grad.isfinite().all() for each in aware.parameters())
    assert (aware.get_parameter("4.weight").grad != 0).any()
    quantized = convert_aware(aware)
    assert torch.allclose(quantized.module(images), aware.eval()(images), atol=1e-5)


class DropsPaths(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y * y.new_empty(y.shape[0], 1).bernoulli_(0.9) if self.training else y


class TreblesInTraining(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (3 if self.training else 1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (DropsPaths(4, 2), r"aten\.bernoulli_.*set drop_path_rate"),
        (TreblesInTraining(4, 2), "its forward does more in training"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, momentum=None)),
            "quantised: torch.export stops",
        ),
        (nn.ReLU(), "no layer that can be quantised"),
    ],
    ids=["drop_path", "mode", "momentum", "nothing"],
)
def test_a_network_that_a_graph_cannot_hold_is_refused(network, message):
    example = torch.randn(3, 1, 2, 2) if isinstance(network, nn.Sequential) else torch.randn(3, 4)
    with pytest.raises(ConfigurationError, match=message):
        prepare_aware(network, example)


def test_conversion_before_training_is_refused(aware):
    with pytest.raises(ConfigurationError, match="no ranges were learned"):
        convert_aware(aware)


@pytest.mark.parametrize("call", [convert_aware, lambda it: set_observers(it, True)], ids=["convert", "observers"])
def test_another_module_is_refused(call):
    with pytest.raises(ConfigurationError, match="prepared is a Linear"):
        call(nn.Linear(1, 1))


def test_a_switch_is_true_or_false(aware):
    with pytest.raises(ConfigurationError, match="on='no'"):
        set_fake_quantization(aware, "no")
