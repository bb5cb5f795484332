"""One budget for the bodies of all requests: what has come of them, from the first byte until they are answered.

Every body has its own limit (`--max-body-bytes`), which says nothing about a thousand of them. Where one more piece
does not fit, somebody is refused with 503: first an upload that has stalled, the largest first; then the largest that
is not whole yet. So a few that hold much pay before the many that hold little, and what came whole is answered.

It knows no HTTP, and belongs to one loop.
"""

from collections.abc import Callable

from flambeau import cgroup
from flambeau.config import Settings
from flambeau.errors import RequestError

SHARE = "flambeau.share"
"""The key under which a scope carries the share of its body."""

FULL = RequestError(
    "the bodies of the requests that are being answered fill the memory for them: try again",
    code="overloaded",
    hint="the operator can give them more with --max-inflight-bytes",
)

_SHARE = 4  # of the memory that this process may use
_STALLED = 1.0  # seconds without a byte


class Budget:
    """The bytes that all bodies together may hold."""

    def __init__(self, settings: Settings) -> None:
        self.most = settings.max_inflight_bytes or max(settings.max_body_bytes, cgroup.memory_limit() // _SHARE)
        self.used = 0
        self._uploads: set[Share] = set()

    def open(self, clock: Callable[[], float], give_up: Callable[[], None] | None) -> "Share":
        """A share for one body, with nothing in it. `give_up` ends its upload, and closes the share; none: it stays."""
        return Share(self, clock, give_up)

    def make_room(self, size: int, wanted: "Share") -> bool:
        """Whether so many bytes fit, now or after others were given up. Those may close `wanted` itself: then not."""
        while self.used + size > self.most:
            if not self._uploads:
                return False
            now = wanted.clock()
            worst = max(self._uploads, key=lambda share: (now - share.since >= _STALLED, share.size, share is wanted))
            if worst is wanted:
                return False
            self._uploads.discard(worst)
            worst.end()
        return True

    def began(self, share: "Share") -> None:
        """The share holds something of a body that is on its way."""
        if share.can_end:
            self._uploads.add(share)

    def came(self, share: "Share") -> None:
        """Its body is whole, or gone."""
        self._uploads.discard(share)


class Share:
    """What one body holds of the budget."""

    __slots__ = ("_budget", "_closed", "_give_up", "clock", "since", "size")

    def __init__(self, budget: Budget, clock: Callable[[], float], give_up: Callable[[], None] | None) -> None:
        self._budget = budget
        self._give_up = give_up
        self._closed = False
        self.clock = clock
        self.since = 0.0
        self.size = 0

    @property
    def can_end(self) -> bool:
        """Whether its upload can be ended before it is whole."""
        return self._give_up is not None

    def take(self, size: int) -> bool:
        """Count so many more bytes, at the cost of others if need be: false where they do not fit."""
        if self._closed:
            return True  # what still comes is thrown away
        budget = self._budget
        if budget.used + size > budget.most and not budget.make_room(size, self):
            return False
        self.since = self.clock()
        if not self.size:
            budget.began(self)
        self.size += size
        budget.used += size
        return True

    def whole(self) -> None:
        """The body has come: from now on it stays until it is answered."""
        self._budget.came(self)

    def end(self) -> None:
        """End the upload, for others."""
        if self._give_up is not None:
            self._give_up()
        self.close()

    def close(self) -> None:
        """The body is let go of. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._give_up = None
            self._budget.came(self)
            self._budget.used -= self.size
