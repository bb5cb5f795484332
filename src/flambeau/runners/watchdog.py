"""Time limits that count only the seconds in which the loop was awake, so that a stalled loop blames nobody.

When a front resumes after a stop (SIGSTOP, a paused machine, a step that blocked the loop), all its timers are overdue
at once, while the answers that came meanwhile lie unread in the sockets. If the machine was paused, the workers stood
still as long. So the limit does not run on the clock's seconds.
"""

import asyncio
from collections.abc import Callable

_TICK = 0.25  # seconds; a stalled loop uses up one tick, however long it stalls
_LAST_TURNS, _TURN = 4, 0.02  # extra turns of the loop in which it may still read an answer, and seconds between them


class Watchdog:
    """Calls `bite` once the loop has been awake for `seconds`, unless cancelled before.

    Before it bites, the loop gets a few more turns to read what has arrived. 0 seconds means these turns alone.
    """

    __slots__ = ("_bite", "_handle", "_left", "_loop", "_turns")

    def __init__(self, seconds: float, bite: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = seconds
        self._turns = _LAST_TURNS
        self._bite = bite
        self._look()

    def cancel(self) -> None:
        """Do not bite any more."""
        self._handle.cancel()

    def _look(self) -> None:
        tick = min(self._left, _TICK)
        if tick > 0:
            self._left -= tick  # not the time that really passes until the next look
        elif self._turns > 0:
            self._turns -= 1
            tick = _TURN
        else:
            self._bite()
            return
        self._handle = self._loop.call_later(tick, self._look)
