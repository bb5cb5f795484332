"""Time limits for what happens elsewhere while this loop may stand still: they end nothing that the loop has not had
time to hear of.

When a front goes on after it was stopped (SIGSTOP, a paused machine, a step that blocked the loop), all its timers are
overdue at once, while the answers that came meanwhile lie unread in the sockets; and where the machine was paused, its
workers have stood as long. So what is counted is not the clock's seconds but those that the loop was awake.
"""

import asyncio
from collections.abc import Callable

_TICK = 0.25  # seconds; a standing loop uses up one of them, however long it stands
_LAST_TURNS, _TURN = 4, 0.02  # turns of the loop in which it may yet read an answer, and seconds between them


class Watchdog:
    """Calls `bite` on the loop when it has been awake for so many seconds, unless it is cancelled before.

    Then it gives the loop a few turns more to read what has come: 0 seconds are these turns alone.
    """

    __slots__ = ("_bite", "_handle", "_left", "_loop", "_turns")

    def __init__(self, seconds: float, bite: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = seconds
        self._turns = _LAST_TURNS
        self._bite = bite
        self._look()

    def cancel(self) -> None:
        """Never bite."""
        self._handle.cancel()

    def _look(self) -> None:
        tick = min(self._left, _TICK)
        if tick > 0:
            self._left -= tick  # and not by the time that it will have taken
        elif self._turns > 0:
            self._turns -= 1
            tick = _TURN
        else:
            self._bite()
            return
        self._handle = self._loop.call_later(tick, self._look)
