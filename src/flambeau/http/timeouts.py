"""How long a client may take, and how many may be there: a check of every connection twice a second, and no timers.

It knows no HTTP; a connection tells it what it waits for.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import Literal, Protocol

from flambeau.settings.service import Settings

# How much of bodies is read in one turn of the loop, by all connections together.
#
# A socket that is full is read thirty-two times in a row before anybody else has a turn, which is milliseconds; several
# of them are tens. So who has more than fits into this turn is read on in a later one, a few at a time, in order.

_TURN = 512 * 1024  # bytes: far less than a millisecond
_AT_ONCE = 4  # connections, each of which may read a quarter before it is asked to wait again

TurnStep = Callable[[], None]


class Turns:
    """The turns of one loop."""

    def __init__(self) -> None:
        self._left = _TURN
        self._waiting: deque[TurnStep] = deque()
        self._scheduled = False

    def took(self, size: int, *, pause: TurnStep, resume: TurnStep) -> None:
        """So many bytes were read. `pause` is called where that was enough, and `resume` when its turn comes again."""
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
"""Seconds between two checks. Nobody is cut off early: a time has passed when it has for sure."""

_PER_ADDRESS = 64
SPARE = 32
"""Connections beyond the limit, over which health and the operator's pages are answered, and nothing else."""

_HEAD_SECONDS = 1.0
"""A head comes in one piece, as a rule. Where others wait, a connection that has had so long for its head makes way."""

_AT_A_TIME = 64

Waiting = Literal["rest", "head", "body"]
"""What a connection waits for: a request to begin, its head to be whole, its body to be whole."""


class MonitoredConnection(Protocol):
    """A connection, as the monitor sees it."""

    def check(self, now: float) -> None:
        """Act on what is overdue."""
        ...

    @property
    def idle_since(self) -> float | None:
        """Since when it waits for a head with nothing to answer; `None` where that is not so."""
        ...

    @property
    def has_half_a_head(self) -> bool:
        """Whether a head has begun, and has not ended."""
        ...

    def make_way(self) -> None:
        """End, for another."""
        ...


class ConnectionMonitor:
    """The clock of all connections, which is read and not asked, and who is connected from where."""

    def __init__(self, limits: Settings, *, connections: int) -> None:
        """`connections`: the most that there may be."""
        self.limits = limits
        self.connections = connections
        self.now = 0.0
        self.small_head = min(limits.max_request_line, limits.max_header_bytes, limits.max_headers_bytes)
        """Bytes: a head of no more is within every limit but that of the number of headers."""
        self.turns = Turns()
        self._by_address: Counter[str] = Counter()
        self._connections: Callable[[], Collection[MonitoredConnection]] = list
        self._spares: dict[MonitoredConnection, None] = {}  # in the order in which they came
        self._idle: list[MonitoredConnection] = []  # at the last check; the next to make way is the last
        self._idle_at = -1.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, connections: Callable[[], Collection[MonitoredConnection]]) -> None:
        """Check these from now on, on the running loop."""
        loop = asyncio.get_running_loop()
        self._connections = connections

        def check() -> None:
            self.now = loop.time()
            self._timer = loop.call_later(TICK, check)
            some(list(connections()))

        def some(left: list[MonitoredConnection]) -> None:
            """In parts, for those who are there in time are not to wait until a thousand others are refused."""
            here = connections()
            for each in left[-_AT_A_TIME:]:
                if each in here:
                    each.check(self.now)
            del left[-_AT_A_TIME:]
            if left:
                loop.call_soon(some, left)

        check()

    def stop(self) -> None:
        """Check no more."""
        if self._timer is not None:
            self._timer.cancel()

    def enter(self, address: str) -> bool:
        """Count a connection: false when there are too many from there. `leave` is called for either."""
        self._by_address[address] += 1
        most = self.limits.max_connections_per_address
        if most is None:
            most = 0 if _is_loopback(address) else _PER_ADDRESS
        return not most or self._by_address[address] <= most

    def make_room(self) -> bool:
        """End a connection that holds a place and asks for nothing; false when there is none.

        First those whose head does not end, the oldest first; then idle ones, which may be in the middle of nothing.
        """
        if self._idle_at != self.now:  # once between two checks: a flood of newcomers is not to cost more than they do
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
        """Give it a spare connection: false when all of them are at work.

        Where one still waits for its head, it makes way, however short it was there: who asks for health asks at once.
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
        """One connection less."""
        self._spares.pop(connection, None)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class ReadTimeout:
    """What a connection waits for from its client, and since when."""

    __slots__ = ("_limits", "arrived", "since", "waiting")

    def __init__(self, monitor: ConnectionMonitor) -> None:
        self._limits = monitor.limits
        self.waiting: Waiting = "rest"
        self.since = monitor.now
        self.arrived = 0  # bytes of the body since then

    def overdue(self, now: float) -> bool:
        """Whether the client has had its time. A body's begins anew when enough of it came."""
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
        """Whether a head, or its end, has not come for as long as others need."""
        return self.waiting != "body" and now - self.since - TICK > _HEAD_SECONDS

    def again(self, now: float) -> None:
        """Its time begins now."""
        self.since, self.arrived = now, 0


class WriteTimeout:
    """Whether a client reads what it is sent."""

    __slots__ = ("_left", "_limits", "_since")

    def __init__(self, monitor: ConnectionMonitor) -> None:
        self._limits = monitor.limits
        self._since: float | None = None
        self._left = 0

    def overdue(self, left: int, now: float) -> bool:
        """Whether so many bytes that are `left` have been waiting too long. To be asked at every check."""
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
