from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling import profile_module

QUICK = {"min_run_time": 0.01, "warmup": 1}


def size_of_saved(module: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return file.getbuffer().nbytes


def test_everything_about_a_small_network() -> None:
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2, bias=False))
    net[2].requires_grad_(False)
    footprint = profile_module(net, input_shape=(4,), batch_sizes=(1, 4), **QUICK)
    assert footprint.name == "Sequential"
    assert footprint.parameters == 32 + 16 + 16
    assert footprint.trainable_parameters == 32 + 16
    assert footprint.bytes == 4 * (64 + 16) + 8  # running mean and variance, and the int64 count of batches
    assert footprint.bytes_on_disk == size_of_saved(net)
    assert (footprint.macs, footprint.flops) == (48, 96)
    assert footprint.uncounted == ()
    assert footprint.input_shape == (4,)
    assert footprint.peak_memory_bytes == footprint.bytes + 4 * (4 + 8 + 8)
    assert [latency.batch_size for latency in footprint.latencies] == [1, 4]


def test_the_first_sample_of_an_example_is_measured() -> None:
    many, one = (profile_module(nn.Linear(4, 2), torch.zeros(n, 4), batch_sizes=()) for n in (16, 1))
    assert many == one


def test_a_name_and_conditions_are_passed_on() -> None:
    footprint = profile_module(nn.Linear(4, 2), input_shape=[4], name="student", threads=1, precision="bf16", **QUICK)
    assert footprint.name == "student"
    (latency,) = footprint.latencies
    assert (latency.threads, latency.precision, latency.warmup) == (1, "bf16-mixed", 1)


def test_several_inputs_may_come_by_name() -> None:
    inputs = {"input1": torch.zeros(3, 4), "input2": torch.zeros(3, 5)}
    footprint = profile_module(nn.Bilinear(4, 5, 2), inputs, batch_sizes=(2,), **QUICK)
    assert footprint.uncounted == ("Bilinear",)
    assert footprint.input_shape == (4,)


def test_half_precision_weights_get_an_input_of_their_kind() -> None:
    footprint = profile_module(nn.Linear(4, 2, bias=False).bfloat16(), input_shape=(4,), **QUICK)
    assert footprint.bytes == 16
    assert footprint.latencies[0].precision == "bf16-true"


def test_a_compiled_module_has_the_footprint_of_the_module() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    compiled = profile_module(torch.compile(net, backend="eager"), input_shape=(4,), batch_sizes=())
    assert compiled == profile_module(net, input_shape=(4,), batch_sizes=())
    assert profile_module(torch.compile(net, backend="eager"), input_shape=(4,), **QUICK).latencies[0].p50_ms > 0


@pytest.mark.parametrize("inputs", [{}, {"example": torch.zeros(1, 4), "input_shape": (4,)}])
def test_exactly_one_kind_of_input_is_needed(inputs: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="either an example or an input_shape"):
        profile_module(nn.Linear(4, 2), **inputs)
