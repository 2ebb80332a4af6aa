from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling import measure_latency
from lightning_efficient.profiling.budget import TimeBudget


class Witness(nn.Module):
    """Remembers under which conditions it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.seen: dict[str, object] = {}
        witness = self.seen

        def note(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
            witness.setdefault("batches", []).append(len(args[0]))
            witness["training"] = module.training
            witness["inference"] = torch.is_inference_mode_enabled()
            witness.setdefault("threads", set()).add(torch.get_num_threads())
            witness["dtype"] = output.dtype
            witness["inputs"] = args[0]

        self.linear.register_forward_hook(note)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@pytest.fixture
def other_threads() -> int:
    return 2 if torch.get_num_threads() == 1 else 1


def measured_conditions(**options: object) -> tuple[dict[str, object], object]:
    module, conditions = Witness(), {}
    # the module's attributes are put back afterwards, so the notes are taken out of its reach
    module.linear.register_forward_hook(lambda *_: conditions.update({**module.seen}))
    (latency,) = measure_latency(module, torch.arange(8.0).view(2, 4), min_run_time=0.01, **options)
    return conditions, latency


def test_fields_agree_with_each_other() -> None:
    one, eight = measure_latency(nn.Linear(4, 2), torch.zeros(1, 4), (1, 8), min_run_time=0.2, warmup=3)
    assert (one.batch_size, eight.batch_size) == (1, 8)
    for latency in (one, eight):
        assert 0 < latency.p50_ms <= latency.p95_ms
        assert latency.mean_ms > 0
        assert latency.throughput == pytest.approx(1000 * latency.batch_size / latency.p50_ms)
        assert latency.runs > 100  # each call is timed, or there would be no percentiles
        assert latency.warmup == 3
        assert (latency.device, latency.precision) == ("cpu", "32-true")


def test_the_module_runs_in_evaluation_and_inference_mode() -> None:
    conditions, _ = measured_conditions()
    assert conditions["training"] is False
    assert conditions["inference"] is True


def test_the_asked_number_of_threads_is_used_written_down_and_put_back(other_threads: int) -> None:
    before = torch.get_num_threads()
    conditions, latency = measured_conditions(threads=other_threads)
    assert conditions["threads"] == {latency.threads} == {other_threads}
    assert torch.get_num_threads() == before


def test_without_threads_the_current_number_is_used() -> None:
    _, latency = measured_conditions()
    assert latency.threads == torch.get_num_threads()


def test_the_first_sample_is_repeated_to_the_batch_size() -> None:
    conditions, _ = measured_conditions(batch_sizes=[3])
    assert conditions["inputs"].tolist() == [[0, 1, 2, 3]] * 3
    assert set(conditions["batches"]) == {3}


@pytest.mark.parametrize(("precision", "words"), [("bf16", "bf16-mixed"), ("bf16-mixed", "bf16-mixed")])
def test_precision_runs_under_autocast(precision: str, words: str) -> None:
    conditions, latency = measured_conditions(precision=precision)
    assert conditions["dtype"] == torch.bfloat16
    assert latency.precision == words
    assert not torch.is_autocast_enabled("cpu")


def test_without_precision_the_dtype_of_the_module_is_written_down() -> None:
    (latency,) = measure_latency(nn.Linear(4, 2).double(), torch.zeros(1, 4).double(), min_run_time=0.01)
    assert latency.precision == "64-true"


def test_a_channels_last_input_stays_channels_last() -> None:
    conv, seen = nn.Conv2d(3, 4, 3), []
    conv.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    x = torch.zeros(2, 3, 8, 8).to(memory_format=torch.channels_last)
    measure_latency(conv, x, [4], min_run_time=0.01, warmup=0)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[0].shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_sizes": (1, 0)}, "batch sizes must be 1 or more"),
        ({"threads": 0}, "threads must be 1 or more"),
        ({"threads": [1, 0]}, "threads must be 1 or more"),
        ({"min_run_time": 0}, "min_run_time must be positive"),
        ({"warmup": -1}, "warmup 0 or more"),
        ({"precision": "bf16-mixd"}, "Did you mean 'bf16-mixed'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        measure_latency(nn.Linear(4, 2), torch.zeros(1, 4), **options)


def test_several_numbers_of_threads_are_swept_and_the_old_one_put_back() -> None:
    before = torch.get_num_threads()
    found = measure_latency(nn.Linear(4, 2), torch.zeros(1, 4), (1, 2), threads=[2, 1], min_run_time=0.001)
    assert [(each.threads, each.batch_size) for each in found] == [(2, 1), (2, 2), (1, 1), (1, 2)]
    assert torch.get_num_threads() == before


class Slow(nn.Module):
    """Moves a clock on by a tenth of a second for each sample."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.notes = [clock]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.notes[0][0] += 0.1 * len(x)
        return x


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("lightning_efficient.profiling.latency.timer", lambda: now[0])
    return now


def test_a_budget_shortens_what_it_can_and_leaves_out_the_rest(clock: list[float]) -> None:
    budget = TimeBudget(2.0, clock=lambda: clock[0])
    found = measure_latency(Slow(clock), torch.zeros(1, 4), (1, 2, 8), min_run_time=9.0, budget=budget)
    assert [(each.batch_size, each.warmup) for each in found] == [(1, 2), (2, 1)]
    assert [each.runs for each in found] == [4, 3]
    assert [each.p50_ms for each in found] == pytest.approx([100, 200])
    assert budget.left_out == [f"latency at batch 8, threads {torch.get_num_threads()}: does not fit into 2 s"]
    assert clock[0] <= 2.0


def test_forward_passes_that_are_too_slow_are_run_once(clock: list[float]) -> None:
    budget = TimeBudget(1.0, clock=lambda: clock[0])
    assert measure_latency(Slow(clock), torch.zeros(1, 4), (9, 1), budget=budget) == ()
    assert clock[0] == pytest.approx(1.0)
    assert len(budget.left_out) == 2
