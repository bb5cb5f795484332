"""The frames between front and worker: what goes in comes out, and nothing else that comes in does harm.

T-14: the front treats a worker as hostile. Whatever the bytes, the decoder gives a value or raises `FrameError`, and it
allocates no more than the frame itself has a right to.
"""

import struct
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flambeau.errors import Code, RequestError
from flambeau.items import ArraySpec, DType, pack
from flambeau.runners import wire
from flambeau.runners.base import ReplicaInfo, Work
from flambeau.runners.wire import Failed, FrameError, FrameKind, Header
from flambeau.types import (
    Classification,
    Embedding,
    Item,
    Label,
    MultiLabel,
    Options,
    Outcome,
    Payload,
    RawOutputs,
    Regression,
    Scored,
    Timings,
    Value,
)

CODES: tuple[Code, ...] = Code.__args__  # type: ignore[attr-defined]
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
SIZES = st.integers(0, wire.LARGEST_BODY)
finite = st.floats(allow_nan=False)
seconds = st.floats(0, 1e6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
items = st.builds(
    Item,
    st.builds(Payload, st.sampled_from(["file", "json"]), st.binary(max_size=50)),
    st.builds(Options, st.integers(1, 1000), st.none() | finite, st.booleans()),
)
DTYPES: tuple[DType, ...] = DType.__args__  # type: ignore[attr-defined]


def made_of(names: list[str], dtype: DType, rows: int, sizes: tuple[int, ...]) -> tuple[Any, bytes]:
    specs, data = pack({name: np.ones((rows, *sizes), dtype) for name in names})
    return specs, bytes(data)


packed = st.builds(
    made_of,
    st.lists(texts, min_size=1, max_size=3, unique=True),
    st.sampled_from(DTYPES),
    st.integers(0, 3),
    st.sampled_from([(), (2,), (0, 2)]),
)
tensors = packed.flatmap(
    lambda each: st.builds(Item, st.just(Payload("tensors", each[1], each[0])), st.just(Options()))
)
works = st.builds(Work, items | tensors, finite)
scored = st.builds(Scored, st.integers(0, 10_000), st.builds(Label, texts, texts), finite)
classifications = st.builds(
    Classification,
    st.lists(scored, min_size=1, max_size=4).map(tuple),
    finite,
    st.none() | st.lists(finite, max_size=4),
)
vectors = st.lists(st.floats(width=32), min_size=1, max_size=5).map(lambda each: np.array(each, "<f4").tobytes())
labelled = st.builds(MultiLabel, st.lists(scored, min_size=1, max_size=4).map(tuple), finite, vectors)
embeddings = st.builds(Embedding, vectors)
regressions = st.sampled_from([(), (1,), (3,), (2, 2)]).flatmap(
    lambda shape: st.builds(Regression, st.just(shape), st.just(np.ones(shape, "<f8").tobytes()))
)
raw = packed.map(lambda each: RawOutputs(each[0], each[1]))
values = st.builds(Value, st.binary(max_size=50), st.integers(0, 100))
errors = st.builds(
    lambda message, code, hint: RequestError(message, code=code, hint=hint),
    texts,
    st.sampled_from(CODES),
    st.none() | texts,
)
timings = st.builds(Timings, seconds, seconds, seconds, seconds)
outcomes = st.lists(
    st.builds(Outcome, classifications | labelled | regressions | embeddings | raw | values | errors, timings),
    max_size=5,
)


def flat(outcome: Outcome) -> Any:
    """An outcome that can be compared: exceptions are equal only to themselves."""
    result = outcome.result
    if isinstance(result, RequestError):
        return result.message, result.code, result.hint, outcome.timings
    return result, outcome.timings


@given(U32, U64, st.lists(works, max_size=6))
def test_a_batch_comes_out_as_it_went_in(generation: int, batch: int, sent: list[Work]) -> None:
    frame = b"".join(wire.pack_batch(generation, batch, sent))
    header = wire.unpack_header(frame[: wire.HEADER_SIZE])
    assert (header.kind, header.generation, header.batch) == (FrameKind.BATCH, generation, batch)
    assert len(frame) == wire.HEADER_SIZE + header.body + header.payloads
    body = frame[wire.HEADER_SIZE :][: header.body]
    assert wire.unpack_batch(body, memoryview(frame)[wire.HEADER_SIZE + header.body :]) == sent


@settings(suppress_health_check=[HealthCheck.too_slow])  # of a machine that is busy
@given(U32, U64, outcomes)
def test_outcomes_come_out_as_they_went_in(generation: int, batch: int, sent: list[Outcome]) -> None:
    frame = wire.pack_outcomes(generation, batch, sent)
    header = wire.unpack_header(frame[: wire.HEADER_SIZE])
    assert header == Header(FrameKind.ANSWER, generation, batch, len(frame) - wire.HEADER_SIZE, 0)
    assert [flat(each) for each in wire.unpack_outcomes(frame[wire.HEADER_SIZE :])] == [flat(each) for each in sent]


@given(U32, texts, texts)
def test_the_first_frame_comes_out_as_it_went_in(generation: int, one: str, two: str) -> None:
    for kind, frame, sent in (
        (FrameKind.READY, wire.pack_ready(generation, ReplicaInfo(one)), ReplicaInfo(one)),
        (FrameKind.FAILED, wire.pack_failed(generation, Failed(one, two)), Failed(one, two)),
    ):
        assert wire.unpack_header(frame[: wire.HEADER_SIZE]).kind is kind
        assert wire.unpack_start(kind, frame[wire.HEADER_SIZE :]) == sent


@given(st.sampled_from(FrameKind), U32, U64, SIZES, SIZES)
def test_a_header_comes_out_as_it_went_in(
    kind: FrameKind, generation: int, batch: int, body: int, payloads: int
) -> None:
    header = Header(kind, generation, batch, body, payloads)
    assert wire.unpack_header(wire.pack_header(header)) == header


@pytest.mark.parametrize(
    "payload",
    [
        Payload("tensors", b"12345678", (ArraySpec("x", "float32", (1, 3)),)),
        Payload("tensors", b"12345678", ()),
        Payload("tensors", b"12345678", (ArraySpec("x", "float32", (-1, -2)),)),
        Payload("tensors", b"1234", (ArraySpec("x", "float32", ()),)),
        Payload("tensors", b"12345678", (ArraySpec("x", "float32", (1,)), ArraySpec("x", "float32", (1,)))),
        Payload("tensors", b"12", (ArraySpec("x", "int8", (0, 2**62)), ArraySpec("y", "int8", (2,)))),
        Payload("tensors", b"12345678", (ArraySpec("x", "object", (1,)),)),  # type: ignore[arg-type]
        Payload("tensors", b"1234", (ArraySpec("x", "float32", (1,) * 40),)),
        Payload("json", b"1", (ArraySpec("x", "int8", (1,)),)),
    ],
)
def test_arrays_that_are_not_what_is_told_are_no_frame(payload: Payload) -> None:
    sent = [Work(Item(payload, Options()), 1.0)]
    head, *data = wire.pack_batch(0, 0, sent)
    with pytest.raises(FrameError):
        wire.unpack_batch(bytes(head)[wire.HEADER_SIZE :], memoryview(b"".join(data)))


@pytest.mark.parametrize("shape", [(2, 2), (1, -1), (), (2**70,)])
def test_an_answer_whose_arrays_are_not_what_is_told_is_no_frame(shape: tuple[int, ...]) -> None:
    honest = wire.pack_outcomes(0, 0, [Outcome(RawOutputs((ArraySpec("y", "float32", (1, 1)),), b"1234"))])
    body = msgspec.msgpack.decode(honest[wire.HEADER_SIZE :])
    body[0][0][1][0][2] = [min(size, 2**63) for size in shape]
    with pytest.raises(FrameError):
        wire.unpack_outcomes(msgspec.msgpack.encode(body))


def test_the_payloads_are_not_copied() -> None:
    data = b"x" * 1000
    [_, sent] = wire.pack_batch(1, 1, [Work(Item(Payload("file", data), Options()), 1.0)])
    assert sent is data


def attempt(frame: bytes) -> None:
    """Decode a frame as both sides do. Only `FrameError` may be raised."""
    try:
        header = wire.unpack_header(frame[: wire.HEADER_SIZE])
        body = frame[wire.HEADER_SIZE :][: header.body]
        if header.kind is FrameKind.BATCH:
            wire.unpack_batch(body, memoryview(frame)[wire.HEADER_SIZE + header.body :])
        elif header.kind is FrameKind.ANSWER:
            wire.unpack_outcomes(body)
        else:
            wire.unpack_start(header.kind, body)
    except FrameError:
        pass


frames = st.one_of(
    st.lists(works, max_size=3).map(lambda sent: b"".join(wire.pack_batch(1, 2, sent))),
    outcomes.map(lambda sent: wire.pack_outcomes(1, 2, sent)),
    st.builds(lambda one: wire.pack_ready(1, ReplicaInfo(one)), texts),
    st.builds(lambda one, two: wire.pack_failed(1, Failed(one, two)), texts, texts),
)


@given(frames)
def test_no_truncation_does_harm_t14(frame: bytes) -> None:
    for length in range(len(frame)):
        attempt(frame[:length])


@pytest.mark.long
@settings(max_examples=500)
@given(frames, st.data())
def test_no_mutation_does_harm_t14(frame: bytes, data: st.DataObject) -> None:
    changed = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        # msgpack's own markers are likelier to lead somewhere than any byte
        changed[place] = data.draw(st.integers(0, 255) | st.sampled_from([0x91, 0xC4, 0xC6, 0xDB, 0xDD, 0xDF, 0xFF]))
    attempt(bytes(changed))


@settings(max_examples=300)
@given(st.sampled_from(FrameKind), st.binary(max_size=200))
def test_no_body_does_harm_t14(kind: FrameKind, body: bytes) -> None:
    attempt(wire.pack_header(Header(kind, 1, 1, len(body), 0)) + body)


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 2**32 - 1
        b"\xdd\xff\xff\xff\xff" + b"\x92" * 1000,
        b"\x91\x92\x93\xa5value\xc6\xff\xff\xff\xff",  # 4 GiB of bytes
        b"\x81\xa6device\xdb\xff\xff\xff\xff",  # a text of 4 GiB
        b"\xdf\xff\xff\xff\xff",  # a map of 2**32 - 1
        b"\x91" * 100_000,  # arrays in arrays
        b"\x82\xa6device\xa1a\xa1b" + b"\x91" * 100_000,  # the same where it is skipped
        b"\x91\x93\x93\xa5value\xc4\x01a\x00\x94" + 4 * (b"\xcb" + bytes(8)) + b"\x91" * 100_000,
        b"\x91\x92\x94\xa5error\xa1\xff\xa4none\xc0",  # no UTF-8
        b"",
    ],
)
@pytest.mark.parametrize("kind", FrameKind)
def test_a_length_that_lies_allocates_nothing_t14(kind: FrameKind, body: bytes) -> None:
    decode = {
        FrameKind.BATCH: lambda: wire.unpack_batch(body, memoryview(b"")),
        FrameKind.ANSWER: lambda: wire.unpack_outcomes(body),
    }.get(kind, lambda: wire.unpack_start(kind, body))
    tracemalloc.start()
    with pytest.raises(FrameError):
        decode()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1024 * 1024


GOOD = wire.pack_header(Header(FrameKind.ANSWER, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"xx" + GOOD[2:], "does not begin as one"),
        (GOOD[:2] + b"\0" + GOOD[3:], "does not begin as one"),
        (GOOD[:2] + b"\6" + GOOD[3:], "does not begin as one"),
        (GOOD[:-1], "has 24 bytes, and not 23"),
        (GOOD + b"\0", "has 24 bytes, and not 25"),
        (b"", "has 24 bytes"),
        (GOOD[:-8] + struct.pack("<II", wire.LARGEST_BODY + 1, 0), "the most is"),
        (GOOD[:-8] + struct.pack("<II", 0, 2**32 - 1), "the most is"),
    ],
)
def test_a_wrong_header_is_refused_before_anything_is_read_t14(data: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        wire.unpack_header(data)


@pytest.mark.parametrize("sizes", [(3, 3), (1,), (10, -5, -1), (2**62, 4), ()])
def test_payload_lengths_that_do_not_add_up_are_refused_t14(sizes: tuple[int, ...]) -> None:
    body = msgspec.msgpack.encode([((("file", size), (1, None, False)), 1.0) for size in sizes])
    with pytest.raises(FrameError):
        wire.unpack_batch(body, memoryview(b"1234"))


def test_a_payload_that_only_this_process_understands_is_refused_t14() -> None:
    body = msgspec.msgpack.encode([((("value", 4), (1, None, False)), 1.0)])
    with pytest.raises(FrameError, match="no payload of kind 'value'"):
        wire.unpack_batch(body, memoryview(b"1234"))


def test_a_classification_without_classes_and_an_unknown_code_are_refused_t14() -> None:
    zeros = (0.0, 0.0, 0.0, 0.0)
    result: tuple[object, ...]
    for result in (("classification", [], 0.5, None), ("error", "text", "no_such_code", None), ("multilabel", "x")):
        with pytest.raises(FrameError):
            wire.unpack_outcomes(msgspec.msgpack.encode([(result, zeros)]))


ONE = [0, ["0", "cat"], 0.5]


def test_what_a_hostile_answer_differs_from_is_taken() -> None:
    """Else the refusals below would prove nothing."""
    zeros = (0.0, 0.0, 0.0, 0.0)
    for result in (
        ("classification", [ONE], 0.5, None), ("error", "text", "internal", None), ("multilabel", [ONE], 0.5, bytes(4)),
        ("regression", [1], bytes(8)), ("embedding", bytes(4)), ("value", b"1"),
    ):  # fmt: skip
        assert len(wire.unpack_outcomes(msgspec.msgpack.encode([(result, zeros)]))) == 1


@pytest.mark.parametrize(
    "result",
    [
        ("multilabel", [], 0.5, bytes(4)),  # no label at all
        ("multilabel", [ONE], 0.5, b""),
        ("multilabel", [ONE], 0.5, bytes(7)),  # bytes that are no float32
        ("multilabel", [[0, ["0"], 0.5]], 0.5, bytes(4)),
        ("regression", [2], bytes(8)),  # two numbers, and there is one
        ("regression", [1], bytes(7)),
        ("regression", [-1, -1], bytes(8)),
        ("regression", [0], b""),
        ("regression", [2**62, 2**62], bytes(8)),
        ("regression", [1] * 33, bytes(8)),  # more dimensions than an array may have
        ("embedding", b""),
        ("embedding", bytes(5)),
        ("embedding", "text"),
        ("nothing", bytes(4)),
    ],
)
def test_bytes_that_are_no_array_are_refused_where_they_are_decoded_t14(result: tuple[object, ...]) -> None:
    """They would be an exception on the front's loop later, in the middle of somebody's answer."""
    with pytest.raises(FrameError):
        wire.unpack_outcomes(msgspec.msgpack.encode([(result, (0.0, 0.0, 0.0, 0.0))]))


@pytest.mark.parametrize("kind", [FrameKind.BATCH, FrameKind.ANSWER])
def test_a_worker_begins_with_one_of_two_frames_t14(kind: FrameKind) -> None:
    with pytest.raises(FrameError, match=f"first frame is {kind.name}"):
        wire.unpack_start(kind, b"\x81\xa6device\xa3cpu")


def test_what_is_packed_is_a_copy() -> None:
    """A replica in a thread computes on these bytes, and a network may write into its input."""
    array = np.ones((2, 3), np.float32)
    _, data = pack({"x": array})
    data[:] = bytes(len(data))
    assert array.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_a_lost_batch_is_told_by_a_host_and_by_no_worker() -> None:
    """Over Ray a host reports for its worker; a worker that sends such a frame is not at its start."""
    frame = wire.pack_lost(3, 7, wire.LostBatch("hung", 2))
    header = wire.unpack_header(frame[: wire.HEADER_SIZE])
    body = frame[wire.HEADER_SIZE :]
    assert (header.kind, header.generation, header.batch, header.body) == (FrameKind.LOST, 3, 7, len(body))
    assert wire.unpack_lost(body) == wire.LostBatch("hung", 2)
    with pytest.raises(FrameError, match="first frame is LOST"):
        wire.unpack_start(header.kind, body)
    with pytest.raises(FrameError, match="cannot be read"):
        wire.unpack_lost(body.replace(b"hung", b"HUNG"))
