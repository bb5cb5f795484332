"""Inputs that crashed a model, remembered for a while so that they do not crash it again. Knows hashes, not inputs."""

import hashlib
import time
from collections import OrderedDict

from flambeau.types import Payload

_REMEMBERED = 1024
_SECONDS = 600.0


class Quarantine:
    """The last inputs that were alone with a worker when it died."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, payload: Payload) -> None:
        """Remember an input. One of kind `value` cannot have crashed another process."""
        if payload.kind == "value":
            return
        self._until[_hash(payload)] = time.monotonic() + _SECONDS
        while len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)

    def holds(self, payload: Payload) -> bool:
        """Whether the input is remembered. Costs nothing while none is."""
        if not self._until or payload.kind == "value":
            return False
        key = _hash(payload)
        until = self._until.get(key)
        if until is not None and until < time.monotonic():
            del self._until[key]
            return False
        return until is not None


def _hash(payload: Payload) -> bytes:
    return hashlib.blake2b(payload.data, digest_size=16).digest()
