"""The protocol between front and worker: binary frames over a socketpair. Never pickle.

A frame is a header and a body. The header carries the worker's generation and the batch's id; a frame whose pair does
not match is dropped. A body is MessagePack of a closed set of structs: those of `flambeau.types` and the answers of
`flambeau.tasks`. The items' payload bytes, as the client sent them, are not in the body, which holds only their sizes:
they lie in the worker's arena (`flambeau.runners.arena`), or come after the body if they are few, or too many for it.

This module turns values into bytes and back. It owns no socket.
"""

import enum
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import force_setattr

from flambeau.errors import Code, FlambeauError, RequestError
from flambeau.items import check_packed
from flambeau.runners.base import Batch, Loss, ReplicaInfo, Work
from flambeau.tasks import ANSWERS
from flambeau.types import Item, Outcome, Payload

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

_HEADER = struct.Struct("<2sBBIQII")  # magic, kind, flags, generation, batch id, bytes of the body and of the payloads
_WIDE, _IN_ARENA = 1, 2  # the flags
_MAGIC = b"fb"
HEADER_SIZE = _HEADER.size
LARGEST_BODY = 256 * 1024 * 1024
"""Most bytes of a frame's body. The payloads that follow it have a limit of their own."""

LARGEST_PAYLOADS = 1 << 30
"""Most bytes of a batch's payloads, and the maximum of `--max-body-bytes`. A longer frame is refused before anything is
allocated."""


class FrameError(FlambeauError):
    """The other side sent something that is no frame: it cannot be trusted any more."""


class FrameKind(enum.IntEnum):
    """The kind of a frame. The front sends BATCH; a worker sends READY or FAILED once, and then ANSWER.

    A host on another node, which has a worker, answers for it, and sends LOST where the worker gave no answer.
    """

    BATCH = 1
    READY = 2
    FAILED = 3
    ANSWER = 4
    LOST = 5


class Header(msgspec.Struct, frozen=True, gc=False):
    """The fixed part of a frame. Sizes are bytes. `wide`: the batch has the machine to itself and may use all cores.

    `in_arena`: the payloads are in the worker's arena, and none follow.
    """

    kind: FrameKind
    generation: int
    batch: int
    body: int
    payloads: int
    wide: bool = False
    in_arena: bool = False


class Failed(msgspec.Struct, frozen=True):
    """The replica cannot start. `error` is the name of a class in `flambeau.errors`."""

    error: str
    message: str


class LostBatch(msgspec.Struct, frozen=True):
    """A batch that a host's worker was lost over. `losses`: how many batches the host has reported lost by now."""

    how: Loss
    losses: int


class Failure(msgspec.Struct, frozen=True, array_like=True, tag="error"):
    """A `RequestError` as it is sent."""

    message: str
    code: Code
    hint: str | None

    @classmethod
    def of(cls, error: object) -> "Failure":
        """Encode a `RequestError`, the only value here that is no struct."""
        if not isinstance(error, RequestError):
            raise NotImplementedError(f"a {type(error).__name__} does not travel")
        return cls(error.message, error.code, error.hint)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=Failure.of)
_WORK = msgspec.msgpack.Decoder(list[Work])
_OUTCOMES = msgspec.msgpack.Decoder(list[Outcome[ANSWERS | Failure]])
_READY = msgspec.msgpack.Decoder(ReplicaInfo)
_FAILED = msgspec.msgpack.Decoder(Failed)
_LOST = msgspec.msgpack.Decoder(LostBatch)


def pack_header(header: Header) -> bytes:
    """The bytes of a header."""
    flags = _WIDE * header.wide + _IN_ARENA * header.in_arena
    return _HEADER.pack(_MAGIC, header.kind, flags, header.generation, header.batch, header.body, header.payloads)


def unpack_header(data: Buffer) -> Header:
    """Read a header of `HEADER_SIZE` bytes. Raises `FrameError`."""
    if len(data) != HEADER_SIZE:
        raise FrameError(f"a header has {HEADER_SIZE} bytes, and not {len(data)}")
    magic, kind, flags, generation, batch, body, payloads = _HEADER.unpack(data)
    if magic != _MAGIC or kind not in FrameKind._value2member_map_:
        raise FrameError("the frame does not begin as one")
    for size, most in ((body, LARGEST_BODY), (payloads, LARGEST_PAYLOADS)):
        if size > most:
            raise FrameError(f"the frame has a part of {size} bytes: the most is {most}")
    return Header(FrameKind(kind), generation, batch, body, payloads, bool(flags & _WIDE), bool(flags & _IN_ARENA))


def pack_batch(
    generation: int, batch: int, works: Batch, *, wide: bool = False, arena: range = range(0)
) -> list[Buffer]:
    """A batch as buffers, to be sent one after the other: the first is the frame's header and body, then payloads.

    Payloads of so many bytes in all as `arena` names go into the worker's arena instead, one after the other.
    """
    buffers: list[Buffer] = [b""]
    sizes = 0
    sent: list[Work] = []
    for work in works:
        item = work.item
        payload = item.payload
        buffers.append(payload.data)
        size = len(payload.data)
        sizes += size
        sent.append(Work(Item(Payload(payload.kind, size, payload.arrays), item.options), work.seconds_left))
    body = _ENCODER.encode(sent)
    header = Header(FrameKind.BATCH, generation, batch, len(body), sizes, wide, sizes in arena)
    buffers[0] = pack_header(header) + body
    return buffers


def unpack_batch(body: Buffer, payloads: memoryview) -> list[Work]:
    """The items of a batch with the seconds each has left. Payloads are views into `payloads`. Raises `FrameError`."""
    works = _decode(_WORK, body)
    start = 0
    for work in works:
        payload = work.item.payload
        if payload.kind == "value":
            raise FrameError("there is no payload of kind 'value' between processes")
        if type(payload.data) is not int or payload.data < 0:
            raise FrameError("the size of a payload is no number of bytes")
        _check_arrays(payload)
        end = start + payload.data
        force_setattr(payload, "data", payloads[start:end])
        start = end
    if start != len(payloads):
        raise FrameError(f"the payloads have {len(payloads)} bytes, and the items ask for {start}")
    return works


def _check_arrays(payload: Payload) -> None:
    """Raise `FrameError` unless the declared arrays match the payload's bytes."""
    if payload.kind != "tensors":
        if payload.arrays:
            raise FrameError(f"a payload of kind {payload.kind!r} has no arrays")
        return
    try:
        check_packed(payload.arrays, payload.data)
    except ValueError as error:
        raise FrameError(f"the arrays of a payload are none: {error}") from error


def pack_outcomes(generation: int, batch: int, outcomes: Sequence[Outcome]) -> bytes:
    """The outcomes of a batch as one frame."""
    return _pack(FrameKind.ANSWER, generation, batch, outcomes)


def unpack_outcomes(body: Buffer) -> list[Outcome]:
    """The outcomes of a batch, in order. Raises `FrameError`."""
    outcomes: list[Outcome[Any]] = _decode(_OUTCOMES, body)
    for outcome in outcomes:
        failure = outcome.result
        if type(failure) is Failure:
            force_setattr(outcome, "result", RequestError(failure.message, code=failure.code, hint=failure.hint))
    return outcomes


def pack_ready(generation: int, ready: ReplicaInfo) -> bytes:
    """The frame that says a replica is warm."""
    return _pack(FrameKind.READY, generation, 0, ready)


def pack_failed(generation: int, failed: Failed) -> bytes:
    """The frame that says a replica cannot start."""
    return _pack(FrameKind.FAILED, generation, 0, failed)


def pack_lost(generation: int, batch: int, lost: "LostBatch") -> bytes:
    """The frame that says a batch has no answer."""
    return _pack(FrameKind.LOST, generation, batch, lost)


def unpack_lost(body: Buffer) -> "LostBatch":
    """Why a batch has no answer. Raises `FrameError`."""
    return _decode(_LOST, body)


def unpack_start(kind: FrameKind, body: Buffer) -> ReplicaInfo | Failed:
    """Read the first frame of a worker. Raises `FrameError`."""
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
