from __future__ import annotations

import dataclasses
import json

import pytest

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling import Footprint, Latency
from lightning_efficient.profiling.layers import LayerCost
from lightning_efficient.profiling.training_memory import TrainingMemory
from lightning_efficient.profiling.variant_costs import VariantComparison, VariantCost, VariantTime


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


@pytest.fixture
def full(footprint: Footprint) -> Footprint:
    """A footprint with all that may be asked for."""
    timing = VariantTime(8, 1.0, 0.5, 0.4, 0.6, 10)
    return dataclasses.replace(
        footprint,
        layers=(LayerCost("gate", "Bilinear", 30, 12, (2,), 80, 40),),
        read_bytes=80,
        written_bytes=40,
        training=TrainingMemory(8, 500, "live tensors", 200, 48, 96),
        variants=VariantComparison((VariantCost("float"), VariantCost("bf16", (timing,), 450, 0.01)), 2, "cpu", ("x",)),
        energy_mj=1.5,
        left_out=("x",),
        processor="a processor",
    )


def test_a_full_record_survives_json_too(full: Footprint) -> None:
    assert Footprint.from_dict(json.loads(json.dumps(full.to_dict()))) == full
    assert isinstance(hash(full), int)


def test_json_of_an_older_version_is_still_read(footprint: Footprint) -> None:
    new = ("layers", "read_bytes", "written_bytes", "training", "variants", "energy_mj", "left_out", "processor")
    old = {key: value for key, value in footprint.to_dict().items() if key not in new}
    assert Footprint.from_dict(json.loads(json.dumps(old))) == footprint


def test_fields_that_no_version_has_are_told(footprint: Footprint) -> None:
    with pytest.raises(ConfigurationError, match="a footprint has no joules, surgery"):
        Footprint.from_dict(footprint.to_dict() | {"surgery": [], "joules": 1})


def test_what_is_new_has_keys_of_its_own(footprint: Footprint, full: Footprint) -> None:
    assert full.arithmetic_intensity == 60 / 120
    assert footprint.arithmetic_intensity is None
    assert full.scalars() == footprint.scalars() | {
        "read_bytes": 80,
        "written_bytes": 40,
        "arithmetic_intensity": 0.5,
        "energy_mj": 1.5,
        "training_peak_bytes": 500,
        "training_saved_bytes": 200,
        "time_ratio_bf16_b8": 0.5,
    }
    assert full.columns == footprint.columns
    assert full.rows() == footprint.rows()


def test_the_first_number_of_threads_keeps_the_plain_names(footprint: Footprint) -> None:
    more = dataclasses.replace(footprint.latencies[0], threads=4, p50_ms=0.2)
    scalars = dataclasses.replace(footprint, latencies=(*footprint.latencies, more)).scalars()
    assert (scalars["latency_ms_p50_b1"], scalars["latency_ms_p50_b1_t4"]) == (0.5, 0.2)
