"""Packed messages (`grpc-encoding`): gzip and deflate, unpacked within the limit of a message, in a thread if long.

All unpacked messages together are bounded as REST's unpacked bodies are. Answers are not packed: their numbers hardly
shrink.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from flambeau.errors import RequestError
from flambeau.protocols.content_encoding import unpack
from flambeau.settings.service import Settings

ENCODINGS = ("identity", "deflate", "gzip")
"""How messages may be packed."""

_SHORT = 16 * 1024  # bytes: what is unpacked on the loop takes less than a millisecond
_MOST_TIMES = 1100  # a byte unpacks to no more


class Unpacking:
    """Unpacks messages, and bounds what they hold together."""

    def __init__(self, settings: Settings) -> None:
        self._most_each = settings.max_body_bytes
        self._most = settings.max_inflight_bytes or 4 * settings.max_body_bytes
        self._used = 0

    @contextlib.asynccontextmanager
    async def of(self, raw: bytes | memoryview, encoding: str) -> AsyncIterator[bytes]:
        """The message before it was packed, until the block is left. Raises `RequestError`."""
        if encoding not in ENCODINGS:
            raise RequestError(
                f"messages in {encoding[:40]!r} are not supported: send gzip, deflate or plain ones",
                code="not_implemented",
            )
        short = len(raw) <= _SHORT
        reserved = min(self._most_each, _MOST_TIMES * len(raw))
        if self._used + reserved > self._most:  # counted before, because it is unpacked in another thread
            raise RequestError("other packed messages fill the memory: try again", code="overloaded")
        self._used += reserved
        try:
            most = self._most_each
            found = unpack(raw, encoding, most) if short else await asyncio.to_thread(unpack, raw, encoding, most)
            self._used -= reserved - len(found)
            reserved = len(found)
            yield found
        except RequestError as error:
            if error.code == "body_too_large":
                raise RequestError(f"a message unpacks to one larger than max_body_bytes ({self._most_each})",
                                   code="body_too_large") from None  # fmt: skip
            raise
        finally:
            self._used -= reserved
