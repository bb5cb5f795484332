"""How much of bodies is read in one turn of the loop, by all connections together.

A socket that is full is read thirty-two times in a row before anybody else has a turn, which is milliseconds; several
of them are tens. So who has more than fits into this turn is read on in a later one, a few at a time, in order.
"""

import asyncio
from collections import deque
from collections.abc import Callable

_TURN = 512 * 1024  # bytes: far less than a millisecond
_AT_ONCE = 4  # connections, each of which may read a quarter before it is asked to wait again

Step = Callable[[], None]


class Turns:
    """The turns of one loop."""

    def __init__(self) -> None:
        self._left = _TURN
        self._waiting: deque[Step] = deque()
        self._scheduled = False

    def took(self, size: int, *, pause: Step, resume: Step) -> None:
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
