"""What is packed comes back as it was, and nothing else gets through."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.inference._wire import MAX_HEADER_BYTES, VERSION, WireError, check_rows, pack, unpack

ROWS = torch.arange(12, dtype=torch.float32).reshape(2, 1, 2, 3)
LIMIT = 1_000_000


def message(header: Any, numbers: bytes = b"", magic: bytes = b"LEFX", version: int = VERSION) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<4sHI", magic, version, len(text)) + text + numbers


def a_header(**changes: Any) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [1, 2], "encoding": "raw"} | changes


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_a_tensor_comes_back_with_its_dtype_and_its_fields(dtype: torch.dtype, compress: bool) -> None:
    rows, header = unpack(pack(ROWS.to(dtype), compress=compress, deadline_ms=20.5), max_bytes=LIMIT)
    assert rows.dtype == dtype
    assert torch.equal(rows, ROWS.to(dtype))
    assert header["deadline_ms"] == 20.5


def test_numbers_that_are_not_finite_travel() -> None:
    logits = torch.tensor([[float("nan"), float("inf"), -float("inf")]])
    assert torch.equal(unpack(pack(logits), max_bytes=LIMIT)[0], logits) is False  # nan is not equal to itself
    assert torch.equal(unpack(pack(logits), max_bytes=LIMIT)[0].nan_to_num(), logits.nan_to_num())


def test_a_strided_tensor_with_a_gradient_travels() -> None:
    rows = ROWS.clone().requires_grad_().transpose(2, 3)
    assert torch.equal(unpack(pack(rows), max_bytes=LIMIT)[0], rows.detach())


def test_what_comes_back_can_be_written_to() -> None:
    rows, _ = unpack(pack(ROWS), max_bytes=LIMIT)
    rows += 1
    assert torch.equal(rows, ROWS + 1)


def test_compression_makes_zeros_small() -> None:
    zeros = torch.zeros(100, 100)
    assert len(pack(zeros, compress=True)) < len(pack(zeros)) / 50


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.bool)])
def test_another_dtype_is_not_packed(tensor: Tensor) -> None:
    with pytest.raises(WireError, match=r"only \['float16', 'float32', 'uint8'\] travel"):
        pack(tensor)


def test_a_header_that_no_one_would_read_is_not_packed() -> None:
    with pytest.raises(WireError, match=f"at most {MAX_HEADER_BYTES}"):
        pack(ROWS, note="x" * MAX_HEADER_BYTES)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "0 bytes and no header"),
        (b"garbage, and more of it", 400, "does not begin"),
        (message(a_header(), bytes(8), magic=b"LEFY"), 400, "does not begin"),
        (message(a_header(), bytes(8), version=2), 400, f"version 2; this side speaks {VERSION}"),
        (message(a_header(), bytes(8))[:20], 400, "longer than the message"),
        (message(b" " * (MAX_HEADER_BYTES + 1)), 400, "longer than the message"),
        (message(b"{"), 400, "no JSON"),
        (message(b"\xff\xfe"), 400, "no JSON"),
        (message(b"[" * 4000), 400, "no JSON"),
        (message([1]), 400, "no JSON object"),
        (message(a_header(dtype="float64"), bytes(16)), 422, "dtype='float64' is not one of"),
        (message(a_header(dtype=["float32"]), bytes(8)), 422, "is not one of"),
        (message(a_header(encoding="gzip"), bytes(8)), 422, "encoding='gzip' is not one of"),
        (message(a_header(encoding={}), bytes(8)), 422, "encoding={} is not one of"),
        (message(a_header(shape=[]), bytes(4)), 422, "not a list of 1 to 8 sizes"),
        (message(a_header(shape=[1] * 9), bytes(4)), 422, "not a list of 1 to 8 sizes"),
        (message(a_header(shape=[True, 2]), bytes(8)), 422, "not a list of 1 to 8 sizes"),
        (message(a_header(shape=[-1, -2]), bytes(8)), 422, "not a list of 1 to 8 sizes"),
        (message(a_header(shape=[1.0, 2]), bytes(8)), 422, "not a list of 1 to 8 sizes"),
        (message(a_header(shape=[2**30, 2**30])), 413, "at most 1000000 are taken"),
        (message(a_header(shape=[0, *[2**31 - 1] * 7])), 422, "is too large"),
        (message(a_header(shape=[5, 0, 2**31 - 1])), 422, "has a 0 beyond the first size"),
        (message(a_header(), bytes(7)), 400, "has 8 bytes, but the message holds 7"),
        (message(a_header(), bytes(9)), 400, "has 8 bytes, but the message holds 9"),
        (message(a_header(encoding="zlib"), b"nothing"), 400, "no zlib stream"),
        (message(a_header(encoding="zlib"), zlib.compress(bytes(7))), 400, "but the message holds 7"),
        (message(a_header(encoding="zlib"), zlib.compress(bytes(8))[:-7]), 400, "but the message holds"),
    ],
)
def test_what_is_no_message_is_refused_in_one_line(body: bytes, status: int, says: str) -> None:
    with pytest.raises(WireError) as caught:
        unpack(body, max_bytes=LIMIT)
    assert caught.value.status == status
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_small_message_of_many_zeros_is_not_blown_up() -> None:
    bomb = message(a_header(encoding="zlib"), zlib.compress(bytes(50_000_000)))
    with pytest.raises(WireError, match="the message holds 9"):  # one byte more than the 8 announced
        unpack(bomb, max_bytes=LIMIT)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_message_with_a_changed_byte_is_refused_or_is_another_tensor_of_the_announced_size(
    data: st.DataObject,
) -> None:
    body = bytearray(pack(ROWS, compress=data.draw(st.booleans())))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        rows, _ = unpack(bytes(body), max_bytes=LIMIT)
    except WireError:
        return
    assert rows.numel() * rows.itemsize <= 48


# ---- rows


def check(rows: Tensor, dtype: str = "float32") -> None:
    check_rows(rows, shape=(1, 2, 3), dtype=dtype, max_rows=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_of_floats_that_the_model_takes_pass(dtype: torch.dtype) -> None:
    check(ROWS.to(dtype))
    check(ROWS.repeat(2, 1, 1, 1))


@pytest.mark.parametrize(
    ("rows", "status", "says"),
    [
        (ROWS.to(torch.uint8), 422, "the rows are uint8; this model takes float32 or float16"),
        (ROWS[:, 0], 422, "a row has shape (2, 3); this model takes (1, 2, 3)"),
        (ROWS.transpose(2, 3), 422, "a row has shape (1, 3, 2)"),
        (ROWS[:0], 422, "no rows"),
        (ROWS.repeat(3, 1, 1, 1), 413, "6 rows; at most 4"),
        (torch.where(ROWS == 7, torch.nan, ROWS), 422, "row 1 holds numbers that are not finite"),
        (torch.where(ROWS == 3, torch.inf, ROWS), 422, "row 0 holds numbers that are not finite"),
    ],
)
def test_other_rows_are_refused(rows: Tensor, status: int, says: str) -> None:
    with pytest.raises(WireError) as caught:
        check(rows)
    assert (caught.value.status, says in str(caught.value)) == (status, True)


def test_a_model_of_pixels_takes_pixels_only() -> None:
    check(ROWS.to(torch.uint8), "uint8")
    with pytest.raises(WireError, match="the rows are float32; this model takes uint8"):
        check(ROWS, "uint8")
