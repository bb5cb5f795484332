"""What HTTP/1.1 permits and we do not: sizes of heads, and whatever two readers could take for two things (T-17).

The parser refuses most of it; here stands what it lets through. Nothing is known of routes or bodies.
"""

from flambeau.config import Settings
from flambeau.errors import RequestError

Headers = list[tuple[bytes, bytes]]

FREE_CHUNKS = 4096
"""So many chunks of a body may be of any size."""

MOST_CHUNKS = 65_536
LEAST_MEAN_CHUNK = 16
_OVERHEAD_PER_CHUNK, _FREE_OVERHEAD = 64, 256 * 1024

BAD_HTTP = RequestError("this is not a request of HTTP/1.1", code="bad_http")


def fault(*, version: str, url: bytes, headers: Headers, upgrade: bool) -> RequestError | None:
    """What is wrong with a head although the parser took it."""
    if version not in ("1.1", "1.0"):
        return RequestError("only HTTP/1.1 and HTTP/1.0 are spoken here", code="bad_http")
    if not url.startswith(b"/") or b"#" in url:
        return RequestError("the address of the request has to be a path", code="bad_http")
    hosts, has_body = 0, False
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            has_body = True
            if version == "1.0" or value.lower() != b"chunked":
                return RequestError("a body comes whole or chunked, and in no other encoding", code="bad_http")
        elif name == b"content-length":
            has_body = has_body or value.strip() != b"0"
        elif name == b"expect" and value.lower() != b"100-continue":
            return RequestError("nothing but 100-continue can be expected", code="expectation_failed")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return RequestError("the request needs the header Host, once", code="bad_http")
    if upgrade and has_body:
        return RequestError("a request with a body cannot change the protocol", code="bad_http")
    return None


def too_large(url: bytes, headers: Headers, limits: Settings) -> RequestError | None:
    """What of a head is too long."""
    if len(url) > limits.max_request_line:
        return RequestError(
            f"the address is longer than the {limits.max_request_line} bytes that this server takes",
            code="uri_too_long",
        )
    if len(headers) > limits.max_headers:
        return head_too_large(f"there are more headers than the {limits.max_headers} that this server takes")
    sizes = [len(name) + len(value) + 4 for name, value in headers]
    if max(sizes, default=0) > limits.max_header_bytes:
        return head_too_large(f"a header is longer than the {limits.max_header_bytes} bytes that this server takes")
    if sum(sizes) > limits.max_headers_bytes:
        return head_too_large(
            f"the headers are longer than the {limits.max_headers_bytes} bytes that this server takes"
        )
    return None


def head_too_large(message: str) -> RequestError:
    """A refusal by the size of a head."""
    return RequestError(message, code="headers_too_large")


def too_many_chunks(chunks: int, body: int) -> bool:
    """Whether a body of so many bytes comes in too many pieces, or too small ones (T-21).

    The empty chunk at the end is one of them.
    """
    return chunks > MOST_CHUNKS + 1 or (chunks > FREE_CHUNKS + 1 and body < LEAST_MEAN_CHUNK * chunks)


def too_much_overhead(chunks: int, overhead: int) -> bool:
    """Whether what stands around the chunks, extensions and trailers, is more than chunks need."""
    return overhead > _FREE_OVERHEAD + _OVERHEAD_PER_CHUNK * chunks
