"""The datatypes of KServe v2: raw bytes to arrays and back, bit for bit, and bytes that are no tensor."""

import struct
from typing import Any

import numpy as np
import pytest
import torch

from flambeau.errors import RequestError
from flambeau.protocols.v2_datatypes import NUMPY, from_bytes, narrowed, to_bytes, widened


def test_bytes_that_are_no_truth_are_refused() -> None:
    assert from_bytes("x", "BOOL", (3,), b"\x00\x01\x01", most_elements=1).tolist() == [False, True, True]  # type: ignore[union-attr]
    with pytest.raises(RequestError, match="neither 0 nor 1"):
        from_bytes("x", "BOOL", (3,), b"\x00\x02\x01", most_elements=1)


@pytest.mark.parametrize("datatype", list(NUMPY))
def test_every_datatype_comes_back_bit_for_bit(datatype: Any) -> None:
    dtype = NUMPY[datatype]
    raw = (
        np.random.default_rng(0).integers(0, 2 if datatype == "BOOL" else 256, 24 * dtype.itemsize, np.uint8).tobytes()
    )
    array = from_bytes("x", datatype, (2, 3, 4), raw, most_elements=0)
    assert isinstance(array, np.ndarray)
    assert (array.dtype, array.shape) == (dtype, (2, 3, 4))
    assert b"".join(to_bytes(datatype, array)) == raw


def test_bfloat16_is_exact_in_and_rounds_to_even_out() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    right = torch.from_numpy(every.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(widened(every), right, equal_nan=True)
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, np.uint64).astype(np.uint32)
    bits[:4] = (0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFFFFFFFF)  # ties, the largest number, a NaN
    numbers = bits.view(np.float32)
    rounded = torch.from_numpy(numbers.copy()).bfloat16().float().numpy()
    assert np.array_equal(widened(narrowed(numbers)), rounded, equal_nan=True)


def test_elements_are_cut_out_by_their_lengths() -> None:
    texts = (b"one", b"", b"\0\xff")
    raw = b"".join(to_bytes("BYTES", texts))
    assert raw == b"\3\0\0\0one\0\0\0\0\2\0\0\0\0\xff"
    found = from_bytes("x", "BYTES", (3,), raw, most_elements=3)
    assert tuple(map(bytes, found)) == texts


@pytest.mark.parametrize(
    ("shape", "raw", "says"),
    [
        ((1,), b"", "cannot be 1 elements"),
        ((1,), b"\1\0\0", "cannot be 1 elements"),
        ((1,), struct.pack("<I", 2) + b"x", "ends within its element 0"),
        ((1,), struct.pack("<I", 2**32 - 1) + b"x", "ends within its element 0"),
        ((2,), struct.pack("<I", 4) + b"four", "ends before the length of its element 1"),
        ((1,), struct.pack("<I", 1) + b"xy", "1 bytes follow"),
        ((3,), struct.pack("<3I", 0, 0, 0), "the most is 2"),
        ((2**31 - 1, 2**31 - 1), b"", "the most is 2"),
        ((0,), b"", "the size 0"),
    ],
)
def test_lengths_that_lie_are_told(shape: tuple[int, ...], raw: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        from_bytes("x", "BYTES", shape, raw, most_elements=2)
