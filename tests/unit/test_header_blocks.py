"""HPACK beside the package hpack: what it writes is read as it meant it, and what it refuses is refused."""

import random

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman

from flambeau.grpc import header_blocks, huffman
from flambeau.grpc.header_blocks import HeaderReader

MUCH = 1 << 20
NAMES = (b":method", b":status", b"content-type", b":path", b"x-a", b"x-b", b"grpc-status")
VALUES = (b"POST", b"200", b"/a", b"", b"application/grpc", b"zz", b"y" * 300)


def fields(rng: random.Random) -> list[tuple[bytes, bytes]]:
    return [
        (rng.choice(NAMES), rng.choice((*VALUES, rng.randbytes(rng.randint(0, 90))))) for _ in range(rng.randint(0, 8))
    ]


def test_strings_are_decoded_as_they_were_encoded() -> None:
    rng = random.Random(1)
    encoder = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
    for _ in range(3000):
        text = rng.randbytes(rng.randint(0, 60))
        assert huffman.decoded(encoder.encode(text)) == text


def test_of_any_bytes_the_same_ones_are_refused() -> None:
    rng = random.Random(2)
    refused = 0
    for _ in range(20_000):
        data = rng.randbytes(rng.randint(1, 8))
        try:
            right = decode_huffman(data)
        except hpack.HPACKDecodingError:
            refused += 1
            with pytest.raises(ValueError, match="Huffman"):
                huffman.decoded(data)
            continue
        assert huffman.decoded(data) == right
    assert refused > 5000


def test_blocks_are_read_in_their_order() -> None:
    rng = random.Random(3)
    encoder, reader = hpack.Encoder(), HeaderReader(MUCH)
    for turn in range(3000):
        if turn % 97 == 0:
            encoder.header_table_size = rng.choice([0, 100, 2000, 4096])
        sent = fields(rng)
        kinds = [hpack.HeaderTuple, hpack.NeverIndexedHeaderTuple]
        block = encoder.encode([rng.choice(kinds)(*each) for each in sent], huffman=rng.random() < 0.5)
        before = reader.changes
        assert reader.read(block) == sent
        if reader.changes == before:  # what a connection relies on: it means the same again
            assert reader.read(block) == sent


@pytest.mark.long
def test_of_mutated_blocks_the_same_ones_are_refused() -> None:
    rng = random.Random(4)
    refused = 0
    for _ in range(10_000):
        block = bytearray(hpack.Encoder().encode([(b":method", b"POST"), (b"x-a", b"zz" * 9), *fields(rng)[:2]]))
        for _ in range(rng.randint(0, 3)):
            block[rng.randrange(len(block))] = rng.randrange(256)
        reader, theirs = HeaderReader(MUCH), hpack.Decoder()
        theirs.max_allowed_table_size = header_blocks.MOST_TABLE
        try:
            right = [tuple(each) for each in theirs.decode(bytes(block), raw=True)]
        except hpack.HPACKError:
            refused += 1
            with pytest.raises(ValueError, match=r"header|Huffman|table"):
                reader.read(bytes(block))
            continue
        assert reader.read(bytes(block)) == right
    assert refused > 1000


def test_more_than_may_be_is_told_and_the_table_stays_right() -> None:
    encoder, reader = hpack.Encoder(), HeaderReader(1000)
    entry = (b"x-long", b"y" * 500)
    assert reader.read(encoder.encode([entry])) == [entry]
    bomb = encoder.encode([entry] * 3)
    assert len(bomb) == 3
    assert reader.read(bomb) is None
    assert reader.read(encoder.encode([entry, (b"x", b"z")])) == [entry, (b"x", b"z")]


def test_what_is_written_is_read_by_others() -> None:
    rng = random.Random(5)
    decoder = hpack.Decoder()
    for _ in range(2000):
        sent = fields(rng)
        assert [tuple(each) for each in decoder.decode(header_blocks.written(sent), raw=True)] == sent
