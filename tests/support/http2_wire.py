"""A client of HTTP/2 that sends the frames that it is told to, whatever they mean."""

import socket
import struct
from collections.abc import Iterator
from typing import Self

import hpack
import pytest
from tritonclient.grpc import service_pb2

from flambeau.grpc import http2_frames as frames
from flambeau.grpc.http2_frames import ErrorCode
from tests.support.grpc_server import SERVICE, GrpcServer, message, rows

DATA, HEADERS, RST_STREAM, PING, GOAWAY = frames.DATA, frames.HEADERS, frames.RST_STREAM, frames.PING, frames.GOAWAY
END_STREAM, END_HEADERS, PADDED = frames.END_STREAM, frames.END_HEADERS, frames.PADDED
ASKED = message(rows(1)).SerializeToString()
CALL = [(":method", "POST"), (":scheme", "http"), (":path", SERVICE + "ModelInfer"), ("te", "trailers"),
        ("content-type", "application/grpc")]  # fmt: skip
"""The headers of a call, one by one."""


class Wire:
    """A client that sends what it is told to."""

    def __init__(self, server: GrpcServer, settings: dict[int, int] | None = None) -> None:
        self._socket = self.connect(server)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._came = b""
        self.raw(frames.PREFACE + frames.settings(settings or {}))

    def connect(self, server: GrpcServer) -> socket.socket:
        """A connection to the server."""
        host, _, port = server.target.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def name(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """The addresses of this end and of the server's."""
        return self._socket.getsockname(), self._socket.getpeername()

    def raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.raw(frames.head(len(payload), kind, flags, stream) + payload)

    def block(self, method: str = "ModelInfer", **more: str) -> bytes:
        given = {":method": "POST", ":scheme": "http", ":path": SERVICE + method, ":authority": "x", "te": "trailers",
                 "content-type": "application/grpc"}  # fmt: skip
        named = {name.replace("_", "-"): value for name, value in more.items()}
        found: bytes = self.encoder.encode(list((given | named).items()))
        return found

    def begin(self, stream: int = 1, **more: str) -> None:
        """A call, without its message."""
        self.send(HEADERS, END_HEADERS, stream, self.block(**more))

    def ask(self, stream: int, body: bytes = ASKED, **more: str) -> None:
        """A whole call."""
        self.begin(stream, **more)
        self.send(DATA, END_STREAM, stream, framed(body))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """What comes, until the server closes."""
        while True:
            while len(self._came) < 9 or len(self._came) < 9 + int.from_bytes(self._came[:3]):
                try:
                    more = self._socket.recv(1 << 16)
                except ConnectionResetError:
                    return
                if not more:
                    return
                self._came += more
            size = int.from_bytes(self._came[:3])
            kind, flags, stream = struct.unpack(">BBI", self._came[3:9])
            payload, self._came = self._came[9 : 9 + size], self._came[9 + size :]
            yield kind, flags, stream, payload

    def read_headers(self, block: bytes) -> dict[str, str]:
        """Every block has to be read, as the table needs it."""
        return {str(name): str(value) for name, value in self._decoder.decode(block)}

    def answer(self, stream: int) -> tuple[bytes, dict[str, str]]:
        """The message and the trailers of a call."""
        body = b""
        headers: dict[str, str] = {}
        for kind, flags, number, payload in self.frames():
            if kind == HEADERS:
                found = self.read_headers(payload)
                headers |= found if number == stream else {}
            elif kind == DATA and number == stream:
                body += payload
            elif kind == RST_STREAM and number == stream:
                return b"", {"reset": ErrorCode(int.from_bytes(payload)).name}
            elif kind == GOAWAY:
                return b"", {"goaway": ErrorCode(int.from_bytes(payload[4:8])).name}
            if number == stream and kind in (HEADERS, DATA) and flags & END_STREAM:
                return body, headers
        return b"", {"closed": ""}

    def end(self) -> str:
        """The code with which the server ends the connection."""
        for kind, _, _, payload in self.frames():
            if kind == GOAWAY:
                return ErrorCode(int.from_bytes(payload[4:8])).name
        return "closed"


def framed(body: bytes, *, packed: int = 0, size: int | None = None) -> bytes:
    return struct.pack(">BI", packed, len(body) if size is None else size) + body


def plain(name: str, value: str, how: int) -> bytes:
    """A literal that is not in the Huffman code, with a name of its own."""
    return bytes((how, len(name))) + name.encode() + bytes((len(value),)) + value.encode()


def block_of(*more: bytes) -> bytes:
    """The headers of a call without a table, and others behind."""
    return b"".join([*(plain(*field, 0) for field in CALL), *more])


def assert_answered(wire: Wire, stream: int, right: bytes) -> None:
    body, trailers = wire.answer(stream)
    assert trailers.get("grpc-status") == "0", trailers
    assert body[:1] == b"\0"
    assert int.from_bytes(body[1:5]) == len(body) - 5
    found = service_pb2.ModelInferResponse.FromString(body[5:]).raw_output_contents[1]
    numbers = [struct.unpack(f"{len(each) // 4}f", each) for each in (found, right)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=1e-5)


def assert_answers(wire: Wire, stream: int, right: bytes) -> None:
    """A call on that stream is answered, whatever came before."""
    wire.ask(stream)
    assert_answered(wire, stream, right)
