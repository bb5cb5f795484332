"""Bytes in long runs, compressed by the runs alone: masks and maps, whose neighbours are mostly equal.

zlib looks at every byte. Twelve million of a mask take it twenty to fifty milliseconds, and the runs of the same mask
one. So the stream (RFC 1950, RFC 1951) is put together here: of each run its first byte and then matches at distance
one, in one block with a Huffman code of its own. Every reader of zlib's format reads it. Bytes that change often are
left to zlib. Knows no pictures.
"""

import functools
import heapq
import zlib

import numpy as np
import numpy.typing as npt

_LEVEL = 3  # zlib's: its usual level takes three times as long for a few percent
_SHORT = 64  # bytes that a run has in the mean: with fewer, zlib is as fast, and needs less memory
_LONGEST = 258  # bytes of a match
_MATCHES, _END, _SYMBOLS = 257, 256, 286  # the first symbol of a match; of the block's end; how many there are
_DEEPEST = 13  # bits of a symbol: of 15 that the format allows, so that all lengths are written in 4 bits each
_CHECKED = 1 << 16  # runs whose checksum is made at a time
_PRIME = 65521  # Adler-32's
_WORD = 32  # bits

Whole = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


def packed(data: Bytes) -> bytes:
    """zlib's stream of bytes, one or more of them."""
    turns = data[1:] != data[:-1]
    if np.count_nonzero(turns) * _SHORT >= len(data):
        return zlib.compress(data.data, _LEVEL)
    begins = np.concatenate([[0], np.flatnonzero(turns) + 1])
    return _stream(data[begins], np.diff(begins, append=len(data)))


def packed_runs(values: Bytes, lengths: Whole) -> bytes:
    """zlib's stream of bytes that are given as runs, one or more of them, none empty and each unlike the next."""
    if len(lengths) * _SHORT >= lengths.sum():
        return zlib.compress(np.repeat(values, lengths).data, _LEVEL)
    return _stream(values, lengths)


def _stream(values: Bytes, lengths: Whole) -> bytes:
    """Two bytes of header, the only block, and the checksum."""
    return b"".join([b"\x78\x5e", _block(values, lengths), _adler(values, lengths).to_bytes(4, "big")])


def _block(values: Bytes, lengths: Whole) -> bytes:
    """Of each run its byte; what is left of it after whole matches, which is a match if it has three bytes, else one
    or two bytes more; and the whole matches."""
    many, rest = np.divmod(lengths - 1, _LONGEST)
    symbol_of, more_of, more_bits_of = _match_lengths()
    symbols = np.empty((len(values), 5), np.int64)
    symbols[:, :3] = values[:, None]
    symbols[:, 3] = symbol_of[rest]
    symbols[:, 4] = _SYMBOLS - 1
    times = np.empty_like(symbols)
    times[:, 0] = 1
    times[:, 1] = (rest == 1) | (rest == 2)
    times[:, 2] = rest == 2
    times[:, 3] = rest > 2
    times[:, 4] = many
    counts = np.bincount(symbols.ravel(), times.ravel(), _SYMBOLS).astype(np.int64)
    counts[_END] = 1
    sizes = _sizes(counts)
    codes = _codes(sizes)
    words, bits = codes[symbols], sizes[symbols]
    words[:, 3] |= more_of[rest] << bits[:, 3]
    bits[:, 3] += more_bits_of[rest] + 1  # and of the distance, of which there is one, the code 0
    bits[:, 4] += 1
    head_words, head_bits = _head(sizes)
    often = times.ravel()
    return _bits(
        np.concatenate([head_words, np.repeat(words.ravel(), often), codes[[_END]]]),
        np.concatenate([head_bits, np.repeat(bits.ravel(), often), sizes[[_END]]]),
    )


def _bits(words: Whole, sizes: Whole) -> bytes:
    """Numbers of so many bits each, at most 32, one after the other from the lowest bit on."""
    ends = np.cumsum(sizes)
    begins = ends - sizes
    place = begins // _WORD
    first = np.flatnonzero(np.diff(place, prepend=-1))
    sums = np.add.reduceat(words << (begins % _WORD), first)  # of those that begin in the same word
    found = np.zeros(int(ends[-1]) // _WORD + 2, np.int64)
    found[place[first]] += sums & 0xFFFFFFFF
    found[place[first] + 1] += sums >> _WORD
    return found.astype("<u4").tobytes()[: -(-int(ends[-1]) // 8)]


def _adler(values: Bytes, lengths: Whole) -> int:
    """Adler-32 of the bytes: the sum of all from 1 on, and the sum of all these sums."""
    whole = int(lengths.sum())
    low, high, begin = 1, whole, 0
    for start in range(0, len(values), _CHECKED):
        each, long = values[start : start + _CHECKED].astype(np.int64), lengths[start : start + _CHECKED]
        ends = begin + np.cumsum(long)
        low += int((each * long).sum())
        behind = (long * (whole - ends) + long * (long + 1) // 2) % _PRIME  # how often the bytes of a run are counted
        high += int((each * behind).sum())
        begin = int(ends[-1])
    return high % _PRIME << 16 | low % _PRIME


def _sizes(counts: Whole) -> Whole:
    """The bits of each symbol in the Huffman code for these counts; 0 of those that are not there."""
    while True:
        found = np.zeros(len(counts), np.int64)
        heap: list[tuple[int, int, list[int]]] = [
            (int(counts[each]), int(each), [int(each)]) for each in np.flatnonzero(counts)
        ]
        heapq.heapify(heap)
        while len(heap) > 1:
            first, _, some = heapq.heappop(heap)
            second, place, others = heapq.heappop(heap)
            found[some] += 1
            found[others] += 1
            heapq.heappush(heap, (first + second, place, some + others))
        if found.max() <= _DEEPEST:
            return found
        counts = (counts + 3) // 4  # more alike, so that the code is less deep


def _codes(sizes: Whole) -> Whole:
    """The code of each symbol, its first bit lowest (RFC 1951, 3.2.2)."""
    found, code, before = np.zeros(len(sizes), np.int64), 0, 0
    for each in sorted(np.flatnonzero(sizes).tolist(), key=lambda each: (sizes[each], each)):
        size = int(sizes[each])
        code <<= size - before
        found[each] = int(f"{code:0{size}b}"[::-1], 2)
        code, before = code + 1, size
    return found


def _head(sizes: Whole) -> tuple[Whole, Whole]:
    """The block's header, as numbers of so many bits: of the last block, with codes of its own, and the bits of each
    symbol and of two distances (RFC 1951, 3.2.7). Only the first distance is used."""
    written = [(5, 3), (_SYMBOLS - 257, 5), (1, 5), (15, 4)]
    written += [(0 if each in (14, 15, 16) else 4, 3) for each in _ORDER]
    place, ends = 0, [*np.flatnonzero(sizes).tolist(), _SYMBOLS]
    for end in ends:
        while (zeros := min(end - place, 138)) > 0:
            short = zeros < 11
            step = min(zeros, 10) if short and zeros > 2 else 1 if short else zeros
            written += [(0, 4)] if step == 1 else [_told(14), (step - 3, 3)] if short else [_told(15), (step - 11, 7)]
            place += step
        if end < _SYMBOLS:
            written.append(_told(int(sizes[end])))
            place += 1
    written += [_told(1), _told(1)]
    words, bits = np.array(written, np.int64).T
    return words, bits


_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)


def _told(number: int) -> tuple[int, int]:
    """A number of bits in the code of 4 bits for them: 0 to 13 are themselves, 14 and 15 stand for zeros."""
    return int(f"{number:04b}"[::-1], 2), 4


@functools.cache
def _match_lengths() -> tuple[Whole, Whole, Whole]:
    """By the length of a match: its symbol, the number that follows, and the bits of that (RFC 1951, 3.2.5)."""
    symbols, more, bits = (np.zeros(_LONGEST + 1, np.int64) for _ in range(3))
    begin = 3
    for place in range(28):
        count = max(place // 4 - 1, 0)
        end = min(begin + (1 << count), _LONGEST)
        symbols[begin:end] = _MATCHES + place
        more[begin:end] = np.arange(end - begin)
        bits[begin:end] = count
        begin = end
    symbols[_LONGEST] = _SYMBOLS - 1
    return symbols, more, bits
