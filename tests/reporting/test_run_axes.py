"""Which number a short name means, and which way it is better."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.reporting.run_axes import more_is_better, resolve_axis
from lightning_efficient.reporting.run_records import RunRecord


def records(*keys_of_runs: str) -> list[RunRecord]:
    return [RunRecord(keys, Path(keys), dict.fromkeys(keys.split(), 1.0)) for keys in keys_of_runs]


@pytest.mark.parametrize(
    ("name", "split", "runs", "key"),
    [
        ("accuracy", None, ["test/accuracy val/accuracy"], "test/accuracy"),
        ("accuracy", None, ["val/accuracy", "val/accuracy test/accuracy"], "val/accuracy"),
        ("accuracy", None, ["val/accuracy train/accuracy", "test/accuracy"], "test/accuracy"),
        ("accuracy", "test", ["val/accuracy", "val/accuracy test/accuracy"], "test/accuracy"),
        ("accuracy", "val", ["test/accuracy val/accuracy"], "val/accuracy"),
        ("aurc", None, ["selective/val_aurc"], "selective/val_aurc"),
        ("val/accuracy", "test", ["test/accuracy val/accuracy"], "val/accuracy"),
        ("macs", None, ["profile/macs pruning/macs"], "profile/macs"),
        ("macs", None, ["pruning/macs"], "pruning/macs"),
        ("latency_ms_p50", None, ["profile/latency_ms_p50_b1 profile/latency_ms_p50_b8"], "profile/latency_ms_p50_b1"),
        ("latency_ms", None, ["profile/latency_ms_p50_b1"], "profile/latency_ms_p50_b1"),
        ("energy_mj", None, ["energy/energy_mj"], "energy/energy_mj"),
    ],
    ids=[
        "test", "more_have", "as_many", "asked_test", "asked_val", "selective", "a_key",
        "profile", "elsewhere", "batch", "median", "file",
    ],
)  # fmt: skip
def test_a_short_name_means_one_key_for_all_runs(name: str, split: str | None, runs: list[str], key: str) -> None:
    assert resolve_axis(name, records(*runs), split) == key


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        ("acuracy", None, "no run has an axis 'acuracy'. Did you mean 'accuracy'"),
        ("accuracy", "test", "no run has an axis 'accuracy' of the split 'test'"),
        ("macs", None, "axis 'macs' can mean pruning/macs, quantization/macs; give one of these"),
        ("zzz", None, "Of the axes all have pruning/macs, val/accuracy$"),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_all_runs_have(name: str, split: str | None, says: str) -> None:
    runs = records("val/accuracy pruning/macs train/loss", "val/accuracy pruning/macs quantization/macs train/loss")
    with pytest.raises(ConfigurationError, match=says):
        resolve_axis(name, runs, split)


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("test/accuracy", True),
        ("selective/val_coverage_at_risk_0.01", True),
        ("selective/val_risk_at_coverage_0.9", False),
        ("profile/throughput_b1", True),
        ("profile/latency_ms_p50_b1", False),
        ("profile/bytes_on_disk", False),
        ("profile/peak_memory_bytes", False),
        ("val/calibration_error", False),
        ("energy/energy_mj", False),
        ("pruning/sparsity", True),
        ("pruning/macs/left", False),
        ("pruning/latency_ms/b1/pruned", False),
        ("energy/steps", None),
        ("accuracy", True),
    ],
)
def test_the_first_word_that_says_so_tells_which_way_is_better(key: str, more: bool | None) -> None:
    assert more_is_better(key) is more
