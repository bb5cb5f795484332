"""Split a multipart/form-data body (RFC 7578) into parts, without copying their contents.

Stricter than browsers need: a body that ends before its closing boundary is an error, never a form without files.
The body is parsed in steps, each far below 5 ms whatever is sent, so that the loop can do other work in between.
"""

import asyncio
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from flambeau.errors import RequestError

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work in steps: a generator that yields after each step and returns the result."""

_WINDOW = 128 * 1024  # bytes searched in one step
_LONGEST_BOUNDARY = 70  # RFC 2046, 5.1.1
_LONGEST_PADDING = 128  # blanks after a boundary
_LONGEST_PART_HEADER = 8192
_FIRST_WINDOW = 4 * 1024  # bytes; it doubles up to `_WINDOW`
_PART_COST = 8 * 1024  # bytes that could be searched in the time that a part takes beside its search
_CHEAP_HEADER = 512  # bytes: shorter part headers do not end a step
_MOST_LINES, _MOST_PARAMETERS = 32, 16

# Possessive quantifiers: no header can make the pattern backtrack.
_PARAMETER = re.compile(r';[ \t]*+([^\s=;"]++)[ \t]*+=[ \t]*+("(?:[^"\\]|\\.)*+"|[^;"]*+)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """One part: the name of its form field, and its contents.

    `is_file`: it has a file name, which is `filename`. `encoding`: its Content-Transfer-Encoding in lower case, if any.
    `media_type`: its Content-Type in lower case, without parameters, if any.
    """

    name: str
    data: memoryview
    is_file: bool = False
    encoding: str = ""
    media_type: str = ""
    filename: str = ""


async def parse(body: bytes | memoryview, content_type: str, *, max_parts: int) -> list[Part]:
    """The parts in the order sent. Yields to the event loop after each step.

    Raises `RequestError` with code `invalid_multipart`, `multipart_truncated` or `too_many_parts`.
    """
    reading = steps(body, content_type, max_parts=max_parts)
    while True:
        try:
            next(reading)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        await asyncio.sleep(0)


def steps(body: bytes | memoryview, content_type: str, *, max_parts: int) -> Steps[list[Part]]:
    """The same as a generator, which yields after each step and returns the parts."""
    delimiter = b"--" + _boundary(content_type)
    view = memoryview(body)
    # A preamble before the first boundary is allowed and ignored (RFC 2046, 5.1.1).
    position = 0
    if bytes(view[: len(delimiter)]) != delimiter:
        position = (yield from _find(view, b"\r\n" + delimiter, 0)) + 2
        if position == 1:
            raise _invalid("the boundary named in Content-Type never appears in the body")
    parts: list[Part] = []
    searched = 0  # bytes since the last step ended, and something for each part
    while True:
        position += len(delimiter)
        if bytes(view[position : position + 2]) == b"--":
            return parts
        start = _skip_line_end(view, position)
        head, content = _head(view, start, delimiter)
        if len(head) > _CHEAP_HEADER or searched > _WINDOW:
            searched = 0
            yield
        end = yield from _find(view, b"\r\n" + delimiter, content - 2)
        if end < 0:
            raise _truncated()
        if len(parts) == max_parts:
            most = f"{max_parts} part{'' if max_parts == 1 else 's'}"
            raise RequestError(f"the form has more than {most} (--max-items)", code="too_many_parts")
        parts.append(_part(head, view[content : max(content, end)]))
        searched += end - content + _PART_COST
        position = end + 2


def _find(view: memoryview, text: bytes, start: int) -> Steps[int]:
    """The position of `text` at or after `start`; -1 if it is not there."""
    window = _FIRST_WINDOW  # a short part is found without a copy of what follows it
    while True:
        end = start + window + len(text) - 1
        found = bytes(view[start:end]).find(text)
        if found >= 0:
            return start + found
        if end >= len(view):
            return -1
        start += window
        if window == _WINDOW:
            yield
        window = min(2 * window, _WINDOW)


def _boundary(content_type: str) -> bytes:
    boundary = _parameters(content_type).get("boundary")
    if boundary is None or not 0 < len(boundary) <= _LONGEST_BOUNDARY or not boundary.isascii():
        raise _invalid("the header Content-Type has no usable boundary")
    return boundary.encode("ascii")


def _skip_line_end(view: memoryview, position: int) -> int:
    line = bytes(view[position : position + _LONGEST_PADDING + 2])
    end = line.find(b"\r\n")
    if (line if end < 0 else line[:end]).lstrip(b" \t").startswith(b"\n"):
        raise _invalid("its lines end in LF alone: every line of a form ends in CR LF")
    if end < 0 and position + len(line) == len(view):
        raise _truncated()
    if end < 0 or line[:end].strip(b" \t"):
        raise _invalid("a boundary line has other text after the boundary")
    return position + end + 2


def _head(view: memoryview, start: int, delimiter: bytes) -> tuple[bytes, int]:
    """The header lines of the part at `start`, possibly none, and the position at which its contents begin."""
    window = bytes(view[start - 2 : start + _LONGEST_PART_HEADER + 4])
    end = window.find(b"\r\n\r\n")
    if end < 0:
        cut = start - 2 + len(window) == len(view)
        raise _truncated() if cut else _invalid("a part's header is too long")
    if window.find(b"\r\n" + delimiter, 0, end) >= 0:
        raise _invalid("a part ends within its header")
    return window[2 : max(2, end)], start - 2 + end + 4


def _part(head: bytes, data: memoryview) -> Part:
    lines = head.split(b"\r\n", _MOST_LINES)
    if len(lines) > _MOST_LINES:
        raise _invalid(f"a part has more than {_MOST_LINES} header lines")
    name, is_file, encoding, media_type, filename = None, False, "", "", ""
    for line in lines:
        key, _, value = line.partition(b":")
        key = key.strip().lower()
        if key == b"content-disposition" and name is None:
            given = _parameters(value.strip().decode("utf-8", "replace"))
            name, is_file = given.get("name"), "filename" in given or "filename*" in given
            filename = given.get("filename", "")
        elif key == b"content-transfer-encoding":
            encoding = value.strip().decode("latin-1").lower()
        elif key == b"content-type":
            media_type = value.partition(b";")[0].strip().decode("latin-1").lower()
    if name is None:
        raise _invalid("a part has no name in its Content-Disposition")
    return Part(name, data, is_file, encoding, media_type, filename)


def _parameters(header: str) -> dict[str, str]:
    """The parameters of a header's value by lower-case name; of several with one name, the first."""
    found: dict[str, str] = {}
    for count, match in enumerate(_PARAMETER.finditer(header)):
        if count == _MOST_PARAMETERS:
            raise _invalid(f"a header has more than {_MOST_PARAMETERS} parameters")
        name, value = match.groups()
        text = _ESCAPED.sub(r"\1", value[1:-1]) if value.startswith('"') else value.strip()
        found.setdefault(name.lower(), text)
    return found


def _invalid(why: str) -> RequestError:
    return RequestError(f"the form cannot be read: {why}", code="invalid_multipart")


def _truncated() -> RequestError:
    return RequestError("the form is cut short: its closing boundary is missing", code="multipart_truncated")
