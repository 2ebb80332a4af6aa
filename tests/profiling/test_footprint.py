from __future__ import annotations

import dataclasses
import json

import pytest

from lightning_efficient.profiling import Footprint, Latency


@pytest.fixture
def footprint() -> Footprint:
    def latency(batch_size: int, p50_ms: float) -> Latency:
        throughput = 1000 * batch_size / p50_ms
        return Latency(batch_size, p50_ms, 2 * p50_ms, 1.1 * p50_ms, throughput, 9, 5, 2, "cpu", "32-true")

    timed = latency(1, 0.5), latency(8, 2.0)
    return Footprint("net", 12, 10, 48, 900, 30, 60, ("gate",), 64, "live tensors", (3, 4), timed)


def test_json_and_back_gives_an_equal_record(footprint: Footprint) -> None:
    text = json.dumps(footprint.to_dict())
    assert Footprint.from_dict(json.loads(text)) == footprint
    assert isinstance(hash(Footprint.from_dict(json.loads(text))), int)


def test_a_record_cannot_be_changed(footprint: Footprint) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        footprint.macs = 0


def test_rows_are_one_per_batch_size_under_the_columns(footprint: Footprint) -> None:
    first, second = (dict(zip(footprint.columns, row, strict=True)) for row in footprint.rows())
    assert first["name"] == second["name"] == "net"
    assert (first["batch_size"], first["p50_ms"], first["throughput"]) == (1, 0.5, 2000)
    assert (second["batch_size"], second["p50_ms"], second["throughput"]) == (8, 2.0, 4000)
    assert second["macs"] == 30


def test_without_latencies_there_is_still_a_row(footprint: Footprint) -> None:
    (row,) = dataclasses.replace(footprint, latencies=()).rows()
    assert len(row) == len(footprint.columns)
    assert dict(zip(footprint.columns, row, strict=True))["batch_size"] is None


def test_scalars_are_flat_numbers_with_units_in_their_names(footprint: Footprint) -> None:
    assert footprint.scalars() == {
        "parameters": 12,
        "trainable_parameters": 10,
        "bytes": 48,
        "bytes_on_disk": 900,
        "macs": 30,
        "flops": 60,
        "peak_memory_bytes": 64,
        "latency_ms_p50_b1": 0.5,
        "latency_ms_p95_b1": 1.0,
        "throughput_b1": 2000,
        "latency_ms_p50_b8": 2.0,
        "latency_ms_p95_b8": 4.0,
        "throughput_b8": 4000,
    }
