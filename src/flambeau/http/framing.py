"""Requests that HTTP/1.1 permits and we refuse: heads that are too large, or that two parsers could read differently.

The parser refuses most of the latter (T-17); these are the checks for what it lets through. Routes and the contents of
bodies play no part here.
"""

import re

from flambeau.errors import RequestError
from flambeau.settings.service import Settings

Headers = list[tuple[bytes, bytes]]

FREE_CHUNKS = 4096
"""A body in no more chunks than this may have chunks of any size."""

MOST_CHUNKS = 65_536
LEAST_MEAN_CHUNK = 16
_OVERHEAD_PER_CHUNK, _FREE_OVERHEAD = 64, 256 * 1024


def bad_http() -> RequestError:
    """The error for what is no request."""
    return RequestError("this is not a valid HTTP/1.1 request", code="bad_http")


_LENGTH = re.compile(r"[ \t]*(0|[1-9][0-9]{0,18})[ \t]*")


def length_of(value: str) -> int | None:
    """The number of bytes that a Content-Length announces; `None` if it is not one plain decimal number.

    `int` accepts more than RFC 9110 (8.6): signs, underscores, digits of other scripts. Leading zeros and more than 19
    digits are refused too: a parser that truncates the number, or overflows, would read another one.
    """
    found = _LENGTH.fullmatch(value)
    return int(found[1]) if found else None


def fault(*, method: bytes, version: str, url: bytes, headers: Headers) -> RequestError | None:
    """The error in a head that the parser accepted, or `None`.

    Asking to switch protocols (Upgrade) is not an error: it is ignored, and the request answered as it stands
    (RFC 9110, 7.8).
    """
    if method == b"CONNECT":
        return RequestError("this server is not a proxy", code="bad_http")
    if version not in ("1.1", "1.0"):
        return RequestError("only HTTP/1.1 and HTTP/1.0 are supported", code="bad_http")
    if not url.startswith(b"/") or b"#" in url:
        return RequestError("the request target must be a path", code="bad_http")
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            if version == "1.0" or value.lower() != b"chunked":
                return RequestError("the only Transfer-Encoding is chunked, over HTTP/1.1", code="bad_http")
        elif name == b"content-length" and length_of(value.decode("latin-1")) is None:
            return RequestError("the header Content-Length is not a plain decimal number", code="bad_http")
        elif name == b"expect" and value.lower() != b"100-continue":
            return RequestError("the header Expect must be 100-continue", code="expectation_failed")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return RequestError("the request needs the header Host, once", code="bad_http")
    return None


def without_upgrade(method: bytes, url: bytes, version: str, headers: Headers) -> bytes:
    """The head as it came, without the headers that ask to switch protocols."""
    kept = [(name, value) for name, value in headers if name not in (b"upgrade", b"http2-settings", b"connection")]
    options = {
        option.strip().lower() for name, value in headers if name == b"connection" for option in value.split(b",")
    }
    kept += [(b"connection", option) for option in (b"close", b"keep-alive") if option in options]
    lines = [b"%b: %b\r\n" % each for each in kept]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, url, version.encode(), b"".join(lines))


def too_large(url: bytes, headers: Headers, limits: Settings) -> RequestError | None:
    """The error if the URL, a header, all headers together or their number are over a limit; else `None`."""
    if len(url) > limits.max_request_line:
        return RequestError(
            f"the address is longer than the {limits.max_request_line} bytes that this server takes "
            "(--max-request-line)",
            code="uri_too_long",
        )
    if len(headers) > limits.max_headers:
        return head_too_large(
            f"there are more headers than the {limits.max_headers} that this server takes (--max-headers)"
        )
    sizes = [len(name) + len(value) + 4 for name, value in headers]
    if max(sizes, default=0) > limits.max_header_bytes:
        return head_too_large(
            f"a header is longer than the {limits.max_header_bytes} bytes that this server takes (--max-header-bytes)"
        )
    if sum(sizes) > limits.max_headers_bytes:
        return head_too_large(
            f"the headers are longer than the {limits.max_headers_bytes} bytes that this server takes "
            "(--max-headers-bytes)"
        )
    return None


def head_too_large(message: str) -> RequestError:
    """The error for a head over a limit."""
    return RequestError(message, code="headers_too_large")


def too_many_chunks(chunks: int, body: int) -> bool:
    """Whether `body` bytes in so many chunks are too many chunks, or too small ones (T-21).

    The empty chunk at the end counts.
    """
    return chunks > MOST_CHUNKS + 1 or (chunks > FREE_CHUNKS + 1 and body < LEAST_MEAN_CHUNK * chunks)


def too_much_overhead(chunks: int, overhead: int) -> bool:
    """Whether the bytes around the chunks, such as extensions and trailers, are more than chunks need."""
    return overhead > _FREE_OVERHEAD + _OVERHEAD_PER_CHUNK * chunks
