import copy

import pytest
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization import quantize_weights, size_on_disk


def test_weights_become_integers_and_the_answer_stays_close(network, images, answer, relative_error):
    quantized = quantize_weights(network, images)
    assert quantized.scheme == "weight_only"
    assert quantized.quantized == ("0", "3", "8")
    assert quantized.skipped == {}
    assert quantized.module[3].weight_int8.dtype == torch.int8
    assert 0 < relative_error(quantized.module(images), answer) < 0.02


def test_each_weight_is_within_half_a_step_and_zero_is_exact():
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight[:, 2] = 0.0
        layer.weight[1] = 0.0
    found = quantize_weights(nn.Sequential(layer), torch.zeros(1, 6)).module[0]
    assert ((found.weight - layer.weight).abs() <= found.weight_scale / 2 * 1.0001).all()
    assert (found.weight[:, 2] == 0).all()
    assert (found.weight[1] == 0).all()


def test_the_float_weights_are_gone_and_a_large_layer_takes_a_quarter():
    network = nn.Sequential(nn.Linear(256, 256))
    module = quantize_weights(network, torch.zeros(1, 256)).module
    assert sorted(module.state_dict()) == ["0.bias", "0.weight_int8", "0.weight_scale"]
    assert size_on_disk(module) < 0.28 * size_on_disk(network)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), torch.randn(2, 4, 9)),
        (nn.Conv3d(2, 3, 2), torch.randn(2, 2, 4, 4, 4)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), torch.randn(2, 3, 6, 6)),
        (nn.Embedding(20, 8, padding_idx=0), torch.randint(0, 20, (2, 5))),
    ],
    ids=["conv1d", "conv3d", "conv_transpose2d", "reflect", "embedding"],
)
def test_every_kind_of_layer_answers_almost_as_before(layer, inputs, relative_error):
    module = quantize_weights(nn.Sequential(layer), inputs).module
    with torch.no_grad():
        assert relative_error(module(inputs), layer(inputs)) < 0.02


def test_tied_weights_stay_tied():
    network = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50, bias=False))
    network[1].weight = network[0].weight
    module = quantize_weights(network, torch.zeros(1, 3, dtype=torch.int64)).module
    assert module[0].weight_int8 is module[1].weight_int8


def test_a_copy_and_a_state_dict_keep_the_integers(network, images):
    module = quantize_weights(network, images).module
    twin = copy.deepcopy(module)
    twin[8].weight_int8.zero_()
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(images), module(images))


def test_layers_that_stay_in_floating_point_are_named_with_the_reason():
    network = nn.ModuleDict({"linear": nn.Linear(2, 2), "lstm": nn.LSTM(2, 2)})
    quantized = quantize_weights(network, torch.zeros(1, 2))
    assert quantized.quantized == ("linear",)
    assert quantized.skipped == {"lstm": "LSTM reads its weights in another way"}


@pytest.mark.parametrize(
    ("network", "example", "message"),
    [
        (nn.ReLU(), torch.zeros(1, 2), "no layer whose weights can be quantised"),
        (nn.Linear(2, 2), torch.zeros(0, 2), r"example is \(0, 2\)"),
        (nn.Linear(2, 2), [1.0], "example is list"),
    ],
    ids=["nothing", "empty", "list"],
)
def test_what_cannot_be_is_refused_in_one_line(network, example, message):
    with pytest.raises(ConfigurationError, match=message):
        quantize_weights(network, example)


def test_weights_that_are_not_finite_are_named():
    network = nn.Sequential(nn.Linear(2, 2))
    nn.init.constant_(network[0].weight, float("nan"))
    with pytest.raises(ConfigurationError, match=r"0\.weight has values that are not finite"):
        quantize_weights(network, torch.zeros(1, 2))
