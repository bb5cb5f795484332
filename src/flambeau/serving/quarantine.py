"""Inputs that crashed a model, kept out for a while so that they do not crash it again. Stores hashes, not inputs."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

import msgspec

from flambeau.types import Payload

_REMEMBERED = 1024
_SECONDS = 600.0
_LONG = 1024 * 1024  # bytes; hashing this many takes a millisecond


class Quarantine:
    """The most recent inputs that were alone with a worker when it crashed or hung.

    A crash puts an input into quarantine at once. A hang does not: only a clock tells it, and the machine may have been
    what was slow. An input is held once it has hung alone a second time.
    """

    def __init__(self) -> None:
        self._held = _Memory()
        self._hung_once = _Memory()
        self.inputs: Mapping[bytes, float] = self._held.until
        """The hashes of those that are held, or were until a while ago."""

    def add(self, payload: Payload) -> None:
        """Hold an input. Payloads of kind `value` are ignored: they never leave this process."""
        _with_key(payload, self._held.add)

    def add_hang(self, payload: Payload) -> None:
        """Hold an input if this was its second hang; otherwise remember the first."""
        _with_key(payload, lambda key: (self._held if key in self._hung_once else self._hung_once).add(key))

    async def holds(self, payload: Payload) -> bool:
        """Whether the input is held. A long one is hashed in a thread, so that the loop can serve others meanwhile."""
        if not self._held.until or payload.kind == "value":
            return False
        long = payload.size > _LONG
        return (await asyncio.to_thread(_hash, payload) if long else _hash(payload)) in self._held


class _Memory:
    """The last `_REMEMBERED` hashes, each for `_SECONDS`."""

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
    """Call `use` with the hash of an input: at once, or, if the input is long, when a thread has hashed it."""
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
    if payload.arrays:  # the same bytes with another shape or dtype are another input
        found.update(msgspec.msgpack.encode(payload.arrays))
    return found.digest()
