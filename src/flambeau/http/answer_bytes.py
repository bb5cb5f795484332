"""Answers as the bytes that go over a connection. It knows no connection."""

from http import HTTPStatus

from flambeau.protocols.messages import HttpAnswer

STATUS_LINE = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
"""The first line of an answer, by its status."""


def serialised(
    answer: HttpAnswer, defaults: list[tuple[bytes, bytes]], more: tuple[tuple[str, str], ...], *, keep: bool
) -> bytes:
    """The bytes of an answer, with the headers that the server adds to every answer (Date)."""
    lines = [STATUS_LINE[answer.status]]
    lines += [b"%b: %b\r\n" % each for each in defaults]
    added = "".join([f"{name.lower()}: {value}\r\n" for name, value in answer.headers + more])
    closing = "" if keep else "connection: close\r\n"
    head = f"content-type: {answer.content_type}\r\n{added}content-length: {len(answer.body)}\r\n{closing}\r\n"
    lines += (head.encode("latin-1"), answer.body)
    return b"".join(lines)
