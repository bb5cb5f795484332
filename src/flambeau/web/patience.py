"""How long a client may take, and how many may be there: a look at every connection twice a second, and no timers.

It knows no HTTP; a connection tells it what it waits for.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import Literal, Protocol

from flambeau.config import Settings

TICK = 0.5
"""Seconds between two looks. Nobody is cut off early: a time has passed when it has for sure."""

_PER_ADDRESS = 64
_AT_A_TIME = 64

Waiting = Literal["rest", "head", "body"]
"""What a connection waits for: a request to begin, its head to be whole, its body to be whole."""


class Watched(Protocol):
    """A connection, as far as patience goes."""

    def look(self, now: float) -> None:
        """Act on what is overdue."""
        ...


class Watch:
    """The clock of all connections, which is read and not asked, and who is connected from where."""

    def __init__(self, limits: Settings) -> None:
        self.limits = limits
        self.now = 0.0
        self.small_head = min(limits.max_request_line, limits.max_header_bytes, limits.max_headers_bytes)
        """Bytes: a head of no more is within every limit but that of the number of headers."""
        self._by_address: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, connections: Callable[[], Collection[Watched]]) -> None:
        """Look at these from now on, on the running loop."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            self.now = loop.time()
            self._timer = loop.call_later(TICK, look)
            some(list(connections()))

        def some(left: list[Watched]) -> None:
            """In parts, for those who are there in time are not to wait until a thousand others are refused."""
            here = connections()
            for each in left[-_AT_A_TIME:]:
                if each in here:
                    each.look(self.now)
            del left[-_AT_A_TIME:]
            if left:
                loop.call_soon(some, left)

        look()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def enter(self, address: str) -> bool:
        """Count a connection: false when there are too many from there. `leave` is called for either."""
        self._by_address[address] += 1
        most = self.limits.max_connections_per_address
        if most is None:
            most = 0 if _is_loopback(address) else _PER_ADDRESS
        return not most or self._by_address[address] <= most

    def leave(self, address: str) -> None:
        """One connection less."""
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class Reading:
    """What a connection waits for from its client, and since when."""

    __slots__ = ("_limits", "arrived", "since", "waiting")

    def __init__(self, watch: Watch) -> None:
        self._limits = watch.limits
        self.waiting: Waiting = "rest"
        self.since = watch.now
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

    def again(self, now: float) -> None:
        """Its time begins now."""
        self.since, self.arrived = now, 0


class Writing:
    """Whether a client reads what it is sent."""

    __slots__ = ("_left", "_limits", "_since")

    def __init__(self, watch: Watch) -> None:
        self._limits = watch.limits
        self._since: float | None = None
        self._left = 0

    def overdue(self, left: int, now: float) -> bool:
        """Whether so many bytes that are `left` have been waiting too long. To be asked at every look."""
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
