from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling import profile_module
from lightning_efficient.profiling.energy import EnergyCounter, EnergyReading

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


def test_layers_and_traffic_come_without_being_asked_for() -> None:
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    footprint = profile_module(net, input_shape=(4,), batch_sizes=())
    assert [(layer.name, layer.macs) for layer in footprint.layers] == [("0", 32), ("1", 0), ("2", 16)]
    assert footprint.read_bytes == 4 * ((4 + 32) + 8 + (8 + 16))
    assert footprint.written_bytes == 4 * (8 + 8 + 2)
    assert footprint.arithmetic_intensity == pytest.approx(96 / (footprint.read_bytes + footprint.written_bytes))
    assert (footprint.training, footprint.variants, footprint.energy_mj, footprint.left_out) == (None, None, None, ())


def test_training_memory_is_that_of_the_largest_batch_and_of_two_samples_at_least() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    sizes = [profile_module(net, input_shape=(4,), batch_sizes=each, training=True, **QUICK).training.batch_size
             for each in ((1,), (4, 3))]  # fmt: skip
    assert sizes == [2, 4]


def test_what_cannot_be_trained_is_left_out_with_the_reason() -> None:
    footprint = profile_module(nn.ReLU(), input_shape=(4,), batch_sizes=(), training=True)
    assert footprint.training is None
    assert footprint.left_out == ("training memory: no output of ReLU depends on a parameter that can be trained",)


def test_variants_are_compared_and_progress_is_told() -> None:
    told: list[str] = []
    footprint = profile_module(nn.Linear(4, 2), input_shape=(4,), variants=["bf16"], tell=told.append, **QUICK)
    assert [row.name for row in footprint.variants.rows] == ["float", "bf16"]
    assert "variant bf16: made and run for the first time" in told


def test_without_a_meter_there_is_no_energy_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EnergyCounter, "available", lambda self: "no counters here")
    footprint = profile_module(nn.Linear(4, 2), input_shape=(4,), batch_sizes=(), energy=True)
    assert (footprint.energy_mj, footprint.left_out) == (None, ("energy: no meter (no counters here)",))


@pytest.mark.parametrize(("joules", "expected"), [(0.25, 250.0), (None, None)])
def test_energy_is_that_of_a_sample_at_the_largest_batch(
    monkeypatch: pytest.MonkeyPatch, joules: float | None, expected: float | None
) -> None:
    seen = {}

    def measured(call: object, *, samples: int, **options: object) -> EnergyReading | None:
        seen.update(samples=samples, rows=len(call()))
        return None if joules is None else EnergyReading(joules, 1.0)

    monkeypatch.setattr(EnergyCounter, "available", lambda self: None)
    monkeypatch.setattr("lightning_efficient.profiling.profile.energy_per_call", measured)
    footprint = profile_module(nn.Linear(4, 2), input_shape=(4,), batch_sizes=(1, 6), energy=True, **QUICK)
    assert seen == {"samples": 6, "rows": 6}
    assert footprint.energy_mj == expected
    assert bool(footprint.left_out) == (expected is None)


def test_a_budget_leaves_out_what_does_not_fit_and_counts_all_the_same() -> None:
    footprint = profile_module(
        nn.Linear(4, 2), input_shape=(4,), batch_sizes=(1, 2), variants=["bf16"], training=True, time_budget_s=1e-6
    )
    assert (footprint.macs, footprint.latencies, footprint.training) == (8, (), None)
    assert [each.partition(":")[0] for each in footprint.left_out] == [
        "training memory",
        f"latency at batch 1, threads {torch.get_num_threads()}",
        f"latency at batch 2, threads {torch.get_num_threads()}",
        "variant bf16",
        "variants at batch 1",
        "variants at batch 2",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"variants": ["bf61"]}, "Did you mean 'bf16'"), ({"time_budget_s": 0}, "time_budget_s must be above 0")],
)
def test_options_that_cannot_work_are_told_first(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        profile_module(nn.Linear(4, 2), input_shape=(4,), **options)
