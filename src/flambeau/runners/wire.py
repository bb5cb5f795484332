"""What the front and a worker say to each other: binary frames over a socketpair. Never pickle.

A frame is a header and a body. The header carries the worker's generation and the batch's id; a frame whose pair does
not match is dropped. A body is MessagePack of a closed set of structs, the answers and those below, followed by the
items' payload bytes as they came from the client: these are sent from where they lie and are not copied into the body.

This module turns values into bytes and back. It owns no socket.
"""

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from flambeau.answers import WireAnswer
from flambeau.errors import Code, FlambeauError, RequestError
from flambeau.runners.base import BatchCost
from flambeau.types import Item, Options, Outcome, Payload, Timings

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

_HEADER = struct.Struct(
    "<2sB?IQII"
)  # magic, kind, wide, generation, batch id, bytes of the body, bytes of the payloads
_MAGIC = b"fb"
HEADER_SIZE = _HEADER.size
LARGEST_BODY = 256 * 1024 * 1024
"""Bytes of a frame's body, and of the payloads of a batch of several items; one item may be larger alone."""

LARGEST_PAYLOADS = 1 << 30
"""Bytes; the most that `--max-body-bytes` can be. A longer frame is refused before anything is allocated."""


class FrameError(FlambeauError):
    """The other side sent what is not a frame: it cannot be trusted any more."""


class FrameKind(enum.IntEnum):
    """What a frame is. The front sends BATCH; a worker READY or FAILED once, and then ANSWER."""

    BATCH = 1
    READY = 2
    FAILED = 3
    ANSWER = 4


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of a frame. Sizes are bytes. `wide`: the batch is alone on the machine, and may have its cores."""

    kind: FrameKind
    generation: int
    batch: int
    body: int
    payloads: int
    wide: bool = False


class Ready(msgspec.Struct, frozen=True):
    """The replica is warm, on that device, and costs so much where it was measured."""

    device: str
    cost: BatchCost | None = None


class Failed(msgspec.Struct, frozen=True):
    """The replica cannot start. `error` is the name of a class in `flambeau.errors`."""

    error: str
    message: str


class _WireItem(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    seconds_left: float
    top_k: int
    threshold: float | None
    probabilities: bool


class _WireError(msgspec.Struct, frozen=True, array_like=True, tag=3):
    message: str
    code: Code
    hint: str | None


class _WireOutcome(msgspec.Struct, frozen=True, array_like=True):
    result: WireAnswer | _WireError
    timings: tuple[float, float, float, float]


_ENCODER = msgspec.msgpack.Encoder()
_ITEMS = msgspec.msgpack.Decoder(list[_WireItem])
_OUTCOMES = msgspec.msgpack.Decoder(list[_WireOutcome])
_READY = msgspec.msgpack.Decoder(Ready)
_FAILED = msgspec.msgpack.Decoder(Failed)


def pack_header(header: Header) -> bytes:
    """The bytes of a header."""
    return _HEADER.pack(_MAGIC, header.kind, header.wide, header.generation, header.batch, header.body, header.payloads)


def unpack_header(data: Buffer) -> Header:
    """Read a header of `HEADER_SIZE` bytes. Raises `FrameError`."""
    if len(data) != HEADER_SIZE:
        raise FrameError(f"a header has {HEADER_SIZE} bytes, and not {len(data)}")
    magic, kind, wide, generation, batch, body, payloads = _HEADER.unpack(data)
    if magic != _MAGIC or kind not in FrameKind._value2member_map_:
        raise FrameError("the frame does not begin as one")
    if body > LARGEST_BODY or payloads > LARGEST_PAYLOADS:
        raise FrameError(f"the frame is longer than {LARGEST_BODY} bytes")
    return Header(FrameKind(kind), generation, batch, body, payloads, wide)


def pack_batch(generation: int, batch: int, items: Sequence[tuple[Item, float]], *, wide: bool = False) -> list[Buffer]:
    """A batch as buffers to be sent one after the other. With each item goes how many seconds it has left."""
    wire = [
        _WireItem(
            item.payload.kind,
            len(item.payload.data),
            seconds_left,
            item.options.top_k,
            item.options.threshold,
            item.options.probabilities,
        )
        for item, seconds_left in items
    ]
    body = _ENCODER.encode(wire)
    size = sum(each.size for each in wire)
    header = pack_header(Header(FrameKind.BATCH, generation, batch, len(body), size, wide))
    return [header + body, *(item.payload.data for item, _ in items)]


def unpack_batch(body: Buffer, payloads: memoryview) -> list[tuple[Item, float]]:
    """The items of a batch with the seconds each has left. Payloads are views into `payloads`. Raises `FrameError`."""
    wire = _decode(_ITEMS, body)
    items: list[tuple[Item, float]] = []
    start = 0
    for each in wire:
        if each.kind not in ("file", "json", "document"):
            raise FrameError(f"there is no payload of kind {each.kind!r}")
        payload = Payload(each.kind, payloads[start : start + each.size])  # type: ignore[arg-type]
        items.append((Item(payload, Options(each.top_k, each.threshold, each.probabilities)), each.seconds_left))
        start += each.size
    if start != len(payloads):
        raise FrameError(f"the payloads have {len(payloads)} bytes, and the items ask for {start}")
    return items


def pack_outcomes(generation: int, batch: int, outcomes: Sequence[Outcome]) -> bytes:
    """The outcomes of a batch as one frame."""
    return _pack(FrameKind.ANSWER, generation, batch, [_wire_outcome(outcome) for outcome in outcomes])


def unpack_outcomes(body: Buffer) -> list[Outcome]:
    """The outcomes of a batch, in order. Raises `FrameError`."""
    return [_outcome(each) for each in _decode(_OUTCOMES, body)]


def pack_ready(generation: int, ready: Ready) -> bytes:
    """The frame of a replica that is warm."""
    return _pack(FrameKind.READY, generation, 0, ready)


def pack_failed(generation: int, failed: Failed) -> bytes:
    """The frame of a replica that cannot start."""
    return _pack(FrameKind.FAILED, generation, 0, failed)


def unpack_start(kind: FrameKind, body: Buffer) -> Ready | Failed:
    """The first frame of a worker. Raises `FrameError`."""
    if kind is FrameKind.READY:
        return _decode(_READY, body)
    if kind is FrameKind.FAILED:
        return _decode(_FAILED, body)
    raise FrameError(f"the worker's first frame is {kind.name}")


def _pack(kind: FrameKind, generation: int, batch: int, value: object) -> bytes:
    body = _ENCODER.encode(value)
    return pack_header(Header(kind, generation, batch, len(body), 0)) + body


def _decode(decoder: msgspec.msgpack.Decoder[T], body: Buffer) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # the last: arrays nested without end
        raise FrameError(f"the body cannot be read: {error}") from error


def _wire_outcome(outcome: Outcome) -> _WireOutcome:
    timings = outcome.timings
    seconds = (timings.queue, timings.preprocess, timings.inference, timings.postprocess)
    result = outcome.result
    if isinstance(result, RequestError):
        return _WireOutcome(_WireError(result.message, result.code, result.hint), seconds)
    assert isinstance(result, WireAnswer)  # payloads of kind `value` stay in their process
    return _WireOutcome(result, seconds)


def _outcome(wire: _WireOutcome) -> Outcome:
    result = wire.result
    if isinstance(result, _WireError):
        return Outcome(RequestError(result.message, code=result.code, hint=result.hint), Timings(*wire.timings))
    return Outcome(result, Timings(*wire.timings))
