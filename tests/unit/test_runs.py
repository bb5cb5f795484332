"""Streams of zlib's format that are made of runs, read by zlib itself."""

import zlib

import numpy as np
import pytest

from flambeau.answers import runs

ONE_IN = [1, 2, 5, 300, 5000]
"""The longest run of each kind: only bytes, matches that are cut short, and whole matches."""


@pytest.mark.parametrize("longest", ONE_IN)
@pytest.mark.parametrize("bytes_", [2, 3, 256])
def test_zlib_reads_what_was_given(longest: int, bytes_: int) -> None:
    random = np.random.default_rng(longest + bytes_)
    for count in (1, 2, 50, 2000):
        values = np.cumsum(random.integers(1, bytes_, count)).astype(np.uint64) % bytes_
        lengths = random.integers(1, longest + 1, count)
        data = np.repeat(values.astype(np.uint8), lengths)
        assert zlib.decompress(runs.packed_runs(values.astype(np.uint8), lengths)) == data.tobytes()
        assert zlib.decompress(runs.packed(data)) == data.tobytes()


@pytest.mark.long
@pytest.mark.parametrize("length", [*range(1, 300), 515, 516, 517, 518, 519, 12_000_000])
def test_runs_of_every_length(length: int) -> None:
    data = np.full(length, 7, np.uint8)
    assert zlib.decompress(runs.packed_runs(data[:1], np.array([length]))) == data.tobytes()


def test_a_code_that_would_be_too_deep_is_made_flatter() -> None:
    """Bytes as often as Fibonacci's numbers make the deepest code there is; 21 of them are deeper than 13 bits."""
    often = [1, 1]
    while len(often) < 21:
        often.append(often[-1] + often[-2])
    values = np.repeat(np.arange(21, dtype=np.uint8), often)
    data = np.stack([values, np.full_like(values, 99)], 1).ravel()
    lengths = np.ones(len(data), np.int64)
    lengths[-1] = runs._SHORT * len(data)  # else zlib makes the stream
    packed = runs.packed_runs(data, lengths)
    assert zlib.decompress(packed) == np.repeat(data, lengths).tobytes()


def test_a_mask_of_twelve_megapixels_is_smaller_than_zlibs() -> None:
    rows, columns = np.ogrid[:3000, :4000]
    disc = ((rows - 1500) ** 2 + (columns - 2000) ** 2 < 900**2).view(np.uint8).ravel()
    packed = runs.packed(disc)
    assert zlib.decompress(packed) == disc.tobytes()
    assert len(packed) < len(zlib.compress(disc.data, 3)) / 3
