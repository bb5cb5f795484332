"""Bodies of multipart/form-data (RFC 7578) into parts, without copying their contents.

Stricter than browsers need: a body that ends before its closing boundary is an error and never a form without files.
"""

from dataclasses import dataclass
from email.message import Message

from flambeau.errors import RequestError

_LONGEST_BOUNDARY = 70  # RFC 2046, 5.1.1
_LONGEST_PART_HEADER = 8192


@dataclass(frozen=True, slots=True)
class Part:
    """One part: the name of its form field, and its contents."""

    name: str
    data: memoryview


def parse(body: bytes, content_type: str, *, max_parts: int) -> list[Part]:
    """The parts in the order sent.

    Raises `RequestError` with code `invalid_multipart`, `multipart_truncated` or `too_many_parts`.
    """
    delimiter = b"--" + _boundary(content_type)
    view = memoryview(body)
    # A preamble before the first boundary is allowed and ignored (RFC 2046, 5.1.1).
    position = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if position == 1:
        raise _invalid("the boundary of the header never appears in the body")
    parts: list[Part] = []
    while True:
        position += len(delimiter)
        if body.startswith(b"--", position):
            return parts
        start = _skip_line_end(body, position)
        head_end = body.find(b"\r\n\r\n", start - 2)  # from the line's own end: a part may have no headers at all
        if head_end < 0 or head_end - start > _LONGEST_PART_HEADER:
            raise _truncated() if head_end < 0 else _invalid("a part's header is too long")
        if body.find(b"\r\n" + delimiter, start - 2, head_end) >= 0:
            raise _invalid("a part ends within its header")
        content = head_end + 4
        end = body.find(b"\r\n" + delimiter, content - 2)
        if end < 0:
            raise _truncated()
        if len(parts) == max_parts:
            raise RequestError(f"the form has more than {max_parts} parts", code="too_many_parts")
        parts.append(Part(_field_name(body[start:head_end]), view[content : max(content, end)]))
        position = end + 2


def _boundary(content_type: str) -> bytes:
    boundary = _parameter(content_type, "boundary")
    if boundary is None or not 0 < len(boundary) <= _LONGEST_BOUNDARY or not boundary.isascii():
        raise _invalid("the header Content-Type has no usable boundary")
    return boundary.encode("ascii")


def _skip_line_end(body: bytes, position: int) -> int:
    end = body.find(b"\r\n", position)
    if end < 0:
        raise _truncated()
    if body[position:end].strip(b" \t"):
        raise _invalid("a boundary line carries something else")
    return end + 2


def _field_name(head: bytes) -> str:
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            name = _parameter(value.strip().decode("utf-8", "replace"), "name")
            if name is not None:
                return name
    raise _invalid("a part has no name in its Content-Disposition")


def _parameter(header: str, name: str) -> str | None:
    """A parameter of a header's value, such as the boundary; `None` where it is absent or cannot be told."""
    message = Message()
    message["content-type"] = header
    try:
        value = message.get_param(name)
    except (TypeError, ValueError):  # the standard library stumbles over odd continuations: `name*=a; name*0=b`
        return None
    return value if isinstance(value, str) else None


def _invalid(why: str) -> RequestError:
    return RequestError(f"the form cannot be read: {why}", code="invalid_multipart")


def _truncated() -> RequestError:
    return RequestError("the form is cut short: its closing boundary is missing", code="multipart_truncated")
