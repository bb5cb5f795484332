"""Compressed bodies: gzip and deflate, unpacked within a limit, and answers packed for clients that ask for it.

A kilobyte can unpack to a megabyte, so what comes out is counted as it comes, for each body and for all together. Long
bodies are unpacked in a thread: zlib lets go of the interpreter meanwhile. It knows no protocol.
"""

import asyncio
import contextlib
import gzip
import re
import zlib
from collections.abc import AsyncIterator

from flambeau.errors import RequestError
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.settings.service import Settings

_SHORT = 16 * 1024  # bytes: what is packed or unpacked on the loop takes less than a millisecond
_PIECE = 64 * 1024
_GZIP = 16 + zlib.MAX_WBITS
_RAW = -zlib.MAX_WBITS  # deflate without zlib's header
_LEVEL = 1  # numbers hardly shrink further at higher ones


class UnpackingBudget:
    """The bytes that all unpacked bodies together may hold, beside those that arrived."""

    def __init__(self, settings: Settings) -> None:
        self._most_each = settings.max_body_bytes
        self._most = settings.max_inflight_bytes or 4 * settings.max_body_bytes
        self._used = 0

    @contextlib.asynccontextmanager
    async def unpacked(self, request: HttpRequest) -> AsyncIterator[bytes | memoryview]:
        """The body as it was before it was compressed, until the block is left.

        Raises `RequestError`: `unsupported_content_encoding`, `body_too_large`, `bad_request` for damaged bytes, and
        `overloaded` where other bodies fill the memory.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            yield request.body
            return
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise RequestError(
                f"bodies in {encoding[:40]!r} are not supported: send gzip, deflate or plain bytes",
                code="unsupported_content_encoding",
            )
        reserved = self._most_each if len(request.body) > _SHORT else min(self._most_each, 1100 * len(request.body))
        if self._used + reserved > self._most:  # counted before, because it is unpacked in another thread
            raise RequestError("other compressed bodies fill the memory: try again", code="overloaded")
        self._used += reserved
        try:
            if len(request.body) > _SHORT:
                body = await asyncio.to_thread(unpack, request.body, encoding, self._most_each)
            else:
                body = unpack(request.body, encoding, self._most_each)
            self._used -= reserved - len(body)
            reserved = len(body)
            yield body
        finally:
            self._used -= reserved


def unpack(data: bytes | memoryview, encoding: str, most: int) -> bytes:
    """The bytes before compression, `most` of them at most. Raises `RequestError`."""
    unpacker = zlib.decompressobj(_GZIP if encoding != "deflate" else zlib.MAX_WBITS if _is_zlib(data) else _RAW)
    pieces, size = [], 0
    try:
        for start in range(0, len(data), _PIECE):  # what is left of a piece is copied, so pieces are short
            rest: bytes | memoryview = data[start : start + _PIECE]
            while rest or not unpacker.eof:
                piece = unpacker.decompress(rest, _PIECE)
                size += len(piece)
                if size > most:
                    raise RequestError(
                        f"the body unpacks to more than {most} bytes (--max-body-bytes)", code="body_too_large"
                    )
                pieces.append(piece)
                if unpacker.unused_data or (unpacker.eof and start + _PIECE < len(data)):
                    raise RequestError("bytes follow the compressed body", code="bad_request")
                rest = unpacker.unconsumed_tail
                if not rest and len(piece) < _PIECE:
                    break
    except zlib.error:
        raise RequestError("the body is not compressed as Content-Encoding says", code="bad_request") from None
    if not unpacker.eof:
        raise RequestError("the compressed body is cut short", code="bad_request")
    return b"".join(pieces)


def _is_zlib(data: bytes | memoryview) -> bool:
    """Whether the first two bytes are zlib's header (RFC 1950): some take "deflate" for what lies within it."""
    return len(data) >= 2 and data[0] & 15 == 8 and int.from_bytes(bytes(data[:2]), "big") % 31 == 0


async def packed(answer: HttpAnswer, accept: str) -> HttpAnswer:
    """The answer in the encoding that `Accept-Encoding` names, if that is gzip or deflate alone."""
    encoding = _accepted(accept)
    if encoding is None or not answer.body:
        return answer
    pack = _gzip if encoding == "gzip" else _deflate
    body = await asyncio.to_thread(pack, answer.body) if len(answer.body) > _SHORT else pack(answer.body)
    headers = (*answer.headers, ("Content-Encoding", encoding), ("Vary", "Accept-Encoding"))
    return HttpAnswer(answer.status, body, answer.content_type, headers)


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, _LEVEL, mtime=0)


def _deflate(data: bytes) -> bytes:
    return zlib.compress(data, _LEVEL)


_REFUSED = re.compile(r"q\s*=\s*0(?:\.0*)?\s*$")


def _accepted(accept: str) -> str | None:
    """The one of gzip and deflate that a client names, and nothing else.

    Browsers and most libraries name several by default; an answer to them stays plain, because packing costs more time
    than the bytes save on a local network. Those that name one mean it.
    """
    name, _, quality = accept.lower().partition(";")
    return name.strip() if name.strip() in ("gzip", "deflate") and not _REFUSED.search(quality) else None
