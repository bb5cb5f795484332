"""A shadow: a version that is given copies of requests, whose answers nobody waits for, and how they compare.

Copies are made only when there is room: one at a time, and none while requests wait in the queue of the version that
answers. What is not copied is counted. An answer is compared as a client would see it: two classifications agree when
they name the same class, numbers when they are within a thousandth of each other.
"""

import hashlib
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from flambeau.answers import Answer, Asked
from flambeau.errors import RequestError
from flambeau.types import Outcome, Payload

TOLERANCE = 1e-3
"""How far apart numbers may be that agree, absolutely and relative to the larger one."""

_DIFFERING = 100  # inputs that are remembered by their hashes
_TIMED = 1000  # items whose times are kept


@dataclass(eq=False, slots=True)
class Shadow:
    """The comparison of a version with the one that answers. Counts are of items.

    `skipped` were not copied; `failed` are those that only the shadow could not answer. `seconds` are the times in
    queue, preprocess, inference and postprocess together, of the version that answers and of the shadow.
    """

    version: str
    compared: int = 0
    agreed: int = 0
    failed: int = 0
    skipped: int = 0
    largest_difference: float = 0.0
    differing: deque[str] = field(default_factory=lambda: deque(maxlen=_DIFFERING))
    seconds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_TIMED))
    busy: bool = False

    def note_all(self, payloads: Sequence[Payload], answered: Sequence[Outcome], shadowed: Sequence[Outcome]) -> None:
        """Compare the outcomes of a request. Long answers take time: not on the loop."""
        for payload, one, other in zip(payloads, answered, shadowed, strict=True):
            self.note(payload, one, other)

    def note(self, payload: Payload, answered: Outcome, shadowed: Outcome) -> None:
        """Compare the outcomes of one item."""
        expected, found = answered.result, shadowed.result
        if isinstance(expected, RequestError):
            return
        if isinstance(found, RequestError):
            self.failed += 1
            self._remember(payload)
            return
        self.compared += 1
        self.seconds.append((_total(answered), _total(shadowed)))
        apart = difference(_body(expected), _body(found))
        if math.isfinite(apart):
            self.largest_difference = max(self.largest_difference, apart)
        if apart <= TOLERANCE:
            self.agreed += 1
        else:
            self._remember(payload)

    def _remember(self, payload: Payload) -> None:
        if payload.kind != "value":
            self.differing.append(hashlib.sha256(payload.data).hexdigest())

    def median(self, which: int) -> float | None:
        """The median of the seconds of the version that answers (0) or of the shadow (1)."""
        ordered = sorted(pair[which] for pair in list(self.seconds))
        return ordered[len(ordered) // 2] if ordered else None


def _total(outcome: Outcome) -> float:
    timings = outcome.timings
    return timings.queue + timings.preprocess + timings.inference + timings.postprocess


def _body(answer: Answer) -> Any:
    return msgspec.json.decode(msgspec.json.encode(answer.body(Asked())))


def difference(expected: Any, found: Any) -> float:
    """How far apart two JSON values are: 0 for the same, infinite for another text or another form.

    Numbers differ by their distance, relative to the larger one where that is above 1. For example 100.0 and 100.2 are
    0.002 apart.
    """
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return max((difference(expected[key], found[key]) for key in expected), default=0.0)
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(expected) == len(found):
        return max(map(difference, expected, found), default=0.0)
    if _is_number(expected) and _is_number(found):
        apart = abs(expected - found) / max(1.0, abs(expected), abs(found))
        return apart if not math.isnan(apart) else 0.0 if str(expected) == str(found) else math.inf
    return 0.0 if expected == found else math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
