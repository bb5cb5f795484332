"""Inputs that crashed a model, remembered for a while so that they do not crash it again. Knows hashes, not inputs."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from flambeau.types import Payload

_REMEMBERED = 1024
_SECONDS = 600.0
_LONG = 1024 * 1024  # bytes; to hash as many takes a millisecond


class Quarantine:
    """The last inputs that were alone with a worker when it died, and those that were alone with one that hung.

    A crash convicts at once. A hang does not: it is told by a clock, and what made a worker slow may have been the
    machine. An input is held when it has hung alone a second time.
    """

    def __init__(self) -> None:
        self._held = _Memory()
        self._hung_once = _Memory()

    def add(self, payload: Payload) -> None:
        """Hold an input. One of kind `value` cannot have crashed another process."""
        _with_key(payload, self._held.add)

    def add_hang(self, payload: Payload) -> None:
        """Hold an input if this was its second hang, and else remember its first."""
        _with_key(payload, lambda key: (self._held if key in self._hung_once else self._hung_once).add(key))

    def __bool__(self) -> bool:
        """Whether any input is held."""
        return bool(self._held.until)

    async def holds(self, payload: Payload) -> bool:
        """Whether the input is held. A long one is hashed in a thread, for the loop serves others meanwhile."""
        if not self._held.until or payload.kind == "value":
            return False
        long = payload.size > _LONG
        return (await asyncio.to_thread(_hash, payload) if long else _hash(payload)) in self._held


class _Memory:
    """Hashes, each for its time, and the last so many of them."""

    def __init__(self) -> None:
        self.until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, key: bytes) -> None:
        self.until[key] = time.monotonic() + _SECONDS
        self.until.move_to_end(key)
        while len(self.until) > _REMEMBERED:
            self.until.popitem(last=False)

    def __contains__(self, key: bytes) -> bool:
        until = self.until.get(key)
        if until is not None and until < time.monotonic():
            del self.until[key]
            return False
        return until is not None


def _with_key(payload: Payload, use: Callable[[bytes], None]) -> None:
    """Hash an input and use its hash: at once, or where it is long when a thread has made it."""
    if payload.kind == "value":
        return
    if payload.size <= _LONG:
        use(_hash(payload))
        return

    def hashed(done: asyncio.Future[bytes]) -> None:
        if not done.cancelled():
            use(done.result())

    asyncio.get_running_loop().run_in_executor(None, _hash, payload).add_done_callback(hashed)


def _hash(payload: Payload) -> bytes:
    found = hashlib.blake2b(payload.data, digest_size=16)
    if payload.arrays:  # the same bytes are other numbers in another shape
        found.update(msgspec.msgpack.encode(payload.arrays))
    return found.digest()
