"""Inputs that crashed a model, remembered for a while so that they do not crash it again. Knows hashes, not inputs."""

import hashlib
import time
from collections import OrderedDict

from flambeau.types import Payload

_REMEMBERED = 1024
_SECONDS = 600.0


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
        if payload.kind != "value":
            self._held.add(_hash(payload))

    def add_hang(self, payload: Payload) -> None:
        """Hold an input if this was its second hang, and else remember its first."""
        if payload.kind == "value":
            return
        key = _hash(payload)
        (self._held if key in self._hung_once else self._hung_once).add(key)

    def holds(self, payload: Payload) -> bool:
        """Whether the input is held. Costs nothing while none is."""
        return bool(self._held) and payload.kind != "value" and _hash(payload) in self._held


class _Memory:
    """Hashes, each for its time, and the last so many of them."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, key: bytes) -> None:
        self._until[key] = time.monotonic() + _SECONDS
        self._until.move_to_end(key)
        while len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, key: bytes) -> bool:
        until = self._until.get(key)
        if until is not None and until < time.monotonic():
            del self._until[key]
            return False
        return until is not None


def _hash(payload: Payload) -> bytes:
    return hashlib.blake2b(payload.data, digest_size=16).digest()
