"""A coroutine that begins at once, on its caller's stack, and goes on whenever what it waits for is there: no task.

A task begins a turn of the loop later, with a handle, a context and an entry in a set, which is much beside a request
that takes microseconds. What runs here has no current task, so it may not use what needs one (`asyncio.timeout`,
`asyncio.TaskGroup`); whoever does waits for a task of its own. It knows no request.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Eager(Generic[T]):
    """A coroutine under way on the running loop. `ended` is called once, with the coroutine's result or its error.

    Example: `Eager(answer(request), send)` calls `send(answer, None)` before it returns if nothing had to be
    waited for, and otherwise in the turn in which the last thing came.
    """

    __slots__ = ("_cancelled", "_coroutine", "_ended", "_waits_for")

    def __init__(
        self, coroutine: Coroutine[Any, Any, T], ended: Callable[[T | None, BaseException | None], None]
    ) -> None:
        self._coroutine = coroutine
        self._ended = ended
        self._waits_for: asyncio.Future[Any] | None = None
        self._cancelled = False
        self._step()

    def cancel(self) -> None:
        """Cancel what it waits for, as a task does: the coroutine gets the `CancelledError` in a later turn."""
        self._cancelled = True
        if self._waits_for is not None:
            self._waits_for.cancel()

    def _step(self, _: object = None) -> None:
        """Run until it waits for something."""
        self._waits_for = None
        try:
            if self._cancelled:
                self._cancelled = False
                wanted = self._coroutine.throw(asyncio.CancelledError())
            else:
                wanted = self._coroutine.send(None)
        except StopIteration as end:
            self._ended(end.value, None)
        except BaseException as error:
            self._ended(None, error)
        else:
            if wanted is None:  # `asyncio.sleep(0)`: a turn of the loop
                asyncio.get_running_loop().call_soon(self._step)
            else:
                wanted._asyncio_future_blocking = False  # as a task says that it took the future
                self._waits_for = wanted
                wanted.add_done_callback(self._step)
