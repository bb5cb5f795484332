"""Answers as the bytes that go over a connection. It knows no connection."""

import asyncio
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

from flambeau.protocols.messages import SAFE_HEADERS, HttpAnswer

_PHRASES = {each.value: each.phrase for each in HTTPStatus}
STATUS_LINE = {each: f"HTTP/1.1 {each} {_PHRASES.get(each, '')}\r\n" for each in range(100, 600)}
"""The first line of an answer, by its status: a model's own handler may choose one that has no name."""

_WITHOUT_BODY = frozenset((204, 304))  # RFC 9110, 6.4.1: nor has a 204 a Content-Length (8.6)

_ON_EVERY_ANSWER = {each: f"{each[0].lower()}: {each[1]}\r\n" for each in SAFE_HEADERS}

_JOINED = 32 * 1024
"""Bytes: a longer body is not copied to stand behind its head."""

Fields = tuple[tuple[str, str], ...]


class RawAnswer(NamedTuple):
    """An answer with all of its headers, in lower case. The body is that which a GET gets, or empty."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes


def raw(answer: HttpAnswer, more: Fields = ()) -> RawAnswer:
    """An answer, and more headers, as a raw one."""
    named = (("content-type", answer.content_type), *answer.headers, *more)
    if answer.status not in _WITHOUT_BODY:
        named += (("content-length", str(len(answer.body))),)
    fields = tuple((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in named)
    return RawAnswer(answer.status, fields, answer.body)


def serialised(answer: HttpAnswer, more: Fields, *, keep: bool) -> tuple[bytes, bytes]:
    """The head and the body of an answer to anything but HEAD. `keep`: the connection stays open.

    Raises `ValueError` for a header that would end its line: a client would take what follows for another answer.
    """
    added = ""
    for each in answer.headers + more if more else answer.headers:
        added += _ON_EVERY_ANSWER.get(each) or f"{each[0].lower()}: {each[1]}\r\n"
    closing = "" if keep else "connection: close\r\n"
    body = answer.body
    length = f"content-length: {len(body)}\r\n"
    if answer.status in _WITHOUT_BODY:
        body, length = b"", ""
    head = (
        f"{STATUS_LINE[answer.status]}{date_line()}content-type: {answer.content_type}\r\n{added}{length}{closing}\r\n"
    )
    lines = 4 + len(answer.headers) + len(more) + (length != "") + (closing != "")
    if head.count("\n") != lines or head.count("\r") != lines:
        raise ValueError("a header of the answer has a line end")
    return head.encode("latin-1"), body


def serialised_raw(answer: RawAnswer, *, keep: bool, without_body: bool) -> bytes:
    """The bytes of a raw answer. `without_body`: the request was a HEAD.

    Raises `ValueError` for a header that would end its line: nothing that is not an answer may follow it.
    """
    lines = [f"{STATUS_LINE[answer.status]}{date_line()}".encode()]
    bodiless = answer.status in _WITHOUT_BODY
    told = False
    for name, value in answer.fields:
        if name == b"content-length":
            told = True
            if bodiless:
                continue
        elif name in (b"connection", b"transfer-encoding"):  # the server's own
            continue
        lines.append(b"%b: %b\r\n" % (name, value))
    if not told and not bodiless:
        lines.append(b"content-length: %d\r\n" % len(answer.body))
    lines.append(b"\r\n" if keep else b"connection: close\r\n\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) + 1 + (not keep) or head.count(b"\r") != head.count(b"\n"):
        raise ValueError("a header of the answer has a line end")
    return head if bodiless or without_body else head + answer.body


class _DateLine:
    """The header Date, made once a second."""

    def __init__(self) -> None:
        self._made = 0, ""  # the second, and the line: at once, for another thread may ask meanwhile

    def __call__(self) -> str:
        second = int(time.time())
        made, line = self._made
        if made != second:
            line = f"date: {formatdate(second, usegmt=True)}\r\n"
            self._made = second, line
        return line


date_line = _DateLine()


class Outbox:
    """The answers of one turn of the loop, written one right after the other.

    Each write wakes whoever waits for it. Where the answers' writes lie apart, a client that has many requests under
    way falls asleep in between, and each write pays for waking it.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.WriteTransport, bytes, bytes]] = []

    def put(self, transport: asyncio.WriteTransport, head: bytes, body: bytes = b"") -> None:
        """Write it in this turn, before anything that is scheduled from now on."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting.append((transport, head, body))

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Write it now, behind what waits."""
        self.flush()
        transport.write(data)

    def close(self, transport: asyncio.WriteTransport) -> None:
        """Close, behind what waits."""
        self.flush()
        transport.close()

    def flush(self) -> None:
        """Write what waits now: before anything closes."""
        waiting, self._waiting = self._waiting, []
        for transport, head, body in waiting:
            if transport.is_closing():  # the client may have left
                continue
            if len(body) > _JOINED:
                transport.writelines((head, body))
            else:
                transport.write(head + body)
