"""Answers as the bytes that go over a connection. It knows no connection."""

import asyncio
from http import HTTPStatus

from flambeau.protocols.messages import SAFE_HEADERS, HttpAnswer

_PHRASES = {each.value: each.phrase for each in HTTPStatus}
STATUS_LINE = {each: f"HTTP/1.1 {each} {_PHRASES.get(each, '')}\r\n".encode() for each in range(100, 600)}
"""The first line of an answer, by its status: a model's own handler may choose one that has no name."""


_ON_EVERY_ANSWER = {each: f"{each[0].lower()}: {each[1]}\r\n" for each in SAFE_HEADERS}


def serialised(answer: HttpAnswer, defaults: bytes, more: tuple[tuple[str, str], ...], *, keep: bool) -> bytes:
    """The bytes of an answer. `defaults`: the lines of headers that the server adds to every answer (Date)."""
    added = "".join([_ON_EVERY_ANSWER.get(each) or f"{each[0].lower()}: {each[1]}\r\n" for each in answer.headers])
    if more:
        added += "".join([f"{name.lower()}: {value}\r\n" for name, value in more])
    closing = "" if keep else "connection: close\r\n"
    head = f"content-type: {answer.content_type}\r\n{added}content-length: {len(answer.body)}\r\n{closing}\r\n"
    return b"%b%b%b%b" % (STATUS_LINE[answer.status], defaults, head.encode("latin-1"), answer.body)


class DefaultLines:
    """The lines of the headers that a server adds to every answer, made once for each time it changes them."""

    def __init__(self) -> None:
        self._headers: list[tuple[bytes, bytes]] | None = None
        self._lines = b""

    def of(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The lines of these headers; a list that is handed in again has not changed."""
        if headers is not self._headers:
            self._lines = b"".join([b"%b: %b\r\n" % each for each in headers])
            self._headers = headers
        return self._lines


class Outbox:
    """The answers of one turn of the loop, written one right after the other.

    Each write wakes whoever waits for it. Where the answers' writes lie apart, a client that has many requests under
    way falls asleep in between, and each write pays for waking it.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.WriteTransport, bytes]] = []

    def put(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Write it in this turn, before anything that is scheduled from now on."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting.append((transport, data))

    def flush(self) -> None:
        """Write what waits now. Whoever writes past the outbox does it first, and so does whoever closes."""
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():  # the client may have left
                transport.write(data)
