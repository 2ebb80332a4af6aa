import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization import quantize_static


@pytest.fixture(scope="module")
def quantized(network, images):
    return quantize_static(network, [images, (images + 0.1, "label"), {"x": images}])


def test_the_answer_stays_close_for_any_batch_size(quantized, images, answer, relative_error):
    assert quantized.scheme == "static"
    assert 0 < relative_error(quantized.module(images), answer) < 0.05
    assert torch.allclose(quantized.module(images[:1]), quantized.module(images)[:1], atol=1e-6)


def test_all_layers_are_quantised_and_norms_are_folded(quantized):
    assert quantized.quantized == ("0", "3", "8")
    assert quantized.skipped == {}
    operators = [str(node.target) for node in quantized.module.graph.nodes]
    assert not any("batch_norm" in operator for operator in operators)


def test_no_float_weight_is_left(quantized):
    large = [tensor.dtype for tensor in quantized.module.state_dict().values() if tensor.ndim > 1]
    assert large == [torch.int8] * 3


def test_the_generator_is_untouched(network, images):
    state = torch.get_rng_state()
    quantize_static(network, [images], batches=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_only_so_many_batches_are_taken_and_each_is_told(network, images):
    told, rest = [], iter([images] * 3)
    quantize_static(network, rest, batches=2, on_batch=told.append)
    assert told == [1, 2]
    assert len(list(rest)) == 1


class SharedConvolution(nn.Module):
    """One convolution before two norms: what is folded for one must not serve the other."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        nn.init.constant_(self.first.weight, 3.0)

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x))))


class StandardisedConvolution(nn.Conv2d):
    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (SharedConvolution(), ("conv",)),
        (nn.Sequential(StandardisedConvolution(3, 4, 3), nn.BatchNorm2d(4)), ("0",)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), ("0",)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), ("0",)),
    ],
    ids=["shared", "standardised", "not_affine", "no_statistics"],
)
def test_unusual_norms_answer_almost_as_before(module, names, images, relative_error):
    quantized = quantize_static(module, [images])
    assert quantized.quantized == names
    with torch.no_grad():
        assert relative_error(quantized.module(images), module.eval()(images)) < 0.1


def test_a_layer_without_an_integer_kernel_is_named():
    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(24, 2))
    quantized = quantize_static(network, [torch.randn(4, 3, 8)])
    assert quantized.quantized == ("2",)
    assert quantized.skipped == {"0": "conv1d has no 8-bit kernel here"}


class Decides(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -y


class FixesTheBatch(nn.Linear):
    def forward(self, x):
        return super().forward(x.reshape(2, 4))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Decides(4, 2), r"decides by the values of tensors.*test_static.py:\d+: return y if y.sum"),
        (FixesTheBatch(4, 2), "fixes the batch size"),
        (nn.ReLU(), "no layer that can be quantised"),
        (nn.Sequential(nn.Conv1d(4, 2, 1)), "0: conv1d has no 8-bit kernel here"),
    ],
    ids=["decides", "batch", "nothing", "conv1d"],
)
def test_a_network_that_cannot_be_quantised_says_why_in_one_line(network, message):
    inputs = torch.randn(2, 4, 1) if isinstance(network, nn.Sequential) else torch.randn(2, 4)
    with pytest.raises(ConfigurationError, match=message) as caught:
        quantize_static(network, [inputs])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "calibration is empty"),
        (["text"], "calibration is str"),
        ([torch.full((2, 4), float("inf"))], "batch 1 has values that are not finite"),
        ([torch.full((2, 4), 1e38)], "output for batch 1 is not finite"),
        ([torch.zeros(2, 4), torch.zeros(2, 5)], "batch 2 of the calibration stops"),
    ],
    ids=["empty", "text", "inf", "overflow", "shape"],
)
def test_calibration_data_that_cannot_serve_are_refused(batches, message):
    network = nn.Linear(4, 2)
    nn.init.constant_(network.weight, 10.0)
    with pytest.raises(ConfigurationError, match=message):
        quantize_static(network, batches)
