"""Timeouts and limits for connections: one check of every connection twice a second, instead of a timer for each.

Nothing here depends on HTTP: a connection sets what it waits for.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import Literal, Protocol

from flambeau.settings.service import Settings

# Turns: how much of their bodies all connections together read in one turn of the loop.

_TURN = 512 * 1024  # bytes: far less than a millisecond
_AT_ONCE = 4  # paused connections that resume in one turn, each for about a quarter of it

TurnStep = Callable[[], None]


class Turns:
    """Shares out the turns of one loop among connections that receive bodies.

    A full socket is read thirty-two times in a row before anything else gets a turn. That takes milliseconds, and tens
    of them for several sockets. So a connection with more data than fits into this turn is paused, and resumes in a
    later one: a few at a time, in order.
    """

    def __init__(self) -> None:
        self._left = _TURN
        self._waiting: deque[TurnStep] = deque()
        self._scheduled = False

    def took(self, size: int, *, pause: TurnStep, resume: TurnStep) -> None:
        """Count bytes that were read. If the turn is used up, calls `pause` now, and `resume` in a later turn."""
        self._left -= size
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)
        if self._left < 0:
            pause()
            self._waiting.append(resume)

    def _next(self) -> None:
        self._left = _TURN
        for _ in range(min(_AT_ONCE, len(self._waiting))):
            self._waiting.popleft()()
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._next)


TICK = 0.5
"""Seconds between two checks. No client is cut off early: a timeout counts as passed one tick late."""

_PER_ADDRESS = 64
SPARE = 32
"""Connections beyond the limit, which answer health and the operator's pages, and nothing else."""

_HEAD_SECONDS = 1.0
"""A head usually arrives in one piece. A connection that has waited this long for its head gives way to new ones."""

_AT_A_TIME = 64

Waiting = Literal["rest", "head", "body"]
"""What a connection waits for: the beginning of a request, the rest of its head, the rest of its body."""


class MonitoredConnection(Protocol):
    """A connection, as the monitor sees it."""

    def check(self, now: float) -> None:
        """Act on whatever is overdue."""
        ...

    @property
    def idle_since(self) -> float | None:
        """Since when it waits for a head, with nothing to answer; `None` if it does not."""
        ...

    @property
    def has_half_a_head(self) -> bool:
        """Whether a head has begun and not ended."""
        ...

    def make_way(self) -> None:
        """Close, to make room for a new connection."""
        ...


class Neighbours(Protocol):
    """The connections that other fronts of the same service have."""

    def elsewhere(self, address: str) -> int:
        """How many of an address are there."""
        ...

    def left(self, address: str) -> None:
        """One of that address has been closed here."""
        ...


class ConnectionMonitor:
    """Checks all connections for timeouts, and counts them. `now` is the loop's time at the last check."""

    def __init__(
        self,
        limits: Settings,
        *,
        connections: int,
        stands_for_others: Callable[[str], bool] = lambda _: False,
        neighbours: Neighbours | None = None,
    ) -> None:
        """`connections`: the limit on open connections. `stands_for_others`: whether an address is a proxy's.
        `neighbours`: where a front is one of several."""
        self.limits = limits
        self._neighbours = neighbours
        self._stands_for_others = stands_for_others
        self.connections = connections
        self.now = 0.0
        self.small_head = min(limits.max_request_line, limits.max_header_bytes, limits.max_headers_bytes)
        """Bytes: a head up to this size is within every limit except that on the number of headers."""
        self.turns = Turns()
        self._by_address: Counter[str] = Counter()
        self._connections: Callable[[], Collection[MonitoredConnection]] = list
        self._spares: dict[MonitoredConnection, None] = {}  # in order of arrival
        self._idle: list[MonitoredConnection] = []  # as of `_idle_at`; the last one makes way first
        self._idle_at = -1.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, connections: Callable[[], Collection[MonitoredConnection]]) -> None:
        """Check these connections from now on, on the running loop."""
        loop = asyncio.get_running_loop()
        self._connections = connections

        def check() -> None:
            self.now = loop.time()
            self._timer = loop.call_later(TICK, check)
            some(list(connections()))

        def some(left: list[MonitoredConnection]) -> None:
            """Check a few at a time, so that prompt clients do not wait while a thousand others are refused."""
            here = connections()
            for each in left[-_AT_A_TIME:]:
                if each in here:
                    each.check(self.now)
            del left[-_AT_A_TIME:]
            if left:
                loop.call_soon(some, left)

        check()

    def stop(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()

    def enter(self, address: str) -> bool:
        """Count a connection. False if there are too many from that address. Call `leave` for it in either case."""
        self._by_address[address] += 1
        most = self.limits.max_connections_per_address
        if most is None:
            most = 0 if _is_loopback(address) or self._stands_for_others(address) else _PER_ADDRESS
        elsewhere = 0 if self._neighbours is None or not most else self._neighbours.elsewhere(address)
        return not most or self._by_address[address] + elsewhere <= most

    def make_room(self) -> bool:
        """Close a connection that takes a place without sending a request; false if there is none.

        First those with an unfinished head, the oldest first; then idle ones, the oldest first.
        """
        if self._idle_at != self.now:  # once between two checks: so a flood of new connections costs no more
            waiting = [
                (not each.has_half_a_head, since, each)
                for each in self._connections()
                if (since := each.idle_since) is not None and self.now - since >= _HEAD_SECONDS
            ]
            waiting.sort(key=lambda found: found[:2], reverse=True)
            self._idle, self._idle_at = [each for _, _, each in waiting], self.now
        while self._idle:
            each = self._idle.pop()
            if each in self._connections() and each.idle_since is not None and each not in self._spares:
                each.make_way()
                return True
        return False

    def spare(self, newcomer: MonitoredConnection) -> bool:
        """Make `newcomer` a spare connection. False if all of them are busy.

        If all are taken, the oldest that still waits for a head makes way, however new it is: a health check sends its
        request at once.
        """
        if len(self._spares) >= SPARE:
            oldest = next((each for each in self._spares if each.idle_since is not None), None)
            if oldest is None:
                return False
            del self._spares[oldest]
            oldest.make_way()
        self._spares[newcomer] = None
        return True

    def leave(self, address: str, connection: MonitoredConnection) -> None:
        """Count a connection out."""
        self._spares.pop(connection, None)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
        if self._neighbours is not None:
            self._neighbours.left(address)


class ReadTimeout:
    """What a connection waits for from its client, and since when."""

    __slots__ = ("_limits", "arrived", "since", "waiting")

    def __init__(self, monitor: ConnectionMonitor) -> None:
        self._limits = monitor.limits
        self.waiting: Waiting = "rest"
        self.since = monitor.now
        self.arrived = 0  # bytes of the body since then

    def overdue(self, now: float) -> bool:
        """Whether the client has used up its time. For a body the time starts anew when enough bytes arrived."""
        passed = now - self.since - TICK
        limits = self._limits
        if self.waiting == "rest":
            return passed > limits.idle_timeout
        if self.waiting == "head":
            return passed > limits.header_timeout
        if passed <= limits.body_timeout:
            return False
        if self.arrived < limits.min_body_rate * limits.body_timeout:
            return True
        self.again(now)
        return False

    def waits_for_head(self, now: float) -> bool:
        """Whether the client has taken longer over a head than usual (`_HEAD_SECONDS`)."""
        return self.waiting != "body" and now - self.since - TICK > _HEAD_SECONDS

    def again(self, now: float) -> None:
        """Start the client's time anew."""
        self.since, self.arrived = now, 0


class WriteTimeout:
    """Whether a client reads its answer."""

    __slots__ = ("_left", "_limits", "_since")

    def __init__(self, monitor: ConnectionMonitor) -> None:
        self._limits = monitor.limits
        self._since: float | None = None
        self._left = 0

    def overdue(self, left: int, now: float) -> bool:
        """Whether the `left` unsent bytes have been waiting too long. Call it at every check."""
        if not left:
            self._since = None
            return False
        if self._since is None:
            self._since, self._left = now, left
            return False
        if now - self._since - TICK <= self._limits.write_timeout:
            return False
        if self._left - left < self._limits.min_body_rate * self._limits.write_timeout:
            return True
        self._since, self._left = now, left
        return False


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:  # a client without an address, over a Unix socket
        return True
