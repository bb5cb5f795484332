"""Bounds what a message may cost to read, before it is read, and cuts out what need not be read.

A message of a few million empty fields is small, and takes seconds and gigabytes to read, on the loop. So of a long
`ModelInferRequest` everything but the payload of its tensors is counted first: raw contents, floats and elements of
BYTES are copied as they are, however long, and all the rest has to fit into 64 KiB. That includes whole numbers in
typed contents, which are encoded one by one: more of them go as raw contents. Raw contents themselves are not copied:
protobuf reads what is left when they are cut out. This module knows the encoding of protobuf and the numbers of a few
fields, and no values.
"""

from collections.abc import Iterator, Sequence

from flambeau.errors import RequestError

SMALL = 16 * 1024
"""Bytes: a message up to this size costs a millisecond at most, whatever is in it."""

MOST_BESIDE = 64 * 1024
"""Bytes of a message beside the payload of its tensors; and of a message that has no tensors."""

_MOST_FIELDS = 4096

_INSIDE = {("request", 5): "input", ("input", 5): "contents", ("predictions", 3): "field"}
"""The fields whose messages are looked into: of a `ModelInferRequest`, and of TorchServe's `PredictionsRequest`."""

_RAW = ("request", 7)
_PAYLOAD = frozenset({_RAW, ("contents", 6), ("contents", 7), ("contents", 8), ("field", 2)})
"""raw_input_contents; fp32_contents, fp64_contents and bytes_contents; the value of a field of `input`."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}

_NAMES = {
    "request": "inference.ModelInferRequest",
    "predictions": "org.pytorch.serve.grpc.inference.PredictionsRequest",
}


def cut(raw: bytes | memoryview) -> tuple[bytes, Sequence[memoryview]]:
    """A `ModelInferRequest` without its raw contents, and these as views of it; a short one as it is, and none.

    Raises `RequestError` for one that would cost far more to read than its tensors.
    """
    if len(raw) <= SMALL:
        return bytes(raw), ()
    walk = _walked(raw, "request")
    whole = memoryview(raw)
    return b"".join(_between(whole, walk.raw)), [whole[start:end] for _, start, end in walk.raw]


def refuse_costly(raw: bytes | memoryview) -> None:
    """Raise `RequestError` for a `PredictionsRequest` that would cost far more to read than its data."""
    if len(raw) > SMALL:
        _walked(raw, "predictions")


def _walked(raw: bytes | memoryview, kind: str) -> "_Walk":
    walk = _Walk(raw, kind)
    try:
        walk.through(0, len(raw), kind)
    except IndexError:  # it ends within a field
        raise _broken(kind) from None
    return walk


def _between(whole: memoryview, cut_out: Sequence[tuple[int, int, int]]) -> Iterator[memoryview]:
    kept = 0
    for before, _, end in cut_out:
        yield whole[kept:before]
        kept = end
    yield whole[kept:]


class _Walk:
    """A walk through the fields of one message, which counts them.

    `raw`: of each of its raw contents where the field begins, where the contents do, and where both end.
    """

    def __init__(self, raw: bytes | memoryview, kind: str) -> None:
        self.raw: list[tuple[int, int, int]] = []
        self._kind = kind
        self._raw = raw
        self._fields = 0
        self._beside = 0

    def through(self, place: int, end: int, where: str) -> None:
        """Count what lies between two places, which is a message of that kind."""
        while place < end:
            before = place
            tag, place = self._number(place)
            number, kind = tag >> 3, tag & 7
            payload = 0
            if kind == _BYTES:
                size, place = self._number(place)
                if size > end - place:
                    raise _broken(self._kind)
                if inside := _INSIDE.get((where, number)):
                    self.through(place, place + size, inside)
                    payload = size  # counted there
                elif (where, number) in _PAYLOAD:
                    payload = size
                    if (where, number) == _RAW:
                        self.raw.append((before, place, place + size))
                place += size
            elif kind == _VARINT:
                _, place = self._number(place)
            elif kind in _SIZES:
                place += _SIZES[kind]
            else:
                raise _broken(self._kind)  # groups, which the protocol has not
            self._fields += 1
            self._beside += place - before - payload
            if self._fields > _MOST_FIELDS or self._beside > MOST_BESIDE:
                raise RequestError(
                    f"the message has more than {_MOST_FIELDS} fields, or {MOST_BESIDE} bytes beside its data: "
                    "send tensors of whole numbers as raw_input_contents",
                    code="body_too_large",
                )

    def _number(self, place: int) -> tuple[int, int]:
        """A number of variable length, and the place behind it."""
        found = shift = 0
        for _ in range(10):
            byte = self._raw[place]
            place += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found, place
            shift += 7
        raise _broken(self._kind)


def _broken(kind: str) -> RequestError:
    return RequestError(f"the message is no {_NAMES[kind]}", code="bad_request")
